"""What full NAT and targets on this host ask of the host: source addresses, settings of the network stack, guards.

Packets of full NAT that the stack must see, those to ``::1``, and those that it must answer with an ICMP error are
handed to it as if they came in by ``lo``: there it takes this host's own addresses as a source, answers as a router
does, and nothing from the wire comes in by it. A target at 127.0.0.1 that sees the client's address (``dnat``)
answers through the interface that listens, which has to let such addresses pass (``route_localnet``): what comes in
there from or to one of them is then dropped by ``tc_ingress``. What such a target says while the next hop's hardware
address is not known makes the kernel ask for that in its name, and nobody answers 127.0.0.1: the interface is told to
ask in its own (``arp_announce``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from reconciler.state.carried import Carried
from reconciler.state.facts import HostFacts, Interface, RouteKind
from reconciler.state.objects import (
    Destination,
    Endpoint,
    IPAddress,
    ListenerKey,
    Mode,
    ProxyState,
    RouteKey,
)
from reconciler.state.routes import uses

if TYPE_CHECKING:
    from reconciler.config.model import Config, Proxy

_ROUTED: Final = (RouteKind.UNICAST, RouteKind.LOCAL)
_PORT_RANGE: Final = "net/ipv4/ip_local_port_range"  # of IPv6 too
_RESERVED_PORTS: Final = "net/ipv4/ip_local_reserved_ports"
_ACCEPT_LOCAL: Final = "net/ipv4/conf/lo/accept_local"
_LO_ROUTE_LOCALNET: Final = "net/ipv4/conf/lo/route_localnet"
_FORCE_FORWARDING6: Final = "net/ipv6/conf/lo/force_forwarding"  # since Linux 6.17: without forwarding for all
_LO_RP_FILTER: Final = "net/ipv4/conf/lo/rp_filter"  # what holds is the greater one of this and that for all
_ALL_RP_FILTER: Final = "net/ipv4/conf/all/rp_filter"
_STRICT, _LOOSE = "1", "2"
_ON_LINK, _BEST = "1", "2"  # of arp_announce: addresses of the link's network, or always the interface's first


def sources(
    proxies: Mapping[str, ProxyState], routes: Mapping[RouteKey, Destination], host: HostFacts, warnings: list[str]
) -> dict[tuple[str, Endpoint], IPAddress]:
    """This host's address towards each target of each fullnat proxy. A target that it has none for is left out, with a
    warning unless it has no way to it either, which is warned about elsewhere."""
    fullnat = {name: proxy for name, proxy in proxies.items() if proxy.mode is Mode.FULLNAT}
    if not fullnat:
        return {}
    wanted: dict[tuple[str, int], Destination] = {}
    for name, proxy in fullnat.items():
        wanted.update(((name, id(each)), each) for each in (proxy.default4, proxy.default6) if each)
    wanted.update(((use[0], use[2]), each) for use, (each, _) in uses(routes).items() if use[0] in fullnat)
    found: dict[tuple[str, Endpoint], IPAddress] = {}
    lacking: set[IPAddress] = set()
    for (name, _), destination in wanted.items():
        for endpoint, _weight in destination.members:
            source = _source(endpoint.ip, host)
            if source is not None:
                found[name, endpoint] = source
            else:
                lacking.add(endpoint.ip)
    routed = {ip for ip in lacking if ip not in host.routes or host.routes[ip].kind in _ROUTED}
    warnings.extend(
        f"this host has no address towards target {ip}: it takes no fullnat connection"
        for ip in sorted(routed, key=lambda each: (each.version, int(each)))
    )
    return found


def _source(target: IPAddress, host: HostFacts) -> IPAddress | None:
    route = host.routes.get(target)
    if route is None or route.kind not in _ROUTED:
        return None
    source = route.source or (target if route.kind is RouteKind.LOCAL else None)
    if source is None or source.version != target.version or (source.version == 6 and source.is_link_local):
        return None
    return source


def loopback(
    listeners: Mapping[ListenerKey, str], proxies: Mapping[str, ProxyState], host: HostFacts, carried: Carried
) -> int | None:
    """The interface ``lo`` if it has to be served: answers of targets on this host to a source address of this host
    arrive there, and so do the stack's ICMP errors to it. None: no fullnat proxy listens, and none has connections."""
    if not carried.fullnat and not any(proxies[name].mode is Mode.FULLNAT for name in set(listeners.values())):
        return None
    return next((each.ifindex for each in host.interfaces.values() if each.kind == "loopback"), None)


def guarded(config: Config, host: HostFacts, carried: Carried) -> frozenset[int]:
    """Interfaces whose packets from and to 127.0.0.0/8 are dropped, since the stack there would let them pass."""
    return frozenset(each.ifindex for each in _opened(config, host, carried))


def _opened(config: Config, host: HostFacts, carried: Carried) -> list[Interface]:
    """Interfaces by which targets at 127.0.0.1 answer with that address. The loopback interface needs no leave."""
    names = set()
    if any(map(is_loopback4, config.target_ips)):
        names = {
            name
            for proxy in config.proxies
            if proxy.mode is Mode.DNAT and _has_loopback4(proxy)
            for name in proxy.listen.interfaces
        }
    names.update(each.name for each in host.interfaces.values() if each.ifindex in carried.guarded)
    found = (host.interfaces[name] for name in sorted(names) if name in host.interfaces)
    return [interface for interface in found if interface.kind != "loopback"]


def _has_loopback4(proxy: Proxy) -> bool:
    return any(is_loopback4(endpoint.ip) for endpoint in proxy.endpoints)


def is_loopback4(ip: IPAddress) -> bool:
    """Whether it is of 127.0.0.0/8."""
    return ip.version == 4 and ip.is_loopback


def route_localnet(interface: str) -> str:
    """The sysctl by which an interface lets 127.0.0.0/8 pass."""
    return f"net/ipv4/conf/{interface}/route_localnet"


def _arp_announce(interface: str) -> str:
    return f"net/ipv4/conf/{interface}/arp_announce"


def opens(sysctl: str) -> bool:
    """Whether a sysctl makes an interface let loopback addresses pass, so that it may be set only while a guard is in
    place."""
    return sysctl.endswith("/route_localnet") and sysctl != _LO_ROUTE_LOCALNET


def sysctls(config: Config, host: HostFacts, listeners: Mapping[ListenerKey, str], carried: Carried) -> dict[str, str]:
    """Settings that are needed besides forwarding, with their values."""
    wanted: dict[str, str] = {}
    named = {proxy.name: proxy for proxy in config.proxies if proxy.mode is Mode.FULLNAT}
    fullnat4 = {name for key, name in listeners.items() if name in named and key.ip.version == 4}
    families = {key.ip.version for key in listeners} | carried.families if config.settings.fast_path else set()
    # Packets that the stack must answer with an ICMP error come to it by lo.
    if 6 in families and _FORCE_FORWARDING6 in host.sysctls:
        wanted[_FORCE_FORWARDING6] = "1"
    strict = _STRICT in (host.sysctls.get(_ALL_RP_FILTER), host.sysctls.get(_LO_RP_FILTER))
    # Loose as well: it may be ours, and is to stay then.
    if 4 in families and (strict or host.sysctls.get(_LO_RP_FILTER) == _LOOSE):
        wanted[_LO_RP_FILTER] = _LOOSE
    if fullnat4 or 4 in carried.fullnat:
        wanted[_ACCEPT_LOCAL] = "1"
    if carried.lo_local or any(_has_loopback4(named[name]) for name in fullnat4):
        wanted[_LO_ROUTE_LOCALNET] = "1"
    opened = [interface.name for interface in _opened(config, host, carried)]
    wanted.update({route_localnet(name): "1" for name in opened})
    wanted.update({name: _ON_LINK for name in map(_arp_announce, opened) if host.sysctls.get(name, _BEST) != _BEST})
    return wanted


def sysctl_names(interfaces: Iterable[str]) -> tuple[str, ...]:
    """Every sysctl whose live value :func:`sysctls` or :func:`warn_of_ports` may want to know."""
    return (
        _ACCEPT_LOCAL,
        _FORCE_FORWARDING6,
        _LO_RP_FILTER,
        _ALL_RP_FILTER,
        _PORT_RANGE,
        _RESERVED_PORTS,
        *(route_localnet(name) for name in sorted({"lo", *interfaces})),
        *(_arp_announce(name) for name in sorted(interfaces)),
    )


def warn_of_ports(config: Config, host: HostFacts, warnings: list[str]) -> None:
    """A port that the host takes for a connection of its own to the same target is one too many."""
    if not any(proxy.mode is Mode.FULLNAT for proxy in config.proxies):
        return
    ours, theirs = config.settings.source_ports, host.sysctls.get(_PORT_RANGE, "").split()
    if len(theirs) != 2:
        return
    first, last = max(ours.first, int(theirs[0])), min(ours.last, int(theirs[1]))
    reserved = _ranges(host.sysctls.get(_RESERVED_PORTS, ""))
    if first <= last and not any(low <= first and last <= high for low, high in reserved):
        warnings.append(
            f"source_ports {ours.first} to {ours.last} overlap the host's own ports, {theirs[0]} to {theirs[1]}: choose"
            f" others, or reserve {first}-{last} (net.ipv4.ip_local_reserved_ports)"
        )


def _ranges(text: str) -> list[tuple[int, int]]:
    """``1-5,8`` as the kernel writes it: each range once, none touching another."""
    found = []
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        found.append((int(first), int(last or first)))
    return found
