"""The programs' counters, summed over CPUs, as ``stats`` answers them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from reconciler.answers import ProxyStats, Stats, TargetStats, Traffic
from reconciler.kernel import codec, layout
from reconciler.kernel.arrays import Array
from reconciler.kernel.connections import Counts, count
from reconciler.kernel.conntable import proxy_name, proxy_names
from reconciler.kernel.maps import Maps

_DROP: Final = "drop_"
_FIELDS: Final = ("packets_forward", "bytes_forward", "packets_reverse", "bytes_reverse")


def read_stats(maps: Maps, *, now_ns: int | None = None, counts: Counts | None = None) -> Stats:
    """Everything counted so far. Counters of one moment, but not of one packet: they move while they are read."""
    outcomes = {name: int(value) for name, value in zip(layout.OUTCOMES, maps["outcome"].sums(), strict=False)}
    live = (counts or count(maps, now_ns=now_ns)).targets
    names = proxy_names(maps)
    sums = {name: Traffic() for _, name in sorted(names.items())}
    by_target: dict[str, dict[str, Traffic]] = {name: {} for name in sums}
    retired = _retired(maps)
    for number, traffic in retired.items():
        if number in names:
            sums[names[number]] = traffic
    targets = maps["target"].items()[1]
    used = np.flatnonzero(targets["family"])
    for number, counters in zip(used.tolist(), target_counters(maps, used), strict=True):
        endpoint = codec.unpack_endpoint(targets[number])
        if endpoint is None:
            continue
        name = proxy_name(names, int(targets[number]["proxy"]))
        traffic = Traffic(live.get(number, 0), int(counters["connections"]), *(int(counters[each]) for each in _FIELDS))
        sums[name] = sums.get(name, Traffic()) + traffic
        known = by_target.setdefault(name, {})
        known[str(endpoint)] = known.get(str(endpoint), Traffic()) + traffic
    gone = (traffic for number, traffic in retired.items() if number not in names)
    return Stats(
        *sum((*sums.values(), *gone), Traffic()).figures,
        drops={name.removeprefix(_DROP): value for name, value in outcomes.items() if name.startswith(_DROP)},
        outcomes={name: value for name, value in outcomes.items() if not name.startswith(_DROP)},
        proxies={
            name: ProxyStats(
                *total.figures,
                {address: TargetStats(*each.figures) for address, each in by_target[name].items()},
            )
            for name, total in sums.items()
        },
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
