"""The programs' counters, summed over CPUs, as the contract's ``stats``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from reconciler.kernel import codec, layout
from reconciler.kernel.connections import count, proxy_names
from reconciler.kernel.maps import Maps

_DROP: Final = "drop_"
_FIELDS: Final = ("packets_forward", "bytes_forward", "packets_reverse", "bytes_reverse")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Of one target, of a proxy or of all. ``connections``: live now; ``opened``: since the target was made.
    Bytes count from the IP header on."""

    connections: int = 0
    opened: int = 0
    packets_forward: int = 0
    bytes_forward: int = 0
    packets_reverse: int = 0
    bytes_reverse: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class ProxyStats:
    """``targets``: by address as text. Targets that were freed count no more, in no sum."""

    traffic: Traffic = Traffic()
    targets: dict[str, Traffic] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stats:
    """``drops``: dropped packets by reason; ``outcomes``: what became of packets that were not dropped."""

    traffic: Traffic
    drops: dict[str, int]
    outcomes: dict[str, int]
    proxies: dict[str, ProxyStats]

    def to_json(self) -> dict[str, Any]:
        """The form scripts rely on."""
        return {
            **self.traffic.to_json(),
            "drops": self.drops,
            "outcomes": self.outcomes,
            "proxies": {
                name: {
                    **proxy.traffic.to_json(),
                    "targets": {address: traffic.to_json() for address, traffic in proxy.targets.items()},
                }
                for name, proxy in self.proxies.items()
            },
        }


def read_stats(maps: Maps, *, now_ns: int | None = None) -> Stats:
    """Everything counted so far. Counters of one moment, but not of one packet: they move while they are read."""
    outcomes = {name: int(value) for name, value in zip(layout.OUTCOMES, maps["outcome"].sums(), strict=False)}
    live = count(maps, now_ns=now_ns).targets
    names = proxy_names(maps)
    proxies: dict[str, ProxyStats] = {name: ProxyStats() for _, name in sorted(names.items())}
    targets = maps["target"].items()[1]
    used = np.flatnonzero(targets["family"])
    for number, counters in zip(used.tolist(), _target_counters(maps, used), strict=True):
        endpoint = codec.unpack_endpoint(targets[number])
        if endpoint is None:
            continue
        owner = int(targets[number]["proxy"])
        name = names.get(owner, f"?{owner}")
        traffic = Traffic(live.get(number, 0), int(counters["connections"]), *(int(counters[each]) for each in _FIELDS))
        proxy = proxies.get(name, ProxyStats())
        known = proxy.targets.get(str(endpoint), Traffic())
        proxies[name] = ProxyStats(proxy.traffic + traffic, {**proxy.targets, str(endpoint): known + traffic})
    total = sum((proxy.traffic for proxy in proxies.values()), Traffic())
    return Stats(
        traffic=total,
        drops={name.removeprefix(_DROP): value for name, value in outcomes.items() if name.startswith(_DROP)},
        outcomes={name: value for name, value in outcomes.items() if not name.startswith(_DROP)},
        proxies=proxies,
    )


def _target_counters(maps: Maps, numbers: Any) -> Any:
    """The counters of these targets, summed over CPUs: one by one while that is cheaper than reading all."""
    if len(numbers) * 4 > layout.MAX_TARGETS:
        return maps["target_stats"].sums()[numbers]
    _, values = maps["target_stats"].get_many(numbers.astype(layout.u32))
    sums = np.zeros(len(numbers), layout.target_stats)
    for name in layout.target_stats.names or ():
        sums[name] = values[name].sum(axis=1)
    return sums
