"""Making maps of the layout, and telling whether one is of it."""

from __future__ import annotations

import errno
import mmap
import os
from typing import Final

import numpy as np

from reconciler.errors import KernelError
from reconciler.kernel import blocks, bpf, layout
from reconciler.kernel.arrays import address
from reconciler.kernel.blocks import Blocks
from reconciler.kernel.layout import MapSpec, MapType


def capacity(spec: MapSpec, max_connections: int) -> int:
    """``max_entries`` for a map: of a connection table, what holds an entry for each direction."""
    return blocks.elements(2 * max_connections) if spec.per_connection else spec.max_entries


def connections_for(fd: int, spec: MapSpec) -> int:
    """The ``max_connections`` that the connection table with this descriptor was made for."""
    return Blocks.of(fd, spec.value).entries // 2


def kernel_name(name: str) -> str:
    """What the kernel calls a map. One bears the layout in its name, for where no pin says it any more."""
    return f"{name}_{layout.fingerprint()}"[:15] if name == "control" else name


SHOW_AFTER: Final = 45
"""The kernel is to see a packet of each way that is in use every 3 s, in the programs' units of 2^26 ns. It takes 5 s
to begin to ask a neighbour that is in use whether it is still there, and forgets within 5 s that it is."""


def create_map(spec: MapSpec, max_connections: int, *, show_ways: bool = True) -> int:
    """Make one map of the layout, not pinned, and return its descriptor. ``show_ways``: now and then a packet goes by
    way of the kernel's neighbours (see :data:`SHOW_AFTER`); else XDP finishes whatever it can."""
    inner = 0
    if spec.type is MapType.ARRAY_OF_MAPS:
        inner = inner_template(spec)
    try:
        fd = bpf.map_create(
            spec.type,
            kernel_name(spec.name),
            spec.key.itemsize,
            spec.value.itemsize,
            capacity(spec, max_connections),
            spec.flags,
            inner,
        )
    finally:
        if inner:
            os.close(inner)
    try:
        _put_head(fd, spec, max_connections, show_ways=show_ways)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _put_head(fd: int, spec: MapSpec, max_connections: int, *, show_ways: bool) -> None:
    """The first entry, of the maps that tell the programs there how to use the rest."""
    if spec.per_connection:
        head = blocks.new_head(2 * max_connections, spec.value)
    elif spec.name == "way":
        head = np.zeros(1, layout.way_head)
        head["places"] = (spec.max_entries - 1) // bpf.possible_cpus()
        head["show_after"] = SHOW_AFTER if show_ways else 0
    else:
        return
    key, value = np.zeros(1, layout.u32), np.zeros(spec.value.itemsize, np.uint8)
    value[: head.nbytes] = head.view(np.uint8)
    bpf.map_update(fd, address(key), address(value))


def inner_template(spec: MapSpec) -> int:
    """A descriptor of a map like those that this map of maps holds; sizes may differ."""
    if spec.name == "event_ring":
        return bpf.map_create(MapType.RINGBUF, "events", 0, 0, mmap.PAGESIZE)
    return bpf.map_create(MapType.ARRAY, "group_table", 4, 4, 1, layout.F_INNER_MAP)


def check(spec: MapSpec, info: bpf.MapInfo) -> None:
    """Raise :class:`KernelError` (EINVAL) naming each property in which a map is not what ``spec`` says."""
    wanted = {
        "type": int(spec.type),
        "key size": spec.key.itemsize,
        "value size": spec.value.itemsize,
        "max_entries": info.max_entries if spec.per_connection else spec.max_entries,
        "flags": spec.flags,
    }
    found = {
        "type": info.type,
        "key size": info.key_size,
        "value size": info.value_size,
        "max_entries": info.max_entries,
        "flags": info.flags,
    }
    wrong = [f"{name} {found[name]} instead of {value}" for name, value in wanted.items() if found[name] != value]
    if wrong:
        raise KernelError("open", f"map {spec.name}", errno.EINVAL, "not ours: " + ", ".join(wrong))
