"""What the kernel has counted."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Traffic:
    """Of one target, of a proxy or of all. Bytes count from the IP header on."""

    connections: int = 0
    opened: int = 0
    packets_forward: int = 0
    bytes_forward: int = 0
    packets_reverse: int = 0
    bytes_reverse: int = 0

    @property
    def figures(self) -> tuple[int, int, int, int, int, int]:
        """In the order of the fields, without what a subclass adds."""
        there, back = (self.packets_forward, self.bytes_forward), (self.packets_reverse, self.bytes_reverse)
        return (self.connections, self.opened, *there, *back)

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*map(operator.add, self.figures, other.figures))


@dataclass(frozen=True, slots=True)
class TargetStats(Traffic):
    """Since the target's first use. ``connections``: live ones; ``opened``: all there ever were."""


@dataclass(frozen=True, slots=True)
class ProxyStats(Traffic):
    """Sums over the proxy's targets."""

    targets: dict[str, TargetStats] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stats(Traffic):
    """Totals, and the same per proxy and target. ``drops``: packets by reason; ``outcomes``: packets by what became
    of them otherwise."""

    drops: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    proxies: dict[str, ProxyStats] = field(default_factory=dict)
