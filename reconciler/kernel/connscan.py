"""Live connections gathered from a table that is read piece by piece: of a million of them no more is held than what is
asked for, and what brings their two directions together.

A connection is its client's entry, or the target's where that is all there is. An entry's partner is found by numbers
made of the keys of both; nobody outside can choose keys with the same ones, and a million connections have two that
are alike by chance once in ten million readings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from reconciler.kernel import layout
from reconciler.kernel.arrays import Array
from reconciler.kernel.codec import C
from reconciler.kernel.conntable import (
    Indexes,
    Mask,
    Table,
    expired,
    hashes,
    limits_sec,
    over,
    records,
    reverse_keys,
)
from reconciler.kernel.maps import Maps
from reconciler.kernel.scan import Column, pieces
from reconciler.state.selection import STATES

BRIEF: Final = np.dtype([("proxy", "u4"), ("target", "u4"), ("time_ns", "u8")])
"""What counting needs of ``layout.connection_event``."""

Chosen = Callable[[Array, Array], Mask]
Matching = Callable[[Array], Mask]

_ODD: Final = np.uint64(0x9E3779B97F4A7C15)
_CLOSED: Final = STATES.index("closed")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which connections are meant. ``chosen`` says it by keys and values: of both directions' entries of a connection
    or of none; None: no matter. ``matching`` says it by records; None: all that are not over. ``brief``: records are
    :data:`BRIEF`."""

    chosen: Chosen | None
    matching: Matching | None
    brief: bool = False


@dataclass(frozen=True, slots=True)
class Gathered:
    """Records of connections, and the indexes of those of them that count. ``entries``: how many the table held."""

    rows: Array
    indexes: Indexes
    entries: int


class _Entries:
    """One direction's entries: numbers for their own keys and for those of their partners."""

    def __init__(self, room: int) -> None:
        self.own, self.other = Column(np.uint64, room), Column(np.uint64, room)


def gather(
    maps: Maps,
    version: int,
    wanted: Wanted,
    settings: Any,
    now_ns: int,
    see: Callable[[Array, Array], None] = lambda _keys, _values: None,
) -> Gathered:
    """The connections of one family that are meant and not past their limits, both directions together. Records are as
    :func:`~reconciler.kernel.conntable.records` makes them. ``see`` is shown all entries on the way, some at a time."""
    table = maps.connections(version)
    room = table.max_entries // 2 + 1
    clients, targets = _Entries(room), _Entries(room)
    rows, places, limits = (
        Column(BRIEF if wanted.brief else layout.connection_event, room),
        Column(np.int64, room),
        Column(np.int64, room),
    )
    keys_of_targets = Column(table.key_dtype, room)
    used = ("last_ns",) if wanted.brief else ("last_ns", "packets", "bytes")
    reverse = {name: Column(np.uint64, room) for name in used}
    entries = 0
    for keys, values in pieces(table):
        maps.let_others()
        entries += len(keys)
        see(keys, values)
        if wanted.chosen is not None:
            here = np.flatnonzero(wanted.chosen(keys, values))
            keys, values = keys[here], values[here]
        own, other = hashes(keys), hashes(reverse_keys(keys, values))
        reply = values["c"]["flags"] & C["CONNECTION_REPLY"] != 0
        forward, back = np.flatnonzero(~reply), np.flatnonzero(reply)
        made, which = _rows(Table.alone(version, keys, values), forward, wanted)
        rows.add(made)
        places.add(which + len(clients.own))
        limits.add(limits_sec(values["c"][forward[which]], settings))
        for entry, at in ((clients, forward), (targets, back)):
            entry.own.add(own[at])
            entry.other.add(other[at])
        keys_of_targets.add(keys[back])
        for name, column in reverse.items():
            column.add(values["c"][name][back])
    peers, once, orphans = _join(clients, targets)
    live = _brought_together(rows.all, limits.all, peers[places.all], reverse, now_ns)
    live &= once[places.all]
    found = Gathered(rows.all, np.flatnonzero(live), entries)
    if len(orphans):
        more = _orphans(maps, version, keys_of_targets.all[orphans], wanted, settings, now_ns)
        joined = Column(rows.all.dtype, len(found.indexes) + len(more))
        joined.add(found.rows[found.indexes])
        joined.add(more)
        found = Gathered(joined.all, np.arange(len(joined)), entries)
    return found


def _rows(table: Table, indexes: Indexes, wanted: Wanted) -> tuple[Array, Indexes]:
    """Records of those of these entries that match, by what the one direction knows; and which of the entries they
    are."""
    if wanted.brief and wanted.matching is None:
        which = np.flatnonzero(~over(table.values["c"])[indexes])
        common = table.values["c"][indexes[which]]
        return _filled(BRIEF, proxy=common["proxy"], target=common["target"], time_ns=common["last_ns"]), which
    rows = records(table, indexes)
    matching = rows["kind"] != _CLOSED if wanted.matching is None else wanted.matching(rows)
    which = np.flatnonzero(matching)
    rows = rows[which]
    return _filled(BRIEF, **{name: rows[name] for name in BRIEF.names or ()}) if wanted.brief else rows, which


def _filled(kind: np.dtype[Any], **columns: Array) -> Array:
    found = np.empty(len(next(iter(columns.values()))), kind)
    for name, column in columns.items():
        found[name] = column
    return found


def _join(clients: _Entries, targets: _Entries) -> tuple[Indexes, Mask, Indexes]:
    """For each client's entry its partner among the targets', or -1; whether it is not there a second time; and which
    targets' entries are alone."""
    ours = clients.own.all * _ODD + clients.other.all
    theirs = targets.other.all * _ODD + targets.own.all
    order, first = _ordered(ours)
    their_order, their_first = _ordered(theirs)
    once = np.zeros(len(ours), np.bool_)
    once[order[first]] = True
    their_order = their_order[their_first]
    peers = _find(ours, order, theirs, their_order)
    alone = np.ones(len(theirs), np.bool_)
    alone[peers[peers >= 0]] = False
    without, left = np.flatnonzero(peers < 0), their_order[alone[their_order]]
    # Two listeners' connections from one client's port to one target share the target's entry.
    peers[without] = _find_few(clients.other.all[without], targets.own.all)
    return peers, once, np.sort(left[_find_few(targets.other.all[left], clients.own.all) < 0])


def _ordered(numbers: Array) -> tuple[Indexes, Mask]:
    """The places of the numbers in their order, and which of these is the first of its like."""
    order = np.argsort(numbers)
    first = np.ones(len(order), np.bool_)
    first[1:] = numbers[order[1:]] != numbers[order[:-1]]
    return order, first


def _find(wanted: Array, wanted_order: Indexes, known: Array, known_order: Indexes) -> Indexes:
    """For each wanted number the place of the same one among the known, -1 if it is not there. (Looking for numbers in
    their order goes through both only once.)"""
    result = np.full(len(wanted), -1, np.int64)
    if len(known_order) and len(wanted):
        near = np.minimum(np.searchsorted(known[known_order], wanted[wanted_order]), len(known_order) - 1)
        places = known_order[near]
        same = known[places] == wanted[wanted_order]
        result[wanted_order[same]] = places[same]
    return result


def _find_few(wanted: Array, known: Array) -> Indexes:
    """The same for numbers that nobody has brought into order."""
    if not len(wanted):
        return np.zeros(0, np.int64)
    return _find(wanted, np.argsort(wanted), known, np.argsort(known))


def _brought_together(rows: Array, limits: Array, peers: Indexes, reverse: dict[str, Column], now_ns: int) -> Mask:
    """Add to the records what the other direction says; which of them are not past their limits."""
    have = np.flatnonzero(peers >= 0)
    theirs = peers[have]
    rows["time_ns"][have] = np.maximum(rows["time_ns"][have], reverse["last_ns"].all[theirs])
    for name in reverse.keys() - {"last_ns"}:
        rows[f"{name}_reverse"][have] = reverse[name].all[theirs]
    return ~expired(rows["time_ns"].astype(np.int64), limits, now_ns)


def _orphans(maps: Maps, version: int, keys: Array, wanted: Wanted, settings: Any, now_ns: int) -> Array:
    """Records of connections of which only the targets' entries are left."""
    found, values = maps.connections(version).get_many(keys)
    table = Table.alone(version, keys[found], values[found])
    limits = limits_sec(table.values["c"], settings)
    last_ns = table.values["c"]["last_ns"].astype(np.int64)
    indexes: Indexes = np.flatnonzero(~expired(last_ns, limits, now_ns) & table.is_reply)
    return _rows(table, indexes, wanted)[0]
