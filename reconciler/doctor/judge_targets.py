"""Findings about the ways to the targets and back. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from reconciler.answers import Finding, Level
from reconciler.doctor.judge_system import error, ok, warning
from reconciler.doctor.remedies import make_full_nat, sysctl_part
from reconciler.state.facts import HostFacts, Interface, Route, RouteKind
from reconciler.state.objects import Mode

if TYPE_CHECKING:
    from reconciler.config.model import Config, Proxy
    from reconciler.doctor.sight import Sight
    from reconciler.state.objects import IPAddress


def targets(sight: Sight, host: HostFacts, config: Config) -> Iterator[Finding]:
    """Each target address once: its route, its neighbour, the way its replies take, what fits on the way."""
    users: dict[IPAddress, list[Proxy]] = {}
    for proxy in config.proxies:
        for ip in {endpoint.ip for endpoint in proxy.endpoints}:
            users.setdefault(ip, []).append(proxy)
    for ip in sorted(users, key=lambda each: (each.version, int(each))):
        route = host.routes.get(ip)
        if route is None:
            continue
        if route.kind is RouteKind.LOCAL:
            yield ok("target.route", "is an address of this host", str(ip))
        elif route.kind is not RouteKind.UNICAST or route.ifindex is None:
            what = "no route leads there" if route.kind is RouteKind.UNREACHABLE else "is no unicast address here"
            yield error("target.route", what, f"ip route add {ip}/{ip.max_prefixlen} via GATEWAY", str(ip))
        else:
            yield from _forwarded(sight, host, config, ip, route, users[ip])


def _forwarded(
    sight: Sight, host: HostFacts, config: Config, ip: IPAddress, route: Route, users: Sequence[Proxy]
) -> Iterator[Finding]:
    """A target that packets go to by an interface."""
    assert route.ifindex is not None
    interface = host.by_index(route.ifindex)
    name = interface.name if interface else str(route.ifindex)
    hop = route.gateway or ip
    yield ok("target.route", f"by {name}, {f'through {route.gateway}' if route.gateway else 'on the link'}", str(ip))
    yield _neighbour(sight.neighbours.get((route.ifindex, hop)), hop, name, str(ip))
    yield _return_path(ip, route, name, users, config)
    yield from _too_long(host, ip, interface, users)


def _neighbour(state: str | None, hop: IPAddress, name: str, subject: str) -> Finding:
    if state in ("failed", "incomplete"):
        how = "ARP" if hop.version == 4 else "neighbour discovery"
        return warning(
            "target.neighbour",
            f"{hop} does not answer {how} on {name}",
            f"ip neigh replace {hop} dev {name} use",
            subject,
        )
    known = f"known ({state})" if state else "asked for when the first packet goes there"
    return ok("target.neighbour", f"the link address of {hop} is {known}", subject)


def _return_path(ip: IPAddress, route: Route, name: str, users: Sequence[Proxy], config: Config) -> Finding:
    """With dnat a target has to answer through this host."""
    check, subject = "target.return", str(ip)
    dnat = [proxy for proxy in users if proxy.mode is Mode.DNAT]
    if not dnat:
        return ok(check, "full NAT: replies come to this host's address", subject)
    own = f" ({route.source})" if route.source else ""
    shared = sorted((proxy for proxy in dnat if name in proxy.listen.interfaces), key=lambda each: each.name)
    if shared:
        names = ", ".join(each.name for each in shared)
        text = (
            f"is reached by {name}, where clients of {names} come in: it answers those in its own network"
            " directly, and their connections fail"
        )
        return warning(check, text, make_full_nat(config, shared), subject)
    if route.gateway:
        text = f"not checked: is behind {route.gateway}; its replies have to come back through this host{own}"
        return Finding(check, Level.WARNING, text, subject, f"traceroute from {ip} to a client", checked=False)
    return ok(check, f"its route to clients has to lead through this host{own}, which can't be seen from here", subject)


def _too_long(host: HostFacts, ip: IPAddress, interface: Interface | None, users: Sequence[Proxy]) -> Iterator[Finding]:
    """Packets too long for the way out take an ICMP error, which the stack sends only where it forwards."""
    names = {name for proxy in users if proxy.mode is Mode.DNAT for name in proxy.listen.interfaces}
    for name in sorted(names & host.interfaces.keys()):
        listening = host.interfaces[name]
        forwards = listening.forwarding4 if ip.version == 4 else listening.forwarding6
        if interface is not None and interface.mtu < listening.mtu and not forwards:
            text = (
                f"{interface.name} has MTU {interface.mtu}, {name} {listening.mtu}: clients hear of packets too long"
                f" (path MTU discovery) only where {name} forwards"
            )
            remedy = f"sysctl -w net.ipv{ip.version}.conf.{sysctl_part(name)}.forwarding=1"
            yield warning("target.mtu", text, remedy, str(ip))
