"""The programs' counters, summed over CPUs, as the contract's ``stats``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from reconciler.kernel import codec, layout
from reconciler.kernel.arrays import Array
from reconciler.kernel.connections import Counts, count
from reconciler.kernel.conntable import proxy_name, proxy_names
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
    """``targets``: by address as text. What targets that are gone had counted is in ``traffic`` alone."""

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


def read_stats(maps: Maps, *, now_ns: int | None = None, counts: Counts | None = None) -> Stats:
    """Everything counted so far. Counters of one moment, but not of one packet: they move while they are read."""
    outcomes = {name: int(value) for name, value in zip(layout.OUTCOMES, maps["outcome"].sums(), strict=False)}
    live = (counts or count(maps, now_ns=now_ns)).targets
    names = proxy_names(maps)
    proxies: dict[str, ProxyStats] = {name: ProxyStats() for _, name in sorted(names.items())}
    retired = _retired(maps)
    for number, traffic in retired.items():
        if number in names:
            proxies[names[number]] = ProxyStats(traffic)
    targets = maps["target"].items()[1]
    used = np.flatnonzero(targets["family"])
    for number, counters in zip(used.tolist(), target_counters(maps, used), strict=True):
        endpoint = codec.unpack_endpoint(targets[number])
        if endpoint is None:
            continue
        owner = int(targets[number]["proxy"])
        name = proxy_name(names, owner)
        traffic = Traffic(live.get(number, 0), int(counters["connections"]), *(int(counters[each]) for each in _FIELDS))
        proxy = proxies.get(name, ProxyStats())
        known = proxy.targets.get(str(endpoint), Traffic())
        proxies[name] = ProxyStats(proxy.traffic + traffic, {**proxy.targets, str(endpoint): known + traffic})
    gone = (traffic for number, traffic in retired.items() if number not in names)
    total = sum((*(proxy.traffic for proxy in proxies.values()), *gone), Traffic())
    return Stats(
        traffic=total,
        drops={name.removeprefix(_DROP): value for name, value in outcomes.items() if name.startswith(_DROP)},
        outcomes={name: value for name, value in outcomes.items() if not name.startswith(_DROP)},
        proxies=proxies,
    )


def _retired(maps: Maps) -> dict[int, Traffic]:
    """What targets that are gone had counted, by proxy id; at 0 that of proxies that are gone too."""
    values = maps["retired_stats"].items()[1]
    used = np.flatnonzero(values["connections"] | values["packets_forward"] | values["packets_reverse"])
    return {
        number: Traffic(0, int(values[number]["connections"]), *(int(values[number][each]) for each in _FIELDS))
        for number in used.tolist()
    }


def retire_targets(maps: Maps, ids: Array) -> None:
    """Before these targets are freed: add what they counted to their proxies', so that no sum goes down. A process that
    is killed between this and the freeing adds it twice."""
    sums = target_counters(maps, ids)
    moved = [place for place in range(len(ids)) if any(int(sums[place][name]) for name in sums.dtype.names or ())]
    if not moved:
        return
    _, targets = maps["target"].get_many(ids)
    _add_retired(maps, [(int(targets[place]["proxy"]), sums[place]) for place in moved])


def retire_proxies(maps: Maps, ids: Array) -> None:
    """Before these proxies' names are freed: what their targets had counted goes to the total alone."""
    _, values = maps["retired_stats"].get_many(ids)
    moved = [(0, value) for value in values if value.tobytes().strip(b"\0")]
    if moved:
        _add_retired(maps, moved)
        maps["retired_stats"].put_many(ids, np.zeros(len(ids), layout.target_stats))


def _add_retired(maps: Maps, parts: list[tuple[int, Any]]) -> None:
    numbers = np.unique(np.asarray([number for number, _ in parts], layout.u32))
    _, kept = maps["retired_stats"].get_many(numbers)
    places = {int(number): place for place, number in enumerate(numbers)}
    for number, value in parts:
        for name in layout.target_stats.names or ():
            kept[name][places[number]] += value[name]
    maps["retired_stats"].put_many(numbers, kept)


def target_counters(maps: Maps, numbers: Any) -> Any:
    """The counters of these targets, summed over CPUs: one by one while that is cheaper than reading all."""
    if len(numbers) * 4 > layout.MAX_TARGETS:
        return maps["target_stats"].sums()[numbers]
    _, values = maps["target_stats"].get_many(numbers.astype(layout.u32))
    sums = np.zeros(len(numbers), layout.target_stats)
    for name in layout.target_stats.names or ():
        sums[name] = values[name].sum(axis=1)
    return sums
