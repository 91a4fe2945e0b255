"""Connection tables (``bpf/table.h``) in the kernel's memory: where entries are, how many there are, how a new table
begins.

A table is an array. Its first elements are its head and the CPUs' shares of the room that is left, then come the lines
of the blocks, many in each, then the blocks.
"""

from __future__ import annotations

import mmap
import secrets
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from reconciler.errors import KernelError
from reconciler.kernel import bpf, layout
from reconciler.kernel.arrays import Array, address

Indexes = npt.NDArray[np.int64]

_FEWEST_BLOCKS: Final = 8
_BATCHES: Final = 256
"""So many batches of a full table's room there are for each CPU, so that what they keep is hardly missed."""
_LARGEST_BATCH: Final = 64
_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
_32, _8 = np.uint64(32), np.uint64(8)


@dataclass(frozen=True, slots=True)
class _Shape:
    """Of a table: the first element with lines, the first one that is a block, how many of these there are."""

    lines: int
    first: int
    blocks: int

    @classmethod
    def of(cls, entries: int) -> _Shape:
        """Twice the places, so that one in a million entries finds none in its home and in the neighbour."""
        blocks = max(_FEWEST_BLOCKS, -(-entries // layout.BLOCK_PLACES) * 2)
        lines = 1 + bpf.possible_cpus()
        return cls(lines, lines + -(-blocks // layout.LINES), blocks)


def elements(entries: int) -> int:
    """``max_entries`` of the array for a table of so many entries."""
    shape = _Shape.of(entries)
    return shape.first + shape.blocks


def new_head(entries: int, block: np.dtype[Any]) -> Array:
    """The first element of a new table of so many entries, in the place of a block."""
    head = np.zeros(1, layout.table)
    shape = _Shape.of(entries)
    head["lines"], head["first"], head["blocks"] = shape.lines, shape.first, shape.blocks
    head["entries"] = head["room"] = entries
    head["batch"] = min(_LARGEST_BATCH, entries // (_BATCHES * bpf.possible_cpus()))
    head["secret"] = np.frombuffer(secrets.token_bytes(head["secret"].nbytes), np.uint32)
    element = np.zeros(block.itemsize, np.uint8)
    element[: head.nbytes] = head.view(np.uint8)
    return element


@dataclass(frozen=True, slots=True)
class Blocks:
    """One table: which entries it has. ``fd``: of the array; ``block``: what its elements are."""

    fd: int
    block: np.dtype[Any]
    lines: int
    first: int
    count: int
    entries: int
    secret: Array

    @classmethod
    def of(cls, fd: int, block: np.dtype[Any]) -> Blocks:
        """Of a table that is there. Raises :class:`KernelError`."""
        head = _element(fd, block, 0)
        secret = head["secret"].astype(np.uint64)
        lines, first, blocks, entries = (int(head[name]) for name in ("lines", "first", "blocks", "entries"))
        return cls(fd, block, lines, first, blocks, entries, secret)

    @property
    def used(self) -> int:
        """How many entries it has, those among them that are over."""
        rooms = [_element(self.fd, self.block, index)["room"] for index in range(1 + bpf.possible_cpus())]
        return self.entries - sum(int(room.view(np.int64)) for room in rooms)

    @property
    def is_full(self) -> bool:
        """It took no entry lately: each new connection looks for room."""
        return int(_element(self.fd, self.block, 0)["full"]) > 0

    # -- where entries are -----------------------------------------------------------------------------------

    def homes(self, keys: Array) -> tuple[Indexes, Array]:
        """Of each key the block that is its home, and its tag; as ``home()`` and ``tag()`` in ``bpf/table.h``."""
        size = keys.dtype["saddr_be"].itemsize // 4
        rows = np.ascontiguousarray(keys)
        words = rows.view(np.uint32).reshape(len(keys), -1).astype(np.uint64)
        ports = rows.view(np.uint16).reshape(len(keys), -1)[:, 4 * size : 4 * size + 2].astype(np.uint64)
        key = self.secret
        sums = (ports[:, 0] + key[0]) * (ports[:, 1] + key[1]) + keys["protocol"].astype(np.uint64) * key[2]
        for word in range(size):
            sums += (words[:, word] + key[3 + 2 * word]) * (words[:, size + word] + key[4 + 2 * word])
        sums ^= sums >> _32
        sums *= _MULTIPLIER
        tags = sums >> _8 & np.uint64(0xFFFF)
        return ((sums >> _32) * np.uint64(self.count) >> _32).astype(np.int64), np.maximum(tags, np.uint64(1))

    def read(self, first: int, count: int) -> tuple[Array, Array]:
        """Keys and values of all entries in these blocks."""
        count = min(count, self.count - first)
        if count <= 0:
            empty = np.zeros(0, self.block["entry"].base)
            return empty["key"], empty["value"]
        rows, places = _taken(self._tags(first, count))
        return _gathered(self._blocks(first, count), rows, places)

    def find(self, keys: Array) -> tuple[npt.NDArray[np.bool_], Array]:
        """Which of the keys have an entry, and the values: zeros for those that have none."""
        homes, tags = self.homes(keys)
        found, values = np.zeros(len(keys), np.bool_), np.zeros(len(keys), self.block["entry"].base["value"])
        order = np.argsort(homes, kind="stable")
        wanted = np.ascontiguousarray(keys).view((np.void, keys.dtype.itemsize)).reshape(-1)
        start = 0
        while start < len(order):
            first = int(homes[order[start]]) & ~1
            upto = int(np.searchsorted(homes, first + AT_ONCE, sorter=order))
            here = order[start:upto]
            count = int(homes[here[-1]]) // 2 * 2 + 2 - first
            blocks, tags_here = self._blocks(first, count), self._tags(first, count)
            for neighbour in (0, 1):
                near = (homes[here] - first) ^ neighbour
                which, places = np.nonzero(tags_here[near] == tags[here][:, None])
                known_keys, known = blocks["entry"]["key"], blocks["entry"]["value"]
                rows, at = near[which], here[which]
                same = np.ascontiguousarray(known_keys[rows, places]).view(wanted.dtype).reshape(-1) == wanted[at]
                found[at[same]] = True
                values[at[same]] = known[rows[same], places[same]]
                here = here[~found[here]]
            start = upto
        return found, values

    # -- a table that nobody else uses ------------------------------------------------------------------------

    def put_alone(self, key: Array, value: Array) -> None:
        """Enter one, which is not there yet, into a table that no program uses meanwhile."""
        home, tag = (int(each[0]) for each in self.homes(key))
        place = int(np.flatnonzero(self._tags(home, 1)[0] == 0)[0])
        self._tags(home, 1, mmap.PROT_WRITE)[0, place] = tag
        entry = self._blocks(home, 1, mmap.PROT_WRITE)["entry"][0, place]
        entry["key"], entry["value"] = key[0], value[0]
        self._put_room(-1)

    def clear_alone(self) -> None:
        """Remove all from a table that no program uses meanwhile."""
        for index in np.flatnonzero(self._tags(0, self.count).any(axis=1)).tolist():
            self._tags(index, 1, mmap.PROT_WRITE)[:] = 0
            self._blocks(index, 1, mmap.PROT_WRITE)["entry"]["key"] = 0
        self._put_room(self.used)

    def _put_room(self, more: int) -> None:
        where, element = np.zeros(1, np.uint32), np.zeros(self.block.itemsize, np.uint8)
        bpf.map_lookup(self.fd, address(where), address(element))
        element[: layout.table.itemsize].view(layout.table)["room"] += np.int64(more).astype(np.uint64)
        bpf.map_update(self.fd, address(where), address(element))

    # -- memory ----------------------------------------------------------------------------------------------

    def _blocks(self, first: int, count: int, access: int = 0) -> Array:
        """These blocks as they stand in the kernel's memory."""
        stride = self.block.itemsize
        memory, start = self._memory(self.first + first, count, access)
        return np.ndarray((count,), self.block, memory, start, (stride,))

    def _tags(self, first: int, count: int, access: int = 0) -> Array:
        """The tags in these blocks' lines, of each place one: a copy, or with ``access`` to write what the memory has
        of one block."""
        at, upto = first // layout.LINES, -(-(first + count) // layout.LINES)
        memory, start = self._memory(self.lines + at, upto - at, access)
        shape, strides = (upto - at, layout.LINES), (self.block.itemsize, layout.line.itemsize)
        lines = np.ndarray(shape, layout.line, memory, start, strides)
        skipped = first - at * layout.LINES
        if access:
            return lines["tags"][:1, skipped].view(np.uint16)
        return lines["tags"].reshape(-1, layout.BLOCK_PLACES // 4)[skipped : skipped + count].copy().view(np.uint16)

    def _memory(self, first: int, count: int, access: int) -> tuple[mmap.mmap, int]:
        """Memory in which these elements are, and where in it they begin. It goes with the last array on it."""
        start = first * self.block.itemsize
        offset = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        length = -(-(start - offset + count * self.block.itemsize) // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            memory = mmap.mmap(self.fd, length, mmap.MAP_SHARED, mmap.PROT_READ | access, offset=offset)
        except OSError as error:
            raise KernelError("map into memory", "connections", error.errno or 0) from error
        return memory, start - offset


AT_ONCE: Final = 1024
"""Blocks that are looked at in one go: some megabytes."""


def _element(fd: int, block: np.dtype[Any], index: int) -> Any:
    key, value = np.asarray([index], np.uint32), np.zeros(block.itemsize, np.uint8)
    bpf.map_lookup(fd, address(key), address(value))
    return value[: layout.table.itemsize].view(layout.table)[0]


def _taken(tags: Array) -> tuple[Indexes, Indexes]:
    """Rows and places with a tag."""
    some = np.flatnonzero(tags.any(axis=1))
    rows, places = np.nonzero(tags[some])
    return some[rows], places


def _gathered(blocks: Array, rows: Indexes, places: Indexes) -> tuple[Array, Array]:
    """Copies of these entries, but for those that came or went meanwhile."""
    entries = blocks["entry"][rows, places]
    there = entries["key"]["protocol"] != 0
    now = blocks["entry"]["key"][rows, places]
    there &= (entries["key"]["sport_be"] == now["sport_be"]) & (entries["key"]["dport_be"] == now["dport_be"])
    there &= entries["key"]["protocol"] == now["protocol"]
    if not there.all():
        entries = entries[there]
    return entries["key"], entries["value"]
