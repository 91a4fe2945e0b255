"""What counters moved by per second, between two readings."""

from __future__ import annotations

from dataclasses import dataclass, field

from reconciler import answers

COUNTERS = ("opened", "packets_forward", "bytes_forward", "packets_reverse", "bytes_reverse")


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second, by the counters' names: in all, by proxy, by proxy and target; dropped packets by reason."""

    total: dict[str, float] = field(default_factory=dict)
    proxies: dict[str, dict[str, float]] = field(default_factory=dict)
    targets: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    drops: dict[str, float] = field(default_factory=dict)


def rates(before: answers.Stats, after: answers.Stats, seconds: float) -> Rates:
    """From one reading to another ``seconds`` later. What was not there before counts from zero; what counts anew (a
    target that was gone in between) does not go backwards."""

    def moved(one: answers.Traffic | None, other: answers.Traffic) -> dict[str, float]:
        return {
            name: max(0, getattr(other, name) - (getattr(one, name) if one else 0)) / max(seconds, 1e-3)
            for name in COUNTERS
        }

    none = answers.ProxyStats()
    return Rates(
        moved(before, after),
        {name: moved(before.proxies.get(name), proxy) for name, proxy in after.proxies.items()},
        {
            name: {
                address: moved(before.proxies.get(name, none).targets.get(address), target)
                for address, target in proxy.targets.items()
            }
            for name, proxy in after.proxies.items()
        },
        {
            reason: max(0, count - before.drops.get(reason, 0)) / max(seconds, 1e-3)
            for reason, count in after.drops.items()
        },
    )
