"""Short ways to write configurations and host facts for the tests of ``reconciler.state``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from reconciler.config.model import (
    Config,
    Listen,
    Proxy,
    Settings,
    SourcePorts,
    XdpChoice,
)
from reconciler.config.place import Place
from reconciler.config.sourceroutes import SourceRoute, SourceRoutes, WeightedTarget
from reconciler.state.allocate import Limits, allocate
from reconciler.state.desired import Desired, desired
from reconciler.state.diff import wanted_ports
from reconciler.state.facts import HostFacts, Interface, RuntimeFacts
from reconciler.state.objects import Allocation, Balance, Endpoint, KernelState, Mode, Observed, Protocol, Revision
from reconciler.state.plan import Plan, make_plan

FORWARDING = {"net/ipv4/conf/lo/forwarding": "1", "net/ipv6/conf/lo/forwarding": "1"}


def endpoint(text: str) -> Endpoint:
    """10.0.0.1:80, [2001:db8::1]:80 or a bare address."""
    if text.startswith("["):
        address, _, port = text[1:].partition("]:")
    elif text.count(":") > 1:
        address, port = text, ""
    else:
        address, _, port = text.partition(":")
    return Endpoint(ip_address(address), int(port or 0))


def targets(*items: str | tuple[str, int], line: int = 0) -> tuple[WeightedTarget, ...]:
    pairs = [item if isinstance(item, tuple) else (item, 1) for item in items]
    return tuple(WeightedTarget(endpoint(text), weight, Place("web.yaml", line, 3)) for text, weight in pairs)


def route(source: str, *items: str | tuple[str, int], line: int = 0) -> SourceRoute:
    """A source route; to nowhere (deny) without targets."""
    return SourceRoute(ip_network(source), not items, targets(*items, line=line), Place("web.yaml", line, 5))


def proxy(
    name: str = "web",
    *,
    interfaces: Iterable[str] = ("eth0",),
    addresses: Iterable[str] = (),
    ports: Iterable[int] = (80,),
    protocol: Protocol = Protocol.TCP,
    to: tuple[WeightedTarget, ...] | None = None,
    routes: tuple[SourceRoute, ...] = (),
    balance: Balance = Balance.MAGLEV,
    mode: Mode = Mode.DNAT,
    timeout_sec: int | None = None,
    line: int = 4,
) -> Proxy:
    listen = Listen(tuple(interfaces), tuple(map(ip_address, addresses)), tuple(ports), protocol)
    to = targets("10.0.0.1:8080", line=9) if to is None else to
    return Proxy(name, listen, mode, balance, to, SourceRoutes(routes), timeout_sec, Place("web.yaml", line, 5))


def config(
    *proxies: Proxy,
    fast_path: bool = True,
    xdp_mode: str = "auto",
    ports: tuple[int, int] = (10000, 32767),
    takeover: bool = False,
) -> Config:
    place, source_ports = Place("settings.yaml", 2, 1), SourcePorts(*ports)
    settings = Settings(300, 1000, fast_path, XdpChoice(xdp_mode), source_ports, place=place, takeover=takeover)
    return Config(settings, proxies)


def interface(ifindex: int, name: str, *addresses: str, **more: Any) -> Interface:
    return Interface(ifindex, name, addresses=tuple(map(ip_interface, addresses)), **more)


def host(*interfaces: Interface, ways: Mapping[str, int | None] | None = None, **more: Any) -> HostFacts:
    found = interfaces or (interface(2, "eth0", "192.0.2.1/24"),)
    more.setdefault("sysctls", FORWARDING)
    return HostFacts(
        interfaces={each.name: each for each in found},
        route_to={ip_address(text): way for text, way in (ways or {}).items()},
        **more,
    )


def want(*proxies: Proxy, on: HostFacts | None = None, **more: Any) -> Desired:
    """The desired state of these proxies."""
    return desired(config(*proxies, **more), on or host(), tag="tag")


def nothing() -> Observed:
    """A kernel that holds nothing of ours."""
    return Observed(KernelState(), Allocation())


def applied(wanted: Desired) -> Observed:
    """A kernel that holds just this."""
    numbers = allocate(wanted.state, Allocation(), Limits({}))
    revision = Revision(1, 1, b"1" * 16)
    allocation = Allocation(numbers.proxies, numbers.targets, numbers.groups, sources=dict(wanted.state.sources))
    return Observed(wanted.state, allocation, revision=revision, exists=True, ports=wanted_ports(wanted.state))


def plan(wanted: Desired, observed: Observed, **more: Any) -> Plan:
    more.setdefault("limits", Limits({}))
    more.setdefault("runtime", RuntimeFacts())
    return make_plan(wanted, observed, **more)


WEB = proxy(to=targets("10.0.0.1:8080", "10.0.0.2:8080", line=9))


def of(found: Plan, *kinds: type) -> list[object]:
    """A plan's operations of these kinds."""
    return [operation for operation in found.operations if isinstance(operation, kinds)]


def with_state(observed: Observed, **fields: object) -> Observed:
    """The same with other fields of its state."""
    return replace(observed, state=replace(observed.state, **fields))  # type: ignore[arg-type]  # fields of the state
