"""Groups: the array of maps that holds their tables, and how it is used to wait for packets in flight.

A group's table is an array of u32 of its own: [0] is the number n of places, [1..n] are target ids. It is never
changed, only exchanged. An entry of the outer array that holds the empty table (n = 0) is free, as is one that holds
nothing: giving many groups back is one batch update with the empty table, where deletes would wait ten milliseconds
each for packets in flight, and come in no batches.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from reconciler.errors import KernelError
from reconciler.kernel import bpf, layout
from reconciler.kernel.maps import CHUNK, Map, Maps, address

WAIT_ID: Final = 0
"""No group has this id: its entry is only ever written to wait, and holds the empty table."""

Table = npt.NDArray[np.uint32]


def put_groups(maps: Maps, ids: Sequence[int], tables: Sequence[Table]) -> None:
    """Make a table of target ids the one of each group. An empty one frees the group. One gateway call for each
    batch of :data:`CHUNK`, after which running programs have finished with the old tables or have them still."""
    for start in range(0, len(ids), CHUNK):
        descriptors: list[int] = []
        try:
            descriptors.extend(map(_new_table, tables[start : start + CHUNK]))
            maps["group"].put_many(np.asarray(ids[start : start + CHUNK]), np.asarray(descriptors, layout.u32))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def free_groups(maps: Maps, ids: Sequence[int]) -> None:
    """Give the tables of these groups back. All of them share one empty table."""
    if len(ids) == 0:
        return
    empty = _new_table(np.zeros(0, np.uint32))
    try:
        maps["group"].put_many(np.asarray(ids), np.full(len(ids), empty, layout.u32))
    finally:
        os.close(empty)


def read_table(maps: Maps, group_id: int) -> Table | None:
    """The target ids in a group's table; None if the group is free."""
    value = maps["group"].get(group_id)
    return None if value is None else _read_inner(int(value[0]))


def used_groups(maps: Maps) -> npt.NDArray[np.uint32]:
    """Ids of all groups that have a table, in rising order."""
    ids, inner = maps["group"].items()
    used = [int(i) for i, m in zip(ids.tolist(), inner.tolist(), strict=True) if m and _size(m)]
    return np.asarray(sorted(used), np.uint32)


def wait_for_packets(maps: Maps) -> None:
    """Return once every program run that had begun before the call has ended.

    The kernel promises it for an update of an outer map from user space (``maybe_wait_bpf_programs``, an RCU grace
    period; 8 to 16 ms on an idle machine), for single updates on every version and not for batches on all.
    """
    empty = _new_table(np.zeros(0, np.uint32))
    try:
        maps["group"].put(WAIT_ID, np.asarray([empty], layout.u32))
    finally:
        os.close(empty)


def _new_table(members: Table) -> int:
    """A descriptor of a new inner map."""
    content = np.zeros(len(members) + 1, layout.u32)
    content[0], content[1:] = len(members), members
    fd = bpf.map_create(layout.MapType.ARRAY, "group_table", 4, 4, len(content), layout.F_INNER_MAP)
    try:
        keys = np.arange(len(content), dtype=layout.u32)
        done, failed = bpf.map_update_batch(fd, address(keys), address(content), len(content))
        if failed:
            raise KernelError("fill", "group table", failed, f"after {done} of {len(content)}")
    except KernelError:
        os.close(fd)
        raise
    return fd


def _size(map_id: int) -> int:
    """How many places an inner map has that the outer one names by its id; 0 if it has gone meanwhile."""
    try:
        fd = bpf.map_by_id(map_id)
    except KernelError:
        return 0
    try:
        return bpf.map_info(fd).max_entries - 1
    finally:
        os.close(fd)


def _read_inner(map_id: int) -> Table | None:
    fd = bpf.map_by_id(map_id)
    try:
        info = bpf.map_info(fd)
        spec = layout.MapSpec("group_table", 0, layout.MapType.ARRAY, layout.u32, layout.u32, info.max_entries)
        _, content = Map(spec, fd, _NO_GATEWAY).items()
    finally:
        os.close(fd)
    size = min(int(content[0]), len(content) - 1)
    return np.asarray(content[1 : size + 1], np.uint32) if size else None


_NO_GATEWAY: Any = None  # the inner map is only read here
