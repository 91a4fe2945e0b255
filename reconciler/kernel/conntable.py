"""The connection tables as read from the kernel: entries of both directions brought together, column by column.

The tables hold one entry per direction, keyed by the packet as it arrives. An entry also says how the packet leaves;
that reversed is the other direction's key. A million connections are read and paired in about two seconds.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from reconciler.kernel import layout
from reconciler.kernel.codec import C, unpack_address
from reconciler.kernel.maps import Array, Maps
from reconciler.state.objects import Endpoint, Protocol

VERSIONS: Final = (4, 6)

_NS: Final = 1_000_000_000
_MULTIPLIER: Final = np.uint64(secrets.randbits(64) | 1)  # nobody outside can choose keys that look alike to us

Mask = npt.NDArray[np.bool_]
Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Table:
    """One family's entries as read. ``peer``: for each the index of the other direction's entry, -1 without one."""

    version: int
    keys: Array
    values: Array
    peer: Indexes

    @property
    def is_reply(self) -> Mask:
        """Which entries are of the direction target -> client."""
        return np.asarray(self.values["c"]["flags"] & C["CONNECTION_REPLY"] != 0)

    @property
    def one_each(self) -> Mask:
        """One entry of each connection: the client's, or the target's where that is all there is."""
        return np.asarray(~self.is_reply | (self.peer < 0))


def read_table(maps: Maps, version: int) -> Table:
    """All entries of one family."""
    keys, values = maps[f"connection{version}"].items()
    hashes = _hashes(keys)
    order = np.argsort(hashes, kind="stable")
    twice = order[1:][hashes[order[1:]] == hashes[order[:-1]]]
    if len(twice):  # a table that is written to meanwhile may give an entry twice
        once = np.ones(len(keys), np.bool_)
        once[twice] = False
        keys, values = keys[once], values[once]
        hashes = hashes[once]
        order = np.argsort(hashes, kind="stable")
    return Table(version, keys, values, _peers(keys, hashes, order, reverse_keys(keys, values)))


def reverse_keys(keys: Array, values: Array) -> Array:
    """The key of the other direction's entry: the packet as it leaves, turned round."""
    reverse = np.zeros(len(keys), keys.dtype)
    reverse["saddr_be"], reverse["daddr_be"] = values["daddr_be"], values["saddr_be"]
    reverse["sport_be"], reverse["dport_be"] = values["dport_be"], values["sport_be"]
    reverse["protocol"] = keys["protocol"]
    return reverse


def _words(keys: Array) -> Array:
    return np.ascontiguousarray(keys).view(np.uint64).reshape(len(keys), keys.dtype.itemsize // 8)


def _hashes(keys: Array) -> Array:
    """A number for each key."""
    hashes = np.zeros(len(keys), np.uint64)
    for word in _words(keys).T:
        hashes = (hashes ^ word) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _peers(keys: Array, hashes: Array, order: Indexes, reverse: Array) -> Indexes:
    """For each of ``reverse`` its index in ``keys``, -1 if it is not there."""
    if not len(keys):
        return np.zeros(0, np.int64)
    wanted = _hashes(reverse)
    in_order = np.argsort(wanted)  # looked up in order, which the processor's caches like much better
    places = np.searchsorted(hashes[order], wanted[in_order])
    found = np.empty(len(keys), np.int64)
    found[in_order] = order[np.minimum(places, len(keys) - 1)]
    same = (_words(keys)[found] == _words(reverse)).all(axis=1)
    return np.where(same, found, -1)


# -- what an entry's connection is like ------------------------------------------------------------------------


def expired_entries(table: Table, settings: Any, now_ns: int) -> Mask:
    """Which entries count as absent: idle beyond the limit of their state, and the other direction as well. The
    programs judge the same way."""
    common = table.values["c"]
    heard, both = common["own"] | common["peer"], common["own"] & common["peer"]
    unanswered = (both & C["HEARD_ANY"] == 0) | (heard & C["HEARD_PLAIN"] == 0)
    limit_sec = common["idle_sec"].astype(np.int64)
    limit_sec = np.where(unanswered, np.minimum(limit_sec, int(settings["unanswered_sec"])), limit_sec)
    limit_sec = np.where(closed_entries(table), int(settings["closing_sec"]), limit_sec)
    idle_ns = now_ns - _last_ns(table)
    return np.asarray((idle_ns >= _NS) & (idle_ns >= limit_sec * _NS))


def closed_entries(table: Table) -> Mask:
    """Which entries are of connections that are over, by FIN from both sides or RST, and only linger."""
    common = table.values["c"]
    reset = (common["own"] | common["peer"]) & C["HEARD_RST"] != 0
    return np.asarray(reset | (common["own"] & common["peer"] & C["HEARD_FIN"] != 0))


def _last_ns(table: Table) -> Indexes:
    last_ns = table.values["c"]["last_ns"].astype(np.int64)
    return np.where(table.peer >= 0, np.maximum(last_ns, last_ns[table.peer]), last_ns)


def states(protocols: Array, own: Array, peer: Array) -> Array:
    """For each connection an index into ``STATES``. ``own`` and ``peer``: the HEARD bits of either direction."""
    either, both = own | peer, own & peer
    answered = both & C["HEARD_ANY"] != 0
    tcp = protocols == Protocol.TCP.number
    over = (either & C["HEARD_RST"] != 0) | (both & C["HEARD_FIN"] != 0)
    begun = np.where(answered & (either & C["HEARD_PLAIN"] != 0), 2, 0)
    of_tcp = np.where(over, 4, np.where(either & C["HEARD_FIN"] != 0, 3, begun))
    return np.asarray(np.where(tcp, of_tcp, np.where(answered, 2, 1)).astype(np.uint8))


def endings(common: Array) -> Array:
    """For each connection that is over why, as an ``EVENT_`` kind; as ``ending()`` in ``conntrack.h``."""
    either, both = common["own"] | common["peer"], common["own"] & common["peer"]
    established = (both & C["HEARD_ANY"] != 0) & (either & C["HEARD_PLAIN"] != 0)
    idle = np.where(established, C["EVENT_IDLE"], C["EVENT_UNANSWERED"])
    fin = np.where(both & C["HEARD_FIN"] != 0, C["EVENT_FIN"], idle)
    return np.asarray(np.where(either & C["HEARD_RST"] != 0, C["EVENT_RST"], fin).astype(np.uint8))


def records(table: Table, indexes: Indexes) -> Array:
    """The connections of these entries (of :attr:`Table.one_each`), both directions together, as
    ``layout.connection_event``; ``kind`` is an index into ``STATES``, ``time_ns`` when the last packet came."""
    rows = np.zeros(len(indexes), layout.connection_event)
    reply = table.is_reply[indexes]
    peer = table.peer[indexes]
    for chosen, forward, reverse in (
        (np.flatnonzero(~reply), indexes[~reply], peer[~reply]),
        (np.flatnonzero(reply), peer[reply], indexes[reply]),
    ):
        _fill_direction(rows, chosen, table, forward, "forward")
        _fill_direction(rows, chosen, table, reverse, "reverse")
    _fill_addresses(rows, table, indexes, reply)
    common = table.values["c"][indexes]
    rows["created_ns"], rows["proxy"], rows["target"] = common["created_ns"], common["proxy"], common["target"]
    rows["time_ns"] = _last_ns(table)[indexes]
    rows["family"], rows["protocol"] = table.version, table.keys["protocol"][indexes]
    rows["kind"] = states(rows["protocol"], common["own"], common["peer"])
    return rows


def _fill_direction(rows: Array, chosen: Indexes, table: Table, entries: Indexes, direction: str) -> None:
    there = entries >= 0
    common = table.values["c"]
    for counter in ("packets", "bytes"):
        rows[f"{counter}_{direction}"][chosen[there]] = common[counter][entries[there]]


def _fill_addresses(rows: Array, table: Table, indexes: Indexes, reply: Mask) -> None:
    """A client's entry says all; where only the target's side is left, it arrives from the target and leaves to the
    client."""
    size = 4 if table.version == 4 else 16
    keys, values = table.keys[indexes], table.values[indexes]
    for name, forward, reverse in (
        ("client", (keys, "s"), (values, "d")),
        ("listen", (keys, "d"), (values, "s")),
        ("target", (values, "d"), (keys, "s")),
    ):
        for field, suffix in ((f"{name}_be", "addr_be"), (f"{name}_port_be", "port_be")):
            (one, side), (other, other_side) = forward, reverse
            column = one[side + suffix]
            if reply.any():
                column = column.copy()
                column[reply] = other[other_side + suffix][reply]
            if suffix == "addr_be":
                rows[field][:, :size] = column
            else:
                rows[field] = column


def endpoint(row: Any, name: str) -> Endpoint:
    """The address and port called ``name`` (client, listen or target) of one record."""
    size = 4 if int(row["family"]) == 4 else 16
    return Endpoint(unpack_address(bytes(row[f"{name}_be"][:size])), int(row[f"{name}_port_be"]))


def proxy_names(maps: Maps) -> dict[int, str]:
    """Proxy id -> name."""
    ids, names = maps["proxy_name"].items()
    return {int(i): name.decode(errors="replace") for i, name in zip(ids, names["name"].tolist(), strict=True)}


def proxy_name(names: Mapping[int, str], number: int) -> str:
    """The id's name, "?" and the id where it has none."""
    return names.get(number, f"?{number}")


def active_settings(maps: Maps) -> Any:
    """The settings structure that packets read."""
    active = int(maps["control"].items()[1][0]["active"]) & 1
    return maps["settings"].items()[1][0]["slot"][active]
