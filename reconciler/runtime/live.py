"""One instance's part of the kernel, as the engine wants it: the modules of ``kernel/`` put together.

Everything is read anew for every question. Descriptors are kept between two steps of one commit only: pins that
somebody removed or exchanged must not stay hidden behind an open descriptor.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import numpy as np

from reconciler import answers, resources
from reconciler.config.model import Config
from reconciler.errors import KernelError, RevproxyError
from reconciler.kernel import (
    bpffs,
    connections,
    connlines,
    counters,
    host,
    layout,
    links,
    privilege,
    store,
    support,
    sysctls,
)
from reconciler.kernel.arrays import Array
from reconciler.kernel.busy import Busy, Gathering, busy
from reconciler.kernel.connections import Ended
from reconciler.kernel.context import Context
from reconciler.kernel.finishing import carry_out
from reconciler.kernel.flushing import Flusher
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.identity import OwnPrograms
from reconciler.kernel.maps import Maps
from reconciler.kernel.observe import RouteMemory, observe
from reconciler.kernel.probe import Probe
from reconciler.kernel.program import Programs
from reconciler.kernel.recover import recover_all
from reconciler.kernel.rescue import rescue
from reconciler.kernel.resets import Resetter
from reconciler.kernel.store import Manifest
from reconciler.kernel.sweep import Sweeper
from reconciler.kernel.targets import LiveTarget, live_targets
from reconciler.kernel.transaction import Result, execute
from reconciler.runtime.needs import Needs
from reconciler.runtime.takeover import Takeover
from reconciler.state.allocate import Limits
from reconciler.state.carried import Carried
from reconciler.state.desired import sysctl_names, target_addresses
from reconciler.state.facts import HostFacts, Interface, RuntimeFacts
from reconciler.state.local import opens
from reconciler.state.objects import Attachment, KernelState, Mode, Observed, Revision
from reconciler.state.operations import Operation
from reconciler.state.plan import Plan
from reconciler.state.selection import Query
from reconciler.state.totals import Totals

_LO: Final = 1
"""The number of ``lo`` in every network namespace (LOOPBACK_IFINDEX in include/net/net_namespace.h)."""


def check_privileges() -> None:
    """Raise :class:`RevproxyError` if this process may not do what everything here needs."""
    missing = privilege.missing()
    if missing:
        raise RevproxyError(
            f"working on the kernel needs root ({', '.join(missing)} missing); without it, only a running revproxyd"
            " whose socket this user may use can be asked"
        )


@dataclass(frozen=True, slots=True)
class Recovered:
    """One thing that was put right, in words. ``routine``: nothing need have been interrupted for it; ``drift``: it was
    somebody else's doing."""

    text: str
    routine: bool = False
    drift: bool = False

    def __str__(self) -> str:
        return self.text


class Live:
    """The kernel side of the instance whose pins are at ``bpffs_dir``, in the calling thread's network namespace."""

    limits = Limits({name: spec.max_entries for name, spec in layout.MAPS.items() if not spec.per_connection})

    def __init__(self, bpffs_dir: Path, gateway: Gateway | None = None) -> None:
        check_privileges()
        support.check()
        self._bpffs_dir, self._gateway = bpffs_dir, gateway or Gateway()
        self._packer = store.Packer()
        self._seen: tuple[OwnPrograms, dict[int, links.Link]] | None = None
        """By an observation, for the facts that go with it."""
        self._counted: Totals | None = None
        self.ended: Callable[[Array], None] = lambda _: None
        """Told of connections that a sweep or a flush ended, if their ends are to be told."""
        self._use(bpffs.locate(bpffs_dir) or bpffs_dir)

    def _use(self, directory: Path) -> None:
        self.maps = Maps(directory, self._gateway)
        self._memory, self._sweeper, self._needs = RouteMemory(), Sweeper(), Needs()
        self.programs = Programs(self.maps, resources.bpf_dir(), self._gateway)
        self.probe = Probe(self.maps, resources.bpf_dir(), self._gateway)
        self.takeover = Takeover(self.maps, self.programs, self._gateway)

    def close(self) -> None:
        """Give all descriptors back."""
        self.probe.close()
        self.programs.close()
        self.maps.close()
        self._seen = None

    # -- reading -------------------------------------------------------------------------------------------

    @property
    def tag(self) -> str:
        """Digest of the programs that should run. Compiles nothing."""
        return self.programs.wanted(0).tag

    @property
    def tag_in_force(self) -> str:
        """Digest of the programs that run; empty where none do."""
        current = self.programs.current
        return current.tag if current else ""

    def use_probe(self, tag: str) -> bool:
        """Make the probe that of the programs with this digest; False if there are no maps for them to read."""
        self.probe.tag = tag
        return self._open()

    def observe(self, *, routes_as_known: bool = False, connections_anew: bool = False) -> Observed:
        """Read everything. ``routes_as_known``: but the routes, which are taken for what this object has read last and
        written since. What only connections may still need counts as needed where there are very many, unless
        ``connections_anew``. Raises :class:`KernelError`."""
        self.close()
        there = bpffs.locate(self._bpffs_dir)  # if it may be used
        if there is not None and there != self.maps.root.parent:
            self._use(there)  # the process is gone through whose eyes it was seen
        listed = links.list_links()
        own = self._own(listed)
        self._seen = own, listed
        seen = links.observe_attachments(own, listed)
        attached = seen.attachments
        # Programs whose maps are out of reach can't be told anything any more: they count as none.
        program = (self.programs.current or self.takeover.program) if self.maps.exists else None
        found = observe(
            self.maps,
            program=program,
            attachments=attached,
            read_sysctls=sysctls.read_all,
            memory=self._memory,
            routes_as_known=routes_as_known,
            keep_idle=self._needs.many and not connections_anew,
        )
        left = found.exists and (
            self.programs.unfinished or self.probe.unfinished(self.tag_in_force) or self._left_over(own, seen)
        )
        left = left or self.takeover.pending or (not found.exists and bool(attached))
        return replace(found, unfinished=found.unfinished or left)

    def adopt(self, state: KernelState) -> None:
        """What was observed last is equal to this: see :class:`~reconciler.kernel.observe.RouteMemory`."""
        self._memory.adopt(state)

    def _own(self, listed: Mapping[int, links.Link] | None = None) -> OwnPrograms:
        """Our programs, those among them whose pins are gone."""
        own = self.programs.own(self.takeover.set_in_force)
        own = replace(own, former=own.former | (self.takeover.program_ids() - own.current))
        return replace(own, former=own.former | links.unpinned(own, listed))

    def facts(self, config: Config) -> HostFacts:
        """What the host is like, as far as this configuration asks. Right after :meth:`observe` our programs are what
        that has found."""
        (own, listed), self._seen = self._seen or (self._own(), None), None
        targets = target_addresses(config)
        first = host.host_facts(targets, (), own.ids, listed)
        taken = {ifindex: each for ifindex, each in own.taken_over.items() if ifindex not in first.foreign_xdp}
        return replace(first, sysctls=sysctls.read_all(sysctl_names(config, first.interfaces)), taken_over=taken)

    def runtime(self, observed: Observed, *, anew: bool = False) -> RuntimeFacts:
        """What live connections need; where there are very many, no less than that, unless ``anew``: see
        :mod:`reconciler.runtime.needs`."""
        if not self._open():
            return RuntimeFacts()
        known = None if anew else self._needs.known(observed)
        return self._read_needs(observed) if known is None else known

    def _read_needs(self, observed: Observed) -> RuntimeFacts:
        gathering = Gathering()
        counts = connections.count(self.maps, see=gathering.add)
        needs = gathering.busy()
        names = {number: key for key, number in observed.allocation.targets.items()}
        live = {
            (names[number][0], str(names[number][1])): count
            for number, count in counts.targets.items()
            if number in names
        }
        facts = RuntimeFacts(
            busy_targets=needs.targets,
            busy_proxies=needs.proxies,
            busy_ports=needs.ports,
            busy_interfaces=self._interfaces_of(needs) & observed.state.attachments.keys(),
            carried=Carried(
                needs.families,
                needs.fullnat,
                lo_local=Mode.FULLNAT in needs.loopback,
                guarded=observed.state.guarded if Mode.DNAT in needs.loopback else frozenset(),
            ),
            connections=live,
        )
        return self._needs.learn(facts, sum(counts.held.values()))

    def busy_interfaces(self) -> frozenset[int]:
        """Interfaces by which live connections come or go: by the ways out they remember, by where answers came in, by
        the routes to their targets, and by the addresses their clients talk to. ``lo`` is not among them: it serves
        full NAT alone, whatever else goes through it."""
        return self._interfaces_of(busy(self.maps))

    def _interfaces_of(self, needs: Busy) -> frozenset[int]:
        ways = np.fromiter(needs.ways, np.uint32, len(needs.ways))
        found = {*needs.interfaces, *self.maps["way"].get_many(ways)[1]["ifindex"].tolist()}
        found.update(way for target in needs.served for way in host.route_to(ip_address(target)).ways)
        if needs.listens:
            for interface in host.host_facts().interfaces.values():
                if any(address.ip.packed in needs.listens for address in interface.addresses):
                    found.add(interface.ifindex)
        return frozenset(found - {0, _LO})

    def interfaces(self) -> list[tuple[Interface, links.InterfaceStatus]]:
        """Every interface: what it is, and what is attached to it."""
        own = self.programs.own()
        attached = links.observe_attachments(own).interfaces
        facts = host.host_facts((), (), own.ids).interfaces.values()
        return [(each, attached[each.ifindex]) for each in facts if each.ifindex in attached]

    def manifest(self, revision: Revision) -> Manifest:
        """What the applied revision was made from; the empty one if the kernel's copy is lost."""
        if not revision.manifest or not self._open():
            return Manifest()
        try:
            return store.read_manifest(self.maps, revision.manifest)
        except store.StoreError:
            return Manifest()

    def sources(self, revision: Revision) -> Mapping[str, bytes] | None:
        """Name -> content of the files of the applied revision; None if the kernel's copy is lost."""
        if not revision.manifest or not self._open():
            return None
        try:
            return store.read_sources(self.maps, store.read_manifest(self.maps, revision.manifest))
        except store.StoreError:
            return None

    def _open(self) -> bool:
        """The maps are open, if there are any."""
        if not self.maps.is_open and self.maps.exists:
            self.maps.open()
        return self.maps.is_open

    # -- changing ------------------------------------------------------------------------------------------

    def execute(self, plan: Plan, verify: Callable[[int], None] | None = None) -> Result:
        """Carry a plan out; ``verify`` sees the standby slot before the switch. Raises what
        :func:`~reconciler.kernel.transaction.execute` does."""
        self._use_provided()
        try:
            result = execute(plan, Context(self.maps, self, self.programs, verify, self._packer))
        except BaseException:
            self.probe.close()
            with suppress(KernelError, OSError):  # what made it fail counts; and this takes an empty directory away
                bpffs.release(self._bpffs_dir, self._gateway)
            raise
        try:
            self.probe.keep()
        except KernelError as error:
            return Result(result.pending or error)
        return result

    def free(self, operations: Sequence[Operation]) -> None:
        """Carry out what housekeeping found."""
        if self._open():
            carry_out(operations, Context(self.maps, self, self.programs))

    def recover(self) -> list[Recovered]:
        """Put right what an interrupted commit left, and free what only connections that have ended needed; what that
        was."""
        own = self._own()
        seen = links.observe_attachments(own)
        interfaces = seen.interfaces.values()
        attached = {each.program.id for one in interfaces for each in one.tc.filters if each.program}
        attached.update(number for one in interfaces for number in one.xdp.programs.values())
        programs = [Recovered(text, drift=True) for text in self._rescue(seen, own)]
        programs += [Recovered(text) for text in self.takeover.begin(attached)]
        if not self._open():
            return programs
        programs += [Recovered(text) for text in self.takeover.end(attached)]
        programs += [Recovered(text) for text in self.programs.recover(frozenset(attached))]
        programs += [Recovered(text) for text in self.probe.recover(self.tag_in_force)]
        programs += [Recovered(text) for text in self._let_go(own, seen)]
        return programs + [Recovered(str(repair), repair.routine) for repair in recover_all(self.maps)]

    def _rescue(self, seen: links.ObservedAttachments, own: OwnPrograms) -> Iterator[str]:
        """Pin maps again whose pins somebody has removed; which, in words."""
        if self.maps.exists or self.takeover.pending:
            return
        ours: set[int] = set()
        for each in seen.interfaces.values():
            ours.update(one.program.id for one in (each.tc_ingress, each.tc_egress) if one and one.program)
            if running := each.xdp.own(own):
                ours.add(running[1])
        if found := rescue(self.maps, sorted(ours)):
            yield f"maps of which the pins were gone found by the programs: {', '.join(found)}"

    def _use_provided(self) -> None:
        """Have a bpffs to pin to."""
        provided = bpffs.provide(self._bpffs_dir, self._gateway)
        if provided != self.maps.root.parent:
            self.close()
            self._use(provided)

    def down(self, originals: Mapping[str, tuple[str, str]] | None = None) -> tuple[str, ...]:
        """Detach, restore sysctls, unpin, whatever version of the programs put it there. Can be repeated; what was
        removed, in words. ``originals``: what stood in sysctls before us and what we set, for where the kernel's own
        memory of it is lost. Raises :class:`KernelError` at the first thing that can't be removed."""
        removed: list[str] = []
        observed = self.observe()
        lost = {name: pair for name, pair in (originals or {}).items() if name not in observed.remembered}
        if lost:
            state = replace(observed.state, sysctls=observed.state.sysctls | sysctls.read_all(lost))
            observed = replace(observed, state=state, remembered=observed.remembered | lost)
        own = self._own()
        # What only our programs make harmless goes before them.
        removed += self._restore_sysctls(observed, (name for name in observed.remembered if opens(name)))
        seen = links.observe_attachments(own)
        for attachment in seen.attachments.values():
            links.detach(attachment, own, self._gateway, self.programs.kept)
            removed.append(f"detached from {attachment.name}")
            if attachment.taken_over:
                removed.append(f"put {attachment.taken_over} back on {attachment.name}")
        removed += self._let_go(own, seen)
        removed += self._restore_sysctls(observed, (name for name in observed.remembered if not opens(name)))
        there = self.maps.root.exists()
        self.programs.remove()
        self.probe.remove()
        self.maps.remove()
        for other in self.takeover.others():
            self.takeover.remove(other)
            there = True
        if there:
            removed.append(f"removed the pins in {self._bpffs_dir}")
        self.close()
        bpffs.release(self._bpffs_dir, self._gateway)
        return tuple(removed)

    def _restore_sysctls(self, observed: Observed, names: Iterable[str]) -> Iterator[str]:
        """A value that somebody else has changed since is not ours to put back."""
        for name in names:
            before, after = observed.remembered[name]
            if observed.state.sysctls.get(name) == after and before != after:
                sysctls.write(name, before, self._gateway)
                yield f"sysctl {name} back to {before}"

    def _let_go(self, own: OwnPrograms, seen: links.ObservedAttachments) -> Iterator[str]:
        """Unpin programs of others that are not to be put back any more; why, in words."""
        for ifindex, why in links.stale(seen, own).items():
            self.programs.kept.forget(ifindex)
            yield why
        if self.programs.kept.interrupted:
            self.programs.kept.recover()
            yield "foreign programs: what was left of a takeover removed"

    def _left_over(self, own: OwnPrograms, seen: links.ObservedAttachments) -> bool:
        """Whether there is anything for :meth:`_let_go`."""
        return bool(links.stale(seen, own)) or self.programs.kept.interrupted

    # -- what a commit needs of the host (transaction.Host) ------------------------------------------------

    def attach(self, wanted: Attachment) -> None:
        """Bring an interface to ``wanted``."""
        self.takeover.carry_over()
        links.attach(wanted, self._own(), self._gateway, self.programs.kept)
        self.takeover.carry_over()

    def detach(self, attachment: Attachment) -> None:
        """Take everything of ours off an interface."""
        links.detach(attachment, self._own(), self._gateway, self.programs.kept)

    def attachments(self) -> Mapping[int, Attachment]:
        """What of ours is attached now."""
        return links.observe_attachments(self._own()).attachments

    def read_sysctl(self, name: str) -> str | None:
        """The live value."""
        return sysctls.read(name)

    def write_sysctl(self, name: str, value: str) -> None:
        """Set it."""
        sysctls.write(name, value, self._gateway)

    # -- connections and counters --------------------------------------------------------------------------

    @contextmanager
    def interruptible(self, wanted: Callable[[], bool]) -> Iterator[None]:
        """Where very many connections are read, :class:`InterruptedReading` is raised as soon as ``wanted``; but not
        if they were not read for long."""
        if self._needs.recent:
            self.maps.wanted = wanted
        try:
            yield
        finally:
            self.maps.wanted = None

    @property
    def many_connections(self) -> bool:
        """There are so many that to read them takes long. From any thread."""
        return self._needs.many

    def maps_directory(self) -> Path:
        """Where the maps are pinned, if they are."""
        return self.maps.directory

    def connections(self, query: Query, sort: str = "age", limit: int | None = None) -> Iterator[list[str]]:
        """The live connections that are meant, as JSON, some of them with each step."""
        if not self._reopened():
            return iter(())
        return connlines.lines(connections.listing(self.maps, query, sort=sort, limit=limit))

    def use(self) -> tuple[Mapping[int, int], answers.TableUse]:
        """Live connections by target id, and how full the tables are."""
        if not self._open():
            return {}, answers.TableUse()
        totals = self._totals()
        heads = (self.maps[name].get(0) for name in layout.HINTS.values())
        size = layout.hint_head.itemsize
        full = any(
            head is not None and np.frombuffer(head.tobytes()[:size], layout.hint_head)[0]["full"] > 0 for head in heads
        )
        return totals.targets, answers.TableUse(totals.entries, self.maps.max_connections, full)

    @contextmanager
    def counted(self, totals: Totals) -> Iterator[None]:
        """Within it these count as the live connections that there are: somebody has just counted them."""
        self._counted = totals
        try:
            yield
        finally:
            self._counted = None

    def _totals(self) -> Totals:
        if self._counted is not None:
            return self._counted
        counts = connections.count(self.maps)
        return Totals(counts.targets, counts.entries)

    def reset(self, resetter: Resetter) -> bool:
        """Have some more of these connections answered with RST; whether there are more of them."""
        return self._reopened() and resetter.step(self.maps)

    def targets(self) -> list[LiveTarget]:
        """Every target there is, retired ones included."""
        return live_targets(self.maps, self._totals().targets) if self._reopened() else []

    def connection_count(self, query: Query) -> int:
        """How many :meth:`connections` would give."""
        return connections.count(self.maps, query).total if self._reopened() else 0

    def flush(self, flusher: Flusher) -> int | None:
        """Forget some of these connections; how many. None: all are."""
        ended = flusher.step(self.maps) if self._reopened() else None
        return None if ended is None else self._ended(ended)

    def stats(self) -> answers.Stats:
        """Counters; all zero where nothing is loaded."""
        if not self._reopened():
            return answers.Stats()
        return counters.read_stats(self.maps)

    def sweep(self) -> int:
        """Delete expired connections, of large tables those in one part; how many."""
        if connections.none_at_all(self.maps) or not self._reopened():
            return 0
        return self._ended(self._sweeper.sweep(self.maps))

    def _ended(self, ended: Ended) -> int:
        if len(ended.told):
            self.ended(ended.told)
        return ended.count

    def forget_ways(self) -> None:
        """Make every way out that a connection remembers invalid: routes or neighbours have changed."""
        if self._reopened():
            value = self.maps["control"].items()[1]
            value["generation"] += 1
            self.maps["control"].put(0, value)

    def _reopened(self) -> bool:
        self.close()
        return self._open()


def refused_xdp(error: BaseException) -> str | None:
    """The interface that refused a native XDP program, if that is what failed."""
    if isinstance(error, KernelError) and error.operation == "attach xdp native" and error.errno != errno.ENODEV:
        return error.subject
    return None
