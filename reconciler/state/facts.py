"""What the host is like: interfaces, ways to the targets, sysctls, as ``kernel/host.py`` gathers it for ``desired.py``;
what of the kernel was tried, as ``kernel/doctor.py`` does. Plain frozen values; nothing here asks the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Interface, IPv6Interface
from typing import Final

from reconciler.state.carried import Carried
from reconciler.state.objects import Endpoint, IPAddress, TakenOver
from reconciler.state.share import Drain

InterfaceAddress = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """A BPF program as the kernel describes it. ``tag``: 16 hex digits, the kernel's digest of its instructions."""

    id: int
    name: str = ""
    tag: str = ""

    def __str__(self) -> str:
        return f"program {self.id} ({self.name or 'unnamed'}, tag {self.tag or 'unknown'})"


@dataclass(frozen=True, slots=True)
class XdpProgram:
    """An XDP program on an interface. ``mode``: native, generic or offload. ``link``: it is held there by a
    bpf_link, so that no netlink request can replace or remove it; None where the kernel doesn't tell."""

    ifindex: int
    mode: str
    program: ProgramInfo
    link: bool | None = None

    def __str__(self) -> str:
        return f"{self.mode} {self.program}" + (", held by a bpf_link" if self.link else "")

    def taken_over(self) -> TakenOver:
        """What is remembered of it once ours has its place."""
        return TakenOver(self.mode, self.program.id, self.program.name, self.program.tag)


class RouteKind(StrEnum):
    """``unicast``: leaves by an interface. ``local``: an address of this host. ``unreachable``: no route, or one
    that refuses (unreachable, blackhole, prohibit). ``other``: broadcast, multicast and the like."""

    UNICAST = "unicast"
    LOCAL = "local"
    UNREACHABLE = "unreachable"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Route:
    """The way to one address. ``ifindex`` is where packets leave (lo for local ones), None if unreachable;
    ``gateway`` None: on the link. ``source``: the address this host would use. ``shared``: of a route with several next
    hops the interfaces by which they lead, that one among them."""

    kind: RouteKind
    ifindex: int | None = None
    gateway: IPAddress | None = None
    source: IPAddress | None = None
    shared: frozenset[int] = frozenset()

    @property
    def ways(self) -> frozenset[int]:
        """Every interface by which packets may leave, and answers come."""
        return self.shared if self.ifindex is None else self.shared | {self.ifindex}


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface.

    ``kind`` is the kernel's link kind (veth, bridge, bond, vlan, ...), ``loopback``, or ``physical`` for a link
    without one. ``driver`` is what ethtool says, empty if nothing. ``xdp_native``: it takes a native XDP program.
    ``xdp_transmit``: it takes frames redirected to it by XDP; None: unknown (before Linux 6.3).
    ``xdp_features``: the kernel's own words for what it can do; None: unknown.
    """

    ifindex: int
    name: str
    kind: str = "physical"
    up: bool = True
    addresses: tuple[InterfaceAddress, ...] = ()
    xdp_native: bool = False
    forwarding4: bool = False
    forwarding6: bool = False
    driver: str = ""
    mtu: int = 1500
    carrier: bool = True
    xdp_transmit: bool | None = None
    xdp_features: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class HostFacts:
    """One look at the network namespace.

    ``route_to``: the interface by which packets to each asked-for target leave; None: the target is on this
    host, or there is no way; ``routes`` tells which. ``sysctls``: live values of those asked for; one that does
    not exist on this host is not in it. ``foreign_xdp``: interfaces that carry somebody else's XDP program;
    ``taken_over``: those whose place ours has taken from such a one, and nobody else's has since.
    """

    interfaces: Mapping[str, Interface] = field(default_factory=dict)
    route_to: Mapping[IPAddress, int | None] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    foreign_xdp: Mapping[int, XdpProgram] = field(default_factory=dict)
    routes: Mapping[IPAddress, Route] = field(default_factory=dict)
    taken_over: Mapping[int, TakenOver] = field(default_factory=dict)

    def by_index(self, ifindex: int) -> Interface | None:
        """The interface with that number, if there is one."""
        return next((each for each in self.interfaces.values() if each.ifindex == ifindex), None)


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """What moves while nothing is configured: what live connections still need, read from the connection tables,
    the targets' health, and what an operator wants drained.

    ``busy_targets`` and ``busy_proxies``: ids that connections name. ``busy_ports``: port -> PORT_LISTEN |
    PORT_TARGET bits without which their packets would not be recognised. ``busy_interfaces``: ifindexes over which
    connections of retired targets or removed proxies run, ``lo`` left out; ``carried``: what kinds of connections there
    are. ``refused_xdp``: interfaces that refused a native program although they should take one (``xdp_mode: auto``
    then serves them through TC).
    ``connections``: live connections per (proxy name, endpoint text), for a plan to tell what they go through.
    ``health``: quarters of its weight that each checked target's health leaves it, 0 to 4; ``drains``: targets that
    are to get no new connections.
    """

    busy_targets: frozenset[int] = frozenset()
    busy_proxies: frozenset[int] = frozenset()
    busy_ports: Mapping[int, int] = field(default_factory=dict)
    busy_interfaces: frozenset[int] = frozenset()
    carried: Carried = field(default_factory=Carried)
    refused_xdp: frozenset[int] = frozenset()
    connections: Mapping[tuple[str, str], int] = field(default_factory=dict)
    health: Mapping[tuple[str, Endpoint], int] = field(default_factory=dict)
    drains: frozenset[Drain] = frozenset()


JUST_IN_TIME: Final = "compiled just in time"
"""In the name of the trials that say whether programs are."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Something of the kernel's that was tried. ``refusal``: its words; empty: it works."""

    name: str
    refusal: str = ""
