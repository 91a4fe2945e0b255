"""Real clients that run in a namespace from within this process."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import random
import socket
import threading
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from netlab.namespace import Namespace
from netlab.wait import PATIENCE

IPAddress = IPv4Address | IPv6Address
Address = tuple[IPAddress | str, int]
CHUNK = 65536


def connect(
    namespace: Namespace,
    to: Address,
    *,
    source: Address | None = None,
    kind: int = socket.SOCK_STREAM,
    timeout_sec: float = 10.0,
) -> socket.socket:
    """A connected socket of ``namespace``; ``source``: local address and port (0: any).

    Raises :class:`OSError` where connecting fails.
    """
    family = socket.AF_INET6 if ":" in str(to[0]) else socket.AF_INET
    connection = namespace.socket(family, kind)
    try:
        connection.settimeout(timeout_sec * PATIENCE)
        if source is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            connection.bind((str(source[0]), source[1]))
        connection.connect((str(to[0]), to[1]))
    except OSError:
        connection.close()
        raise
    return connection


@dataclass(frozen=True, slots=True)
class EchoResult:
    """What came of an echo: SHA-256 of what was sent and of what came back, and how long it took."""

    sent: str
    received: str
    received_bytes: int
    seconds: float

    @property
    def intact(self) -> bool:
        """Whether everything came back unchanged."""
        return self.sent == self.received


def echo_tcp(
    namespace: Namespace,
    to: Address,
    size_bytes: int,
    *,
    source: Address | None = None,
    seed: int = 0,
    timeout_sec: float = 60.0,
) -> EchoResult:
    """Send ``size_bytes`` of random data (the same for the same ``seed``) to a TCP echo server and read it back.

    Raises :class:`OSError` (:class:`TimeoutError` included) if the connection fails or stalls.
    """
    payload = random.Random(seed).randbytes(size_bytes)
    received, count, started = hashlib.sha256(), 0, time.monotonic()
    failures: list[OSError] = []
    with connect(namespace, to, source=source, timeout_sec=timeout_sec) as connection:

        def send() -> None:
            try:
                connection.sendall(payload)
                connection.shutdown(socket.SHUT_WR)
            except OSError as error:
                failures.append(error)

        sender = threading.Thread(target=send, name="echo-sender")
        sender.start()
        try:
            while chunk := connection.recv(CHUNK):
                received.update(chunk)
                count += len(chunk)
        except OSError:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # ends the sender too
            raise
        finally:
            sender.join()
    if failures:
        raise failures[0]
    return EchoResult(hashlib.sha256(payload).hexdigest(), received.hexdigest(), count, time.monotonic() - started)


def ask_udp(
    namespace: Namespace, to: Address, payload: bytes = b"", *, source: Address | None = None, timeout_sec: float = 2.0
) -> str:
    """Send one datagram and return the answer's text. Raises :class:`OSError`; :class:`TimeoutError` if none comes."""
    with connect(namespace, to, source=source, kind=socket.SOCK_DGRAM, timeout_sec=timeout_sec) as connection:
        connection.send(payload)
        return connection.recv(65535).decode(errors="replace")


def http_connection(
    namespace: Namespace, to: Address, *, source: Address | None = None, timeout_sec: float = 10.0
) -> http.client.HTTPConnection:
    """A connected HTTP/1.1 connection of ``namespace`` that stays open over several requests; close it after use."""
    connection = http.client.HTTPConnection(str(to[0]), to[1], timeout=timeout_sec)
    connection.sock = connect(namespace, to, source=source, timeout_sec=timeout_sec)
    return connection
