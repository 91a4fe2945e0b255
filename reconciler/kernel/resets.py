"""Telling the programs that connections are to be reset: what comes of them is then answered with RST (bpf/reset.h)."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Final

import numpy as np

from reconciler.kernel import codec
from reconciler.kernel.arrays import Array
from reconciler.kernel.codec import C
from reconciler.kernel.conntable import VERSIONS, hashes, proxy_names, reverse_keys
from reconciler.kernel.maps import Map, Maps
from reconciler.kernel.scan import Position, step
from reconciler.state.objects import Endpoint, Protocol

AT_ONCE: Final = 1 << 16
"""So many entries are looked at in one go: a tenth of a second."""


class Resetter:
    """Has every TCP connection that there is to these targets of these proxies reset, some entries with each step.

    An entry is written as it was read a moment before: what a packet counted meanwhile is lost, of a connection that
    has come to its end. One that is deleted meanwhile is there again until it is swept.
    """

    def __init__(self, targets: Collection[tuple[str, Endpoint]]) -> None:
        self.targets = frozenset(targets)
        self.marked = 0
        """So many connections so far; those of which only the target's entry is left are counted at the end."""
        self._left = deque((version, Position()) for version in VERSIONS)
        self._answering: list[Array] = []
        self._asking: list[Array] = []

    def step(self, maps: Maps, *, at_once: int = AT_ONCE) -> bool:
        """Go on for some entries; whether there are more. Raises :class:`KernelError`."""
        ids = list(_ids(maps, self.targets)) if self._left else []
        if not ids:
            self._left.clear()
            return False
        version, position = self._left[0]
        table = maps.connections(version)
        for keys, values in step(table, position, at_once):
            self._mark(table, ids, keys, values)
        if position.at is not None:
            return True
        self._left.popleft()
        self._count()
        return bool(self._left)

    def _mark(self, table: Map, ids: list[int], keys: Array, values: Array) -> None:
        chosen = np.isin(values["c"]["target"], ids) & (keys["protocol"] == Protocol.TCP.number)
        if chosen.any():
            keys, values = keys[chosen], values[chosen]
            reply = values["c"]["flags"] & C["CONNECTION_REPLY"] != 0
            self._asking.append(hashes(keys[~reply]))
            self._answering.append(hashes(reverse_keys(keys[reply], values[reply])))
            values["c"]["flags"] |= C["CONNECTION_RESET"]
            table.put_many(keys, values)

    def _count(self) -> None:
        asking, answering = (
            np.unique(np.concatenate([np.zeros(0, np.uint64), *each])) for each in (self._asking, self._answering)
        )
        self.marked += len(np.union1d(asking, answering))
        self._asking, self._answering = [], []


def _ids(maps: Maps, targets: Collection[tuple[str, Endpoint]]) -> set[int]:
    _, values = maps["target"].items()
    names = proxy_names(maps)
    found = set()
    for number in np.flatnonzero(values["family"]).tolist():
        endpoint = codec.unpack_endpoint(values[number])
        if endpoint is not None and (names.get(int(values[number]["proxy"]), ""), endpoint) in targets:
            found.add(number)
    return found
