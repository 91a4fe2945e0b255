"""What a configuration says about the first packet of a connection, and with which packets to try a commit. Pure.

Written from the meaning of the configuration and not from the programs: the probe compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, TypeVar

from reconciler.state.objects import Destination, Endpoint, IPAddress, IPNetwork, KernelState, ListenerKey, RouteKey
from reconciler.state.operations import Operation, StageListener, StageProxy, StageRoute, StageSettings

T = TypeVar("T")

_CLIENTS: Final[Mapping[int, tuple[IPAddress, ...]]] = {
    4: tuple(map(ip_address, ("198.51.100.77", "203.0.113.77", "192.0.2.77", "100.64.77.77", "10.77.77.77"))),
    6: tuple(map(ip_address, ("2001:db8:ffff::77", "2001:db8::77", "fd77::77", "2a00:77::77"))),
}
"""Who asks where anybody may (RFC 5737, RFC 3849 and the like)."""


@dataclass(frozen=True, slots=True)
class Decision:
    """``proxy`` None: nobody listens. ``rule``: the source route that decides, None for the default. ``destination``
    None: the proxy has none for this address family."""

    proxy: str | None = None
    rule: IPNetwork | None = None
    destination: Destination | None = None

    def targets(self, port: int) -> frozenset[Endpoint]:
        """Who may be chosen for a packet to ``port``, ports filled in."""
        members = self.destination.members if self.destination else ()
        return frozenset(Endpoint(each.ip, each.port or port) for each, weight in members if weight)


def decide(state: KernelState, listener: ListenerKey, source: IPAddress) -> Decision:
    """What ``state`` says about a client's packet. Costs the same with ten routes and a hundred thousand."""
    name = state.listeners.get(listener)
    proxy = state.proxies.get(name) if name is not None else None
    if name is None or proxy is None:
        return Decision()
    bits, number = source.max_prefixlen, int(source)
    for length in range(bits, -1, -1):
        spare = bits - length
        key = RouteKey.of_numbers(name, source.version, number >> spare << spare, length)
        destination = state.routes.get(key)
        if destination is not None:
            return Decision(name, key.source, destination)
    return Decision(name, None, proxy.default4 if source.version == 4 else proxy.default6)


def is_martian(source: IPAddress) -> bool:
    """A source that no packet from outside has (RFC 1122 3.2.1.3, RFC 4291 2.5.6): left to the host."""
    if source.version == 4:
        first = source.packed[0]
        return first in (0, 127) or first >= 224
    return source.is_multicast or source.is_link_local or int(source) <= 1


# -- with which packets to try a commit ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trial:
    """A client's packet that a change concerns. It is to meet ``decision``."""

    listener: ListenerKey
    source: IPAddress
    decision: Decision


def trials(
    state: KernelState, stage: Iterable[Operation], names: Mapping[int, str], most_routes: int | None = None
) -> Iterator[Trial]:
    """For everything that ``stage`` changes in the slots, and that is there in ``state``, a packet that meets it: one
    for each listener; for each proxy one of each address family; for each source route one of a client it is for, to
    one of its proxy's listeners, of many for ``most_routes`` of them. ``names``: proxies by id."""
    listeners: set[ListenerKey] = set()
    proxies: dict[str, None] = {}
    routes: list[tuple[str, IPNetwork]] = []
    for operation in stage:
        if isinstance(operation, StageListener) and operation.after:
            listeners.add(operation.key)
        elif isinstance(operation, StageProxy) and operation.after is not None:
            proxies[names.get(operation.id, "")] = None
        elif isinstance(operation, StageRoute):
            routes.append((names.get(operation.proxy_id, ""), operation.source))
        elif isinstance(operation, StageSettings):
            proxies.update(dict.fromkeys(state.proxies))
    doors = _doors(state, {*proxies, *(name for name, _ in routes)}, listeners)
    for listener in sorted(listeners, key=lambda each: (each.ifindex, each.ip.version, each.ip, each.port)):
        yield from _trial(state, listener, _stranger(state, listener))
    for name in proxies:
        for version in (4, 6):
            door = doors.get((name, version))
            if door is not None and door not in listeners:
                yield from _trial(state, door, _stranger(state, door))
    for name, source in spread(routes, most_routes or len(routes)):
        door = doors.get((name, source.version))
        if door is not None:
            yield from _trial(state, door, _client(state, door, source))


def spread(found: Sequence[T], most: int) -> Sequence[T]:
    """All, or so many, evenly spread."""
    return found if len(found) <= most else [found[index * len(found) // most] for index in range(most)]


def _doors(state: KernelState, names: set[str], preferred: set[ListenerKey]) -> Mapping[tuple[str, int], ListenerKey]:
    """One listener of each of these proxies and address family."""
    found: dict[tuple[str, int], ListenerKey] = {}
    for key, name in state.listeners.items():
        if name in names and ((name, key.ip.version) not in found or key in preferred):
            found[name, key.ip.version] = key
    return found


def _trial(state: KernelState, listener: ListenerKey, source: IPAddress | None) -> Iterator[Trial]:
    """Nothing for an address of which the programs drop or leave alone everything that comes in from outside."""
    if source is not None and not listener.ip.is_loopback and not listener.ip.is_link_local:
        decision = decide(state, listener, source)
        if decision.proxy is not None:
            yield Trial(listener, source, decision)


def _stranger(state: KernelState, listener: ListenerKey) -> IPAddress:
    """A client that the proxy's default is for, if one is found."""
    clients = _CLIENTS[listener.ip.version]
    return next((each for each in clients if decide(state, listener, each).rule is None), clients[0])


def _client(state: KernelState, listener: ListenerKey, network: IPNetwork) -> IPAddress | None:
    """A client in the network, for which no longer prefix decides if one is found."""
    kind = IPv4Address if network.version == 4 else IPv6Address
    first, last = int(network.network_address), int(network.broadcast_address)
    inside = [each for each in _CLIENTS[network.version] if first <= int(each) <= last]
    inside += [kind(number) for number in (min(first + 1, last), max(last - 1, first), (first + last) // 2)]
    usable = [each for each in inside if not is_martian(each)]
    return next(
        (each for each in usable if decide(state, listener, each).rule == network), usable[0] if usable else None
    )
