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


def operations(new: KernelState, observed: Observed, *, mend: bool = True) -> Iterator[Operation]:
    """What gives the targets and groups that are in use, and stay, the shares of ``new``. ``mend``: and puts tables
    right that are wrong, unless :func:`mended` has.

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
    if mend:
        yield from mended(new, observed)
    yield from _tables(new, observed, {name for name, _ in changed})
    yield from (each for each in flags if not each.before.drained or each.after.drained)


def mended(new: KernelState, observed: Observed) -> Iterator[SwapTable]:
    """Tables that are not what the kernel's own record of their groups says, of groups that ``new`` uses: to be done
    before the switch, since the record may just now have become what is wanted."""
    wrong = observed.state.wrong_tables
    for group, number in _in_both(new, observed, {name for name, _ in wrong}):
        if group in wrong:
            yield _table(group, number, new, observed)


def _tables(new: KernelState, observed: Observed, names: set[str]) -> Iterator[SwapTable]:
    for group, number in _in_both(new, observed, names):
        before, after = (share.effective(*group, state.shares) for state in (observed.state, new))
        if before != after and group not in observed.state.wrong_tables:
            yield _table(group, number, new, observed)


def _in_both(new: KernelState, observed: Observed, names: set[str]) -> Iterator[tuple[tuple[str, Destination], int]]:
    """The groups of these proxies that are there and wanted, by number."""
    if names:
        wanted = _destinations(new, names)
        for group, number in sorted(observed.allocation.groups.items(), key=lambda item: item[1]):
            if group in wanted:
                yield group, number


def _table(group: tuple[str, Destination], number: int, new: KernelState, observed: Observed) -> SwapTable:
    pairs, keys = members(*group, observed.allocation.targets)
    return SwapTable(number, pairs, keys, share.effective(*group, new.shares))


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
