"""Source routes by the hundred thousand: a dictionary that knows what it is made of and what differs between two.

A few destinations stand for many routes. Which they are is counted once; a dictionary that is another one with some
changes takes the counts over. So an edit costs what it changes, and some copying.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from reconciler.state.objects import Destination, Endpoint, KernelState, RouteKey

_STEP: Final = 4096

Use = tuple[str, int, int]
"""Proxy, IP version, identity of a destination."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What one proxy's destinations lead to: every endpoint and every group once, and the endpoints' ports."""

    endpoints: tuple[Endpoint, ...] = ()
    groups: tuple[Destination, ...] = ()
    ports: frozenset[int] = frozenset()

    @classmethod
    def of(cls, destinations: Iterable[Destination]) -> Reach:
        """Of these together."""
        some = tuple(dict.fromkeys(destinations))
        endpoints = tuple(dict.fromkeys(endpoint for each in some for endpoint, _ in each.members))
        groups = tuple(each for each in some if each.members and each.single is None)
        return cls(endpoints, groups, frozenset(endpoint.port for endpoint in endpoints))


class Routes(dict[RouteKey, Destination]):
    """Not changed once it is in a state; :meth:`patched` makes another one."""

    __slots__ = ("_made_from", "_name", "_patched", "_reach", "_reach_then", "_uses")

    def __init__(self, routes: Mapping[RouteKey, Destination] | None = None) -> None:
        super().__init__(routes or {})
        self._name = object()  # one that keeps nothing alive
        self._made_from: object = None
        self._patched: dict[RouteKey, None] = {}  # keys that may differ there
        self._uses: dict[Use, tuple[Destination, int]] | None = None
        self._reach: dict[str, Reach] | None = None
        self._reach_then: tuple[dict[str, Reach], set[str]] | None = None
        """That of the routes these were made from, and of which proxies it may be another now."""

    @property
    def reach(self) -> Mapping[str, Reach]:
        """What the routes of each proxy lead to."""
        if self._reach is None:
            former, changed = self._reach_then or ({}, None)
            of: dict[str, list[Destination]] = {}
            for use, (destination, _) in self.uses.items():
                if changed is None or use[0] in changed:
                    of.setdefault(use[0], []).append(destination)
            found = {name: each for name, each in former.items() if changed is None or name not in changed}
            found.update((name, Reach.of(destinations)) for name, destinations in of.items())
            self._reach, self._reach_then = found, None
        return self._reach

    @property
    def uses(self) -> Mapping[Use, tuple[Destination, int]]:
        """Every destination of each proxy and family, with the number of routes that lead to it."""
        if self._uses is None:
            found: dict[Use, tuple[Destination, int]] = {}
            for key, destination in self.items():
                use = (key[0], key[1], id(destination))
                known = found.get(use)
                found[use] = (destination, known[1] + 1 if known else 1)
            self._uses = found
        return self._uses

    def patched(self, removed: Collection[RouteKey], put: Mapping[RouteKey, Destination]) -> Routes:
        """These routes without ``removed`` and with ``put``, what was there in its place."""
        made = Routes(self)
        if len(removed) + len(put) < _STEP:
            made._made_from, made._patched = self._name, dict.fromkeys((*removed, *put))
        uses = made._uses = dict(self.uses)
        changed = {key[0] for each in (removed, put) for key in each}
        if self._reach is not None:
            made._reach_then = self._reach, changed
        elif self._reach_then is not None:
            made._reach_then = self._reach_then[0], self._reach_then[1] | changed
        for key in removed:
            _count(uses, key, made.pop(key), -1)
        for key, destination in put.items():
            before = made.get(key)
            if before is not None:
                _count(uses, key, before, -1)
            made[key] = destination
            _count(uses, key, destination, 1)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Routes, (dict(self),)


def may_differ(old: Mapping[RouteKey, Any], new: Mapping[RouteKey, Any]) -> Collection[RouteKey] | None:
    """The keys to look at for what differs between the two; None where nothing is known: then at all of them."""
    if not (isinstance(old, Routes) and isinstance(new, Routes)):
        return None
    if old is new:
        return ()
    if new._made_from is old._name:
        return new._patched
    if old._made_from is new._name:
        return old._patched
    if old._made_from is not None and old._made_from is new._made_from:
        return old._patched | new._patched
    return None


def _count(uses: dict[Use, tuple[Destination, int]], key: RouteKey, destination: Destination, change: int) -> None:
    use = (key[0], key[1], id(destination))
    known = uses.get(use)
    count = (known[1] if known else 0) + change
    if count:
        uses[use] = (destination, count)
    else:
        del uses[use]


def uses(routes: Mapping[RouteKey, Destination]) -> Mapping[Use, tuple[Destination, int]]:
    """:attr:`Routes.uses` of any mapping."""
    return (routes if isinstance(routes, Routes) else Routes(routes)).uses


def reached(state: KernelState) -> Iterator[tuple[str, Reach]]:
    """What each proxy of a state leads to, by its routes and its defaults: one or two for each name."""
    yield from (state.routes if isinstance(state.routes, Routes) else Routes(state.routes)).reach.items()
    known: dict[tuple[int, int], Reach] = {}  # a few defaults stand for many proxies
    for name, proxy in state.proxies.items():
        pair = (id(proxy.default4), id(proxy.default6))
        reach = known.get(pair)
        if reach is None:
            reach = known[pair] = Reach.of(each for each in (proxy.default4, proxy.default6) if each is not None)
        yield name, reach


def common_ends(ones: Sequence[Sequence[Any]], others: Sequence[Sequence[Any]]) -> tuple[int, int]:
    """How many rows two tables, given as their columns, have in common at their beginning and, of what is left, at
    their end. Runs of the very same objects cost next to nothing."""
    shorter = min(len(ones[0]), len(others[0]))
    start = min(_common(one, other, shorter) for one, other in zip(ones, others, strict=True))
    rest = shorter - start
    tails = ([column[len(column) - rest :][::-1] for column in side] for side in (ones, others))
    return start, min(_common(one, other, rest) for one, other in zip(*tails, strict=True))


def _common(one: Sequence[Any], other: Sequence[Any], most: int) -> int:
    start = 0
    while start < most:
        stop = min(start + _STEP, most)
        if one[start:stop] != other[start:stop]:
            while one[start] == other[start]:
                start += 1
            return start
        start = stop
    return start


def uncommon(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], Mapping[Any, Any]]:
    """The parts of two mappings in which they may differ: without what both hold alike in the same order at their
    beginning and end, or, of routes made from one another, no more than what does differ."""
    keys = may_differ(old, new)
    if keys is not None:
        return {key: old[key] for key in keys if key in old}, {key: new[key] for key in keys if key in new}
    if len(old) < _STEP or len(new) < _STEP:
        return old, new
    start, stop = common_ends(*((list(each), list(each.values())) for each in (old, new)))
    return tuple(dict(islice(each.items(), start, len(each) - stop)) for each in (old, new))  # type: ignore[return-value]
