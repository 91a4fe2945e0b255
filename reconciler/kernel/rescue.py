"""Maps whose pins are gone while programs that use them are still attached: found by the programs, and pinned again, so
that connections outlive the loss. What no program holds any more is made anew, empty, and filled by the next commit."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

import numpy as np

from reconciler.errors import KernelError
from reconciler.kernel import bpf, layout, layoutpin
from reconciler.kernel.arrays import address
from reconciler.kernel.identity import maps_of
from reconciler.kernel.layout import MapType
from reconciler.kernel.maps import Maps
from reconciler.kernel.newmaps import check, connections_for, create_map, kernel_name
from reconciler.kernel.program import MAX_CALLS

_NEEDED = ("control", "connection4", "connection6")


def rescue(maps: Maps, programs: Iterable[int]) -> list[str]:
    """Complete the set of pins from what these attached programs of ours use; the names of the maps that were found.

    Empty, and nothing done, where they use no maps of our layout. Raises :class:`KernelError`. Can be repeated.
    """
    found: dict[str, int] = {}
    try:
        _find(programs, found)
        pinned = {name for name in layout.MAPS if (maps.directory / name).exists()}
        if any(name not in found and name not in pinned for name in _NEEDED) or not _same_set(maps, found, pinned):
            return []
        maps.gateway.call(
            "make directory", str(maps.directory), lambda: maps.directory.mkdir(parents=True, exist_ok=True)
        )
        layoutpin.pin(maps.root, maps.gateway)
        max_connections = _max_connections(maps, found)
        again = []
        for spec in layout.MAPS.values():
            if spec.name in pinned:
                continue
            descriptor = found.get(spec.name)
            fresh = create_map(spec, max_connections) if descriptor is None else -1
            path, held = str(maps.directory / spec.name), fresh if descriptor is None else descriptor
            try:
                maps.gateway.call("pin", f"map {spec.name}", lambda fd=held, at=path: bpf.obj_pin(fd, at))  # type: ignore[misc]
            finally:
                if fresh >= 0:
                    os.close(fresh)
            if descriptor is not None:
                again.append(spec.name)
        return again
    finally:
        for descriptor in found.values():
            os.close(descriptor)


def _find(programs: Iterable[int], found: dict[str, int]) -> None:
    """Into ``found``: descriptors of maps of our layout that the programs use, and those that these call; by name."""
    names = {kernel_name(spec.name): spec for spec in layout.MAPS.values()}
    todo, seen, looked_at = list(programs), set[int](), set[int]()
    while todo:
        program = todo.pop()
        if program in seen:
            continue
        seen.add(program)
        for number in sorted(maps_of(program) - looked_at):
            looked_at.add(number)
            try:
                descriptor = bpf.map_by_id(number)
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise
                continue
            info = bpf.map_info(descriptor)
            spec = names.get(info.name)
            if info.type == MapType.PROG_ARRAY:
                todo += _called(descriptor)
            if spec is None or spec.name in found or not _fits(spec, info):
                os.close(descriptor)
            else:
                found[spec.name] = descriptor


def _fits(spec: layout.MapSpec, info: bpf.MapInfo) -> bool:
    try:
        check(spec, info)
    except KernelError:
        return False
    return True


def _called(descriptor: int) -> list[int]:
    key, value, found = np.zeros(1, layout.u32), np.zeros(1, layout.u32), []
    for place in range(MAX_CALLS):
        key[0] = place
        if bpf.map_lookup(descriptor, address(key), address(value)):
            found.append(int(value[0]))
    return found


def _same_set(maps: Maps, found: dict[str, int], pinned: set[str]) -> bool:
    """What is still pinned is what the programs use."""
    for name in pinned & found.keys():
        descriptor = bpf.obj_get(str(maps.directory / name))
        try:
            if bpf.map_info(descriptor).id != bpf.map_info(found[name]).id:
                return False
        finally:
            os.close(descriptor)
    return True


def _max_connections(maps: Maps, found: dict[str, int]) -> int:
    spec = layout.MAPS["connection4"]
    if spec.name in found:
        return connections_for(found[spec.name], spec)
    descriptor = bpf.obj_get(str(maps.directory / spec.name))
    try:
        return connections_for(descriptor, spec)
    finally:
        os.close(descriptor)
