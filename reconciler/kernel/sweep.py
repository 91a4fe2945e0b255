"""Expired connections deleted, a part of a large table at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from reconciler.kernel.codec import C
from reconciler.kernel.connections import Ended, delete, together, told
from reconciler.kernel.conntable import (
    VERSIONS,
    Indexes,
    Mask,
    Table,
    active_settings,
    endings,
    expired_entries,
    hashes,
    records,
    reverse_keys,
    with_partners,
)
from reconciler.kernel.maps import Maps
from reconciler.kernel.scan import Position, step
from reconciler.kernelclock import monotonic_ns

AT_ONCE: Final = 1 << 18
"""So many entries of each family are looked at in one go: a fifth of a second."""


@dataclass(slots=True)
class Sweeper:
    """Goes through the tables again and again, some entries further with each :meth:`sweep`."""

    positions: dict[int, Position] = field(default_factory=lambda: {version: Position() for version in VERSIONS})

    def sweep(self, maps: Maps, *, at_once: int = AT_ONCE, now_ns: int | None = None) -> Ended:
        """Look at the next ``at_once`` entries of each family, or those up to the table's end, and delete what has
        expired.

        A connection that is taken up again between the reading and the deleting loses its entries; its next packet
        makes new ones, by the same choice. The programs treat an expired entry as absent anyway.
        """
        now_ns = monotonic_ns() if now_ns is None else now_ns
        settings = active_settings(maps)
        return together(
            _sweep(maps, Table.alone(version, keys, values), settings, now_ns)
            for version in VERSIONS
            for keys, values in step(maps.connections(version), self.positions[version], at_once)
        )


def _sweep(maps: Maps, table: Table, settings: Any, now_ns: int) -> Ended:
    """Delete those of these entries' connections that have expired in both directions."""
    idle = np.flatnonzero(expired_entries(table, settings, now_ns))
    if not len(idle):
        return Ended()
    both, count = with_partners(maps, table.version, table.keys[idle], table.values[idle])
    gone = expired_entries(both, settings, now_ns)
    here = np.flatnonzero(gone[:count])
    places = np.concatenate([here, _going_along(both, here, gone)])
    delete(maps, both, places)
    ended = places[both.one_each[places]]
    _, first = np.unique(hashes(both.keys[ended]), return_index=True)
    ended = ended[first]
    flagged = ended[both.values["c"]["flags"][ended] & C["CONNECTION_TOLD"] != 0]
    rows = records(both, flagged)
    return Ended(len(ended), told(both, flagged, rows, endings(both.values["c"][flagged]), now_ns))


def _going_along(table: Table, here: Indexes, gone: Mask) -> Indexes:
    """The other directions' entries that have expired as well: read later, one would seem to be all that there is of
    its connection. But not those that belong to another connection: a target's entry may be shared, and a client's
    may have been made anew."""
    partners = table.peer[here]
    here, partners = here[partners >= 0], partners[partners >= 0]
    back = hashes(reverse_keys(table.keys[partners], table.values[partners]))
    return np.asarray(partners[(back == hashes(table.keys[here])) & gone[partners]])
