"""A program that puts the packet back as it was before every iteration and then tail-calls the one to be measured.

``BPF_PROG_TEST_RUN`` does not restore the packet between repeats, so without this the second iteration measures
another path. The wrapper can also vary the source address, to measure many flows. It is assembled here by hand: no
compiler is in the way of what it costs.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

from reconciler.kernel import bpf

HEADER_BYTES = 80  # at most
_VALUE = struct.Struct(f"<{HEADER_BYTES}sQQ")  # headers, counter, mask

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = range(11)
LOAD64, LOAD32, STORE64, STORE32 = 0x79, 0x61, 0x7B, 0x63
MOVE, ADD, AND = 0xBF, 0x0F, 0x5F
MOVE_K, ADD_K = 0xB7, 0x07
TO_BIG_ENDIAN = 0xDC
JUMP_IF_ZERO, JUMP_GREATER, CALL, EXIT = 0x15, 0x2D, 0x85, 0x95
LOOKUP, TAIL_CALL = 1, 12


def instruction(code: int, dst: int = 0, src: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", code, dst | src << 4, offset, immediate)


def load_map(register: int, fd: int) -> bytes:
    return instruction(0x18, register, 1, 0, fd) + instruction(0)


def _assemble(state_fd: int, programs_fd: int, vary_offset: int, restored: int) -> bytes:
    body = [
        instruction(MOVE, R6, R1),
        instruction(0x62, R10, 0, -4, 0),  # *(u32 *)(fp - 4) = 0
        instruction(MOVE, R2, R10),
        instruction(ADD_K, R2, 0, 0, -4),
        load_map(R1, state_fd),
        instruction(CALL, 0, 0, 0, LOOKUP),
    ]
    work = [
        instruction(LOAD32, R7, R6, 0),  # data
        instruction(LOAD32, R8, R6, 4),  # data_end
        instruction(MOVE, R9, R7),
        instruction(ADD_K, R9, 0, 0, restored),
    ]
    restore = b"".join(
        instruction(LOAD64, R3, R0, offset) + instruction(STORE64, R7, R3, offset) for offset in range(0, restored, 8)
    )
    vary = b"".join(
        [
            instruction(LOAD64, R3, R0, HEADER_BYTES),
            instruction(LOAD64, R4, R0, HEADER_BYTES + 8),
            instruction(MOVE, R5, R3),
            instruction(ADD_K, R5, 0, 0, 1),
            instruction(STORE64, R0, R5, HEADER_BYTES),
            instruction(AND, R3, R4),
            instruction(TO_BIG_ENDIAN, R3, 0, 0, 32),  # the last octets of the address vary
            instruction(LOAD32, R4, R7, vary_offset),
            instruction(ADD, R4, R3),
            instruction(STORE32, R7, R4, vary_offset),
        ]
    )
    call = b"".join(
        [
            instruction(MOVE, R1, R6),
            load_map(R2, programs_fd),
            instruction(MOVE_K, R3, 0, 0, 0),
            instruction(CALL, 0, 0, 0, TAIL_CALL),
        ]
    )
    inner = restore + vary + call
    work_bytes = b"".join(work) + instruction(JUMP_GREATER, R9, R8, len(inner) // 8) + inner
    end = instruction(MOVE_K, R0, 0, 0, 0) + instruction(EXIT)
    return b"".join(body) + instruction(JUMP_IF_ZERO, R0, 0, len(work_bytes) // 8) + work_bytes + end


@dataclass
class Wrapper:
    """The wrapper, loaded. ``vary_offset``: where in the frame the 32-bit big-endian word is that the counter is added
    to; ``restored``: how many bytes of the frame are put back, a multiple of 8 up to 80."""

    vary_offset: int
    restored: int

    def __post_init__(self) -> None:
        self.state = bpf.map_create(2, "bench_state", 4, _VALUE.size, 1)
        self.programs = bpf.map_create(3, "bench_programs", 4, 4, 1)
        code = _assemble(self.state, self.programs, self.vary_offset, self.restored)
        self.fd = bpf.prog_load(bpf.PROG_TYPE_XDP, "bench_wrapper", "Dual BSD/GPL", code)

    def prepare(self, frame: bytes, program_fd: int, mask: int) -> None:
        """Use this frame's first bytes, this program, and this many flows minus one (0: one flow)."""
        value = ctypes.create_string_buffer(_VALUE.pack(frame[: self.restored], 0, mask))
        key, fd = ctypes.c_uint32(0), ctypes.c_uint32(program_fd)
        bpf.map_update(self.state, ctypes.addressof(key), ctypes.addressof(value))
        bpf.map_update(self.programs, ctypes.addressof(key), ctypes.addressof(fd))

    def close(self) -> None:
        for fd in (self.fd, self.programs, self.state):
            os.close(fd)


def empty_program() -> int:
    """The floor: a program that passes everything."""
    code = instruction(MOVE_K, R0, 0, 0, 2) + instruction(EXIT)
    return bpf.prog_load(bpf.PROG_TYPE_XDP, "bench_empty", "Dual BSD/GPL", code)
