"""Which entries of the outer map of groups are in use, on kernels where reading one waits for packets in flight.

Before Linux 6.8 a look-up in a map of maps from user space ends with an RCU grace period, as an update does
(``maybe_wait_bpf_programs`` in ``bpf_map_copy_value``), also in a batch: all of the 16,384 entries take minutes. A
program's look-up never waits. So a small program tells which entries hold a table, and only these are read, many at the
same time: they wait for the same grace periods.
"""

from __future__ import annotations

import os
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt

from reconciler.kernel import bpf, layout
from reconciler.kernel.maps import Map

AT_ONCE: Final = 64
"""So many entries one run of the program looks at. The verifier goes through each round, so that more cost it more than
they spare runs."""
WAITS_SEC: Final = 0.001
"""A look-up that takes longer has waited: one that does not wait takes a few millionths of a second."""
READERS: Final = 64

_LAST_OF_EMPTY: Final = 2  # the empty table has the entries 0 to 2 (reconciler.kernel.groups)


def waits(outer: Map) -> bool:
    """Whether a look-up in it waits; tried twice, since this process may have been interrupted."""
    return all(_look_up_sec(outer) > WAITS_SEC for _ in range(2))


def _look_up_sec(outer: Map) -> float:
    began = time.monotonic()
    outer.get(0)
    return time.monotonic() - began


def read(outer: Map) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Keys and ids of tables, of all entries with another table than the empty one at least."""
    return items(outer) if waits(outer) else outer.items()


def items(outer: Map) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """What ``outer.items()`` gives, of the entries with another table than the empty one: keys, and ids of tables. One
    that is exchanged meanwhile comes with its former table or its new one, one that is freed perhaps not at all."""
    used = in_use(outer)
    with ThreadPoolExecutor(min(READERS, max(1, len(used)))) as readers:
        values = list(readers.map(outer.get, used.tolist()))
    found = [(key, int(value[0])) for key, value in zip(used.tolist(), values, strict=True) if value is not None]
    pairs = np.asarray(found, layout.u32).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def in_use(outer: Map) -> npt.NDArray[np.uint32]:
    """Keys of the entries with a table of which some program run at least has not seen that it is the empty one."""
    program = bpf.prog_load(bpf.PROG_TYPE_XDP, "rp_groups", "GPL", _instructions(outer.fd))
    try:
        marks = [_run(program, first) for first in range(0, outer.max_entries, AT_ONCE)]
    finally:
        os.close(program)
    return np.flatnonzero(np.concatenate(marks)).astype(np.uint32)


def _run(program: int, first: int) -> npt.NDArray[np.uint32]:
    frame = struct.pack("=I", first) + bytes(4 * AT_ONCE)
    return np.frombuffer(bpf.prog_test_run(program, frame).data_out, layout.u32)[1 : 1 + AT_ONCE]


def _instructions(outer_fd: int) -> bytes:
    """The program: a frame holds the first key, and is filled with a 1 for each entry in use and a 0 for the others.
    Classes and operations of Documentation/bpf/standardization/instruction-set.rst."""

    def code(opcode: int, destination: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
        return struct.pack("=BBhi", opcode, source << 4 | destination, offset, immediate)

    load, store, put = 0x61, 0x63, 0x62  # 32 bits: r = *(r + n), *(r + n) = r, *(r + n) = value
    copy, number, add = 0xBF, 0xB7, 0x07  # r = r, r = value, r += value
    greater, zero, not_zero, below, jump = 0x2D, 0x15, 0x55, 0xA5, 0x05
    call, leave = 0x85, 0x95
    frame, key, count, table, stack = 6, 7, 8, 9, 10

    def look_up(stack_offset: int) -> list[bytes]:  # in the map in r1, of the key on the stack
        return [code(copy, 2, stack), code(add, 2, immediate=stack_offset), code(call, immediate=1)]

    def has_entry(index: int) -> list[bytes]:
        return [code(put, stack, offset=-8, immediate=index), code(copy, 1, table), *look_up(-8)]

    before = [
        code(load, frame, 1, 0),  # xdp_md.data
        code(load, 3, 1, 4),  # xdp_md.data_end
        code(copy, 2, frame),
        code(add, 2, immediate=4 + 4 * AT_ONCE),
        code(number, 0, immediate=0),
    ]
    begin = [
        code(load, key, frame, 0),
        code(add, frame, immediate=4),
        code(number, count, immediate=0),
    ]
    mark = [code(number, 0, immediate=1)]
    clear = [code(number, 0, immediate=0)]
    beyond, last = has_entry(_LAST_OF_EMPTY + 1), has_entry(_LAST_OF_EMPTY)
    table_there = [
        code(copy, table, 0),
        *beyond,
        code(not_zero, 0, offset=len(last) + 1),  # longer than the empty one: mark
        *last,
        code(not_zero, 0, offset=len(mark) + 1),  # as long as that: clear
        *mark,
        code(jump, offset=len(clear)),
        *clear,
    ]
    body = [
        code(store, stack, key, -4),
        code(0x18, 1, 1, immediate=outer_fd),
        code(0),  # the upper half of the address that the descriptor becomes
        *look_up(-4),
        code(zero, 0, offset=len(table_there)),  # r0 is what is to be stored
        *table_there,
        code(store, frame, 0),
        code(add, frame, immediate=4),
        code(add, key, immediate=1),
        code(add, count, immediate=1),
    ]
    back = [code(below, count, offset=-len(body) - 1, immediate=AT_ONCE)]
    checked = [code(greater, 2, 3, len(begin) + len(body) + len(back))]
    return b"".join([*before, *checked, *begin, *body, *back, code(number, 0, immediate=2), code(leave)])
