"""What happened, for whoever follows: a bounded memory of events, numbered, that any thread may add to or wait on."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

MEMORY: Final = 4096
"""So many events are remembered; who reads too slowly is told how many were lost."""


@dataclass(frozen=True, slots=True)
class Event:
    """``number`` counts from 1 without gaps; ``time_ns`` since the epoch; ``kind``: e.g. config_applied, target_down,
    drift_repaired, connection_closed; ``fields``: JSON values, different for each kind."""

    number: int
    time_ns: int
    kind: str
    fields: dict[str, Any] = field(default_factory=dict)


class Events:
    """Thread-safe. Adding never waits for a reader."""

    def __init__(self, memory: int = MEMORY) -> None:
        self._kept: deque[Event] = deque(maxlen=memory)
        self._last = 0
        self._added = threading.Condition()

    def publish(self, kind: str, /, **fields: Any) -> None:
        """Add an event that happens now."""
        with self._added:
            self._last += 1
            self._kept.append(Event(self._last, time.time_ns(), kind, fields))
            self._added.notify_all()

    @property
    def last(self) -> int:
        """Number of the latest event, 0 before the first."""
        return self._last

    def after(self, number: int, timeout_sec: float = 0.0) -> tuple[tuple[Event, ...], int]:
        """The remembered events that came after event ``number``, waiting up to ``timeout_sec`` for one; and how many
        of them are forgotten already."""
        with self._added:
            if self._last <= number and timeout_sec > 0:
                self._added.wait_for(lambda: self._last > number, timeout_sec)
            found = tuple(event for event in self._kept if event.number > number)
        lost = max(0, self._last - number - len(found)) if self._last > number else 0
        return found, lost
