"""What happened, for whoever follows: a bounded memory of events, numbered, that any thread may add to or wait on.

Events that come by the thousand (connections) are added in batches and made into :class:`Event` values only when
somebody reads them. They have a memory of their own, so that they don't push the others out.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

MEMORY: Final = 4096
"""So many events are remembered, not counting those of batches."""
BATCHED_MEMORY: Final = 200_000
"""So many events of batches are remembered at most; who reads too slowly is told how many were lost."""
_SMALL_BATCH: Final = 256
"""Batches are joined up to that many events: one by itself takes the memory of five."""


@dataclass(frozen=True, slots=True)
class Event:
    """``number`` counts from 1 without gaps; ``time_ns`` since the epoch; ``kind``: e.g. config_applied, target_down,
    drift_repaired, connection_closed; ``fields``: JSON values, different for each kind."""

    number: int
    time_ns: int
    kind: str
    fields: dict[str, Any] = field(default_factory=dict)


class Batch(Protocol):
    """Many events at once."""

    def __len__(self) -> int: ...

    def rows(self, start: int, stop: int) -> Sequence[tuple[int, str, dict[str, Any]]]:
        """Time (ns since the epoch), kind and fields of some of them."""
        ...

    def closed_lines(self, start: int, stop: int) -> list[str]:
        """Those of some of them that are told as ends of connections, as lines for the access log."""
        ...

    def event_lines(self, start: int, stop: int, first: int, kinds: frozenset[str], proxy: str | None) -> list[str]:
        """Some of them as lines of JSON, numbered from ``first`` on: of these kinds (none: all) and this proxy (None:
        all)."""
        ...

    def joined(self, following: Any) -> Batch | None:
        """This batch and the one after it as one; None if they are to stay two."""
        ...


class Events:
    """Thread-safe. Adding never waits for a reader."""

    def __init__(self, memory: int = MEMORY, batched_memory: int = BATCHED_MEMORY) -> None:
        self._kept: deque[Event] = deque(maxlen=memory)
        self._batches: deque[tuple[int, Batch]] = deque()  # with the number of its first event
        self._batched, self._most_batched = 0, batched_memory
        self._last = 0
        self._added = threading.Condition()
        self._listeners: list[Callable[[], None]] = []

    def publish(self, kind: str, /, **fields: Any) -> None:
        """Add an event that happens now."""
        with self._added:
            self._last += 1
            self._kept.append(Event(self._last, time.time_ns(), kind, fields))
            self._tell()

    def publish_batch(self, batch: Batch) -> None:
        """Add many at once, in their order."""
        if not len(batch):
            return
        with self._added:
            first = self._last + 1
            self._last += len(batch)
            self._batched += len(batch)
            self._batches.append(self._joined(first, batch))
            while len(self._batches) > 1 and self._batched > self._most_batched:
                self._batched -= len(self._batches.popleft()[1])
            self._tell()

    def _joined(self, first: int, batch: Batch) -> tuple[int, Batch]:
        """Together with the last one, if both are small and nothing came between them."""
        if self._batches:
            start, before = self._batches[-1]
            if start + len(before) == first and len(before) + len(batch) <= _SMALL_BATCH:
                both = before.joined(batch)
                if both is not None:
                    self._batches.pop()
                    return start, both
        return first, batch

    def _tell(self) -> None:
        self._added.notify_all()
        for listener in self._listeners:
            listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called after each addition, from whatever thread adds; it must return at once."""
        with self._added:
            self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        """Stop calling it."""
        with self._added:
            self._listeners.remove(listener)

    @property
    def last(self) -> int:
        """Number of the latest event, 0 before the first."""
        return self._last

    def of_kind(self, kind: str, after: int) -> list[Event]:
        """The remembered events of this kind, not of batches, that came after event number ``after``."""
        with self._added:
            return [event for event in self._kept if event.number > after and event.kind == kind]

    def after(self, number: int, timeout_sec: float = 0.0, limit: int | None = None) -> tuple[tuple[Event, ...], int]:
        """The remembered events that came after event ``number``, the first ``limit`` of them, waiting up to
        ``timeout_sec`` for one; and how many before the last of them are forgotten already."""
        pieces, missed = self.pieces(number, timeout_sec, limit)
        return tuple(event for piece in pieces for event in piece.events()), missed

    def pieces(
        self, number: int, timeout_sec: float = 0.0, limit: int | None = None
    ) -> tuple[list[Single | Slice], int]:
        """The same without a value for each event of a batch."""
        with self._added:
            if self._last <= number and timeout_sec > 0:
                self._added.wait_for(lambda: self._last > number, timeout_sec)
            found: list[Single | Slice] = [Single(event) for event in self._kept if event.number > number]
            for first, batch in self._batches:
                start = max(0, number + 1 - first)
                if start < len(batch):
                    found.append(Slice(first + start, batch, start, len(batch)))
            last = self._last
        if not found:
            return [], max(0, last - number)
        found.sort(key=lambda piece: piece.first)
        chosen, room = [], last if limit is None else limit
        for piece in found:
            if not room:
                break
            part = piece if len(piece) <= room else piece.cut(room)
            chosen.append(part)
            room -= len(part)
        count = sum(map(len, chosen))
        until = last if limit is None or count < limit else chosen[-1].last if chosen else number
        return chosen, until - number - count


@dataclass(frozen=True, slots=True)
class Single:
    """One event that is in no batch."""

    event: Event

    def __len__(self) -> int:
        return 1

    @property
    def first(self) -> int:
        """Its number."""
        return self.event.number

    last = first

    def events(self) -> tuple[Event, ...]:
        """It."""
        return (self.event,)

    def cut(self, _count: int) -> Single:
        """It can't be cut."""
        return self


@dataclass(frozen=True, slots=True)
class Slice:
    """Some events of a batch; ``first``: the number of the first of them."""

    first: int
    batch: Batch
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def last(self) -> int:
        """The number of the last of them."""
        return self.first + len(self) - 1

    def events(self) -> tuple[Event, ...]:
        """Each of them."""
        rows = self.batch.rows(self.start, self.stop)
        return tuple(Event(self.first + place, *row) for place, row in enumerate(rows))

    def cut(self, count: int) -> Slice:
        """The first ``count`` of them."""
        return Slice(self.first, self.batch, self.start, self.start + count)
