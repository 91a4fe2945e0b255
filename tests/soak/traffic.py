"""Steady traffic of the soak: connections that are held over everything that happens, and new ones all the time."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from netlab import Lab
from netlab.clients import connect

PATIENCE_SEC = 20.0
"""A held connection that says nothing for so long is lost. TCP sends again what gets lost meanwhile."""
BEAT_SEC = 0.2
FRESH_SEC = 0.02
FRESH_PATIENCE_SEC = 5.0
GRACE_SEC = 0.5
_FIRST_PORT = 10000
"""Of held connections, each of which gets a port of its own. The kernel takes those of new ones from 32768 on."""


@dataclass
class Windows:
    """Times at which somebody has taken away what new connections need: their failing then is not ours."""

    _windows: list[tuple[float, float]] = field(default_factory=list)
    _open: float | None = None

    @contextlib.contextmanager
    def excused(self) -> Iterator[None]:
        """As long as the block lasts."""
        self._open = time.monotonic()
        try:
            yield
        finally:
            self._windows.append((self._open, time.monotonic() + GRACE_SEC))
            self._open = None

    def cover(self, start: float, end: float) -> bool:
        """Whether something that took from ``start`` to ``end`` met one."""
        now_open = self._open
        windows = [*self._windows, *([(now_open, end)] if now_open is not None else [])]
        return any(start <= last and first <= end for first, last in windows)


@dataclass
class Held:
    """One held connection. ``target``: the backend that answers, which must not change."""

    listener: tuple[str, int]
    kind: socket.SocketKind
    connection: socket.socket
    opened: float
    heard: float
    sent: int = 0
    answered: int = 0
    target: str = ""
    waiting: bytes = b""


@dataclass
class Tally:
    """What came of the traffic. ``lost`` and ``failed`` in words."""

    held: int = 0
    beats: int = 0
    lost: list[str] = field(default_factory=list)
    fresh: int = 0
    failed: list[str] = field(default_factory=list)
    excused: int = 0


class Traffic:
    """Use with ``with``; :meth:`hold` and :meth:`release` from one thread."""

    def __init__(self, lab: Lab, windows: Windows, tcp: tuple[str, int], udp: tuple[str, int], seed: int) -> None:
        self.lab, self.windows, self.tally = lab, windows, Tally()
        self._tcp, self._udp = tcp, udp
        self._chance = random.Random(seed)
        self._held: list[Held] = []
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._ports = itertools.count(_FIRST_PORT)
        self._threads = [
            threading.Thread(target=self._beat, name="held"),
            threading.Thread(target=self._open_tcp, name="fresh-tcp"),
            threading.Thread(target=self._open_udp, name="fresh-udp"),
        ]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
        self.release(len(self._held))

    # -- held ----------------------------------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """How many are held."""
        return len(self._held)

    def hold(self, listener: tuple[str, int], kind: socket.SocketKind, count: int) -> None:
        """Open so many more through a listener, and keep them. Raises :class:`OSError`."""
        for _ in range(count):
            connection = self._answered(listener, kind)
            connection.setblocking(False)
            now = time.monotonic()
            with self._lock:
                self._held.append(Held(listener, kind, connection, now, now))
                self.tally.held += 1

    def _answered(self, listener: tuple[str, int], kind: socket.SocketKind) -> socket.socket:
        """A connection that is one. From a port that no other of the client's connections has: two from one port to the
        same target, by different listeners, could not be told apart, and the second is refused, as documented."""
        source = (self.lab.client4, next(self._ports))
        connection = connect(self.lab.client, listener, source=source, kind=kind, timeout_sec=FRESH_PATIENCE_SEC)
        if kind is socket.SOCK_DGRAM:
            connection.send(b"first")
            connection.recv(100)
        return connection

    def release(self, count: int) -> None:
        """End the oldest."""
        with self._lock:
            gone, self._held = self._held[:count], self._held[count:]
        for each in gone:
            each.connection.close()

    def _beat(self) -> None:
        while not self._end.wait(BEAT_SEC):
            with self._lock:
                for each in list(self._held):
                    why = self._one(each)
                    if why:
                        age = time.monotonic() - each.opened
                        where = f"{each.kind.name} by {each.listener[0]}:{each.listener[1]}"
                        self.tally.lost.append(f"{where}, {age:.0f} s old, {each.answered} answers: {why}")
                        each.connection.close()
                        self._held.remove(each)

    def _one(self, each: Held) -> str:
        """Hear what came, say something; why the connection is lost, or nothing."""
        now = time.monotonic()
        try:
            while True:
                data = each.connection.recv(65536)
                if not data and each.kind is socket.SOCK_STREAM:
                    return "the other side ended it"
                each.heard = now
                if wrong := self._understand(each, data):
                    return wrong
        except BlockingIOError:
            pass
        except OSError as error:
            return str(error)
        if now - each.heard > PATIENCE_SEC:
            return f"nothing heard for {now - each.heard:.0f} s"
        if each.kind is socket.SOCK_DGRAM or not each.waiting:
            word = b"%d\n" % each.sent
            each.sent += 1
            each.waiting += word if each.kind is socket.SOCK_STREAM else b""
            try:
                each.connection.send(word)
            except OSError as error:
                return str(error)
            self.tally.beats += 1
        return ""

    def _understand(self, each: Held, data: bytes) -> str:
        each.answered += 1
        if each.kind is socket.SOCK_STREAM:
            if not each.waiting.startswith(data):
                return f"heard {data[:40]!r} instead of {each.waiting[:40]!r}"
            each.waiting = each.waiting[len(data) :]
            return ""
        target = data.decode(errors="replace").split()[0]
        if each.target and target != each.target:
            return f"moved from {each.target} to {target}"
        each.target = target
        return ""

    # -- new all the time ----------------------------------------------------------------------------------------

    def _open_tcp(self) -> None:
        while not self._end.wait(FRESH_SEC):
            self._try(self._tcp, socket.SOCK_STREAM)

    def _open_udp(self) -> None:
        while not self._end.wait(FRESH_SEC):
            self._try(self._udp, socket.SOCK_DGRAM)

    def _try(self, listener: tuple[str, int], kind: socket.SocketKind) -> None:
        start = time.monotonic()
        try:
            with connect(self.lab.client, listener, kind=kind, timeout_sec=FRESH_PATIENCE_SEC) as connection:
                connection.send(b"hello")
                answer = connection.recv(100)
            assert b"hello" in answer, answer
        except (OSError, AssertionError) as error:
            now = time.monotonic()
            if self.windows.cover(start - GRACE_SEC, now):
                self.tally.excused += 1
            else:
                self.tally.failed.append(
                    f"{kind.name} to {listener[0]}:{listener[1]} after {now - start:.2f} s: {error}"
                )
        self.tally.fresh += 1
