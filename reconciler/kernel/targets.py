"""Every target there is, retired ones included, with its share: a quick look without the rest of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from reconciler.kernel import codec
from reconciler.kernel.conntable import proxy_name, proxy_names
from reconciler.kernel.maps import Maps
from reconciler.state.objects import Endpoint, Share


@dataclass(frozen=True, slots=True)
class LiveTarget:
    """``connections``: live ones."""

    proxy: str
    endpoint: Endpoint
    share: Share
    connections: int


def live_targets(maps: Maps, counts: Mapping[int, int]) -> list[LiveTarget]:
    """By proxy id and target id. ``counts``: of live connections, by target id."""
    _, values = maps["target"].items()
    names = proxy_names(maps)
    found = []
    for number in np.flatnonzero(values["family"]).tolist():
        row, endpoint = values[number], codec.unpack_endpoint(values[number])
        if number and endpoint is not None:
            owner = int(row["proxy"])
            share = codec.unpack_share(int(row["flags"]))
            found.append((owner, LiveTarget(proxy_name(names, owner), endpoint, share, counts.get(number, 0))))
    return [target for _, target in sorted(found, key=lambda each: each[0])]
