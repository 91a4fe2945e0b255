"""The probe: the programs loaded once more, attached nowhere, and run on single made-up packets.

Their instructions are those of the programs that are attached, byte for byte; only descriptors of maps differ. They
read the instance's own configuration, and all they write goes into small tables of their own, so that a probed packet
leaves no trace in connections and counters. The one word that says which slot to read is among those tables:
the standby slot before a switch, the active one after it.

A set for each hook and address family is loaded when first needed (the verifier takes up to half a second for one).
After a commit that holds it is pinned beside the programs in force, as ``<bpffs_dir>/<layout fingerprint>/probe/`` and
``<tag>_<hook><version>``. A set that is lost costs time and nothing else. Who uses the probe holds the instance's
lock: two at a time would write into each other's tables.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from reconciler.errors import KernelError
from reconciler.kernel import bpf, layout, maps
from reconciler.kernel.arrays import Array
from reconciler.kernel.codec import unpack_address
from reconciler.kernel.compiler import compile_programs, source_tag
from reconciler.kernel.contable import ConnectionTable
from reconciler.kernel.frames import Packet
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.newmaps import create_map
from reconciler.kernel.program import MAX_CALLS, load_called, load_program
from reconciler.state.objects import Endpoint

OWN: Final = frozenset(
    {
        "control",
        "target_stats",
        "connection4",
        "connection6",
        "outcome",
        "scratch",
        "fragment4",
        "fragment6",
        "event_ring",
        "way",
        "port_turn",
        "syn_line",
    }
)
"""Maps that programs write to, and the one that says which slot they read: the probe has its own."""
FEW: Final = {"target_stats": 1, "way": 1024, "port_turn": 1, "syn_line": 1}
"""Of these it needs less: no target is counted."""
SHARED: Final = frozenset(
    {"settings", "port", "listener4", "listener6", "proxy", "route4", "route6", "target", "group", "device", "hardware"}
)
"""Maps that programs only read."""

CALLED: Final = ("open", "enter", "forward", "stamp", "reset")
"""What a TCP or UDP packet is passed on to by tail calls."""

_CONNECTIONS: Final = 16
_FRESH: Final = "fresh"
_SK_BUFF_WORDS, _SK_BUFF_IFINDEX = 48, 10
_VERDICTS: Final = {
    "xdp": {0: "drop", 1: "drop", 2: "pass", 3: "tx", 4: "redirect"},
    "tc": {0xFFFFFFFF: "pass", 0: "pass", 2: "drop", 7: "redirect"},
}
_SCRATCH: Final = Gateway()  # what is in the probe's own tables is input and output of test runs, and nobody's state

Entry = tuple[Array, Array]
"""A key and a value of a connection table, each an array of one."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What the programs made of a packet.

    ``verdict``: redirect, tx, drop or pass, of the program at ``hook`` (xdp or tc). ``outcome``: the counter that
    moved, such as ``drop_denied``; empty if none did: the packet is none of ours. Where a connection's entry decided,
    ``proxy`` and ``target`` are its ids, and ``leaves`` is source and destination of the packet as it left.
    """

    verdict: str
    hook: str
    frame: bytes
    outcome: str = ""
    proxy: int = 0
    target: int = 0
    leaves: tuple[Endpoint, Endpoint] | None = None


@dataclass(slots=True)
class _Set:
    """The programs for one hook and family, and their own tables. ``pinned``: they are, under the name that counts."""

    hook: str
    version: int
    entry: int
    calls: int
    tables: dict[str, maps.Map]
    pinned: bool
    counts: Array = field(default_factory=lambda: np.zeros(0))

    @property
    def name(self) -> str:
        return f"{self.hook}{self.version}"

    @property
    def connections(self) -> ConnectionTable:
        """The table of its family."""
        table = self.tables[f"connection{self.version}"]
        assert isinstance(table, ConnectionTable)
        return table

    def descriptors(self) -> dict[str, int]:
        """By the name of the pin."""
        own = {name: table.fd for name, table in self.tables.items()}
        return {**own, f"{self.hook}_calls": self.calls, f"{self.hook}_ingress": self.entry}

    def close(self) -> None:
        for descriptor in self.descriptors().values():
            os.close(descriptor)


class Probe:
    """The probe of the instance whose maps are given. ``source``: the folder with revproxy.c."""

    def __init__(self, own_maps: maps.Maps, source: Path, gateway: Gateway) -> None:
        self.maps, self.source, self.gateway = own_maps, source, gateway
        self.directory = own_maps.root / "probe"
        self.tag = ""
        self._sets: dict[tuple[str, int], _Set] = {}

    # -- packets ---------------------------------------------------------------------------------------------

    def send(self, packet: Packet, *, slot: int, xdp: bool, entries: tuple[Entry, ...] = ()) -> Sent:
        """What becomes of ``packet`` with the configuration in ``slot``: XDP's answer (if ``xdp``, which says that it
        runs on that interface), or TC's where XDP leaves the packet alone. Every packet is the first one, but for the
        ``entries`` of the connection table that are given.

        ``tag`` says by which version of the programs. Raises :class:`CompileError` and :class:`KernelError`."""
        if xdp:
            try:
                sent = self._run(self._set("xdp", packet.version), packet, slot, entries)
            except KernelError as error:
                # This device gives a test run no receive queue. TC alone is complete.
                if (error.operation, error.errno) != ("test run", errno.EINVAL):
                    raise
            else:
                if sent.verdict != "pass":
                    return sent
        return self._run(self._set("tc", packet.version), packet, slot, entries)

    def _run(self, programs: _Set, packet: Packet, slot: int, entries: tuple[Entry, ...]) -> Sent:
        table = programs.connections
        control = np.zeros(1, layout.control)
        control["active"] = slot
        programs.tables["control"].put(0, control)
        for key, value in entries:
            table.blocks.put_alone(key, value)
        frame = packet.frame()
        try:
            run = bpf.prog_test_run(programs.entry, frame, _context(programs.hook, packet, len(frame)))
            found = table.get(connection_key(packet))
        finally:
            table.blocks.clear_alone()
        counts = _counts(programs)
        moved = np.flatnonzero(counts != programs.counts)
        programs.counts = counts
        sent = Sent(
            verdict=_VERDICTS[programs.hook].get(run.retval, "pass"),
            hook=programs.hook,
            frame=run.data_out,
            outcome=layout.OUTCOMES[int(moved[0])] if len(moved) else "",
        )
        if found is None or not sent.outcome or sent.outcome.startswith("drop"):
            return sent
        row = found[0]
        leaves = tuple(
            Endpoint(unpack_address(row[address].tobytes()), int(row[port]))
            for address, port in (("saddr_be", "sport_be"), ("daddr_be", "dport_be"))
        )
        return replace(
            sent, proxy=int(row["c"]["proxy"]), target=int(row["c"]["target"]), leaves=(leaves[0], leaves[1])
        )

    # -- sets: found, loaded, kept ---------------------------------------------------------------------------

    def _set(self, hook: str, version: int) -> _Set:
        """The programs for a hook and family: at hand, or pinned, or loaded now."""
        if (hook, version) not in self._sets:
            self._sets[hook, version] = self._open(hook, version) or self._load(hook, version)
        return self._sets[hook, version]

    def _path(self, name: str) -> Path:
        return self.directory / f"{self.tag}_{name}"

    def _open(self, hook: str, version: int) -> _Set | None:
        """The pinned set, None if there is none, or one for maps that are gone."""
        path = self._path(f"{hook}{version}")
        pins = {name: path / name for name in (*sorted(OWN), f"{hook}_calls", f"{hook}_ingress")}
        if not all(pin.exists() for pin in pins.values()):
            return None
        descriptors: dict[str, int] = {}
        try:
            for name, pin in pins.items():
                descriptors[name] = bpf.obj_get(str(pin))
            found = _of(hook, version, descriptors, pinned=True)
            known = {bpf.map_info(each.fd).id for each in found.tables.values()} | {bpf.map_info(found.calls).id}
            known.update(bpf.map_info(self.maps[name].fd).id for name in SHARED)
            if not known.issuperset(bpf.prog_info(found.entry).map_ids):
                found.close()
                return None
            found.connections.blocks.clear_alone()  # somebody who was killed may have left something
            found.counts = _counts(found)
        except BaseException:
            for descriptor in descriptors.values():
                with suppress(OSError):
                    os.close(descriptor)
            raise
        return found

    def _load(self, hook: str, version: int) -> _Set:
        if self.tag != source_tag(self.source, {}):
            raise KernelError(
                "probe",
                "packets",
                detail="the programs in force are another version's; `revproxyctl apply` exchanges them",
            )
        code = compile_programs(self.source)
        calls, entry = f"{hook}_calls", f"{hook}_ingress"
        descriptors: dict[str, int] = {}
        try:
            for name in sorted(OWN):
                spec = layout.MAPS[name]
                spec = replace(spec, max_entries=FEW[name]) if name in FEW else spec
                descriptors[name] = create_map(spec, _CONNECTIONS, show_ways=False)
            descriptors[calls] = bpf.map_create(layout.MapType.PROG_ARRAY, calls, 4, 4, MAX_CALLS)
            fds = {**{name: self.maps[name].fd for name in SHARED}, **descriptors}
            for place, function in enumerate(layout.CALLS[calls]):
                if function in (f"{hook}_{step}{version}" for step in CALLED):
                    load_called(code, function, fds, (calls, place), self.gateway)
            descriptors[entry] = load_program(code, entry, fds, self.gateway)
        except BaseException:
            for descriptor in descriptors.values():
                os.close(descriptor)
            raise
        loaded = _of(hook, version, descriptors, pinned=False)
        loaded.counts = _counts(loaded)
        return loaded

    def keep(self) -> None:
        """After a commit that holds: pin what was loaded for it, so that the next one need not load it again, and
        remove the sets of other versions. Raises :class:`KernelError`; can be repeated."""
        loose = [each for each in self._sets.values() if not each.pinned]
        outdated = {self._path(each.name) for each in loose}
        self._remove([path for path in self._pinned() if path in outdated or not path.name.startswith(f"{self.tag}_")])
        for each in loose:
            draft, path = self.directory / _FRESH, self._path(each.name)
            self.gateway.call("make directory", str(draft), lambda d=draft: d.mkdir(parents=True))  # type: ignore[misc]
            for name, descriptor in each.descriptors().items():
                pin = str(draft / name)
                self.gateway.call("pin", f"probe's {name}", lambda fd=descriptor, pin=pin: bpf.obj_pin(fd, pin))  # type: ignore[misc]
            self.gateway.call("rename", str(path), lambda d=draft, p=path: d.rename(p))  # type: ignore[misc]
            each.pinned = True

    # -- pins ------------------------------------------------------------------------------------------------

    def unfinished(self, tag: str) -> bool:
        """Whether there is more than sets of the programs in force, whose version is ``tag``: something was
        interrupted."""
        return any(not path.name.startswith(f"{tag}_") for path in self._pinned())

    def recover(self, tag: str) -> list[str]:
        """Remove what :meth:`unfinished` found; in words."""
        left = [path for path in self._pinned() if not path.name.startswith(f"{tag}_")]
        self._remove(left)
        return ["probe: what was left of other programs removed"] if left else []

    def remove(self) -> None:
        """Unpin everything."""
        self.close()
        if self.directory.is_dir():
            self._remove(self._pinned())
            self.gateway.call("remove directory", str(self.directory), self.directory.rmdir)

    def close(self) -> None:
        """Give all descriptors back; what is not pinned is gone then."""
        for each in self._sets.values():
            each.close()
        self._sets = {}

    def _pinned(self) -> list[Path]:
        return sorted(self.directory.iterdir()) if self.directory.is_dir() else []

    def _remove(self, paths: list[Path]) -> None:
        for path in paths:
            for pin in sorted(path.iterdir()):
                self.gateway.call("unpin", f"probe's {pin.name}", lambda pin=pin: pin.unlink(missing_ok=True))  # type: ignore[misc]
            self.gateway.call("remove directory", str(path), path.rmdir)


def _of(hook: str, version: int, descriptors: Mapping[str, int], *, pinned: bool) -> _Set:
    tables = {name: maps.map_of(layout.MAPS[name], descriptors[name], _SCRATCH) for name in OWN}
    return _Set(hook, version, descriptors[f"{hook}_ingress"], descriptors[f"{hook}_calls"], tables, pinned)


def _counts(programs: _Set) -> Array:
    """Every outcome so far, over all CPUs."""
    return np.asarray(programs.tables["outcome"].items()[1].sum(axis=1))


def connection_key(packet: Packet) -> Array:
    """Under which a connection's entry for this packet is found."""
    key = np.zeros(1, layout.STRUCTURES[f"connection_key{packet.version}"])
    for side, end in (("s", packet.source), ("d", packet.destination)):
        key[f"{side}addr_be"] = np.frombuffer(end.ip.packed, np.uint8)
        key[f"{side}port_be"] = end.port
    key["protocol"] = packet.protocol.number
    return key


def _context(hook: str, packet: Packet, length: int) -> bytes:
    """``struct xdp_md`` or ``struct __sk_buff``: which interface it came in by."""
    if hook == "xdp":
        return np.asarray([0, length, 0, packet.ifindex, 0, 0], "<u4").tobytes()
    context = np.zeros(_SK_BUFF_WORDS, "<u4")
    context[_SK_BUFF_IFINDEX] = packet.ifindex
    return context.tobytes()
