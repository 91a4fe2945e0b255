"""systemd's notification protocol (sd_notify(3)): one datagram per message to the socket in NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Notifier:
    """Tells the service manager how the daemon is doing. Without one (``address`` empty) it does nothing.

    A manager that went away is no reason to stop serving: failures to send are ignored.
    """

    address: str = ""
    watchdog_sec: float = 0.0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Notifier:
        """What NOTIFY_SOCKET and WATCHDOG_USEC ask for; WATCHDOG_PID restricts the latter to one process."""
        microseconds = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog_sec = int(microseconds) / 1e6 if microseconds.isdigit() and ours else 0.0
        return cls(environ.get("NOTIFY_SOCKET", ""), watchdog_sec)

    def ready(self, status: str) -> None:
        """Start-up, or a reload, has finished."""
        self._send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def reloading(self) -> None:
        """A reload has begun; :meth:`ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The daemon is about to end."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """The watchdog's sign of life; due at least every ``watchdog_sec``."""
        if self.watchdog_sec:
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={text}")

    def _send(self, message: str) -> None:
        if not self.address:
            return
        # A leading @ stands for the zero byte of the abstract namespace.
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto(message.encode(), address)
        except OSError:
            return
