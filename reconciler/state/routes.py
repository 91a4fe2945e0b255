"""Source routes by the hundred thousand: a dictionary that knows what it is made of and what differs between two.

A few destinations stand for many routes. Which they are is counted once; a dictionary that is another one with some
changes takes the counts over. So an edit costs what it changes, and some copying.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from reconciler.state.objects import Destination, RouteKey

_STEP: Final = 4096

Use = tuple[str, int, int]
"""Proxy, IP version, identity of a destination."""


class Routes(dict[RouteKey, Destination]):
    """Not changed once it is in a state; :meth:`patched` makes another one."""

    __slots__ = ("_made_from", "_name", "_patched", "_uses")

    def __init__(self, routes: Mapping[RouteKey, Destination] | None = None) -> None:
        super().__init__(routes or {})
        self._name = object()  # one that keeps nothing alive
        self._made_from: object = None
        self._patched: dict[RouteKey, None] = {}  # keys that may differ there
        self._uses: dict[Use, tuple[Destination, int]] | None = None

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
