"""Groups: the array of maps that holds their tables, and how it is used to wait for packets in flight.

A group's table is an array of u32 of its own: [0] is the number n of places, [1..n] are target ids, [n+1] is its recipe
(:func:`reconciler.state.share.recipe`), which tells a table that health or drains should have changed, and [n+2] is the
CRC-32 of all before it, which tells one that somebody wrote to. It is never changed, only exchanged. An entry of the
outer array that holds the empty table (n = 0) is free, as is one that holds nothing: giving many groups back is one
batch update with the empty table, where deletes would wait ten milliseconds each for packets in flight, and come in no
batches.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from reconciler.errors import KernelError
from reconciler.kernel import bpf, groupscan, groupwrite, layout
from reconciler.kernel.arrays import address
from reconciler.kernel.maps import CHUNK, Map, Maps
from reconciler.state import share
from reconciler.state.objects import FULL
from reconciler.state.operations import PutGroup, SwapTable

WAIT_ID: Final = 0
"""No group has this id: its entry is only ever written to wait, and holds the empty table."""

Table = npt.NDArray[np.uint32]


DAMAGED: Final = -1
"""Instead of a recipe: the table is not as it was written."""

_TRAILER: Final = 2  # recipe and checksum


def make(group: PutGroup | SwapTable) -> tuple[Table, int]:
    """The table that an operation asks for, and its recipe."""
    ids, weights = [target for target, _ in group.members], [weight for _, weight in group.members]
    effective = group.effective or share.weigh(weights, [FULL] * len(weights))
    return share.table(ids, group.keys, weights, effective), share.recipe(ids, effective)


def put_groups(maps: Maps, ids: Sequence[int], tables: Sequence[Table], recipes: Sequence[int] | None = None) -> None:
    """Make a table of target ids the one of each group. An empty one frees the group. One gateway call for each
    batch of :data:`CHUNK`, after which running programs have finished with the old tables or have them still."""
    recipes = [0] * len(ids) if recipes is None else recipes
    for start in range(0, len(ids), CHUNK):
        descriptors: list[int] = []
        try:
            descriptors.extend(map(_new_table, tables[start : start + CHUNK], recipes[start : start + CHUNK]))
            chunk = np.asarray(ids[start : start + CHUNK])
            groupwrite.put_many(maps["group"], chunk, np.asarray(descriptors, layout.u32))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def free_groups(maps: Maps, ids: Sequence[int]) -> None:
    """Give the tables of these groups back. All of them share one empty table."""
    if len(ids) == 0:
        return
    empty = _new_table(np.zeros(0, np.uint32))
    try:
        groupwrite.put_many(maps["group"], np.asarray(ids), np.full(len(ids), empty, layout.u32))
    finally:
        os.close(empty)


def read_table(maps: Maps, group_id: int) -> Table | None:
    """The target ids in a group's table; None if the group is free."""
    value = maps["group"].get(group_id)
    if value is None:
        return None
    content = _read_inner(int(value[0]))
    size = min(int(content[0]), len(content) - 1)
    return np.asarray(content[1 : size + 1], np.uint32) if size else None


def all_free(maps: Maps, ids: Sequence[int]) -> bool:
    """Whether none of these groups has a table."""
    outer = maps["group"]
    if len(ids) > groupwrite.FEW and groupscan.waits(outer):
        return not np.isin(ids, groupscan.in_use(outer)).any()
    return all(read_table(maps, number) is None for number in ids)


def read_recipes(maps: Maps) -> dict[int, int]:
    """The recipe of the table of each group that has one, by id; :data:`DAMAGED` for a table that is not as it was
    written."""
    outer = maps["group"]
    ids, inner = groupscan.read(outer)
    found = ((int(i), _recipe(m)) for i, m in zip(ids.tolist(), inner.tolist(), strict=True) if m)
    return {number: recipe for number, recipe in found if recipe is not None}


def used_groups(maps: Maps) -> npt.NDArray[np.uint32]:
    """Ids of all groups that have a table, in rising order."""
    return np.asarray(sorted(read_recipes(maps)), np.uint32)


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


def _new_table(members: Table, recipe: int = 0) -> int:
    """A descriptor of a new inner map."""
    size = len(members)
    content = np.zeros(1 + size + _TRAILER, layout.u32)
    content[0], content[1 : 1 + size], content[1 + size] = size, members, recipe
    content[-1] = zlib.crc32(content[:-1].tobytes())
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


def _recipe(map_id: int) -> int | None:
    """Of the inner map that the outer one names by its id; None for the empty one, and for one that has gone
    meanwhile. Raises :class:`KernelError` where it can't be read: a group that is used must not pass for a free one."""
    try:
        content = _read_inner(map_id)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
    size = len(content) - 1 - _TRAILER
    if size < 0 or int(content[0]) != size or int(content[-1]) != zlib.crc32(content[:-1].tobytes()):
        return DAMAGED
    return int(content[-2]) if size else None


def _read_inner(map_id: int) -> Table:
    """Everything in an inner map."""
    fd = bpf.map_by_id(map_id)
    try:
        info = bpf.map_info(fd)
        spec = layout.MapSpec("group_table", 0, layout.MapType.ARRAY, layout.u32, layout.u32, info.max_entries)
        _, content = Map(spec, fd, _NO_GATEWAY).items()
    finally:
        os.close(fd)
    return np.asarray(content, np.uint32)


_NO_GATEWAY: Any = None  # the inner map is only read here
