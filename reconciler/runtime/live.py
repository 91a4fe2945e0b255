"""One instance's part of the kernel, as the engine wants it: the modules of ``kernel/`` put together.

Everything is read anew for every question. Descriptors are kept between two steps of one commit only: pins that
somebody removed or exchanged must not stay hidden behind an open descriptor.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from reconciler import resources
from reconciler.config.model import Config
from reconciler.errors import KernelError, RevproxyError
from reconciler.kernel import (
    bpffs,
    host,
    layout,
    layoutpin,
    links,
    neighbours,
    privilege,
    store,
    support,
    sysctls,
)
from reconciler.kernel.context import Context
from reconciler.kernel.finishing import carry_out
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.identity import OwnPrograms, maps_of
from reconciler.kernel.lastlook import RouteMemory
from reconciler.kernel.maps import Maps
from reconciler.kernel.observe import observe
from reconciler.kernel.pinslock import PinsLock
from reconciler.kernel.probe import Probe
from reconciler.kernel.program import Programs
from reconciler.kernel.recover import recover_all
from reconciler.kernel.rescue import rescue
from reconciler.kernel.store import Manifest
from reconciler.kernel.transaction import Result, execute
from reconciler.runtime.livetables import LiveTables
from reconciler.runtime.takeover import Takeover
from reconciler.state.allocate import Limits
from reconciler.state.desired import sysctl_names, target_addresses
from reconciler.state.facts import HostFacts, Interface
from reconciler.state.local import opens
from reconciler.state.objects import Attachment, KernelState, Observed, Revision
from reconciler.state.operations import Operation
from reconciler.state.plan import Plan


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
    somebody else's doing; ``map``: it was in this one."""

    text: str
    routine: bool = False
    drift: bool = False
    map: str = ""

    def __str__(self) -> str:
        return self.text


class Live(LiveTables):
    """The kernel side of the instance whose pins are at ``bpffs_dir``, in the calling thread's network namespace."""

    def __init__(self, bpffs_dir: Path, gateway: Gateway | None = None) -> None:
        check_privileges()
        support.check()
        self._bpffs_dir, self._gateway = bpffs_dir, gateway or Gateway()
        self._packer = store.Packer()
        self._lock = PinsLock()
        self._manifest = b"", Manifest()
        self._seen: tuple[OwnPrograms, dict[int, links.Link]] | None = None
        """By an observation, for the facts that go with it."""
        self.left: Callable[[], frozenset[int]] = frozenset
        """Ids of maps that were ours until everything was taken down: a program that uses one is ours."""
        super().__init__(Maps(bpffs.locate(bpffs_dir) or bpffs_dir, self._gateway))

    def _take(self, maps: Maps) -> None:
        super()._take(maps)
        self._memory = RouteMemory()
        self.programs = Programs(self.maps, resources.bpf_dir(), self._gateway)
        self.probe = Probe(self.maps, resources.bpf_dir(), self._gateway)
        self.takeover = Takeover(self.maps, self.programs, self._gateway)

    def close(self) -> None:
        """Give all descriptors back."""
        self.probe.close()
        self.programs.close()
        super().close()
        self._seen = None

    def hold(self, *, wait_sec: float = 0.0) -> None:
        """Keep every other process from changing the pins that there are now, whatever run directory it was given.
        Raises :class:`LockedError` if one is at it."""
        self._lock.take(bpffs.locate(self._bpffs_dir) or self._bpffs_dir, wait_sec=wait_sec)

    def let_go(self) -> None:
        """Allow it again."""
        self._lock.release()

    @property
    def limits(self) -> Limits:
        """How much the maps have room for."""
        return map_limits()

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
            self._take(Maps(there, self._gateway))  # the process is gone through whose eyes it was seen
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
        left = left or (found.exists and not layoutpin.is_pinned(self.maps.root))
        left = left or self.takeover.pending or (not found.exists and bool(attached))
        return replace(
            found, unfinished=found.unfinished or left, hidden=tuple(seen.hidden()), others=tuple(seen.others())
        )

    def adopt(self, state: KernelState) -> None:
        """What was observed last is equal to this: see :class:`~reconciler.kernel.lastlook.RouteMemory`."""
        self._memory.adopt(state)

    def _own(self, listed: Mapping[int, links.Link] | None = None) -> OwnPrograms:
        """Our programs, those among them whose pins are gone."""
        own = self.programs.own(self.takeover.set_in_force)
        own = replace(own, former=own.former | (self.takeover.program_ids() - own.current))
        return replace(own, former=own.former | links.unpinned(own, listed, self.left))

    def facts(self, config: Config) -> HostFacts:
        """What the host is like, as far as this configuration asks. Right after :meth:`observe` our programs are what
        that has found."""
        (own, listed), self._seen = self._seen or (self._own(), None), None
        targets = target_addresses(config)
        first = host.host_facts(targets, (), own.ids, listed)
        taken = {ifindex: each for ifindex, each in own.taken_over.items() if ifindex not in first.foreign_xdp}
        return replace(first, sysctls=sysctls.read_all(sysctl_names(config, first.interfaces)), taken_over=taken)

    def interfaces(self) -> list[tuple[Interface, links.InterfaceStatus]]:
        """Every interface: what it is, and what is attached to it."""
        own = self._own()
        attached = links.observe_attachments(own).interfaces
        facts = host.host_facts((), (), own.ids).interfaces.values()
        return [(each, attached[each.ifindex]) for each in facts if each.ifindex in attached]

    def manifest(self, revision: Revision) -> Manifest:
        """What the applied revision was made from. If the kernel's copy is lost it is that which was read last or which
        :meth:`remember` was given, and the empty one if that is of another revision."""
        if not revision.manifest or not self._open():
            return Manifest()
        try:
            found = store.read_manifest(self.maps, revision.manifest)
        except store.StoreError:
            digest, known = self._manifest
            return known if digest == revision.manifest else Manifest()
        if self._manifest[0] != revision.manifest:
            self.remember(found)
        return found

    def remember(self, manifest: Manifest) -> bytes:
        """Have :meth:`manifest` know this one, whatever becomes of the kernel's copy; its digest."""
        digest = store.digest_of(store.encode_manifest(manifest))
        self._manifest = digest, manifest
        return digest

    def sources(self, revision: Revision) -> Mapping[str, bytes] | None:
        """Name -> content of the files of the applied revision; None if the kernel's copy is lost."""
        if not revision.manifest or not self._open():
            return None
        try:
            return store.read_sources(self.maps, store.read_manifest(self.maps, revision.manifest))
        except store.StoreError:
            return None

    # -- changing ------------------------------------------------------------------------------------------

    def execute(self, plan: Plan, verify: Callable[[int], None] | None = None) -> Result:
        """Carry a plan out; ``verify`` sees the standby slot before the switch. Raises what
        :func:`~reconciler.kernel.transaction.execute` does."""
        self._use_provided()
        self.renaming()
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
        if not layoutpin.is_pinned(self.maps.root):
            layoutpin.pin(self.maps.root, self._gateway)
            programs.append(Recovered("what the maps' layout is, pinned again for other versions", drift=True))
        programs += [Recovered(text) for text in self.takeover.end(attached)]
        programs += [Recovered(text) for text in self.programs.recover(frozenset(attached))]
        programs += [Recovered(text) for text in self.probe.recover(self.tag_in_force)]
        programs += [Recovered(text) for text in self._let_go(own, seen)]
        return programs + [Recovered(str(each), each.routine, map=each.map) for each in recover_all(self.maps)]

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
            self._take(Maps(provided, self._gateway))

    def own_maps(self) -> frozenset[int]:
        """Ids of the maps that our XDP program works with; none where there is no such program."""
        own = self.programs.own(self.takeover.set_in_force)
        return maps_of(own.xdp.info.id) if own.xdp else frozenset()

    def down(self, originals: Mapping[str, tuple[str, str]] | None = None) -> tuple[str, ...]:
        """Detach, restore sysctls, unpin, whatever version of the programs put it there. Can be repeated; what was
        removed, in words. ``originals``: what stood in sysctls before us and what we set, for where the kernel's own
        memory of it is lost or says otherwise. Raises :class:`KernelError` at the first thing that can't be removed."""
        removed: list[str] = []
        observed = self.observe()
        lost = {name: pair for name, pair in (originals or {}).items() if observed.remembered.get(name) != pair}
        if lost:
            state = replace(observed.state, sysctls=observed.state.sysctls | sysctls.read_all(lost))
            observed = replace(observed, state=state, remembered=observed.remembered | lost)
        own = self._own()
        # What only our programs make harmless goes before them.
        removed += self._restore_sysctls(observed, (name for name in observed.remembered if opens(name)))
        seen = links.observe_attachments(own)
        others = neighbours.instances(seen.interfaces.values(), self._bpffs_dir)
        for attachment in seen.attachments.values():
            links.detach(attachment, own, self._gateway, self.programs.kept)
            removed.append(f"detached from {attachment.name}")
            if attachment.taken_over:
                removed.append(f"put {attachment.taken_over} back on {attachment.name}")
        removed += self._let_go(own, seen)
        removed += self._restore_sysctls(observed, (name for name in observed.remembered if not opens(name)), others)
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
        self.let_go()  # the directory goes, or the bpffs on it
        bpffs.release(self._bpffs_dir, self._gateway)
        return tuple(removed)

    def _restore_sysctls(self, observed: Observed, names: Iterable[str], others: Sequence[Path] = ()) -> Iterator[str]:
        """A value that somebody else has changed since is not ours to put back, nor one that another instance needs."""
        for name in names:
            before, after = observed.remembered[name]
            if observed.state.sysctls.get(name) != after or before == after:
                continue
            if heir := neighbours.hand_over(others, name, before, after, self._gateway):
                yield f"sysctl {name} left to the instance of {heir}"
                continue
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


def map_limits() -> Limits:
    """How much the maps have room for, by their names; connections, which make room themselves, left out."""
    return Limits({name: spec.max_entries for name, spec in layout.MAPS.items() if not spec.per_connection})


def refused_xdp(error: BaseException) -> str | None:
    """The interface that refused a native XDP program, if that is what failed."""
    if isinstance(error, KernelError) and error.operation == "attach xdp native" and error.errno != errno.ENODEV:
        return error.subject
    return None
