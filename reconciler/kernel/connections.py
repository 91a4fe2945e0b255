"""Live connections: read, listed, counted, flushed, swept.

The tables hold one entry per direction, keyed by the packet as it arrives. An entry also says how the packet leaves;
that reversed is the other direction's key. Times are those of CLOCK_MONOTONIC, which the programs read coarsely
(``bpf_ktime_get_coarse_ns``: the same clock, up to a tick behind).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from reconciler.kernel import layout
from reconciler.kernel.codec import PROTOCOLS, C, unpack_address
from reconciler.kernel.maps import Array, Maps
from reconciler.state.objects import Endpoint, Protocol

VERSIONS: Final = (4, 6)
_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Busy:
    """What entries of the connection tables name: target ids, proxy ids, and ports with the PORT_LISTEN and
    PORT_TARGET bits without which their packets would be taken for foreign ones."""

    targets: frozenset[int] = frozenset()
    proxies: frozenset[int] = frozenset()
    ports: Mapping[int, int] = field(default_factory=dict)


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

    def to_json(self) -> dict[str, Any]:
        """The row that scripts rely on."""
        return {
            "proxy": self.proxy,
            "protocol": str(self.protocol),
            "client": str(self.client),
            "listen": str(self.listen),
            "target": str(self.target),
            "state": self.state,
            "packets_forward": self.packets_forward,
            "bytes_forward": self.bytes_forward,
            "packets_reverse": self.packets_reverse,
            "bytes_reverse": self.bytes_reverse,
            "age_sec": round(self.age_sec, 1),
            "idle_sec": round(self.idle_sec, 1),
        }


@dataclass(frozen=True, slots=True)
class Table:
    """One family's entries as read. ``peer``: for each the index of the other direction's entry, -1 without one."""

    version: int
    keys: Array
    values: Array
    peer: npt.NDArray[np.int64]

    @property
    def is_reply(self) -> npt.NDArray[np.bool_]:
        """Which entries are of the direction target -> client."""
        return np.asarray(self.values["c"]["flags"] & C["CONNECTION_REPLY"] != 0)


def read_table(maps: Maps, version: int) -> Table:
    """All entries of one family, sorted by key; 200,000 in half a second."""
    keys, values = maps[f"connection{version}"].items()
    order = np.argsort(_rows(keys))
    keys, values = keys[order], values[order]
    rows = _rows(keys)
    once = np.ones(len(keys), np.bool_)
    once[1:] = rows[1:] != rows[:-1]  # a table that is written to meanwhile may give an entry twice
    keys, values = keys[once], values[once]
    return Table(version, keys, values, _peers(keys, reverse_keys(keys, values)))


def reverse_keys(keys: Array, values: Array) -> Array:
    """The key of the other direction's entry: the packet as it leaves, turned round."""
    reverse = np.zeros(len(keys), keys.dtype)
    reverse["saddr_be"], reverse["daddr_be"] = values["daddr_be"], values["saddr_be"]
    reverse["sport_be"], reverse["dport_be"] = values["dport_be"], values["sport_be"]
    reverse["protocol"] = keys["protocol"]
    return reverse


def _peers(keys: Array, reverse: Array) -> npt.NDArray[np.int64]:
    """For each of ``reverse`` its index in the sorted ``keys``, -1 if it is not there."""
    rows, wanted = _rows(keys), _rows(reverse)
    places = np.minimum(np.searchsorted(rows, wanted), max(len(rows) - 1, 0))
    return np.where(rows[places] == wanted, places, -1) if len(rows) else np.zeros(0, np.int64)


def _rows(keys: Array) -> Array:
    """Each key's bytes as one value, to be sorted and compared."""
    return np.ascontiguousarray(keys).view(np.dtype((np.void, keys.dtype.itemsize))).reshape(-1)


# -- listing -------------------------------------------------------------------------------------------------


def connections(maps: Maps, *, now_ns: int | None = None, expired: bool = False) -> list[Connection]:
    """Every live connection, in no particular order; with ``expired`` also those past their limit that have not
    been swept yet. An entry whose other direction was evicted is listed by what it knows."""
    now_ns = time.monotonic_ns() if now_ns is None else now_ns
    names = proxy_names(maps)
    settings = active_settings(maps)
    found: list[Connection] = []
    for version in VERSIONS:
        table = read_table(maps, version)
        shown = ~table.is_reply | (table.peer < 0)
        if not expired:
            shown &= ~expired_entries(table, settings, now_ns)
        found.extend(connection(table, int(index), names, now_ns) for index in np.flatnonzero(shown))
    return found


def proxy_names(maps: Maps) -> dict[int, str]:
    """Proxy id -> name."""
    ids, names = maps["proxy_name"].items()
    return {int(i): name.decode(errors="replace") for i, name in zip(ids, names["name"].tolist(), strict=True)}


def active_settings(maps: Maps) -> Any:
    """The settings structure that packets read."""
    active = int(maps["control"].items()[1][0]["active"]) & 1
    return maps["settings"].items()[1][0]["slot"][active]


def connection(table: Table, index: int, names: Mapping[int, str], now_ns: int) -> Connection:
    """The connection that an entry of the table belongs to."""
    entry, key = table.values[index], table.keys[index]
    peer = table.values[table.peer[index]] if table.peer[index] >= 0 else None
    reply = bool(entry["c"]["flags"] & C["CONNECTION_REPLY"])
    forward, reverse = (peer, entry) if reply else (entry, peer)
    if reply:  # only the target's side is left: it arrives from the target and leaves to the client
        client, listen = _endpoint(entry, "daddr_be", "dport_be"), _endpoint(entry, "saddr_be", "sport_be")
        target = _endpoint(key, "saddr_be", "sport_be")
    else:
        client, listen = _endpoint(key, "saddr_be", "sport_be"), _endpoint(key, "daddr_be", "dport_be")
        target = _endpoint(entry, "daddr_be", "dport_be")
    common = entry["c"]
    last_ns = max(int(each["c"]["last_ns"]) for each in (entry, peer) if each is not None)
    return Connection(
        proxy=names.get(int(common["proxy"]), f"?{int(common['proxy'])}"),
        protocol=PROTOCOLS.get(int(key["protocol"]), Protocol.TCP),
        client=client,
        listen=listen,
        target=target,
        state=state_name(int(key["protocol"]), int(common["own"]), int(common["peer"])),
        packets_forward=_count(forward, "packets"),
        bytes_forward=_count(forward, "bytes"),
        packets_reverse=_count(reverse, "packets"),
        bytes_reverse=_count(reverse, "bytes"),
        age_sec=max(0, now_ns - int(common["created_ns"])) / _NS,
        idle_sec=max(0, now_ns - last_ns) / _NS,
        target_id=int(common["target"]),
        proxy_id=int(common["proxy"]),
    )


def _endpoint(row: Any, address: str, port: str) -> Endpoint:
    return Endpoint(unpack_address(bytes(row[address])), int(row[port]))


def _count(row: Any, counter: str) -> int:
    return 0 if row is None else int(row["c"][counter])


def state_name(protocol: int, own: int, peer: int) -> str:
    """``own`` and ``peer``: the HEARD bits of either direction. TCP: ``syn`` until the handshake is complete,
    ``established``, ``closing`` after a FIN from one side, ``closed`` after both or a RST. UDP: ``unreplied``,
    ``established``."""
    answered = bool(own & peer & C["HEARD_ANY"])
    if protocol != Protocol.TCP.number:
        return "established" if answered else "unreplied"
    if (own | peer) & C["HEARD_RST"] or own & peer & C["HEARD_FIN"]:
        return "closed"
    if (own | peer) & C["HEARD_FIN"]:
        return "closing"
    return "established" if answered and (own | peer) & C["HEARD_PLAIN"] else "syn"


# -- counting ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counts:
    """Live connections: in all, by proxy id, by target id."""

    total: int
    proxies: Mapping[int, int]
    targets: Mapping[int, int]


def count(maps: Maps, *, now_ns: int | None = None) -> Counts:
    """How many live connections there are, without making a row of each."""
    now_ns = time.monotonic_ns() if now_ns is None else now_ns
    settings = active_settings(maps)
    proxies: Counter[int] = Counter()
    targets: Counter[int] = Counter()
    for version in VERSIONS:
        table = read_table(maps, version)
        shown = (~table.is_reply | (table.peer < 0)) & ~expired_entries(table, settings, now_ns)
        proxies.update(table.values["c"]["proxy"][shown].tolist())
        targets.update(table.values["c"]["target"][shown].tolist())
    return Counts(proxies.total(), proxies, targets)


def busy(maps: Maps) -> Busy:
    """What the entries name, expired ones included until they are swept."""
    targets: set[int] = set()
    proxies: set[int] = set()
    ports: dict[int, int] = {}
    for version in VERSIONS:
        keys, values = maps[f"connection{version}"].items()
        targets.update(np.unique(values["c"]["target"]).tolist())
        proxies.update(np.unique(values["c"]["proxy"]).tolist())
        reply = values["c"]["flags"] & C["CONNECTION_REPLY"] != 0
        for bit, used in (
            (C["PORT_LISTEN"], (keys["dport_be"][~reply], values["sport_be"][reply])),
            (C["PORT_TARGET"], (values["dport_be"][~reply], keys["sport_be"][reply])),
        ):
            for port in np.unique(np.concatenate(used)).tolist():
                ports[port] = ports.get(port, 0) | bit
    return Busy(frozenset(targets), frozenset(proxies), ports)


# -- ending --------------------------------------------------------------------------------------------------


def expired_entries(table: Table, settings: Any, now_ns: int) -> npt.NDArray[np.bool_]:
    """Which entries count as absent: idle beyond the limit of their state, and the other direction as well. The
    programs judge the same way."""
    common = table.values["c"]
    heard, both = common["own"] | common["peer"], common["own"] & common["peer"]
    closing = (heard & C["HEARD_RST"] != 0) | (both & C["HEARD_FIN"] != 0)
    unanswered = (both & C["HEARD_ANY"] == 0) | (heard & C["HEARD_PLAIN"] == 0)
    limit_sec = common["idle_sec"].astype(np.int64)
    limit_sec = np.where(unanswered, np.minimum(limit_sec, int(settings["unanswered_sec"])), limit_sec)
    limit_sec = np.where(closing, int(settings["closing_sec"]), limit_sec)
    last_ns = common["last_ns"].astype(np.int64)
    latest = np.where(table.peer >= 0, np.maximum(last_ns, last_ns[table.peer]), last_ns)
    idle_ns = now_ns - latest
    return np.asarray((idle_ns >= _NS) & (idle_ns >= limit_sec * _NS))


def flush(maps: Maps, chosen: Callable[[Connection], bool]) -> int:
    """Delete both directions of every connection that ``chosen`` accepts, expired ones included; how many that was.
    Their next packet is treated as a stranger's."""
    now_ns, names, flushed = time.monotonic_ns(), proxy_names(maps), 0
    for version in VERSIONS:
        table = read_table(maps, version)
        shown = np.flatnonzero(~table.is_reply | (table.peer < 0))
        picked = [int(index) for index in shown if chosen(connection(table, int(index), names, now_ns))]
        _delete(maps, table, picked)
        flushed += len(picked)
    return flushed


def sweep(maps: Maps, *, now_ns: int | None = None) -> list[Connection]:
    """Delete the expired connections and return them as they were.

    One that is taken up again between the reading and the deleting loses its entries; its next packet makes new
    ones, by the same choice. The programs treat an expired entry as absent anyway.
    """
    now_ns = time.monotonic_ns() if now_ns is None else now_ns
    names, settings, swept = proxy_names(maps), active_settings(maps), []
    for version in VERSIONS:
        table = read_table(maps, version)
        gone = expired_entries(table, settings, now_ns)
        shown = np.flatnonzero(gone & (~table.is_reply | (table.peer < 0)))
        swept += [connection(table, int(index), names, now_ns) for index in shown]
        _delete(maps, table, np.flatnonzero(gone).tolist(), with_peers=False)
    return swept


def _delete(maps: Maps, table: Table, indexes: Iterable[int], *, with_peers: bool = True) -> None:
    places = np.fromiter(indexes, np.int64)
    if with_peers and len(places):
        peers = table.peer[places]
        places = np.unique(np.concatenate([places, peers[peers >= 0]]))
    if len(places):
        name = f"connection{table.version}"
        maps[name].delete_many(table.keys[places])
        noted = np.unique(table.values["hint"][places[~table.is_reply[places]]])
        hints = maps[layout.HINTS[name]]
        noted = noted[(noted > 0) & (noted < hints.max_entries)]
        hints.put_many(noted, hints.values_array(len(noted)))
