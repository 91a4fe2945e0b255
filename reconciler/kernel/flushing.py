"""Connections that are meant deleted, a part of a large table at a time: :class:`Flusher`."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from reconciler.kernel.arrays import Array
from reconciler.kernel.codec import C
from reconciler.kernel.connections import Ended, chosen_early, delete, matching, together, told
from reconciler.kernel.conntable import (
    VERSIONS,
    Indexes,
    Table,
    endings,
    proxy_names,
    records,
    reverse_keys,
    with_partners,
)
from reconciler.kernel.maps import Maps
from reconciler.kernel.scan import Position, step
from reconciler.kernelclock import monotonic_ns
from reconciler.state.selection import Query

AT_ONCE: Final = 1 << 16
"""So many entries are looked at in one go, and so many deleted: a tenth of a second."""


@dataclass(slots=True)
class _Pass:
    """One way through a family's table."""

    version: int
    orphans: bool
    position: Position = field(default_factory=Position)


class Flusher:
    """Deletes both directions of every connection that ``query`` means, expired ones included; their next packets are
    treated as a stranger's. What begins meanwhile may or may not be among them."""

    def __init__(self, query: Query) -> None:
        self._query = query
        # First by the clients' entries, then what is left: targets' entries that are all there is of a connection.
        self._left = deque(_Pass(version, orphans) for orphans in (False, True) for version in VERSIONS)

    def step(self, maps: Maps, *, at_once: int = AT_ONCE, now_ns: int | None = None) -> Ended | None:
        """Go on for some entries. None: it is done. Raises :class:`KernelError`."""
        if not self._left:
            return None
        now_ns = monotonic_ns() if now_ns is None else now_ns
        turn, names = self._left[0], proxy_names(maps)
        ended = together(
            _end(maps, *self._meant(maps, turn, keys, values, names), now_ns)
            for keys, values in step(maps.connections(turn.version), turn.position, at_once)
        )
        if turn.position.at is None:
            self._left.popleft()
        return ended

    def _meant(
        self, maps: Maps, turn: _Pass, keys: Array, values: Array, names: dict[int, str]
    ) -> tuple[Table, Indexes]:
        """The entries, and which of them stand for connections that are meant."""
        reply = values["c"]["flags"] & C["CONNECTION_REPLY"] != 0
        wanted = reply if turn.orphans else ~reply
        early = chosen_early(self._query)
        if early is not None:
            wanted &= early(keys, values)
        here = np.flatnonzero(wanted)
        table = Table.alone(turn.version, keys[here], values[here])
        indexes: Indexes = np.arange(len(here))
        indexes = indexes[matching(records(table, indexes), self._query, names)]
        if turn.orphans and len(indexes):
            partners = reverse_keys(table.keys[indexes], table.values[indexes])
            there, _ = maps.connections(turn.version).get_many(partners)
            indexes = indexes[~there]
        return table, indexes


def flush(maps: Maps, query: Query, *, now_ns: int | None = None) -> Ended:
    """All of it in one go."""
    flusher, parts = Flusher(query), list[Ended]()
    while (ended := flusher.step(maps, now_ns=now_ns)) is not None:
        parts.append(ended)
    return together(parts)


def _end(maps: Maps, table: Table, indexes: Indexes, now_ns: int) -> Ended:
    """Delete these entries and the other directions'."""
    if not len(indexes):
        return Ended()
    keys, values = table.keys[indexes], table.values[indexes]
    if not (values["c"]["flags"] & C["CONNECTION_TOLD"]).any():
        delete(maps, Table.alone(table.version, keys, values), np.arange(len(keys)))
        maps.connections(table.version).delete_many(reverse_keys(keys, values))
        return Ended(len(indexes))
    both, count = with_partners(maps, table.version, keys, values)
    delete(maps, both, np.arange(len(both.keys)))
    here = np.arange(count)
    kinds = endings(both.values["c"][here])
    # One that had ended before was not ended by this.
    ended = np.isin(kinds, (C["EVENT_FIN"], C["EVENT_RST"]))
    kinds = np.where(ended, kinds, C["EVENT_FLUSHED"])
    return Ended(len(indexes), told(both, here, records(both, here), kinds, now_ns))
