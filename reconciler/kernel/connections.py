"""Live connections: listed, counted.

Times are those of CLOCK_MONOTONIC, which the programs read coarsely (``bpf_ktime_get_coarse_ns``: the same clock, up
to a tick behind). A connection that is over by FIN or RST lingers in the tables for some seconds; it is not live.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from reconciler.errors import KernelError
from reconciler.kernel import bpf, layout
from reconciler.kernel.arrays import Array
from reconciler.kernel.blocks import Blocks
from reconciler.kernel.codec import PROTOCOLS, C
from reconciler.kernel.connorder import first_of
from reconciler.kernel.connscan import Chosen, Wanted, gather
from reconciler.kernel.conntable import (
    VERSIONS,
    Indexes,
    Mask,
    Table,
    active_settings,
    endpoint,
    proxy_name,
    proxy_names,
    records,
)
from reconciler.kernel.maps import Maps
from reconciler.kernelclock import monotonic_ns
from reconciler.state.objects import Endpoint, Protocol
from reconciler.state.selection import STATES, Query

_NS: Final = 1_000_000_000
_EVERY: Final = frozenset(STATES)
_PLAIN: Final = Query()


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection, both directions together. ``proxy`` is the id's name at the time of reading, "?" and the id
    where it has none; bytes count from the IP header on."""

    proxy: str
    protocol: Protocol
    client: Endpoint
    listen: Endpoint
    target: Endpoint
    state: str
    packets_forward: int
    bytes_forward: int
    packets_reverse: int
    bytes_reverse: int
    age_sec: float
    idle_sec: float
    target_id: int
    proxy_id: int


# -- listing -------------------------------------------------------------------------------------------------


def connections(
    maps: Maps,
    query: Query = _PLAIN,
    *,
    sort: str = "age",
    limit: int | None = None,
    now_ns: int | None = None,
) -> list[Connection]:
    """The connections that are meant, sorted (one of
    :data:`~reconciler.state.selection.SORTS`; equal ones by age), at most ``limit``. What is past
    its limit counts as gone. One whose other direction was evicted is listed by what it knows."""
    found = listing(maps, query, sort=sort, limit=limit, now_ns=now_ns)
    return [_connection(row, found.names, found.now_ns) for row in found.rows[found.order]]


@dataclass(frozen=True, slots=True)
class Found:
    """Connections as ``layout.connection_event``; ``order``: the indexes of those that are meant, sorted."""

    rows: Array
    order: Indexes
    names: Mapping[int, str]
    now_ns: int


def listing(
    maps: Maps,
    query: Query = _PLAIN,
    *,
    sort: str = "age",
    limit: int | None = None,
    now_ns: int | None = None,
) -> Found:
    """What :func:`connections` gives, before anything is made of it. A million connections take some 120 MB."""
    now_ns = monotonic_ns() if now_ns is None else now_ns
    names, settings = proxy_names(maps), active_settings(maps)
    wanted = Wanted(chosen_early(query), lambda rows: matching(rows, query, names))
    parts = [gather(maps, version, wanted, settings, now_ns) for version in VERSIONS]
    if sum(len(each.indexes) > 0 for each in parts) > 1:
        rows = np.concatenate([each.rows[each.indexes] for each in parts])
        indexes: Indexes = np.arange(len(rows))
    else:
        part = max(parts, key=lambda each: len(each.indexes))
        rows, indexes = part.rows, part.indexes
    return Found(rows, first_of(rows, indexes, sort, limit, names), names, now_ns)


def connection(table: Table, index: int, names: Mapping[int, str], now_ns: int) -> Connection:
    """The connection that an entry of the table belongs to."""
    return _connection(records(table, np.asarray([index]))[0], names, now_ns)


def chosen_early(query: Query) -> Chosen | None:
    """Which entries can be meant: what either direction's says by itself of the client and the target, so that a
    query for a few of a million connections pairs and sorts only those."""
    if query.client is None and query.target is None:
        return None

    def chosen(keys: Array, values: Array) -> Mask:
        reply = (values["c"]["flags"] & C["CONNECTION_REPLY"] != 0)[:, None]
        found = np.ones(len(keys), np.bool_)
        if query.client is not None:
            mask, wanted = query.client.netmask.packed, query.client.network_address.packed
            found &= _are(np.where(reply, values["daddr_be"], keys["saddr_be"]), wanted, mask)
        if query.target is not None:
            wanted = query.target.ip.packed
            found &= _are(np.where(reply, keys["saddr_be"], values["daddr_be"]), wanted, b"\xff" * len(wanted))
        return found

    return chosen


def _are(addresses: Array, wanted: bytes, mask: bytes) -> Mask:
    """Which addresses are the wanted one under the mask; none of the other family."""
    if addresses.shape[1] != len(wanted):
        return np.zeros(len(addresses), np.bool_)
    words = np.ascontiguousarray(addresses).view(np.uint32)
    return np.asarray(((words & np.frombuffer(mask, np.uint32)) == np.frombuffer(wanted, np.uint32)).all(axis=1))


def matching(rows: Array, query: Query, names: Mapping[int, str]) -> Mask:
    """Which records are meant."""
    found = np.ones(len(rows), np.bool_)
    if query.states != _EVERY:
        found &= np.isin(rows["kind"], [STATES.index(state) for state in query.states])
    if query.proxy is not None:
        ids = [number for number, name in names.items() if name == query.proxy]
        if query.proxy.startswith("?") and query.proxy[1:].isdecimal():
            ids.append(int(query.proxy[1:]))
        found &= np.isin(rows["proxy"], ids)
    if query.target is not None:
        found &= _within(rows, "target", query.target.ip.packed, b"\xff" * len(query.target.ip.packed))
        if query.target.port:
            found &= rows["target_port_be"] == query.target.port
    if query.client is not None:
        network = query.client
        found &= _within(rows, "client", network.network_address.packed, network.netmask.packed)
    if query.client_port is not None:
        found &= rows["client_port_be"] == query.client_port
    return found


def _within(rows: Array, name: str, wanted: bytes, mask: bytes) -> Mask:
    """Of which records the client's or target's address is the wanted one under the mask."""
    same = _are(rows[f"{name}_be"][:, : len(wanted)], wanted, mask)
    return np.asarray(same & (rows["family"] == (4 if len(wanted) == 4 else 6)))


def _connection(row: Any, names: Mapping[int, str], now_ns: int) -> Connection:
    return Connection(
        proxy=proxy_name(names, int(row["proxy"])),
        protocol=PROTOCOLS.get(int(row["protocol"]), Protocol.TCP),
        client=endpoint(row, "client"),
        listen=endpoint(row, "listen"),
        target=endpoint(row, "target"),
        state=STATES[int(row["kind"])],
        packets_forward=int(row["packets_forward"]),
        bytes_forward=int(row["bytes_forward"]),
        packets_reverse=int(row["packets_reverse"]),
        bytes_reverse=int(row["bytes_reverse"]),
        age_sec=max(0, now_ns - int(row["created_ns"])) / _NS,
        idle_sec=max(0, now_ns - int(row["time_ns"])) / _NS,
        target_id=int(row["target"]),
        proxy_id=int(row["proxy"]),
    )


# -- counting ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counts:
    """Live connections: in all, by proxy id, by target id. ``held``: entries of each family's table, those of
    connections that are over or expired and only linger included."""

    total: int
    proxies: Mapping[int, int]
    targets: Mapping[int, int]
    held: Mapping[int, int] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        """Connections that the fuller table has in it."""
        return max((count + 1) // 2 for count in self.held.values()) if self.held else 0


def count(
    maps: Maps,
    query: Query = _PLAIN,
    *,
    now_ns: int | None = None,
    see: Callable[[int, Array, Array], None] = lambda _version, _keys, _values: None,
) -> Counts:
    """How many live connections there are, without making a row of each. ``see`` is shown all entries on the way, some
    at a time."""
    now_ns = monotonic_ns() if now_ns is None else now_ns
    proxies: Counter[int] = Counter()
    targets: Counter[int] = Counter()
    held: dict[int, int] = {}
    names, settings = {} if query.proxy is None else proxy_names(maps), active_settings(maps)
    meant = None if query.is_plain else lambda rows: matching(rows, query, names)
    wanted = Wanted(chosen_early(query), meant, brief=True)
    for version in VERSIONS:
        found = gather(maps, version, wanted, settings, now_ns, partial(see, version))
        held[version] = found.entries
        _add(proxies, found.rows["proxy"][found.indexes])
        _add(targets, found.rows["target"][found.indexes])
    return Counts(proxies.total(), proxies, targets, held)


def _add(counter: Counter[int], numbers: Array) -> None:
    for number, times in zip(*np.unique(numbers, return_counts=True), strict=True):
        counter[int(number)] += int(times)


def none_at_all(maps: Maps) -> bool:
    """Whether the tables that are pinned, if any are, have no entry. Opens those alone, as they are, which takes a
    thirtieth of what all maps do. Raises :class:`KernelError`."""
    for name in layout.CONNECTIONS:
        try:
            fd = bpf.obj_get(str(maps.directory / name))
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            continue
        try:
            if Blocks.of(fd, layout.MAPS[name].value).used:
                return False
        finally:
            os.close(fd)
    return True


# -- ending --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ended:
    """Connections that were deleted: how many, and as ``layout.connection_event`` those whose end is to be told."""

    count: int = 0
    told: Array = field(default_factory=lambda: np.zeros(0, layout.connection_event))


def together(parts: Iterable[Ended]) -> Ended:
    """All of them as one."""
    found = [Ended(), *parts]
    return Ended(sum(each.count for each in found), np.concatenate([each.told for each in found]))


def told(table: Table, indexes: Indexes, rows: Array, kinds: Array, now_ns: int) -> Array:
    """The events of the connections among these whose end was not told yet. One that ended by itself did so with its
    last packet."""
    flagged = table.values["c"]["flags"][indexes] & C["CONNECTION_TOLD"] != 0
    events: Array = rows[flagged]
    events["kind"] = kinds[flagged]
    at_once = ~np.isin(events["kind"], (C["EVENT_FIN"], C["EVENT_RST"]))
    events["time_ns"][at_once] = now_ns
    return events


def delete(maps: Maps, table: Table, places: Indexes) -> None:
    """Delete these entries."""
    maps.connections(table.version).delete_many(table.keys[places])
