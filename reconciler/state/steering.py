"""Operations that make the kernel follow shares (:mod:`reconciler.state.share`), within a commit or without one.

Tables and targets are not in slots: what is done to those in use holds for both configurations at once, can be
repeated, and needs no undo, since it is true of the world whatever the files say. What is new or comes back gets its
share before the switch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from reconciler.state import share
from reconciler.state.objects import FULL, Allocation, Destination, Endpoint, KernelState, Observed
from reconciler.state.operations import Operation, SetShare, SwapTable
from reconciler.state.routes import uses


def members(
    proxy: str, destination: Destination, targets: Mapping[tuple[str, Endpoint], int]
) -> tuple[tuple[tuple[int, int], ...], tuple[str, ...]]:
    """A group's members as operations name them: (target id, weight) each, and their texts."""
    pairs = tuple((targets[proxy, endpoint], weight) for endpoint, weight in destination.members)
    return pairs, tuple(str(endpoint) for endpoint, _ in destination.members)


def effective(proxy: str, destination: Destination, shares: share.Shares) -> tuple[int, ...]:
    """The field of that name of :class:`PutGroup`: empty if every member has all of its weight."""
    if not any((proxy, endpoint) in shares for endpoint, _ in destination.members):
        return ()
    return share.effective(proxy, destination, shares)


def operations(new: KernelState, observed: Observed) -> Iterator[Operation]:
    """What gives the targets and groups that are in use, and stay, the shares of ``new``.

    A table that still names a drained target would have its connections refused, hence the order: targets that come
    back, tables, then targets that go.
    """
    old, allocation = observed.state, observed.allocation
    changed = [key for key in old.shares.keys() | new.shares.keys() if old.shares.get(key) != new.shares.get(key)]
    in_use = allocation.targets.keys()
    flags = [
        SetShare(allocation.targets[key], old.shares.get(key, FULL), new.shares.get(key, FULL))
        for key in changed
        if key in in_use and allocation.targets[key] not in allocation.retired_targets
    ]
    flags.sort(key=lambda each: each.id)
    yield from (each for each in flags if each.before.drained and not each.after.drained)
    yield from _tables(new, observed, {name for name, _ in changed})
    yield from (each for each in flags if not each.before.drained or each.after.drained)


def _tables(new: KernelState, observed: Observed, names: set[str]) -> Iterator[SwapTable]:
    wrong = observed.state.wrong_tables
    names = names | {name for name, _ in wrong}
    if not names:
        return
    wanted = _destinations(new, names)
    for group, number in sorted(observed.allocation.groups.items(), key=lambda item: item[1]):
        proxy, destination = group
        if group not in wanted:
            continue
        after = share.effective(proxy, destination, new.shares)
        if group in wrong or after != share.effective(proxy, destination, observed.state.shares):
            pairs, keys = members(proxy, destination, observed.allocation.targets)
            yield SwapTable(number, pairs, keys, after)


def _destinations(state: KernelState, names: set[str]) -> set[tuple[str, Destination]]:
    """The destinations of these proxies, each once."""
    by_identity = {(use[0], use[2]): each for use, (each, _) in uses(state.routes).items() if use[0] in names}
    for name in names & state.proxies.keys():
        proxy = state.proxies[name]
        by_identity.update({(name, id(each)): each for each in (proxy.default4, proxy.default6) if each is not None})
    return {(name, each) for (name, _), each in by_identity.items()}


def returning(new: KernelState, known: Allocation, targets: Mapping[tuple[str, Endpoint], int]) -> Iterator[SetShare]:
    """Retired targets that come back with another share than they went with."""
    for key in sorted(known.shares.keys() | new.shares.keys(), key=lambda each: targets.get(each, 0)):
        before, after = known.shares.get(key, FULL), new.shares.get(key, FULL)
        if before != after and key in targets and known.targets.get(key) in known.retired_targets:
            yield SetShare(targets[key], before, after)
