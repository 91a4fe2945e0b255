"""Connections opened and closed, as the kernel tells of them, in the words of events."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from reconciler.daemon import conntext
from reconciler.daemon.conntext import CLOSED, COUNTERS, ENDS, OPENED, REASONS, endpoints
from reconciler.kernel.arrays import Array, join
from reconciler.kernel.codec import PROTOCOLS, C
from reconciler.kernel.conntable import proxy_name
from reconciler.kernelclock import monotonic_ns

_SAME_CLOCK_NS: Final = 1_000_000


class ConnectionBatch:
    """A :class:`reconciler.runtime.events.Batch` of records ``layout.connection_event``. ``names``: of proxies, by id;
    it may grow meanwhile."""

    def __init__(self, events: Array, names: Mapping[int, str]) -> None:
        self._events, self._names = events, names
        self._epoch_ns = time.time_ns() - monotonic_ns()

    def __len__(self) -> int:
        return len(self._events)

    def joined(self, following: ConnectionBatch) -> ConnectionBatch | None:
        """None if the clock has been set in between, or numbers may stand for others."""
        if following._names is not self._names or abs(following._epoch_ns - self._epoch_ns) > _SAME_CLOCK_NS:
            return None
        return ConnectionBatch(join((self._events, following._events), self._events), self._names)

    def rows(self, start: int, stop: int) -> Sequence[tuple[int, str, dict[str, Any]]]:
        """Times, kinds and fields. ``duration_sec`` is from the first packet to the last, or to when the connection was
        given up; bytes count from the IP header on."""
        events = self._events[start:stop]
        texts = {name: endpoints(events, name) for name in ENDS}
        columns = {
            name: events[name].tolist() for name in ("kind", "proxy", "protocol", "time_ns", "created_ns", *COUNTERS)
        }
        found = []
        for place, kind in enumerate(columns["kind"]):
            row: dict[str, Any] = {
                "proxy": proxy_name(self._names, columns["proxy"][place]),
                "protocol": str(PROTOCOLS.get(columns["protocol"][place], "tcp")),
                **{name: values[place] for name, values in texts.items()},
            }
            at = columns["time_ns"][place]
            if kind != C["EVENT_OPENED"]:
                row["reason"] = REASONS.get(kind, str(kind))
                row["duration_sec"] = round(max(0, at - columns["created_ns"][place]) / 1e9, 3)
                row.update((name, columns[name][place]) for name in COUNTERS)
            found.append((at + self._epoch_ns, OPENED if kind == C["EVENT_OPENED"] else CLOSED, row))
        return found

    def closed_lines(self, start: int, stop: int) -> list[str]:
        """A line of JSON for each connection among some of them that has ended."""
        return conntext.closed_lines(self._events[start:stop], self._names, self._epoch_ns)

    def event_lines(self, start: int, stop: int, first: int, kinds: frozenset[str], proxy: str | None) -> list[str]:
        """Some of them as lines of JSON like those of other events, numbered from ``first`` on: those of these kinds
        (none: all) and this proxy (None: all)."""
        return conntext.event_lines(self._events[start:stop], self._names, self._epoch_ns, first, kinds, proxy)


def marks(events: Array) -> list[int]:
    """A number for each connection, by its addresses, ports and birth."""
    found = np.zeros(len(events), np.uint64)
    ports = events["client_port_be"].astype(np.uint64) << np.uint64(16) | events["listen_port_be"].astype(np.uint64)
    columns = [events["created_ns"].astype(np.uint64), ports, events["protocol"].astype(np.uint64)]
    for name in ("client", "listen"):
        columns += list(np.ascontiguousarray(events[f"{name}_be"]).view(np.uint64).reshape(len(events), 2).T)
    for column in columns:
        found = (found ^ column) * np.uint64(0x9E3779B97F4A7C15)
        found ^= found >> np.uint64(29)
    return [int(mark) for mark in found.tolist()]
