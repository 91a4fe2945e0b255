"""Live connections that a plan takes something away from: their target, their listener, or what chose them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol as Shape

from reconciler.state.diff import Delta
from reconciler.state.facts import RuntimeFacts
from reconciler.state.objects import Destination, Endpoint, IPAddress, KernelState, ListenerKey, Protocol, RouteKey


@dataclass(frozen=True, slots=True)
class Touched:
    """Live connections of a target that a plan takes something away from."""

    proxy: str
    target: str
    connections: int

    fate = "stay where they are until they end"


class Seen(Shape):
    """What counts of one live connection."""

    @property
    def protocol(self) -> Protocol: ...
    @property
    def client(self) -> Endpoint: ...
    @property
    def listen(self) -> Endpoint: ...
    @property
    def target(self) -> Endpoint: ...


# -- known by their targets ------------------------------------------------------------------------------------


def by_target(delta: Delta, new: KernelState, old: KernelState, runtime: RuntimeFacts) -> tuple[Touched, ...]:
    """Those whose target would not be chosen again by what chose it, or whose proxy goes, or listens on nothing any
    more that it has listened on. Where that is true of a part of a target's connections, see :func:`one_by_one`."""
    gone = {name for name, (_, after) in delta.proxies.items() if after is None}
    leaves = _left(delta)
    if leaves:
        gone |= leaves - {
            name for key, name in old.listeners.items() if name in leaves and new.listeners.get(key) == name
        }
    leaving: set[tuple[str, str]] = set()
    for name, pair in delta.proxies.items():
        for before, after in zip(*((p.default4, p.default6) if p else (None, None) for p in pair), strict=True):
            leaving.update((name, endpoint) for endpoint in _leaving(before, after))
    for key, (was, will) in delta.routes.items():
        leaving.update((key.proxy, endpoint) for endpoint in _leaving(was, will))
    return tuple(
        Touched(proxy, target, count)
        for (proxy, target), count in sorted(runtime.connections.items())
        if count and (proxy in gone or (proxy, target) in leaving)
    )


def _left(delta: Delta) -> set[str]:
    """Proxies that do not listen any more on something that they have listened on."""
    return {before for before, after in delta.listeners.values() if before is not None and before != after}


def _leaving(before: Destination | None, after: Destination | None) -> set[str]:
    return set() if before is None or before is after else {str(each) for each in _lost(before, after)}


def _lost(before: Destination, after: Destination | None) -> set[Endpoint]:
    stay = {endpoint for endpoint, weight in after.members if weight} if after else set()
    return {endpoint for endpoint, _ in before.members if endpoint not in stay}


# -- looked at one by one --------------------------------------------------------------------------------------


def in_part(delta: Delta) -> frozenset[str]:
    """Proxies of which connections to one target may differ in what becomes of them: some of what they listen on goes,
    or what is chosen by changes for some clients."""
    going = {name for name, (_, after) in delta.proxies.items() if after is None}
    return frozenset((_left(delta) | {key.proxy for key in delta.routes}) - going)


def one_by_one(
    name: str, connections: Iterable[Seen], delta: Delta, new: KernelState, old: KernelState
) -> Iterator[Touched]:
    """Of the live connections of a proxy those of which the listener goes, or whose client is led elsewhere, or
    nowhere, from now on."""
    stays = {_place(key) for key, proxy in new.listeners.items() if proxy == name}
    goes = {_place(key) for key, (before, _) in delta.listeners.items() if before == name} - stays
    chosen = _Chosen(name, delta, new, old)
    found = Counter(
        str(each.target)
        for each in connections
        if (each.listen.ip, each.listen.port, each.protocol) in goes or each.target in chosen.lost(each.client.ip)
    )
    for target, count in sorted(found.items()):
        yield Touched(name, target, count)


def _place(key: ListenerKey) -> tuple[IPAddress, int, Protocol]:
    return key.ip, key.port, key.protocol


class _Chosen:
    """What a proxy's clients are led to before and after."""

    def __init__(self, name: str, delta: Delta, new: KernelState, old: KernelState) -> None:
        self._name, self._states = name, (old, new)
        defaults = delta.proxies.get(name)
        self._all = defaults is not None
        lengths = {(key.version, key[3]) for each in self._states for key in each.routes if key.proxy == name}
        self._lengths = {version: sorted((n for v, n in lengths if v == version), reverse=True) for version in (4, 6)}
        self._changed = {(key[1], key[2], key[3]) for key in delta.routes if key.proxy == name}
        self._changed_lengths = {(version, length) for version, _, length in self._changed}
        self._known: dict[tuple[int, int], set[Endpoint]] = {}

    def lost(self, client: IPAddress) -> set[Endpoint]:
        """The targets that this client was led to, and is not any more."""
        if not (self._all or self._concerns(client)):
            return set()
        before, after = (self._led(state, client) for state in self._states)
        if before is None or before is after or before == after:
            return set()
        pair = id(before), id(after)
        if pair not in self._known:
            self._known[pair] = _lost(before, after)
        return self._known[pair]

    def _concerns(self, client: IPAddress) -> bool:
        version, number = client.version, int(client)
        return any(
            (version, _network(number, client.max_prefixlen, length), length) in self._changed
            for family, length in self._changed_lengths
            if family == version
        )

    def _led(self, state: KernelState, client: IPAddress) -> Destination | None:
        number, bits = int(client), client.max_prefixlen
        routes: Mapping[RouteKey, Destination] = state.routes
        for length in self._lengths[client.version]:
            key = RouteKey.of_numbers(self._name, client.version, _network(number, bits, length), length)
            if (found := routes.get(key)) is not None:
                return found
        proxy = state.proxies.get(self._name)
        if proxy is None:
            return None
        return proxy.default4 if client.version == 4 else proxy.default6


def _network(address: int, bits: int, length: int) -> int:
    return address >> (bits - length) << (bits - length)
