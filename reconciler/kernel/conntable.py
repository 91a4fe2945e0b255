"""The connection tables as read from the kernel: entries of both directions brought together, column by column.

The tables hold one entry per direction, keyed by the packet as it arrives. An entry also says how the packet leaves;
that reversed is the other direction's key.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from reconciler.kernel import layout
from reconciler.kernel.arrays import Array, join
from reconciler.kernel.codec import C, unpack_address
from reconciler.kernel.maps import Maps
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

    @classmethod
    def alone(cls, version: int, keys: Array, values: Array) -> Table:
        """Entries of which nobody has looked for the other directions."""
        return cls(version, keys, values, np.full(len(keys), -1, np.int64))

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
    keys, values = maps.connections(version).items()
    reply = values["c"]["flags"] & C["CONNECTION_REPLY"] != 0
    own, other = _words(keys), _words(reverse_keys(keys, values))
    words = np.hstack((np.where(reply[:, None], other, own), np.where(reply[:, None], own, other)))
    hashes = _hashes(words)
    order, same = _runs(hashes, words)
    twice = same & (reply[order[1:]] == reply[order[:-1]])
    twice[1:] |= same[1:] & same[:-1]  # three of one connection
    if twice.any():  # a table that is written to meanwhile may give an entry twice
        once = _once(hashes, reply)
        keys, values, own, other = keys[once], values[once], own[once], other[once]
        order, same = _runs(hashes[once], words[once])
    peer = np.full(len(keys), -1, np.int64)
    first, second = order[:-1][same], order[1:][same]
    peer[first], peer[second] = second, first
    alone = np.flatnonzero(peer < 0)
    if len(alone):
        peer[alone] = _places(own, other[alone])
    return Table(version, keys, values, peer)


def reverse_keys(keys: Array, values: Array) -> Array:
    """The key of the other direction's entry: the packet as it leaves, turned round."""
    reverse = np.zeros(len(keys), keys.dtype)
    reverse["saddr_be"], reverse["daddr_be"] = values["daddr_be"], values["saddr_be"]
    reverse["sport_be"], reverse["dport_be"] = values["dport_be"], values["sport_be"]
    reverse["protocol"] = keys["protocol"]
    return reverse


def with_partners(maps: Maps, version: int, keys: Array, values: Array) -> tuple[Table, int]:
    """These entries, and behind them the other directions' as they are now; how many the former are."""
    reverse = reverse_keys(keys, values)
    found, others = maps.connections(version).get_many(reverse)
    there, count = np.flatnonzero(found), len(keys)
    peer = np.full(count + len(there), -1, np.int64)
    peer[there] = np.arange(count, len(peer))
    peer[count:] = there
    return Table(version, join([keys, reverse[there]], keys), join([values, others[there]], values), peer), count


def hashes(keys: Array) -> Array:
    """A number for each key, the same for as long as this process runs."""
    return _hashes(_words(keys))


def _hashes(words: Array) -> Array:
    """A number for each row."""
    hashes = np.zeros(len(words), np.uint64)
    for word in words.T:
        hashes = (hashes ^ word) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _places(words: Array, wanted: Array) -> Indexes:
    """For each of a few wanted rows its place, -1 if it is not there. (The other direction of an entry may have found
    another partner: two listeners' connections from one client's port to one target share it.)"""
    hashes = _hashes(wanted)
    order = np.argsort(hashes)
    ordered, all_hashes = hashes[order], _hashes(words)
    near = np.minimum(np.searchsorted(ordered, all_hashes), len(order) - 1)
    candidates = np.flatnonzero(ordered[near] == all_hashes)
    known = {bytes(words[place].tobytes()): int(place) for place in candidates.tolist()}
    return np.fromiter((known.get(row.tobytes(), -1) for row in wanted), np.int64, len(wanted))


def _runs(hashes: Array, words: Array) -> tuple[Indexes, Mask]:
    """The entries in the order of their hashes, and for each but the last whether the next is of its connection.
    ``words``: the keys of both its directions, the client's first."""
    order = np.argsort(hashes)
    same = hashes[order[1:]] == hashes[order[:-1]]
    places = np.flatnonzero(same)
    same[places] = (words[order[places + 1]] == words[order[places]]).all(axis=1)
    return order, same


def _once(hashes: Array, reply: Mask) -> Indexes:
    """One entry of each direction of each connection."""
    _, first = np.unique(np.stack([hashes, reply.astype(np.uint64)]), axis=1, return_index=True)
    return np.sort(first)


def _words(keys: Array) -> Array:
    return np.ascontiguousarray(keys).view(np.uint64).reshape(len(keys), keys.dtype.itemsize // 8)


# -- what an entry's connection is like ------------------------------------------------------------------------


def expired_entries(table: Table, settings: Any, now_ns: int) -> Mask:
    """Which entries count as absent: idle beyond the limit of their state, and the other direction as well. The
    programs judge the same way."""
    return expired(_last_ns(table), limits_sec(table.values["c"], settings), now_ns)


def limits_sec(common: Array, settings: Any) -> Indexes:
    """For how long each may be idle, in the state that it is in."""
    limit_sec = common["idle_sec"].astype(np.int64)
    limit_sec = np.where(established(common), limit_sec, np.minimum(limit_sec, int(settings["unanswered_sec"])))
    return np.where(over(common), int(settings["closing_sec"]), limit_sec)


def expired(last_ns: Indexes, limit_sec: Indexes, now_ns: int) -> Mask:
    """Which have been idle for their limits, and for a second at least; clocks of other CPUs may be ahead."""
    idle_ns = now_ns - last_ns
    return np.asarray((idle_ns >= _NS) & (idle_ns >= limit_sec * _NS))


def established(common: Array) -> Mask:
    """Which entries are of connections that were answered and have gone on since; some may be over by now."""
    heard, both = common["own"] | common["peer"], common["own"] & common["peer"]
    return np.asarray((both & C["HEARD_ANY"] != 0) & (heard & C["HEARD_PLAIN"] != 0))


def over(common: Array) -> Mask:
    """Which entries are of connections that are over, by FIN from both sides or RST, and only linger."""
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
    idle = np.where(established(common), C["EVENT_IDLE"], C["EVENT_UNANSWERED"])
    fin = np.where(both & C["HEARD_FIN"] != 0, C["EVENT_FIN"], idle)
    return np.asarray(np.where(either & C["HEARD_RST"] != 0, C["EVENT_RST"], fin).astype(np.uint8))


def created_ns(created: Array, later_ns: Array) -> Array:
    """When connections were created, in ns: the time before ``later_ns``, by 208 days at most, of which their entries
    have the last bits; as in ``clock.h``."""
    units = (later_ns.astype(np.uint64) >> np.uint64(C["CREATED_SHIFT"])) + np.uint64(C["CREATED_AHEAD"])
    ago = units.astype(np.uint32) - created.astype(np.uint32)
    return np.asarray((units - ago) << np.uint64(C["CREATED_SHIFT"]))


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
    rows["proxy"], rows["target"] = common["proxy"], common["target"]
    rows["time_ns"] = _last_ns(table)[indexes]
    rows["created_ns"] = created_ns(common["created"], rows["time_ns"])
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
