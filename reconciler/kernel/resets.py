"""Telling the programs that connections are to be reset: what comes of them is then answered with RST (bpf/reset.h)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from reconciler.kernel import codec
from reconciler.kernel.codec import C
from reconciler.kernel.conntable import VERSIONS, proxy_names, read_table
from reconciler.kernel.maps import Maps
from reconciler.state.objects import Endpoint, Protocol


def reset(maps: Maps, targets: Collection[tuple[str, Endpoint]]) -> int:
    """Have every TCP connection that there is to these targets of these proxies reset; how many.

    An entry is written as it was read a moment before: what a packet counted meanwhile is lost, of a connection that
    has come to its end. One that is deleted meanwhile is there again until it is swept.
    """
    ids = _ids(maps, targets)
    if not ids:
        return 0
    marked = 0
    for version in VERSIONS:
        table = read_table(maps, version)
        chosen = np.isin(table.values["c"]["target"], list(ids)) & (table.keys["protocol"] == Protocol.TCP.number)
        if chosen.any():
            values = table.values[chosen].copy()
            values["c"]["flags"] |= C["CONNECTION_RESET"]
            maps[f"connection{version}"].put_many(table.keys[chosen], values)
            marked += int(np.count_nonzero(chosen & (~table.is_reply | (table.peer < 0))))
    return marked


def _ids(maps: Maps, targets: Collection[tuple[str, Endpoint]]) -> set[int]:
    _, values = maps["target"].items()
    names = proxy_names(maps)
    found = set()
    for number in np.flatnonzero(values["family"]).tolist():
        endpoint = codec.unpack_endpoint(values[number])
        if endpoint is not None and (names.get(int(values[number]["proxy"]), ""), endpoint) in targets:
            found.add(number)
    return found
