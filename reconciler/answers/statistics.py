"""What the kernel has counted."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TargetStats:
    """Since the target's first use. ``connections``: live ones; ``opened``: all there ever were."""

    connections: int = 0
    opened: int = 0
    packets_forward: int = 0
    bytes_forward: int = 0
    packets_reverse: int = 0
    bytes_reverse: int = 0


@dataclass(frozen=True, slots=True)
class ProxyStats:
    """Sums over the proxy's targets."""

    connections: int = 0
    opened: int = 0
    packets_forward: int = 0
    bytes_forward: int = 0
    packets_reverse: int = 0
    bytes_reverse: int = 0
    targets: dict[str, TargetStats] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stats:
    """Totals, and the same per proxy and target. ``drops``: packets by reason; ``outcomes``: packets by what became
    of them otherwise."""

    connections: int = 0
    opened: int = 0
    packets_forward: int = 0
    bytes_forward: int = 0
    packets_reverse: int = 0
    bytes_reverse: int = 0
    drops: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    proxies: dict[str, ProxyStats] = field(default_factory=dict)
