"""Expired connections deleted, a part of a large table at a time."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from reconciler.errors import KernelError
from reconciler.kernel import bpf, layout
from reconciler.kernel.codec import C
from reconciler.kernel.connections import Ended, delete, none_at_all, together, told
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
from reconciler.kernel.maps import Map, Maps
from reconciler.kernel.scan import Position, step
from reconciler.kernelclock import monotonic_ns

AT_ONCE: Final = 1 << 18
"""So many entries of each family are looked at in one go: a fifth of a second."""
_TAKEN_ON_TRUST: Final = 5  # so many times tables are taken to be empty still, before they are looked at again


@dataclass(slots=True)
class Sweeper:
    """Goes through the tables again and again, some entries further with each :meth:`sweep`."""

    positions: dict[int, Position] = field(default_factory=lambda: {version: Position() for version in VERSIONS})
    _handled: bytes = b""  # what the programs had counted when there was no entry
    _trusted: int = 0

    def needless(self, maps: Maps) -> bool:
        """There is no entry. To look for one takes all buckets; so tables that were empty are taken to be so while the
        programs have handled no packet since (every one is counted). The maps need not be open. Raises
        :class:`KernelError`."""
        handled = _handled(maps)
        if handled and handled == self._handled and self._trusted < _TAKEN_ON_TRUST:
            self._trusted += 1
            return True
        self._trusted = 0
        empty = none_at_all(maps)
        self._handled = handled if empty else b""
        return empty

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
            for keys, values in step(maps[f"connection{version}"], self.positions[version], at_once)
        )


def _handled(maps: Maps) -> bytes:
    """What the programs have counted, on each CPU, and in which map; empty where there is none."""
    try:
        counts = Map(layout.MAPS["outcome"], bpf.obj_get(str(maps.directory / "outcome")), maps.gateway)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        return b""
    try:
        return bpf.map_info(counts.fd).id.to_bytes(4, "little") + counts.items()[1].tobytes()
    finally:
        counts.close()


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
