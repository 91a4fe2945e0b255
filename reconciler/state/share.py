"""How much of its weight a target has for now: what health and drains make of the weights in the files.

A group stays the same :class:`Destination` whatever its targets' shares; only its table follows them. Shares belong to
targets, the tables follow from weights and shares alone, so both can be read back from the kernel and compared.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reconciler.state import maglev
from reconciler.state.objects import FULL, QUARTERS, Destination, Endpoint, KernelState, Share
from reconciler.state.routes import uses

Shares = Mapping[tuple[str, Endpoint], Share]

NOBODY: Final = 0
"""No target has this id: a table that holds nothing else has every new connection dropped (``no_target``)."""


@dataclass(frozen=True, slots=True)
class Drain:
    """What an operator asked for: no new connections to a target. ``proxy`` None: in every proxy. An endpoint with
    port 0 stands for every port of that address."""

    endpoint: Endpoint
    proxy: str | None = None


def is_drained(drains: frozenset[Drain], proxy: str, endpoint: Endpoint) -> bool:
    """Whether any of the drains means this target of this proxy."""
    if not drains:
        return False
    each_port = Endpoint(endpoint.ip, 0)
    return any(Drain(meant, name) in drains for meant in (endpoint, each_port) for name in (proxy, None))


def endpoints(state: KernelState) -> set[tuple[str, Endpoint]]:
    """Every (proxy, endpoint) that a destination of the state names."""
    seen: set[tuple[str, int]] = set()
    found: set[tuple[str, Endpoint]] = set()

    def add(proxy: str, destination: Destination | None) -> None:
        if destination is not None and (proxy, id(destination)) not in seen:
            seen.add((proxy, id(destination)))
            found.update((proxy, endpoint) for endpoint, _ in destination.members)

    for use, (destination, _) in uses(state.routes).items():
        add(use[0], destination)
    for name, proxy in state.proxies.items():
        add(name, proxy.default4)
        add(name, proxy.default6)
    return found


def shares(
    used: Iterable[tuple[str, Endpoint]], quarters: Mapping[tuple[str, Endpoint], int], drains: frozenset[Drain]
) -> dict[tuple[str, Endpoint], Share]:
    """The share of each of these targets that has not all of it. ``quarters``: what health leaves, 0 to 4."""
    if not drains and all(each == QUARTERS for each in quarters.values()):
        return {}
    found = {key: Share(quarters.get(key, QUARTERS), is_drained(drains, *key)) for key in used}
    return {key: share for key, share in found.items() if share != FULL}


def effective(proxy: str, destination: Destination, known: Shares) -> tuple[int, ...]:
    """Each member's weight as it counts for new connections, in quarters. A drained member has none. If health would
    leave nobody, it is disregarded (fail open)."""
    members = [(weight, known.get((proxy, endpoint), FULL)) for endpoint, weight in destination.members]
    return weigh([weight for weight, _ in members], [share for _, share in members])


def weigh(weights: Sequence[int], of: Sequence[Share]) -> tuple[int, ...]:
    """:func:`effective` for weights and shares in the same order."""
    pairs = list(zip(weights, of, strict=True))
    found = tuple(0 if share.drained else weight * share.quarters for weight, share in pairs)
    return found if any(found) else tuple(0 if share.drained else weight * QUARTERS for weight, share in pairs)


def fails_open(proxy: str, destination: Destination, known: Shares) -> bool:
    """Whether every target of the destination that may be used is unhealthy, so that all of them are used."""
    usable = [known.get((proxy, endpoint), FULL) for endpoint, weight in destination.members if weight]
    usable = [share for share in usable if not share.drained]
    return bool(usable) and not any(share.quarters for share in usable)


def nobody_left(proxy: str, destination: Destination, known: Shares) -> bool:
    """Whether every target of the destination is drained, so that new connections are dropped."""
    usable = [known.get((proxy, endpoint), FULL) for endpoint, weight in destination.members if weight]
    return bool(usable) and all(share.drained for share in usable)


def table(
    ids: Sequence[int], keys: Sequence[str], weights: Sequence[int], effective_weights: Sequence[int]
) -> NDArray[np.uint32]:
    """A group's table of target ids. Its size follows from the members that the files give a weight, not from those
    that have one for now: only so do the others keep their places when one goes or comes back."""
    numbers = np.asarray(ids, np.uint32)
    if not any(weights):
        return np.empty(0, np.uint32)
    if not any(effective_weights):
        return np.full(1, NOBODY, np.uint32)
    size = maglev.table_size(sum(weight > 0 for weight in weights))
    return np.asarray(numbers[maglev.table(keys, effective_weights, size)])


def recipe(ids: Sequence[int], effective_weights: Sequence[int]) -> int:
    """A number that says what a table was made from, to be stored beside it: the members' ids and effective weights,
    in whatever order. Of a weight that no file can ask for, but somebody can write into the maps, the lower half."""
    pairs = sorted(zip(ids, effective_weights, strict=True))
    return zlib.crc32(np.asarray(pairs, "<u8").astype("<u4").tobytes())
