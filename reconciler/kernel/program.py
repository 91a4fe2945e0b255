"""The programs of one instance: compiled, loaded, pinned, exchanged.

They are pinned at ``<bpffs_dir>/<layout fingerprint>/progs/<tag>_<max_connections>/<entry point>``; the symbolic link
``progs/current`` names the set in force. A new set is loaded beside the old one, attached in its place, and then made
current, so that a process killed in between leaves the old set current and both sets known. The next start takes up
the new set as it is if it is still wanted, since interfaces may run it.

Other connection tables come with another ``max_connections``: made as ``maps/connection4_next``, filled from the old
ones when the new programs are loaded and again after they are attached, then renamed over the old ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from reconciler.errors import KernelError
from reconciler.kernel import bpf, bpffs, layout, maps
from reconciler.kernel.arrays import address
from reconciler.kernel.compiler import ENTRY_POINTS, ObjectCode, compile_programs, source_tag
from reconciler.kernel.conntable import VERSIONS
from reconciler.kernel.foreign import Kept
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.helpers import explained
from reconciler.kernel.identity import LoadedProgram, OwnPrograms
from reconciler.kernel.newmaps import create_map
from reconciler.kernel.resize import carry_over, entries_for
from reconciler.state.objects import ProgramState
from reconciler.state.operations import LoadProgram

LICENSE: Final = "Dual BSD/GPL"
MAX_CALLS: Final = 32
TABLES: Final = tuple(spec.name for spec in layout.MAPS.values() if spec.per_connection)
NEXT: Final = "_next"


def program_type(function: str) -> int:
    """The kernel's program type, by the function's name."""
    return bpf.PROG_TYPE_XDP if function.startswith("xdp_") else bpf.PROG_TYPE_SCHED_CLS


def load_set(code: ObjectCode, map_fds: Mapping[str, int], gateway: Gateway) -> dict[str, int]:
    """Load one set of programs over these maps. Returns descriptors of the entry points and of the maps through which
    they call the others, by name; the caller closes them. Those maps lose their programs when the last descriptor
    and pin of them is gone. Raises :class:`KernelError` with the verifier's words."""
    loaded: dict[str, int] = {}
    try:
        for name in layout.CALLS:
            loaded[name] = bpf.map_create(layout.MapType.PROG_ARRAY, name, 4, 4, MAX_CALLS)
        fds = {**map_fds, **loaded}
        for name, functions in layout.CALLS.items():
            for place, function in enumerate(functions):
                load_called(code, function, fds, (name, place), gateway)
        for function in ENTRY_POINTS:
            loaded[function] = load_program(code, function, fds, gateway)
    except BaseException:
        for fd in loaded.values():
            os.close(fd)
        raise
    return loaded


def load_called(
    code: ObjectCode, function: str, fds: Mapping[str, int], where: tuple[str, int], gateway: Gateway
) -> None:
    """Load one program that others call. ``where``: through which map, and at which place of it."""
    fd = load_program(code, function, fds, gateway)
    key, value = np.asarray([where[1]], layout.u32), np.asarray([fd], layout.u32)
    try:
        bpf.map_update(fds[where[0]], address(key), address(value))
    finally:
        os.close(fd)


def load_program(code: ObjectCode, function: str, fds: Mapping[str, int], gateway: Gateway) -> int:
    """Load one program over the maps with these descriptors; its own descriptor, for the caller to close."""
    instructions = code.instructions(function, fds)
    load = partial(bpf.prog_load, program_type(function), function, LICENSE, instructions)
    try:
        return gateway.call("load", f"program {function}", load)
    except KernelError as error:
        raise explained(error) from error


class Programs:
    """Loads and finds the programs of the instance whose maps are given. ``source``: the folder with revproxy.c."""

    def __init__(self, own_maps: maps.Maps, source: Path, gateway: Gateway | None = None) -> None:
        self.maps, self.source, self.gateway = own_maps, source, gateway or own_maps.gateway
        self.directory = own_maps.root / "progs"
        self._open: dict[Path, dict[str, LoadedProgram]] = {}

    # -- what is there ---------------------------------------------------------------------------------------

    @property
    def kept(self) -> Kept:
        """Other people's XDP programs that gave way to ours."""
        return Kept(self.maps.root.parent, self.gateway)

    def wanted(self, max_connections: int) -> ProgramState:
        """The state that today's sources make. Compiles nothing."""
        return ProgramState(source_tag(self.source, {}), max_connections)

    @staticmethod
    def named(name: str) -> ProgramState | None:
        """The state that a set of programs with this name in its pins is; None if it is none."""
        return _parse(name)

    @property
    def current(self) -> ProgramState | None:
        """The set in force, None if there is none."""
        try:
            name = (self.directory / "current").readlink().name
        except FileNotFoundError:
            return None
        return _parse(name) if self._complete(self.directory / name) else None

    def own(self, otherwise: Path | None = None) -> OwnPrograms:
        """What links are to attach and to know as ours. Descriptors stay open until :meth:`close`.

        A set that is loaded but not yet current (within a commit) is what is attached; the current one is then
        among the former. ``otherwise``: the set of a version with other maps, where there is neither.
        """
        sets = [path for path in self._sets() if self._complete(path)]
        sets += [otherwise] if otherwise else []
        current = self.current
        chosen = self._staged or (self._path(current) if current else otherwise)
        former = {program.info.id for path in sets if path != chosen for program in self._load(path)}
        programs = self._load_pins(chosen) if chosen in sets and chosen is not None else {}
        return OwnPrograms(
            str(bpffs.as_named(self.maps.root.parent)),
            programs.get("xdp_ingress"),
            programs.get("tc_ingress"),
            programs.get("tc_egress"),
            frozenset(former),
            self.kept.programs(),
        )

    # -- changing it: stage, undo, finish --------------------------------------------------------------------

    _staged: Path | None = None
    _made_maps = False  # by this commit
    _taken_up = False  # the staged set was there already

    def stage(self, operation: LoadProgram) -> None:
        """Make the maps where there are none; compile, load and pin ``operation.after`` beside what is there, unless an
        interrupted exchange has left it ready.

        Raises :class:`CompileError` and :class:`KernelError` (with the verifier's words); nothing that is attached
        is touched.
        """
        self._made_maps, self._taken_up = not self.maps.exists, False
        path = self._path(operation.after)
        if not self._made_maps:
            if not self.maps.is_open:
                self.maps.open()
            if self._ready(path):
                self._staged, self._taken_up = path, True
                return
        code = compile_programs(self.source)
        if self._made_maps:
            self.maps.create(operation.after.max_connections)
        self._remove_set(path)
        self._discard_next()
        fds = {name: self.maps[name].fd for name in layout.MAPS}
        next_tables: dict[str, maps.Map] = {}
        try:
            if operation.after.max_connections != self.maps.max_connections:
                self._make_next(operation.after.max_connections, next_tables)
                fds |= {name: table.fd for name, table in next_tables.items()}
            self.gateway.call("make directory", str(path), lambda: path.mkdir(parents=True, exist_ok=True))
            loaded = load_set(code, fds, self.gateway)
            try:
                # The entry points last: with them the set is complete.
                for name in sorted(loaded, key=lambda each: each in ENTRY_POINTS):
                    fd, pin = loaded[name], str(path / name)
                    self.gateway.call("pin", f"program {name}", lambda fd=fd, pin=pin: bpf.obj_pin(fd, pin))  # type: ignore[misc]
            finally:
                for fd in loaded.values():
                    os.close(fd)
        finally:
            for table in next_tables.values():
                table.close()
        self._staged = path

    def withdraw(self, _operation: LoadProgram) -> None:
        """From now on attaching means the current set again; the staged one is still known as ours."""
        self._staged = None

    def undo(self, operation: LoadProgram) -> None:
        """Take :meth:`stage` back; maps that it made go too."""
        self._staged = None
        if self._taken_up:
            return
        if self._path(operation.after) != (self._path(self.current) if self.current else None):
            self._remove_set(self._path(operation.after))
        self._discard_next()
        if self._made_maps:
            self.remove()
            self.maps.remove()

    def finish(self, operation: LoadProgram) -> None:
        """Make the staged set current and forget the others. Can be repeated."""
        path = self._path(operation.after)
        if any(self._next_path(name).exists() for name in TABLES):
            self._adopt_next()
        link, fresh = self.directory / "current", self.directory / "fresh"
        if not link.is_symlink() or link.readlink().name != path.name:
            if fresh.is_symlink():
                self.gateway.call("unlink", str(fresh), fresh.unlink)
            self.gateway.call("symlink", str(fresh), lambda: fresh.symlink_to(path.name))
            self.gateway.call("rename", str(link), lambda: fresh.rename(link))
        self._staged = None
        for other in self._sets():
            if other != path:
                self._remove_set(other)

    def remove(self) -> None:
        """Unpin every set. What is attached stays so until it is detached."""
        self._staged = None
        self._discard_next()
        if not self.directory.is_dir():
            return
        for name in ("current", "fresh"):
            link = self.directory / name
            if link.is_symlink():
                self.gateway.call("unlink", str(link), link.unlink)
        for path in self._sets():
            self._remove_set(path)
        self.gateway.call("remove directory", str(self.directory), self.directory.rmdir)

    # -- after an interruption -------------------------------------------------------------------------------

    @property
    def unfinished(self) -> bool:
        """Whether an exchange was interrupted: there is more than the set in force."""
        current = self._path(self.current) if self.current else None
        if any(path != current for path in self._sets()) or (self.directory / "fresh").is_symlink():
            return True
        return any(self._next_path(name).exists() for name in TABLES)

    def recover(self, attached: frozenset[int]) -> list[str]:
        """Bring the connections of an interrupted exchange into the tables in force, so that nobody overlooks them, and
        remove what it left but for a set of which a program is in ``attached``: the next exchange needs that. The maps
        must be open. What was done, in words. Can be repeated; raises :class:`KernelError`."""
        if not self.unfinished:
            return []
        current = self._path(self.current) if self.current else None
        others = [path for path in self._sets() if path != current]
        self._merge_next()
        if any(program.info.id in attached for path in others if self._complete(path) for program in self._load(path)):
            return ["programs: an exchange is half done"]
        for path in others:
            self._remove_set(path)
        self._discard_next()
        fresh = self.directory / "fresh"
        if fresh.is_symlink():
            self.gateway.call("unlink", str(fresh), fresh.unlink)
        return ["programs: what was left of an exchange removed"]

    def close(self) -> None:
        """Give all descriptors back."""
        for programs in self._open.values():
            for program in programs.values():
                os.close(program.fd)
        self._open = {}

    # -- pins ------------------------------------------------------------------------------------------------

    def _path(self, state: ProgramState) -> Path:
        return self.directory / f"{state.tag}_{state.max_connections}"

    def _sets(self) -> Iterator[Path]:
        if self.directory.is_dir():
            yield from sorted(path for path in self.directory.iterdir() if path.is_dir() and not path.is_symlink())

    def _complete(self, path: Path) -> bool:
        return all((path / name).exists() for name in (*layout.CALLS, *ENTRY_POINTS))

    def _ready(self, path: Path) -> bool:
        """Whether this set is whole and works with the maps that are there, the next connection tables where there are
        any."""
        if not self._complete(path):
            return False
        places = [self._next_path(name) for name in layout.MAPS if self._next_path(name).exists()]
        places += [self.maps.directory / name for name in layout.MAPS if self._next_path(name) not in places]
        known = {_map_id(place) for place in (*places, *(path / name for name in layout.CALLS))}
        return all(known.issuperset(bpf.prog_info(program.fd).map_ids) for program in self._load(path))

    def _load(self, path: Path) -> Iterable[LoadedProgram]:
        return self._load_pins(path).values()

    def _load_pins(self, path: Path) -> dict[str, LoadedProgram]:
        loaded = self._open.setdefault(path, {})  # what is open stays so where another can't be opened
        for function in ENTRY_POINTS:
            if function not in loaded:
                loaded[function] = LoadedProgram.of(bpf.obj_get(str(path / function)))
        return loaded

    def _remove_set(self, path: Path) -> None:
        for program in self._open.pop(path, {}).values():
            os.close(program.fd)
        if not path.is_dir():
            return
        for pin in sorted(path.iterdir()):
            self.gateway.call("unpin", f"program {pin.name}", lambda pin=pin: pin.unlink(missing_ok=True))  # type: ignore[misc]
        self.gateway.call("remove directory", str(path), path.rmdir)

    # -- connection tables of another size -------------------------------------------------------------------

    def _next_path(self, name: str) -> Path:
        return self.maps.directory / f"{name}{NEXT}"

    def _make_next(self, max_connections: int, tables: dict[str, maps.Map]) -> None:
        """Into ``tables``: also those that are there when another can't be made."""
        for name in TABLES:
            spec = layout.MAPS[name]
            table = maps.map_of(spec, create_map(spec, max_connections), self.gateway)
            tables[name] = table
            path = str(self._next_path(name))
            self.gateway.call("pin", f"map {name}{NEXT}", lambda t=table, p=path: bpf.obj_pin(t.fd, p))  # type: ignore[misc]
        for version in VERSIONS:
            tables[f"connection{version}"].put_many(*entries_for(self.maps, version, 2 * max_connections))

    def _discard_next(self) -> None:
        if not self.maps.directory.is_dir():
            return
        for name in TABLES:
            path = self._next_path(name)
            if path.exists():
                self.gateway.call("unpin", f"map {name}{NEXT}", lambda path=path: path.unlink(missing_ok=True))  # type: ignore[misc]

    def _adopt_next(self) -> None:
        """Carry over what the old programs added meanwhile, then put the new tables in the old ones' place."""
        for name, table in self._next_tables():
            carry_over(self.maps[name], table)
            path = self._next_path(name)
            self.gateway.call("rename", f"map {name}", lambda p=path, n=name: p.rename(self.maps.directory / n))  # type: ignore[misc]
        self.maps.open()

    def _merge_next(self) -> None:
        """Carry over what the new programs have added to tables that are not in force yet."""
        for name, table in self._next_tables():
            carry_over(table, self.maps[name])

    def _next_tables(self) -> Iterator[tuple[str, maps.Map]]:
        """Those that exist, open as long as the loop is at them."""
        for name in TABLES:
            path = self._next_path(name)
            if not path.exists():
                continue
            table = maps.map_of(layout.MAPS[name], bpf.obj_get(str(path)), self.gateway)
            try:
                yield name, table
            finally:
                table.close()


def _map_id(pin: Path) -> int:
    descriptor = bpf.obj_get(str(pin))
    try:
        return bpf.map_info(descriptor).id
    finally:
        os.close(descriptor)


def _parse(name: str) -> ProgramState | None:
    tag, _, count = name.rpartition("_")
    return ProgramState(tag, int(count)) if tag and count.isdigit() else None
