"""The rules a schema can't say: about single addresses, within a proxy, and between proxies and files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, ip_address

from reconciler.config.model import Fragment, Listen, Metrics, Proxy, SourcePorts
from reconciler.config.place import Place
from reconciler.config.sourceroutes import SourceRoute, SourceRoutes, WeightedTarget
from reconciler.errors import Problem
from reconciler.state.objects import Endpoint, IPAddress, IPNetwork, Protocol
from reconciler.words import count

Found = tuple[list[Problem], list[Problem]]  # errors, warnings


def problem(place: Place, path: str, message: str) -> Problem:
    """A problem at a place."""
    return Problem(place.file, place.line, place.column, path, message)


# -- single values: what is wrong, or None --------------------------------------------------------------------


def _address(ip: IPAddress, role: str) -> str | None:
    if ip.version == 6 and ip.ipv4_mapped:
        return f"{ip} is an IPv4 address in IPv6 form: write {ip.ipv4_mapped}"
    if ip.is_multicast:
        return f"{ip} is a multicast address, which can't be a {role}"
    if ip == IPv4Address("255.255.255.255"):
        return f"{ip} is the broadcast address, which can't be a {role}"
    return None


def listen_address(ip: IPAddress) -> str | None:
    """What keeps an address from being listened on."""
    if ip.is_unspecified:
        return f"{ip} stands for no address: leave 'addresses' out to listen on the interfaces' own"
    if ip.version == 6 and ip.is_link_local:
        return f"{ip} is a link-local address, which can't be a listen address: nothing is forwarded from or to it"
    return _address(ip, "listen address")


def target_address(ip: IPAddress) -> str | None:
    """What keeps an address from being a target's. The host's own and loopback addresses are fine."""
    if ip.is_unspecified:
        return f"{ip} stands for no address, which can't be a target"
    if ip.version == 6 and ip.is_link_local:
        return f"{ip} is a link-local address, which can't be a target: it means nothing without an interface"
    return _address(ip, "target")


def source(network: IPNetwork, host_bits: bool) -> str | None:
    """What keeps a network from being a route's source."""
    if host_bits:
        return f"the address has bits set beyond the length /{network.prefixlen}: the network is {network}"
    if network.version == 6 and network.network_address.ipv4_mapped:  # then the length is 96 or more
        ipv4 = f"{network.network_address.ipv4_mapped}/{network.prefixlen - 96}"
        return f"{network} is an IPv4 network in IPv6 form: write {ipv4}"
    return None


def source_ports(ports: SourcePorts) -> str | None:
    """What keeps two ports from being the ends of a range."""
    if ports.first > ports.last:
        return f"'source_ports' begin with {ports.first}, which is above their end, {ports.last}"
    return None


def metrics(settings: Metrics) -> str | None:
    """What keeps metrics from being served there."""
    host, _, port = settings.listen.rpartition(":")
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return f"'listen' must be IP:PORT, and {host!r} is no address"
    return None if 0 < int(port) < 65536 else f"'listen' must be IP:PORT, and {port} is no port (1 to 65535)"


# -- within a proxy -------------------------------------------------------------------------------------------


def proxy(one: Proxy, path: str) -> Found:
    """Everything wrong or doubtful within one proxy. ``path``: its path in its file."""
    errors = [*repeated(one, path), *routes(one.source_routes, path)]
    warnings: list[Problem] = []
    if one.listen.addresses:
        errors += _own_listener(one, path)
        family_errors, warnings = _families(one, path)
        errors += family_errors
    return errors, warnings


def repeated(one: Proxy, path: str) -> Iterator[Problem]:
    """What can be told even of a proxy with single values that are wrong: what stands twice, and weights."""
    yield from targets(one.default_target, path)
    yield from identical_sources(one.source_routes, path)


def targets(some: Sequence[WeightedTarget], path: str) -> Iterator[Problem]:
    """What is wrong with a proxy's default target as a list."""
    return _target_list(some, f"{path}.default_target", "the proxy")


def routes(some: SourceRoutes, path: str) -> Iterator[Problem]:
    """Everything wrong with single source routes of a proxy."""
    wrong = {(version, id(lead)) for version, lead in some.kinds() if any(_lead(lead.targets, version, some[0], ""))}
    if wrong:  # a few leads stand for a hundred thousand routes
        for index, ((version, _, _), lead) in enumerate(zip(some.numbers(), some.leads(), strict=True)):
            if (version, id(lead)) in wrong:
                route = some[index]
                yield from _lead(route.targets, version, route, f"{path}.source_routes[{index}]")


def _target_list(targets: Sequence[WeightedTarget], path: str, owner: str) -> Iterator[Problem]:
    first: dict[Endpoint, WeightedTarget] = {}
    for index, target in enumerate(targets):
        known = first.setdefault(target.endpoint, target)
        if known is not target:
            text = f"the target {target.endpoint} stands twice in this list: first at {known.place}"
            yield problem(target.place, f"{path}[{index}]", text)
    for family in (4, 6):
        members = [target for target in targets if target.endpoint.ip.version == family]
        if members and not any(target.weight for target in members):
            which = "target" if len({target.endpoint.ip.version for target in targets}) == 1 else f"IPv{family} target"
            text = f"the weights of {count(len(members), which)} sum to 0: {owner} would lead nowhere"
            yield problem(members[0].place, path, text)


def _lead(targets: Sequence[WeightedTarget], version: int, route: SourceRoute, path: str) -> Iterator[Problem]:
    """What is wrong with where a route leads, whose source is of this version."""
    yield from _target_list(targets, f"{path}.target", "the route")
    wrong = [target for target in targets if target.endpoint.ip.version != version]
    if wrong:
        text = (
            f"the target {wrong[0].endpoint} is IPv{wrong[0].endpoint.ip.version}, "
            f"the source {route.source} is IPv{route.source.version}"
        )
        yield problem(wrong[0].place, f"{path}.target", text)


def identical_sources(some: SourceRoutes, path: str) -> Iterator[Problem]:
    """Source routes of a proxy for one network."""
    if len(set(some.marks())) == len(some):
        return  # different marks are those of different sources
    first: dict[IPNetwork, SourceRoute] = {}
    for index, route in enumerate(some):
        known = first.setdefault(route.source, route)
        if known is not route:
            text = f"there is a route for {route.source} already, at {known.place}"
            yield problem(route.place, f"{path}.source_routes[{index}].source", text)


def all_targets(one: Proxy) -> Iterator[tuple[WeightedTarget, int | None]]:
    """Every target with the index of its route; None: the default target."""
    for target in one.default_target:
        yield target, None
    for index, route in enumerate(one.source_routes):
        for target in route.targets:
            yield target, index


def _target_path(path: str, route: int | None) -> str:
    return f"{path}.default_target" if route is None else f"{path}.source_routes[{route}].target"


def _own_listener(one: Proxy, path: str) -> Iterator[Problem]:
    ports = {0, *one.listen.ports}
    if not any(each.port in ports and each.ip in one.listen.addresses for each in one.endpoints):
        return
    for target, route in all_targets(one):
        if target.endpoint.port in ports and target.endpoint.ip in one.listen.addresses:
            text = f"the target {target.endpoint} is the proxy's own listener: it would forward to itself"
            yield problem(target.place, _target_path(path, route), text)


def _families(one: Proxy, path: str) -> Found:
    """Explicit listen addresses against the targets' families."""
    listening = {ip.version for ip in one.listen.addresses}
    errors: list[Problem] = []
    for family in sorted(one.families - listening):
        unreachable = [found for found in all_targets(one) if found[0].endpoint.ip.version == family]
        target, route = unreachable[0]
        text = f"the target {target.endpoint} is IPv{family}, but no listen address of the proxy is"
        if len(unreachable) > 1:
            text += f" (and {count(len(unreachable) - 1, 'more target')} likewise)"
        errors.append(problem(target.place, _target_path(path, route), text))
    warnings = [
        problem(
            one.listen.address_places[index] if one.listen.address_places else one.listen.place,
            f"{path}.listen.addresses[{index}]",
            f"nothing listens on {ip}: the proxy '{one.name}' has no IPv{ip.version} target",
        )
        for index, ip in enumerate(one.listen.addresses)
        if ip.version not in one.families
    ]
    return errors, [] if errors else warnings


# -- between proxies and files --------------------------------------------------------------------------------


def across(fragments: Sequence[Fragment]) -> Found:
    """Everything wrong or doubtful between the proxies of all files, and between files."""
    errors = [*_settings_twice(fragments), *_names_twice(fragments), *_listeners_twice(fragments)]
    return errors, list(_chained(fragments))


def _settings_twice(fragments: Sequence[Fragment]) -> Iterator[Problem]:
    places = [fragment.settings_place for fragment in fragments if fragment.settings_place is not None]
    for place in places[1:]:
        yield problem(place, "settings", f"'settings' stands in a second file: first at {places[0]}")


def _names_twice(fragments: Sequence[Fragment]) -> Iterator[Problem]:
    first: dict[str, Place] = {}
    for fragment in fragments:
        for name, place, path in fragment.names:
            known = first.setdefault(name, place)
            if known is not place:
                yield problem(place, path, f"there is a proxy '{name}' already, at {known}")


def _claims(one: Proxy) -> Iterator[tuple[str, Protocol, int, IPAddress | int]]:
    """The listeners of a proxy. Without addresses: the family stands for the interface's own ones."""
    listen: Listen = one.listen
    addresses: list[IPAddress | int] = [*listen.addresses] or sorted(one.families)
    for interface in listen.interfaces:
        for port in listen.ports:
            for address in addresses:
                yield interface, listen.protocol, port, address


def _listeners_twice(fragments: Sequence[Fragment]) -> Iterator[Problem]:
    first: dict[tuple[str, Protocol, int, IPAddress | int], Proxy] = {}
    for fragment in fragments:
        for one, path in zip(fragment.proxies, fragment.paths, strict=True):
            told: set[int] = set()  # proxies it was already told to collide with
            for claim in _claims(one):
                known = first.setdefault(claim, one)
                if known is one or id(known) in told:
                    continue
                told.add(id(known))
                interface, protocol, port, address = claim
                on = f"its own IPv{address} addresses" if isinstance(address, int) else f"{address}"
                text = (
                    f"the proxy '{known.name}' listens on {protocol} port {port} of {interface}, {on}, "
                    f"already, at {known.listen.place}"
                )
                yield problem(one.listen.place, f"{path}.listen", text)


def _chained(fragments: Sequence[Fragment]) -> Iterator[Problem]:
    """Targets that are another proxy's explicit listener."""
    listeners: dict[tuple[Protocol, IPAddress, int], Proxy] = {}
    for fragment in fragments:
        for one in fragment.proxies:
            for ip in one.listen.addresses:
                for port in one.listen.ports:
                    listeners.setdefault((one.listen.protocol, ip, port), one)
    ips = {ip for _, ip, _ in listeners}
    for fragment in fragments:
        if ips.isdisjoint(fragment.target_ips):
            continue
        for one, path in zip(fragment.proxies, fragment.paths, strict=True):
            for target, route in all_targets(one):
                ports = (target.endpoint.port,) if target.endpoint.port else one.listen.ports
                for port in ports:
                    other = listeners.get((one.listen.protocol, target.endpoint.ip, port))
                    if other is not None and other is not one:
                        text = (
                            f"the target {target.endpoint} is where the proxy '{other.name}' listens, at "
                            f"{other.listen.place}: what is forwarded there does not go through that proxy"
                        )
                        yield problem(target.place, _target_path(path, route), text)
                        break
