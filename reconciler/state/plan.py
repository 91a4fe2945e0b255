"""How to bring the kernel from the observed to the desired state: the operations, in order, as data.

A plan's phases follow the commit protocol: ``stage`` (no packet sees it), ``attach``, ``switch`` (the one write that
counts), ``finish`` (clearing up, repeatable). Planning is pure; ``kernel/transaction.py`` carries plans out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from reconciler.state import steering
from reconciler.state.allocate import DestNumbers, Limits, Numbers, allocate
from reconciler.state.desired import Desired
from reconciler.state.diff import Change, Delta, changes_of, compare, listener_order, wanted_ports
from reconciler.state.facts import RuntimeFacts
from reconciler.state.local import opens
from reconciler.state.objects import FULL, Destination, KernelState, Observed, ProxyState, Revision, RouteKey
from reconciler.state.operations import (
    DEVICE_DROP_LOOPBACK,
    DEVICE_NO_TX,
    DEVICE_XDP_REDIRECT,
    Attach,
    ClosePort,
    Detach,
    FreeBlob,
    FreeGroup,
    FreeProxyName,
    FreeTarget,
    LoadProgram,
    OpenPort,
    Operation,
    ProxySlot,
    PutBlob,
    PutDevice,
    PutGroup,
    PutProxyName,
    PutTarget,
    RestoreSysctl,
    RouteSlot,
    SetSource,
    SetSysctl,
    StageListener,
    StageProxy,
    StageRevision,
    StageRoute,
    StageSettings,
    Switch,
)
from reconciler.state.routes import uses
from reconciler.state.touched import Touched, by_target


@dataclass(frozen=True, slots=True)
class Plan:
    """What differs and what will be done about it. ``switch`` None: nothing that packets choose by changes (an
    interface or a sysctl is put right). ``base`` is the revision it was made from, ``revision`` the new one."""

    changes: tuple[Change, ...] = ()
    stage: tuple[Operation, ...] = ()
    attach: tuple[Operation, ...] = ()
    switch: Switch | None = None
    finish: tuple[Operation, ...] = ()
    base: Revision = field(default_factory=Revision)
    revision: Revision | None = None
    touched: tuple[Touched, ...] = ()

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All of them in the order in which they are carried out."""
        return (*self.stage, *self.attach, *((self.switch,) if self.switch else ()), *self.finish)

    @property
    def empty(self) -> bool:
        """The kernel is as the files say."""
        return not self.changes and not self.operations

    @property
    def counts(self) -> dict[str, int]:
        """Operations per map (or other place in the kernel), by name."""
        return dict(sorted(Counter(operation.map for operation in self.operations).items()))


def make_plan(
    desired: Desired,
    observed: Observed,
    *,
    limits: Limits,
    runtime: RuntimeFacts,
    revision: Revision | None = None,
    blobs: Mapping[bytes, bytes] | None = None,
    changes: tuple[Change, ...] | None = None,
    delta: Delta | None = None,
) -> Plan:
    """The plan from ``observed``, which must not be ``unfinished``, to ``desired``; empty if they are equal.
    ``changes`` and ``delta``: what differs, if that is known.

    ``revision`` and ``blobs`` (digest -> content) say what is being applied. They are recorded if anything changes for
    packets or, with any difference, if the manifest is another; a mere repair of interfaces or sysctls records
    nothing. Where the kernel has lost files in force, ``blobs`` brings them back. Targets and proxies that ``runtime``
    says live connections use are kept until housekeeping finds them idle. Raises CapacityError if the maps can't hold
    it.
    """
    delta = delta or compare(desired, observed)
    changes = changes_of(delta, desired, observed) if changes is None else changes
    if not changes:
        return Plan(base=observed.revision)
    differing = {key.proxy for key in delta.routes} | delta.proxies.keys()
    numbers = allocate(desired.state, observed.allocation, limits, differing)
    _check_capacity(delta, observed.state, limits)
    slots = _slots(delta, desired.state, observed, numbers)
    recorded = revision if slots or (revision and revision.manifest != observed.revision.manifest) else None
    said = observed.revision if observed.revision_said is None else observed.revision_said
    written = recorded or (observed.revision if said != observed.revision else None)
    wanted_blobs = blobs or {}
    stage = [*_prepare(delta, desired.state, observed, numbers)]
    if recorded or observed.files_lost:
        stage += [PutBlob(each, wanted_blobs[each]) for each in sorted(wanted_blobs.keys() - observed.blobs)]
    stage += slots
    if written:
        stage.append(StageRevision(said, written))
    finish = [*steering.operations(desired.state, observed, mend=False)]
    finish += [*_detach_and_restore(delta, observed.state, desired.state), *_free_groups(observed, numbers)]
    finish += (each for each in _sources(desired.state, observed, numbers) if each.after is None)
    finish += _free_idle(desired.state, observed, runtime, numbers)
    if recorded:
        finish += [FreeBlob(digest) for digest in sorted(observed.blobs - wanted_blobs.keys())]
    return Plan(
        changes=changes,
        stage=tuple(stage),
        attach=tuple(_attach(delta, desired.state, observed)),
        switch=Switch(observed.active, 1 - observed.active) if slots or written else None,
        finish=tuple(finish),
        base=said,
        revision=recorded,
        touched=by_target(delta, desired.state, observed.state, runtime),
    )


def housekeeping(
    desired: Desired, observed: Observed, *, limits: Limits, runtime: RuntimeFacts
) -> tuple[Operation, ...]:
    """What can be freed although nothing is to change: retired targets and proxies whose last connection has ended,
    and ports only they used. To be carried out like a plan's ``finish``."""
    return tuple(_free_idle(desired.state, observed, runtime, allocate(desired.state, observed.allocation, limits)))


def giving_back(desired: Desired, observed: Observed) -> tuple[Operation, ...]:
    """What gives back all that ``desired`` asks for no more (:mod:`~reconciler.state.lapsed`), like a plan's
    ``finish``."""
    delta = compare(desired, observed)
    redirects = (each for each in _refusing_redirects(delta, observed) if each.ifindex in delta.attachments)
    return (*redirects, *_detach_and_restore(delta, observed.state, desired.state))


def _check_capacity(delta: Delta, old: KernelState, limits: Limits) -> None:
    """During a commit the maps hold what was and what will be."""
    for version in (4, 6):
        listeners = sum(key.ip.version == version for key in old.listeners)
        listeners += sum(before is None and key.ip.version == version for key, (before, _) in delta.listeners.items())
        limits.check(f"listener{version}", listeners, f"IPv{version} listeners")
        added = sum(before is None and key.version == version for key, (before, _) in delta.routes.items())
        if added:
            routes = sum(count for use, (_, count) in uses(old.routes).items() if use[1] == version)
            limits.check(f"route{version}", routes + added, f"IPv{version} source routes")


# -- before the switch ---------------------------------------------------------------------------------------------


def _prepare(delta: Delta, new: KernelState, observed: Observed, numbers: Numbers) -> Iterator[Operation]:
    """What is not in slots: harmless until a slot refers to it."""
    if delta.program:
        before, after = delta.program
        if after is not None:
            yield LoadProgram(before, after)
    yield from _refusing_redirects(delta, observed)
    for name, (live, wanted) in delta.sysctls.items():
        if not opens(name):
            yield SetSysctl(name, live, wanted, _original(name, observed))
    for name, original in delta.originals.items():
        yield SetSysctl(name, new.sysctls[name], new.sysctls[name], original)
    for name in numbers.new_proxies:
        yield PutProxyName(numbers.proxies[name], name)
    for proxy, endpoint in numbers.new_targets:
        source, has = new.sources.get((proxy, endpoint)), new.shares.get((proxy, endpoint), FULL)
        yield PutTarget(numbers.targets[proxy, endpoint], numbers.proxies[proxy], endpoint, source, has)
    yield from (each for each in _sources(new, observed, numbers) if each.after is not None)
    yield from steering.returning(new, observed.allocation, numbers.targets)
    for group in numbers.new_groups:
        proxy, destination = group
        members, keys = steering.members(proxy, destination, numbers.targets)
        yield PutGroup(numbers.groups[group], members, keys, steering.effective(proxy, destination, new.shares))
    yield from steering.mended(new, observed)
    for port, bits in delta.ports.items():
        there = observed.ports.get(port, 0)
        yield OpenPort(port, there, there | bits)


def _sources(new: KernelState, observed: Observed, numbers: Numbers) -> Iterator[SetSource]:
    """Targets that are there, also retired ones that come back, with another source address than they should have."""
    known = observed.allocation
    for key in sorted(known.sources.keys() | new.sources.keys(), key=lambda each: numbers.targets.get(each, 0)):
        before, after = known.sources.get(key), new.sources.get(key)
        if before != after and key in known.targets and key in numbers.targets:
            yield SetSource(numbers.targets[key], before, after)


def _slots(delta: Delta, new: KernelState, observed: Observed, numbers: Numbers) -> list[Operation]:
    """The two-slot values that differ: what the active slot says, so that undo can write it, and what is to be."""
    found: list[Operation] = []
    old, allocation = observed.state, observed.allocation
    proxy_ids = allocation.proxies | numbers.proxies
    old_dests = DestNumbers(allocation.targets, allocation.groups)
    new_dests = DestNumbers(numbers.targets, numbers.groups)
    if delta.settings and delta.settings[1] is not None:
        found.append(StageSettings(delta.settings[0], delta.settings[1]))
    for name, before, after in _proxy_slots(delta, old, new, old_dests, new_dests):
        # What leads nowhere is the same number as nothing: a slot with it is to be written all the same.
        if (before != after or name in delta.proxies) and name in proxy_ids:
            found.append(StageProxy(proxy_ids[name], before, after))
    old_routes, new_routes = (_Routes(state.routes, len(delta.routes)) for state in (old, new))
    for key in sorted(delta.routes):
        proxy_id = proxy_ids.get(key.proxy)
        if proxy_id is not None:
            before_route = old_routes.slot(key, old_dests)
            found.append(StageRoute(proxy_id, key.source, before_route, new_routes.slot(key, new_dests)))
    for listener in sorted(delta.listeners, key=listener_order):
        was, will = (proxy_ids.get(name, 0) if name else 0 for name in delta.listeners[listener])
        found.append(StageListener(listener, was, will))
    return found


def _proxy_slots(
    delta: Delta, old: KernelState, new: KernelState, old_dests: DestNumbers, new_dests: DestNumbers
) -> Iterator[tuple[str, ProxySlot | None, ProxySlot | None]]:
    """Both values of each proxy that may differ: in itself, or in whether it has routes of a family."""
    names = set(delta.proxies)
    if any(before is None or after is None for before, after in delta.routes.values()):
        names.update(key.proxy for key in delta.routes)
    if not names:
        return
    old_families, new_families = (_families(state, names) for state in (old, new))
    for name in sorted(names):
        yield (
            name,
            _proxy_slot(old.proxies.get(name), old_dests, old_families),
            _proxy_slot(new.proxies.get(name), new_dests, new_families),
        )


def _families(state: KernelState, names: Iterable[str]) -> set[tuple[str, int]]:
    """(proxy, IP version) for which there is a route."""
    return {(use[0], use[1]) for use in uses(state.routes) if use[0] in names}


def _proxy_slot(proxy: ProxyState | None, dests: DestNumbers, families: set[tuple[str, int]]) -> ProxySlot | None:
    if proxy is None:
        return None
    return ProxySlot(
        mode=proxy.mode,
        balance=proxy.balance,
        idle_sec=proxy.idle_sec,
        dest4=dests.of(proxy.name, proxy.default4),
        dest6=dests.of(proxy.name, proxy.default6),
        routes4=(proxy.name, 4) in families,
        routes6=(proxy.name, 6) in families,
    )


class _Routes:
    """One configuration's routes, asked what a trie entry says in it.

    The trie returns the longest match of either configuration. So an entry that is not in this one has to say what
    the next shorter match that *is* in it says; entries in between, being in the other configuration only, say the
    same by the same rule.
    """

    def __init__(self, routes: Mapping[RouteKey, Destination], lookups: int) -> None:
        self._routes = routes
        self._lengths: dict[tuple[str, int], list[int]] | None = None
        if lookups > 1000:  # dearer than a few lookups, cheaper than many
            lengths: dict[tuple[str, int], set[int]] = {}
            for proxy, version, length in {(key[0], key[1], key[3]) for key in routes}:
                lengths.setdefault((proxy, version), set()).add(length)
            self._lengths = {key: sorted(found, reverse=True) for key, found in lengths.items()}

    def slot(self, key: RouteKey, dests: DestNumbers) -> RouteSlot:
        destination = self._routes.get(key)
        if destination is not None:
            return RouteSlot(dests.of(key.proxy, destination), True)
        return RouteSlot(dests.of(key.proxy, self._covering(key)), False)

    def _covering(self, key: RouteKey) -> Destination | None:
        proxy, version, network, own_length = key
        bits = 32 if version == 4 else 128
        lengths: Iterable[int] = range(own_length - 1, -1, -1)
        if self._lengths is not None:
            lengths = self._lengths.get((proxy, version), ())
        for length in lengths:
            if length < own_length:
                rest = bits - length
                shorter = RouteKey.of_numbers(proxy, version, network >> rest << rest, length)
                destination = self._routes.get(shorter)
                if destination is not None:
                    return destination
        return None


def _attach(delta: Delta, new: KernelState, observed: Observed) -> Iterator[Operation]:
    """Interfaces to bring to what they should be; all of ours if the programs are exchanged."""
    touched = set(delta.attachments)
    if delta.program and delta.program[0] is not None:
        touched.update(new.attachments)
    for ifindex in sorted(touched):
        after = new.attachments.get(ifindex)
        if after is not None:
            yield Attach(observed.state.attachments.get(ifindex), after)
    old = observed.state
    without = replace(old, devices=old.devices & new.devices)  # what _refusing_redirects has left
    both = _both(old, new)
    for ifindex in sorted(delta.devices.keys() | delta.guarded.keys() | delta.no_tx.keys()):
        before, gained = _flags(ifindex, without), _flags(ifindex, both)
        if before != gained:
            yield PutDevice(ifindex, before, gained)
    for name, (live, wanted) in delta.sysctls.items():
        if opens(name):
            yield SetSysctl(name, live, wanted, _original(name, observed))


def _original(name: str, observed: Observed) -> str:
    """What stood there before us, if the kernel's own memory of it is wrong."""
    return observed.remembered[name][0] if name in observed.forgotten else ""


def _refusing_redirects(delta: Delta, observed: Observed) -> Iterator[PutDevice]:
    """Interfaces that are not to be sent XDP frames any more."""
    old = observed.state
    for ifindex, (_, able) in delta.devices.items():
        if not able:
            yield PutDevice(ifindex, _flags(ifindex, old), _flags(ifindex, replace(old, devices=frozenset())))


def _both(old: KernelState, new: KernelState) -> KernelState:
    """``new`` with the guards that either of them has: what interfaces are to have while packets may see both."""
    return replace(new, guarded=old.guarded | new.guarded, no_tx=old.no_tx | new.no_tx)


def _flags(ifindex: int, state: KernelState) -> int | None:
    able = DEVICE_XDP_REDIRECT if ifindex in state.devices else 0
    guard = DEVICE_DROP_LOOPBACK if ifindex in state.guarded else 0
    return able | guard | (DEVICE_NO_TX if ifindex in state.no_tx else 0) or None


# -- after the switch ----------------------------------------------------------------------------------------------


def _detach_and_restore(delta: Delta, old: KernelState, new: KernelState) -> Iterator[Operation]:
    """What a guard was needed for goes before the guard and the program that heeds it."""
    for name, (live, original) in delta.forgotten_sysctls.items():
        if opens(name):
            yield RestoreSysctl(name, live, original)
    for _, (before, after) in sorted(delta.attachments.items()):
        if before is not None and after is None:
            yield Detach(before)
    for name, (live, original) in delta.forgotten_sysctls.items():
        if not opens(name):
            yield RestoreSysctl(name, live, original)
    both = _both(old, new)
    for ifindex in sorted(delta.guarded.keys() | delta.no_tx.keys()):
        flags, left = _flags(ifindex, both), _flags(ifindex, new)
        if flags != left:
            yield PutDevice(ifindex, flags, left)


def _free_groups(observed: Observed, numbers: Numbers) -> Iterator[Operation]:
    """Groups that the new configuration does not use: no connection names a group."""
    targets = observed.allocation.targets
    gone = {number: group for group, number in observed.allocation.groups.items() if group not in numbers.groups}
    for number, (proxy, destination) in sorted(gone.items()):
        members = [targets.get((proxy, endpoint)) for endpoint, _ in destination.members]
        yield FreeGroup(number, tuple(member for member in members if member is not None))


def _free_idle(state: KernelState, observed: Observed, runtime: RuntimeFacts, numbers: Numbers) -> Iterator[Operation]:
    """Targets, proxies and ports that neither the configuration nor a live connection needs."""
    allocation = observed.allocation
    needed_names = set(state.proxies)
    # No number of these is new and somebody else's.
    idle = set(allocation.targets.values()).difference(numbers.targets.values())
    gone = [(number, key) for key, number in allocation.targets.items() if number in idle] if idle else []
    for number, key in sorted(gone, key=lambda item: item[0]):
        if number in runtime.busy_targets:
            needed_names.add(key[0])
        else:
            yield FreeTarget(number)
    for name, number in sorted(allocation.proxies.items(), key=lambda item: item[1]):
        if name not in needed_names and number not in runtime.busy_proxies:
            yield FreeProxyName(number)
    wanted = wanted_ports(state)
    for port, there in sorted(observed.ports.items()):
        needed = wanted.get(port, 0) | runtime.busy_ports.get(port, 0)
        if there & ~needed:
            there |= wanted.get(port, 0)  # opened by the same plan
            yield ClosePort(port, there, there & needed)
