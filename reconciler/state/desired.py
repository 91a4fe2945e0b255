"""What the kernel should hold: Config + HostFacts + RuntimeFacts -> :class:`Desired`.

Pure: interfaces, addresses, routes and live values come in as facts. Nothing here knows under which numbers the maps
hold things; that is :mod:`reconciler.state.plan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import TYPE_CHECKING

from reconciler.errors import ConfigError, Problem
from reconciler.state import local, share, xdp
from reconciler.state.carried import Carried
from reconciler.state.facts import HostFacts, Interface, RouteKind, RuntimeFacts
from reconciler.state.objects import (
    DENY,
    Attachment,
    DataPlaneSettings,
    Destination,
    Endpoint,
    IPAddress,
    IPNetwork,
    KernelState,
    ListenerKey,
    ProgramState,
    ProxyState,
    RouteKey,
    XdpMode,
)
from reconciler.state.routes import Routes

if TYPE_CHECKING:
    from reconciler.config.model import Config, Proxy
    from reconciler.config.place import Place
    from reconciler.config.sourceroutes import Numbers, SourceRoutes, WeightedTarget


class Causes:
    """Where in the files an object of the desired state comes from. Looked up when asked for: of a hundred thousand
    routes a change concerns a few."""

    def __init__(self, config: Config | None = None, fresh: Mapping[RouteKey, Place] | None = None) -> None:
        """``fresh``: where some of the routes stand, to spare looking through all of them."""
        self._fresh = fresh or {}
        self._settings = config.settings.place if config else None
        self._proxies = {proxy.name: proxy for proxy in config.proxies} if config else {}
        self._routes: dict[str, dict[Numbers, int]] = {}

    def place(self, kind: str, name: str) -> Place | None:
        """The place of an object as a :class:`~reconciler.state.diff.Change` names it, e.g. ("route",
        "web/192.168.0.0/16"); None where no file speaks of it."""
        if kind in ("setting", "program"):
            return self._named(self._settings)
        proxy_name, _, rest = name.partition("/")
        proxy = self._proxies.get(proxy_name)
        if proxy is None or kind == "interface":
            return None
        if kind == "target":
            found = (target.place for target in proxy.default_target if str(target.endpoint) == rest)
            return self._named(next(found, None))
        if kind == "route":
            return self._named(self._route(proxy, ip_network(rest)))
        return self._named(proxy.place)

    def _route(self, proxy: Proxy, source: IPNetwork) -> Place | None:
        place = self._fresh.get(RouteKey(proxy.name, source))
        if place is not None:
            return place
        if proxy.name not in self._routes:
            self._routes[proxy.name] = {each: index for index, each in enumerate(proxy.source_routes.numbers())}
        index = self._routes[proxy.name].get((source.version, int(source.network_address), source.prefixlen))
        return None if index is None else proxy.source_routes[index].place

    @staticmethod
    def _named(place: Place | None) -> Place | None:
        return place if place and place.file else None


@dataclass(frozen=True, slots=True)
class Desired:
    """The desired state and what is worth knowing about how it came to be.

    ``waiting``: interfaces the files name and the host does not have. ``warnings``: sentences for a person.
    ``names``: interface names by ifindex. ``live_sysctls``: what the wanted sysctls are now.
    """

    state: KernelState
    waiting: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    causes: Causes = field(default_factory=Causes, compare=False)
    names: Mapping[int, str] = field(default_factory=dict)
    live_sysctls: Mapping[str, str] = field(default_factory=dict)


class Memo:
    """Destinations and routes met before, to be handed to each call of :func:`desired` by a caller that makes many. A
    proxy that is the same object as last time costs nothing, another one what its routes differ by."""

    def __init__(self) -> None:
        self.destinations: dict[tuple[WeightedTarget, ...], Destination] = {}
        self._proxies: dict[str, Proxy] = {}  # that the routes are of
        self._routes = Routes()
        self._stated: dict[str, Proxy] = {}
        self._states: dict[str, ProxyState] = {}  # of these proxies
        self._idle_sec: int | None = None  # of proxies that say nothing of it, in these states
        self.fresh: dict[RouteKey, Place] = {}  # where the routes stand that the last difference was made of

    def proxy_states(self, proxies: Sequence[Proxy], idle_sec: int) -> dict[str, ProxyState]:
        """Each proxy without its routes. ``idle_sec``: of those that say nothing of it."""
        stated = self._stated if idle_sec == self._idle_sec else {}
        found = {
            each.name: self._states[each.name] if stated.get(each.name) is each else _proxy(each, idle_sec, self)
            for each in proxies
        }
        self._stated, self._states = {each.name: each for each in proxies}, found
        self._idle_sec = idle_sec
        return found

    def all_routes(self, proxies: Sequence[Proxy]) -> Routes:
        """The source routes of all proxies: those of last time, with what differs."""
        named = {proxy.name: proxy for proxy in proxies}
        removed: dict[RouteKey, None] = {}
        put: dict[RouteKey, Destination] = {}
        if len(named) != len(self._proxies) or any(self._proxies.get(each.name) is not each for each in proxies):
            self.fresh = {}
        for name in self._proxies.keys() | named.keys():
            old, new = self._proxies.get(name), named.get(name)
            if old is not new:
                before, after = (each.source_routes if each else None for each in (old, new))
                start, stop = before.common_ends(after) if before and after else (0, 0)
                if before:
                    removed.update((key, None) for key in _keys(name, before[start : len(before) - stop]))
                if after:
                    fresh = after[start : len(after) - stop]
                    put.update(zip(_keys(name, fresh), self._destinations(fresh), strict=True))
                    if stop:
                        self.fresh.update(zip(_keys(name, fresh), (each.place for each in fresh), strict=True))
        for key in put:
            removed.pop(key, None)
        if removed or put:
            whole = not self._routes or (len(named) and not self._proxies.keys() & named.keys())
            self._routes = Routes(put) if whole else self._routes.patched(removed, put)
        self._proxies = named
        if len(self.destinations) > 1024 + 2 * len(self._routes):
            self.destinations.clear()
        return self._routes

    def _destinations(self, routes: SourceRoutes) -> Iterator[Destination]:
        """Where each leads. A few leads stand for many routes."""
        known = {id(lead): DENY if lead.deny else self.destination(lead.targets) for _, lead in routes.kinds()}
        return (known[id(lead)] for lead in routes.leads())

    def destination(self, targets: tuple[WeightedTarget, ...]) -> Destination:
        """One family's targets as a destination; equal ones are the same object. An endpoint named twice has the sum;
        the weight of one that stands alone says nothing, and is 1."""
        found = self.destinations.get(targets)
        if found is None:
            weights = {target.endpoint: target.weight for target in targets}  # no list of the files has one twice
            if len(weights) == 1:
                weights = {endpoint: min(weight, 1) for endpoint, weight in weights.items()}
            found = self.destinations[targets] = Destination(tuple(sorted(weights.items())))
        return found


def _keys(proxy: str, routes: SourceRoutes) -> Iterator[RouteKey]:
    return (RouteKey.of_numbers(proxy, *numbers) for numbers in routes.numbers())


def desired(
    config: Config, host: HostFacts, runtime: RuntimeFacts | None = None, *, tag: str, memo: Memo | None = None
) -> Desired:
    """The kernel state that ``config`` asks for on this host.

    ``tag`` is the digest of the programs that should run. Raises ConfigError if, on this host, two proxies would
    share a listener or a target is its own proxy's listener, and ForeignProgramError if an XDP program of somebody
    else is where the files insist on ours and it does not give way.
    """
    runtime, memo = runtime or RuntimeFacts(), memo or Memo()
    warnings: list[str] = []
    listeners = _listeners(config, host)
    attachments = _attachments(config, host, runtime, listeners, warnings)
    proxies = memo.proxy_states(config.proxies, config.settings.connection_timeout_sec)
    on_loopback = local.loopback(listeners, proxies, host, runtime.carried)
    if on_loopback is not None:
        lo = next(each for each in host.interfaces.values() if each.ifindex == on_loopback)
        attachments.setdefault(on_loopback, Attachment(on_loopback, lo.name, XdpMode.OFF))
    routes = memo.all_routes(config.proxies)
    sysctls = _sysctls(config, host, runtime.carried, listeners, attachments, warnings)
    _warn_of_targets(config, host, warnings)
    local.warn_of_ports(config, host, warnings)
    ports = config.settings.source_ports
    state = KernelState(
        program=ProgramState(tag, config.settings.max_connections),
        settings=DataPlaneSettings(
            fast_path=config.settings.fast_path,
            stats_enabled=config.settings.stats_enabled,
            source_port_first=ports.first,
            source_port_last=ports.last,
        ),
        proxies=proxies,
        listeners=listeners,
        routes=routes,
        attachments=attachments,
        sysctls=sysctls,
        devices=_devices(host, attachments),
        no_tx=_without_tx(host, attachments),
        guarded=local.guarded(config, host, runtime.carried),
        sources=local.sources(proxies, routes, host, warnings),
    )
    if runtime.drains or runtime.health:
        state = replace(state, shares=share.shares(share.endpoints(state), runtime.health, runtime.drains))
    return Desired(
        state=state,
        waiting=tuple(
            sorted({name for proxy in config.proxies for name in proxy.listen.interfaces} - set(host.interfaces))
        ),
        warnings=tuple(warnings),
        causes=Causes(config, memo.fresh),
        names={interface.ifindex: interface.name for interface in host.interfaces.values()},
        live_sysctls={name: host.sysctls[name] for name in sysctls},
    )


def target_addresses(config: Config) -> frozenset[IPAddress]:
    """Every address whose way out :func:`desired` wants to find in ``HostFacts.route_to``."""
    return config.target_ips


def sysctl_names(config: Config, interfaces: Iterable[str]) -> tuple[str, ...]:
    """The sysctls whose live values :func:`desired` wants to find in ``HostFacts.sysctls``, the host having these
    interfaces."""
    others = local.sysctl_names(interfaces := tuple(interfaces))
    if config.settings.fast_path:
        return ("net/ipv4/conf/lo/forwarding", "net/ipv6/conf/lo/forwarding", *others)
    per_interface = [
        name
        for interface in sorted(interfaces)
        for name in (
            f"net/ipv4/conf/{interface}/forwarding",
            f"net/ipv6/conf/{interface}/accept_ra",
            f"net/ipv6/conf/{interface}/forwarding",
        )
    ]
    return (*per_interface, "net/ipv6/conf/default/forwarding", "net/ipv6/conf/all/forwarding", *others)


# -- proxies and routes --------------------------------------------------------------------------------------------


def _proxy(proxy: Proxy, default_idle_sec: int, memo: Memo) -> ProxyState:
    families = [
        tuple(target for target in proxy.default_target if target.endpoint.ip.version == version) for version in (4, 6)
    ]
    default4, default6 = (memo.destination(targets) if targets else None for targets in families)
    idle_sec = proxy.connection_timeout_sec
    return ProxyState(
        name=proxy.name,
        mode=proxy.mode,
        balance=proxy.balance,
        idle_sec=default_idle_sec if idle_sec is None else idle_sec,
        default4=default4,
        default6=default6,
    )


# -- listeners -----------------------------------------------------------------------------------------------------


def _own_addresses(interface: Interface) -> tuple[IPAddress, ...]:
    """What a proxy takes on an interface that names no addresses: the interface's own except IPv6 link-local ones."""
    return tuple(each.ip for each in interface.addresses if not (each.version == 6 and each.ip.is_link_local))


def _listeners(config: Config, host: HostFacts) -> dict[ListenerKey, str]:
    listeners: dict[ListenerKey, str] = {}
    named: dict[str, Proxy] = {}
    problems: dict[tuple[str, str], Problem] = {}
    own = {name: (each.ifindex, _own_addresses(each)) for name, each in host.interfaces.items()}
    for proxy in config.proxies:
        named[proxy.name] = proxy
        for name in proxy.listen.interfaces:
            ifindex, addresses = own.get(name, (0, None))
            if addresses is None:
                continue
            for ip in proxy.listen.addresses or addresses:
                if ip.version not in proxy.families:
                    continue
                for port in proxy.listen.ports:
                    key = ListenerKey(ifindex, ip, proxy.listen.protocol, port)
                    owner = listeners.setdefault(key, proxy.name)
                    if owner != proxy.name:
                        problems.setdefault((owner, proxy.name), _conflict(proxy, named[owner], name, key))
    own_targets = list(_own_targets(config, listeners))
    if problems or own_targets:
        raise ConfigError([*problems.values(), *own_targets])
    return listeners


def _problem(place: Place, path: str, message: str) -> Problem:
    return Problem(place.file, place.line, place.column, path, message)


def _conflict(proxy: Proxy, owner: Proxy, interface: str, key: ListenerKey) -> Problem:
    place = owner.listen.place if owner.listen.place.file else owner.place
    return _problem(
        proxy.listen.place if proxy.listen.place.file else proxy.place,
        f"proxies.{proxy.name}.listen",
        f"proxy {proxy.name} would listen on {interface} {listen_text(key)}, which proxy {owner.name} ({place}) has",
    )


def _own_targets(config: Config, listeners: Mapping[ListenerKey, str]) -> Iterator[Problem]:
    """Targets that are a listener of their own proxy: its packets would come back to it for ever."""
    suspects = config.target_ips.intersection(key.ip for key in listeners)
    if not suspects:  # nearly always: no target is anybody's listener
        return
    heard = {(name, key.ip, key.port): key for key, name in listeners.items() if key.ip in suspects}
    ips = {(name, ip) for name, ip, _ in heard}
    for proxy in config.proxies:
        if not any((proxy.name, endpoint.ip) in ips for endpoint in proxy.endpoints):
            continue
        routed = (route.targets for route in proxy.source_routes)
        for target in (target for targets in (proxy.default_target, *routed) for target in targets):
            ip, port = target.endpoint.ip, target.endpoint.port
            if (proxy.name, ip) not in ips:
                continue
            if any((proxy.name, ip, each) in heard for each in ((port,) if port else proxy.listen.ports)):
                text = f"target {target.endpoint} is a listener of its own proxy {proxy.name}"
                yield _problem(target.place, f"proxies.{proxy.name}", text)


def listen_text(key: ListenerKey) -> str:
    """A listener's address, port and protocol as people write it: 192.0.2.1:80/tcp, [2001:db8::1]:53/udp."""
    return f"{Endpoint(key.ip, key.port)}/{key.protocol}"


# -- interfaces ----------------------------------------------------------------------------------------------------


def _attachments(
    config: Config,
    host: HostFacts,
    runtime: RuntimeFacts,
    listeners: Mapping[ListenerKey, str],
    warnings: list[str],
) -> dict[int, Attachment]:
    """Every interface that listens, leads to a target, or still carries connections of targets that have gone."""
    by_index = {interface.ifindex: interface for interface in host.interfaces.values()}
    wanted = {host.interfaces[n].ifindex for p in config.proxies for n in p.listen.interfaces if n in host.interfaces}
    wanted.update(key.ifindex for key in listeners)
    targets = target_addresses(config)
    ways = {host.route_to.get(ip) for ip in targets} | set(runtime.busy_interfaces)
    ways.update(way for ip in targets if ip in host.routes for way in host.routes[ip].shared)
    wanted.update(way for way in ways if way is not None and way in by_index and by_index[way].kind != "loopback")
    return {
        ifindex: xdp.attachment(config.settings, host, runtime, by_index[ifindex], warnings)
        for ifindex in sorted(wanted)
    }


def _devices(host: HostFacts, attachments: Mapping[int, Attachment]) -> frozenset[int]:
    """Interfaces that take redirected XDP frames. Where the kernel doesn't tell, our own native program on it is the
    sign, except on a veth, where it is the peer that counts."""
    able = set()
    for interface in host.interfaces.values():
        attachment = attachments.get(interface.ifindex)
        if attachment is None:
            continue
        takes = interface.xdp_transmit
        if takes is None:
            takes = attachment.xdp is XdpMode.NATIVE and interface.kind != "veth"
        if takes:
            able.add(interface.ifindex)
    return frozenset(able)


def _without_tx(host: HostFacts, attachments: Mapping[int, Attachment]) -> frozenset[int]:
    """Interfaces that lose what our program sends back by them (XDP_TX): of a veth the kernel lets the peer know only
    where that has an XDP program itself. What is redirected to it arrives."""
    return frozenset(
        interface.ifindex
        for interface in host.interfaces.values()
        if interface.kind == "veth"
        and interface.ifindex in attachments
        and attachments[interface.ifindex].xdp is not XdpMode.OFF
    )


# -- sysctls and warnings ------------------------------------------------------------------------------------------


def _sysctls(
    config: Config,
    host: HostFacts,
    carried: Carried,
    listeners: Mapping[ListenerKey, str],
    attachments: Mapping[int, Attachment],
    warnings: list[str],
) -> dict[str, str]:
    """Forwarding, as far as it is needed, and what :mod:`~reconciler.state.local` asks for. The fast path asks the FIB
    in the name of lo; without it the stack forwards, and an interface that forwards IPv6 takes router advertisements
    only with accept_ra 2."""
    families = {key.ip.version for key in listeners} | carried.families
    wanted: dict[str, str] = {}
    if config.settings.fast_path:
        wanted = {f"net/ipv{version}/conf/lo/forwarding": "1" for version in sorted(families)}
    else:
        if 4 in families:
            wanted.update({f"net/ipv4/conf/{each.name}/forwarding": "1" for each in attachments.values()})
        if 6 in families:
            names = (f"net/ipv6/conf/{name}/accept_ra" for name in sorted(host.interfaces))
            # 2 as well: it may be ours, and is to stay then.
            wanted.update({name: "2" for name in names if host.sysctls.get(name) in ("1", "2")})
            # The one for all sets every other: each is named, so that what stood there is remembered.
            names = (f"net/ipv6/conf/{name}/forwarding" for name in (*sorted(host.interfaces), "default"))
            wanted.update({name: "1" for name in names if name in host.sysctls})
            wanted["net/ipv6/conf/all/forwarding"] = "1"
    wanted.update(local.sysctls(config, host, listeners, carried))
    missing = sorted(name for name in wanted if name not in host.sysctls)
    warnings.extend(f"sysctl {name} does not exist on this host" for name in missing)
    return {name: value for name, value in wanted.items() if name in host.sysctls}


def _warn_of_targets(config: Config, host: HostFacts, warnings: list[str]) -> None:
    for ip in sorted(target_addresses(config), key=lambda each: (each.version, int(each))):
        route = host.routes.get(ip)
        if route is not None and route.kind in (RouteKind.UNREACHABLE, RouteKind.OTHER):
            warnings.append(
                f"no route to target {ip}: `revproxyctl doctor` says what mends it"
                if route.kind == RouteKind.UNREACHABLE
                else f"target {ip} is no unicast address here"
            )
