"""Which number stands for which proxy, target and group in the maps.

What is known keeps its number; what is new gets the lowest one that nothing uses: neither the active configuration,
nor the one that is to be, nor a connection that is still alive. Number 0 is never used.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from reconciler.errors import CapacityError
from reconciler.state.diff import endpoint_order
from reconciler.state.objects import Allocation, Destination, Endpoint, KernelState
from reconciler.state.operations import DEST_DENY, DEST_GROUP, DEST_TARGET, Dest
from reconciler.state.routes import reached

Target = tuple[str, Endpoint]
Group = tuple[str, Destination]

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the maps hold: ``max_entries`` by map name, as in ``kernel/layout.py``. A map that is not in it has
    no limit here."""

    entries: Mapping[str, int]

    def check(self, name: str, needed: int, what: str) -> None:
        """Raises CapacityError if the map can't hold so many entries at a time."""
        limit = self.entries.get(name)
        if limit is not None and needed > limit:
            raise CapacityError(f"{needed} {what} do not fit: the map {name} holds {limit}")


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of the desired configuration, and which of them are new."""

    proxies: dict[str, int]
    targets: dict[Target, int]
    groups: dict[Group, int]
    new_proxies: tuple[str, ...]
    new_targets: tuple[Target, ...]
    new_groups: tuple[Group, ...]


class DestNumbers:
    """Destinations as :class:`Dest` under given numbers; remembers each pair of proxy and object."""

    def __init__(self, targets: Mapping[Target, int], groups: Mapping[Group, int]) -> None:
        self._targets, self._groups = targets, groups
        self._known: dict[tuple[str, int], tuple[Destination, Dest]] = {}

    def of(self, proxy: str, destination: Destination | None) -> Dest:
        """DEST_NONE for None, and for what has no number (it was lost from the kernel)."""
        if destination is None:
            return Dest()
        known = self._known.get((proxy, id(destination)))
        if known is None:  # with the object itself, so that no other one has its id
            known = self._known[proxy, id(destination)] = (destination, self._find(proxy, destination))
        return known[1]

    def _find(self, proxy: str, destination: Destination) -> Dest:
        if destination.deny:
            return Dest(DEST_DENY)
        endpoint = destination.single
        if endpoint is not None:
            kind, number = DEST_TARGET, self._targets.get((proxy, endpoint))
        else:
            kind, number = DEST_GROUP, self._groups.get((proxy, destination))
        return Dest() if number is None else Dest(kind, number)


def allocate(state: KernelState, known: Allocation, limits: Limits, changed: Collection[str] | None = None) -> Numbers:
    """Numbers for everything in ``state``. ``changed``: the proxies that differ from what ``known`` is of, if that is
    known: the others have what they need. Raises CapacityError when there are not enough."""
    targets = {} if changed is None else _kept(state, known, changed)
    without: set[Target] = set()
    groups: set[Group] = set()
    for proxy, reach in reached(state):
        for endpoint in reach.endpoints if changed is None or proxy in changed else ():
            target = (proxy, endpoint)
            number = known.targets.get(target)
            if number is None:
                without.add(target)
            else:
                targets[target] = number
        if reach.groups:
            groups.update((proxy, destination) for destination in reach.groups)
    new_proxies = sorted(state.proxies.keys() - known.proxies.keys())
    new_targets = sorted(without, key=lambda each: (each[0], endpoint_order(each[1])))
    new_groups = sorted(groups - known.groups.keys(), key=_group_order)
    used_proxies = frozenset(known.proxies.values())
    used_targets = frozenset(known.targets.values())
    used_groups = frozenset(known.groups.values())
    members = sum(len(destination.members) for _, destination in {*known.groups, *groups})
    limits.check("group_member", members, "members of target groups")
    return Numbers(
        {name: known.proxies[name] for name in state.proxies if name in known.proxies}
        | _number(new_proxies, used_proxies, limits, "proxy", "proxies"),
        targets | _number(new_targets, used_targets, limits, "target", "targets"),
        {each: known.groups[each] for each in groups if each in known.groups}
        | _number(new_groups, used_groups, limits, "group", "target groups"),
        tuple(new_proxies),
        tuple(new_targets),
        tuple(new_groups),
    )


def _kept(state: KernelState, known: Allocation, changed: Collection[str]) -> dict[Target, int]:
    """What the other proxies use."""
    found = dict(known.targets)
    for target, number in known.targets.items():
        if number in known.retired_targets or target[0] in changed or target[0] not in state.proxies:
            del found[target]
    return found


def _group_order(group: Group) -> tuple[str, tuple[tuple[tuple[int, int, int], int], ...]]:
    return group[0], tuple((endpoint_order(endpoint), weight) for endpoint, weight in group[1].members)


def _number(new: list[K], used: frozenset[int], limits: Limits, name: str, what: str) -> dict[K, int]:
    limits.check(name, len(used) + len(new) + 1, f"{what} (number 0 counted, the ones that are about to go as well)")
    return dict(zip(new, _unused(used), strict=False))


def _unused(used: Iterable[int]) -> Iterator[int]:
    taken = set(used)
    number = 1
    while True:
        if number not in taken:
            yield number
        number += 1
