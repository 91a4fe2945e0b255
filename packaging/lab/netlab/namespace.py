"""One network namespace: run commands in it, open sockets in it, read and write its kernel settings.

Commands enter with nsenter, not with ``ip netns exec``: that one mounts another /sys, and the BPF file system below
it would be out of sight.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from netlab.wait import PATIENCE

T = TypeVar("T")

NETNS_DIRECTORY = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

# Where the kernel counts packets with a bad checksum, by file in /proc/net.
_CHECKSUM_COUNTERS = {
    "snmp": {"Tcp": "InCsumErrors", "Udp": "InCsumErrors", "Icmp": "InCsumErrors"},
    "netstat": {"IpExt": "InCsumErrors"},
}
_CHECKSUM_COUNTERS6 = ("Udp6InCsumErrors", "Icmp6InCsumErrors")


class CommandError(RuntimeError):
    """A command ended with another status than 0; the text holds what it printed."""

    def __init__(self, command: Iterable[str], result: subprocess.CompletedProcess[str], where: str) -> None:
        self.result = result
        printed = (result.stdout + result.stderr).strip()
        super().__init__(f"{' '.join(command)} in {where}: status {result.returncode}: {printed}")


def namespace_names(prefix: str = "") -> list[str]:
    """The named network namespaces of this host that start with ``prefix``, sorted."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(path.name for path in NETNS_DIRECTORY.iterdir() if path.name.startswith(prefix))
    return []


class Namespace:
    """A handle on the namespace called ``name``, which need not exist yet."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Namespace({self.name!r})"

    @property
    def path(self) -> Path:
        """Its file, as nsenter and setns want it."""
        return NETNS_DIRECTORY / self.name

    def create(self) -> None:
        """Make it, with the loopback interface up, no forwarding, and IPv6 addresses usable at once."""
        _host("ip", "netns", "add", self.name)
        self.write_sysctls(
            {
                "net/ipv6/conf/all/accept_dad": "0",
                "net/ipv6/conf/default/accept_dad": "0",
                # IPv4 settings of a new namespace are copies of the host's
                "net/ipv4/ip_forward": "0",
                "net/ipv4/conf/all/rp_filter": "0",
                "net/ipv4/conf/default/rp_filter": "0",
            }
        )
        self.ip("link set lo up")

    def delete(self) -> None:
        """Remove its name; it goes with its last process and socket. Nothing happens if there is none."""
        if self.path.exists():
            _host("ip", "netns", "delete", self.name)

    def command(self, *argv: str | Path) -> list[str]:
        """``argv`` as a command line that runs in this namespace."""
        return ["nsenter", f"--net={self.path}", "--", *map(str, argv)]

    def run(
        self,
        *argv: str | Path,
        check: bool = True,
        timeout_sec: float = 30.0,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here and wait for it. ``env`` is added to the environment.

        Raises :class:`CommandError` if it fails and ``check`` is set, :class:`subprocess.TimeoutExpired` (the
        command is killed) if it takes too long.
        """
        result = subprocess.run(
            self.command(*argv),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_sec * PATIENCE,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            check=False,
        )
        if check and result.returncode:
            raise CommandError([str(word) for word in argv], result, self.name)
        return result

    def ip(self, *lines: str) -> None:
        """Carry out ``ip`` commands (each a line as one would type it after ``ip``), in one process."""
        text = "\n".join(lines) + "\n"
        try:
            self.run("ip", "-batch", "-", stdin=text)
        except CommandError as error:
            raise CommandError(["ip", "-batch", "-", "<<", text.strip()], error.result, self.name) from None

    def ip_json(self, *words: str) -> list[dict[str, Any]]:
        """What ``ip -json`` says, e.g. ``ip_json("-details", "link", "show")``."""
        answer = self.run("ip", "-json", *words).stdout
        return list(json.loads(answer or "[]"))

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Call ``function`` in a thread of its own that has entered this namespace; the caller's thread stays.

        Sockets made there stay in the namespace. For files below /proc/net use /proc/thread-self/net.
        """
        answers: list[T] = []
        failures: list[BaseException] = []

        def body() -> None:
            try:
                with self.path.open("rb") as file:
                    if _libc.setns(file.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), f"setns {self.name}")
                answers.append(function(*arguments))
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=body, name=f"in-{self.name}")
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
        return answers[0]

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A socket of this namespace, for use from anywhere."""
        return self.call(socket.socket, family, kind, protocol)

    def read_sysctl(self, name: str) -> str:
        """The value of e.g. ``net/ipv4/ip_forward``."""
        return self.call(lambda: Path("/proc/sys", name).read_text().strip())

    def write_sysctls(self, values: Mapping[str, str]) -> None:
        """Set several, in order."""

        def write() -> None:
            for name, value in values.items():
                Path("/proc/sys", name).write_text(value)

        self.call(write)

    def forwarding(self) -> dict[str, str]:
        """Every forwarding setting, by sysctl name."""

        def read() -> dict[str, str]:
            root = Path("/proc/sys")
            files = sorted(root.glob("net/ipv[46]/conf/*/forwarding"))
            return {str(file.relative_to(root)): file.read_text().strip() for file in files}

        return self.call(read)

    def leniency(self) -> dict[str, str]:
        """Every setting that lets addresses pass which otherwise would not, by sysctl name."""

        def read() -> dict[str, str]:
            root = Path("/proc/sys")
            names = ("accept_local", "arp_announce", "route_localnet", "rp_filter")
            patterns = (*(f"ipv4/conf/*/{name}" for name in names), "ipv6/conf/*/force_forwarding")
            files = sorted(file for pattern in patterns for file in root.glob(f"net/{pattern}"))
            return {str(file.relative_to(root)): file.read_text().strip() for file in files}

        return self.call(read)

    def checksum_errors(self) -> dict[str, int]:
        """How many packets arrived here with a bad checksum, by counter: IP header, TCP (both families), UDP, ICMP."""
        return self.call(_read_checksum_errors)

    def counters(self, interface: str) -> dict[str, int]:
        """An interface's statistics: rx_packets, rx_bytes, rx_dropped, tx_packets, ..."""
        link = self.ip_json("-statistics", "link", "show", "dev", interface)[0]["stats64"]
        return {f"{way}_{what}": number for way in ("rx", "tx") for what, number in link[way].items()}


def _read_checksum_errors() -> dict[str, int]:
    found: dict[str, int] = {}
    net = Path("/proc/thread-self/net")
    for file, wanted in _CHECKSUM_COUNTERS.items():
        lines = (net / file).read_text().splitlines()
        for heads, numbers in zip(lines[::2], lines[1::2], strict=True):
            table, *names = heads.split()
            values = dict(zip(names, numbers.split()[1:], strict=True))
            if counter := wanted.get(table.rstrip(":")):
                found[table.rstrip(":")] = int(values[counter])
    for line in (net / "snmp6").read_text().splitlines():
        name, number = line.split()
        if name in _CHECKSUM_COUNTERS6:
            found[name.removesuffix("InCsumErrors")] = int(number)
    return found


def _host(*argv: str) -> None:
    """Run a command outside of all namespaces."""
    result = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    if result.returncode:
        raise CommandError(argv, result, "the host")
