"""What live connections still need: whatever their entries name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from reconciler.kernel.arrays import Array
from reconciler.kernel.codec import C
from reconciler.kernel.conntable import VERSIONS, Mask
from reconciler.kernel.maps import Maps
from reconciler.kernel.scan import pieces
from reconciler.state.objects import Mode

_IDS: Final = 1 << 16
_LOOPBACK4: Final = 127


@dataclass(frozen=True, slots=True)
class Busy:
    """What entries of the connection tables name: target ids, proxy ids, and ports with the PORT_LISTEN and
    PORT_TARGET bits without which their packets would be taken for foreign ones. ``families``: IP versions of all;
    ``fullnat``: of those with full NAT; ``loopback``: modes of those to a target in 127.0.0.0/8. ``ways``: numbers of
    ways out; ``interfaces``: ifindexes by which targets have answered; ``listens`` and ``served``: the addresses that
    clients talk to and those of targets, packed."""

    targets: frozenset[int] = frozenset()
    proxies: frozenset[int] = frozenset()
    ports: Mapping[int, int] = field(default_factory=dict)
    families: frozenset[int] = frozenset()
    fullnat: frozenset[int] = frozenset()
    loopback: frozenset[Mode] = frozenset()
    ways: frozenset[int] = frozenset()
    interfaces: frozenset[int] = frozenset()
    listens: frozenset[bytes] = frozenset()
    served: frozenset[bytes] = frozenset()


def everything() -> Busy:
    """As if connections needed everything there is, for where nobody is to wait for the tables to be read."""
    ids = frozenset(range(_IDS))
    return Busy(ids, ids, dict.fromkeys(range(_IDS), C["PORT_LISTEN"] | C["PORT_TARGET"]))


def busy(maps: Maps) -> Busy:
    """What the entries name, expired ones included until they are swept."""
    found = Gathering()
    for version in VERSIONS:
        for keys, values in pieces(maps.connections(version)):
            maps.let_others()
            found.add(version, keys, values)
    return found.busy()


class Gathering:
    """Entries seen one piece after the other, by whoever reads the tables."""

    def __init__(self) -> None:
        names = ("target", "proxy", "way", "listen", "to")
        self._seen: dict[str, Mask] = {name: np.zeros(_IDS, np.bool_) for name in names}
        self._families: set[int] = set()
        self._fullnat: set[int] = set()
        self._loopback: set[Mode] = set()
        self._interfaces: set[int] = set()
        self._listens: set[bytes] = set()
        self._served: set[bytes] = set()

    def add(self, version: int, keys: Array, values: Array) -> None:
        """See these entries of a family's table."""
        common = values["c"]
        self._families.add(version)
        translated = common["flags"] & C["CONNECTION_FULLNAT"] != 0
        if translated.any():
            self._fullnat.add(version)
        if version == 4:
            local = (values["daddr_be"][:, 0] == _LOOPBACK4) | (keys["saddr_be"][:, 0] == _LOOPBACK4)
            for mode, those in ((Mode.FULLNAT, translated), (Mode.DNAT, ~translated)):
                if mode not in self._loopback and (local & those).any():
                    self._loopback.add(mode)
        for name in ("target", "proxy", "way"):
            self._seen[name][common[name]] = True
        reply = common["flags"] & C["CONNECTION_REPLY"] != 0
        forward, back = np.flatnonzero(~reply), np.flatnonzero(reply)
        for name, ours, theirs in (
            ("listen", keys["dport_be"], values["sport_be"]),
            ("to", values["dport_be"], keys["sport_be"]),
        ):
            self._seen[name][ours[forward]] = True
            self._seen[name][theirs[back]] = True
        self._interfaces.update(np.unique(values["in_ifindex"][back]).tolist())
        self._listens.update(_distinct(keys["daddr_be"][forward]))
        self._served.update(_distinct(values["daddr_be"][forward]))

    def busy(self) -> Busy:
        """What they named, all together."""
        ids = {name: np.flatnonzero(seen).tolist() for name, seen in self._seen.items()}
        listen, to = self._seen["listen"], self._seen["to"]
        return Busy(
            frozenset(ids["target"]),
            frozenset(ids["proxy"]),
            {
                port: C["PORT_LISTEN"] * bool(listen[port]) | C["PORT_TARGET"] * bool(to[port])
                for port in np.flatnonzero(listen | to).tolist()
            },
            frozenset(self._families),
            frozenset(self._fullnat),
            frozenset(self._loopback),
            frozenset(ids["way"]) - {0},
            frozenset(self._interfaces),
            frozenset(self._listens),
            frozenset(self._served),
        )


def _distinct(addresses: Array) -> set[bytes]:
    """Each of them once, packed."""
    if addresses.shape[1] == 4:
        return {each.tobytes() for each in np.unique(np.ascontiguousarray(addresses).view(np.uint32))}
    return set(np.ascontiguousarray(addresses).view("V16").ravel().tolist())
