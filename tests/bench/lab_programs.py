"""The lab benchmark's own XDP programs, assembled by hand so that no compiler is in the way of what they cost.

``generator`` makes small UDP packets (it runs by ``BPF_PROG_TEST_RUN`` with live frames and sends each out of the
client's interface), ``receiver`` counts them at the backends and drops them, ``bare_redirect`` is the least that XDP
forwarding can be, ``ping_pong`` hands a cache line from one CPU to the other.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from reconciler.kernel import bpf
from tests.bench.wrapper import (
    ADD,
    ADD_K,
    AND,
    CALL,
    EXIT,
    LOAD32,
    LOAD64,
    LOOKUP,
    MOVE,
    MOVE_K,
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
    STORE32,
    STORE64,
    TO_BIG_ENDIAN,
    instruction,
    load_map,
)

XDP_DROP, XDP_PASS, XDP_TX = 1, 2, 3

LOAD8, LOAD16, STORE8, STORE16 = 0x71, 0x69, 0x73, 0x6B
STORE8_K, STORE32_K = 0x72, 0x62
SUBTRACT, XOR_K, AND_K, SHIFT_RIGHT_K = 0x1F, 0xA7, 0x57, 0x77
JUMP, JUMP_EQUAL, JUMP_EQUAL_K, JUMP_NOT_EQUAL_K = 0x05, 0x1D, 0x15, 0x55
JUMP_GREATER, JUMP_GREATER_EQUAL, JUMP_LESS_EQUAL_K = 0x2D, 0x3D, 0xB5
FIB_LOOKUP, REDIRECT = 69, 23

# Where things lie in a frame: Ethernet, IPv4 without options, UDP.
FRAME_BYTES = 64
ETHERTYPE, TOTAL_LENGTH, IDENTIFICATION, TTL, PROTOCOL, HEADER_CHECKSUM = 12, 16, 18, 22, 23, 24
SOURCE, DESTINATION, SOURCE_PORT, DESTINATION_PORT, PAYLOAD = 26, 30, 34, 36, 42

# The generator's state: the frame, how many were sent, how many are to be, how many of them are known to be lost, how
# many may be on their way, the mask that makes a flow's number of a packet's, the number of the first flow.
SENT, LIMIT, LOST, WINDOW, MASK, FIRST = range(FRAME_BYTES, FRAME_BYTES + 6 * 8, 8)
STATE_BYTES = FRAME_BYTES + 6 * 8
PORT_BITS, FIRST_PORT, FIRST_TTL = 14, 1024, 64

# The receiver's: packets from clients, packets from the proxy host itself, whether to send them back, a clean line.
FROM_CLIENTS, FROM_PROXY, ECHO = 0, 8, 16

SPINS = 64


class Code:
    """Instructions with named places to jump to."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._jumps: list[tuple[int, str]] = []
        self._labels: dict[str, int] = {}

    @property
    def _here(self) -> int:
        return sum(map(len, self._parts)) // 8

    def add(self, code: int, dst: int = 0, src: int = 0, offset: int = 0, immediate: int = 0) -> None:
        """One instruction."""
        self._parts.append(instruction(code, dst, src, offset, immediate))

    def jump(self, label: str, code: int = JUMP, dst: int = 0, src: int = 0, immediate: int = 0) -> None:
        """A jump, always or on a condition."""
        self._jumps.append((len(self._parts), label))
        self._parts.append(instruction(code, dst, src, 0, immediate))

    def label(self, name: str) -> None:
        """This place is called so."""
        self._labels[name] = self._here

    def lookup(self, fd: int, otherwise: str) -> None:
        """R0: the address of entry 0 of an array."""
        self.add(STORE32_K, R10, 0, -4, 0)
        self.add(MOVE, R2, R10)
        self.add(ADD_K, R2, 0, 0, -4)
        self._parts.append(load_map(R1, fd))
        self.add(CALL, 0, 0, 0, LOOKUP)
        self.jump(otherwise, JUMP_EQUAL_K, R0)

    def constant(self, register: int, value: int) -> None:
        """A 64-bit constant."""
        self._parts.append(instruction(0x18, register, 0, 0, _signed(value & 0xFFFFFFFF)))
        self._parts.append(instruction(0, 0, 0, 0, _signed(value >> 32)))

    def leave(self, verdict: int) -> None:
        """End with this verdict."""
        self.add(MOVE_K, R0, 0, 0, verdict)
        self.add(EXIT)

    def load(self, name: str, kind: int = bpf.PROG_TYPE_XDP) -> int:
        """A descriptor of the loaded program."""
        parts = list(self._parts)
        for index, label in self._jumps:
            code, registers = parts[index][0], parts[index][1]
            place = sum(map(len, parts[:index])) // 8
            immediate = int.from_bytes(parts[index][4:], "little", signed=True)
            parts[index] = instruction(code, registers & 15, registers >> 4, self._labels[label] - place - 1, immediate)
        return bpf.prog_load(kind, name, "Dual BSD/GPL", b"".join(parts))


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def _frame_bounds(code: Code, size: int, otherwise: str) -> None:
    """R7: the frame, at least so many bytes of it."""
    code.add(LOAD32, R7, R6, 0)
    code.add(LOAD32, R8, R6, 4)
    code.add(MOVE, R1, R7)
    code.add(ADD_K, R1, 0, 0, size)
    code.jump(otherwise, JUMP_GREATER, R1, R8)


def generator(state_fd: int, received_fd: int) -> int:
    """Writes the state's frame and sends it, as long as LIMIT is not reached and less than WINDOW are on their way.

    The flow's number goes into source port and source address. What that changes in the checksums is balanced by two
    words of the payload and the IP header's identification.
    """
    code = Code()
    code.add(MOVE, R6, R1)
    code.lookup(state_fd, "drop")
    code.add(MOVE, R9, R0)
    code.lookup(received_fd, "drop")
    code.add(LOAD64, R3, R9, SENT)
    code.add(LOAD64, R4, R9, LIMIT)
    code.jump("drop", JUMP_GREATER_EQUAL, R3, R4)
    code.add(MOVE, R1, R3)
    for gone in (FROM_CLIENTS, FROM_PROXY):
        code.add(LOAD64, R4, R0, gone)
        code.add(SUBTRACT, R1, R4)
    code.add(LOAD64, R4, R9, LOST)
    code.add(SUBTRACT, R1, R4)
    code.add(LOAD64, R4, R9, WINDOW)
    code.jump("drop", JUMP_GREATER_EQUAL, R1, R4)
    _frame_bounds(code, FRAME_BYTES, "drop")
    code.add(MOVE, R1, R3)
    code.add(ADD_K, R1, 0, 0, 1)
    code.add(STORE64, R9, R1, SENT)
    for offset in range(0, FRAME_BYTES, 8):
        code.add(LOAD64, R1, R9, offset)
        code.add(STORE64, R7, R1, offset)
    code.add(LOAD64, R4, R9, MASK)
    code.add(AND, R3, R4)
    code.add(LOAD64, R4, R9, FIRST)
    code.add(ADD, R3, R4)
    code.add(MOVE, R5, R3)
    code.add(AND_K, R5, 0, 0, (1 << PORT_BITS) - 1)
    code.add(ADD_K, R5, 0, 0, FIRST_PORT)
    code.add(TO_BIG_ENDIAN, R5, 0, 0, 16)
    code.add(STORE16, R7, R5, SOURCE_PORT)
    code.add(XOR_K, R5, 0, 0, 0xFFFF)
    code.add(STORE16, R7, R5, PAYLOAD)
    code.add(SHIFT_RIGHT_K, R3, 0, 0, PORT_BITS)
    code.add(TO_BIG_ENDIAN, R3, 0, 0, 16)
    code.add(STORE16, R7, R3, SOURCE + 2)
    code.add(XOR_K, R3, 0, 0, 0xFFFF)
    code.add(STORE16, R7, R3, IDENTIFICATION)
    code.add(STORE16, R7, R3, PAYLOAD + 2)
    code.leave(XDP_TX)
    code.label("drop")
    code.leave(XDP_DROP)
    return code.load("bench_generate")


def receiver(received_fd: int, port: int, proxy: IPv4Address) -> int:
    """Counts UDP packets to ``port`` that are one hop older than they were sent or come from the proxy host itself, and
    drops them; or, with ECHO set, sends them back. Passes everything else to the stack."""
    code = Code()
    code.add(MOVE, R6, R1)
    _frame_bounds(code, FRAME_BYTES, "pass")
    code.add(LOAD16, R1, R7, ETHERTYPE)
    code.jump("pass", JUMP_NOT_EQUAL_K, R1, 0, _be16(0x0800))
    code.add(LOAD8, R1, R7, PROTOCOL)
    code.jump("pass", JUMP_NOT_EQUAL_K, R1, 0, 17)
    code.add(LOAD16, R1, R7, DESTINATION_PORT)
    code.jump("pass", JUMP_NOT_EQUAL_K, R1, 0, _be16(port))
    code.lookup(received_fd, "pass")
    code.add(MOVE_K, R3, 0, 0, FROM_PROXY)
    code.add(LOAD32, R1, R7, SOURCE)
    code.constant(R2, int.from_bytes(proxy.packed, "little"))
    code.jump("count", JUMP_EQUAL, R1, R2)
    code.add(MOVE_K, R3, 0, 0, FROM_CLIENTS)
    code.add(LOAD8, R1, R7, TTL)
    code.jump("pass", JUMP_NOT_EQUAL_K, R1, 0, FIRST_TTL - 1)
    code.label("count")
    code.add(MOVE, R1, R0)
    code.add(ADD, R1, R3)
    code.add(LOAD64, R2, R1, 0)
    code.add(ADD_K, R2, 0, 0, 1)
    code.add(STORE64, R1, R2, 0)
    code.add(LOAD64, R1, R0, ECHO)
    code.jump("echo", JUMP_NOT_EQUAL_K, R1, 0, 0)
    code.leave(XDP_DROP)
    code.label("echo")
    for size, pairs in ((2, ((0, 6), (2, 8), (4, 10), (SOURCE_PORT, DESTINATION_PORT))), (4, ((SOURCE, DESTINATION),))):
        load, store = (LOAD16, STORE16) if size == 2 else (LOAD32, STORE32)
        for here, there in pairs:
            code.add(load, R1, R7, here)
            code.add(load, R2, R7, there)
            code.add(store, R7, R2, here)
            code.add(store, R7, R1, there)
    # Not XDP_TX, by which veth does not tell a peer that has no XDP program.
    code.add(LOAD32, R1, R6, 12)  # ingress_ifindex
    code.add(MOVE_K, R2, 0, 0, 0)
    code.add(CALL, 0, 0, 0, REDIRECT)
    code.add(EXIT)
    code.label("pass")
    code.leave(XDP_PASS)
    return code.load("bench_receive")


# struct bpf_fib_lookup, from the bottom of the stack frame on.
_FIB = -72
_FIB_BYTES = 64
_FIB_PROTOCOL, _FIB_LENGTH, _FIB_IFINDEX, _FIB_SOURCE, _FIB_DESTINATION, _FIB_MACS = 1, 6, 8, 16, 32, 52


def bare_redirect() -> int:
    """Parse, ask the routing table, one hop less, hardware addresses, redirect: the floor of forwarding by XDP. Counts
    nothing, remembers nothing, rewrites no address."""
    code = Code()
    code.add(MOVE, R6, R1)
    _frame_bounds(code, 34, "pass")
    code.add(LOAD16, R1, R7, ETHERTYPE)
    code.jump("pass", JUMP_NOT_EQUAL_K, R1, 0, _be16(0x0800))
    code.add(LOAD8, R9, R7, TTL)
    code.jump("pass", JUMP_LESS_EQUAL_K, R9, 0, 1)
    code.add(MOVE_K, R1, 0, 0, 0)
    for offset in range(0, _FIB_BYTES, 8):
        code.add(STORE64, R10, R1, _FIB + offset)
    code.add(STORE8_K, R10, 0, _FIB, 2)  # AF_INET
    code.add(LOAD8, R1, R7, PROTOCOL)
    code.add(STORE8, R10, R1, _FIB + _FIB_PROTOCOL)
    code.add(LOAD16, R1, R7, TOTAL_LENGTH)
    code.add(TO_BIG_ENDIAN, R1, 0, 0, 16)
    code.add(STORE16, R10, R1, _FIB + _FIB_LENGTH)
    code.add(LOAD32, R1, R6, 12)  # ingress_ifindex
    code.add(STORE32, R10, R1, _FIB + _FIB_IFINDEX)
    for here, there in ((SOURCE, _FIB_SOURCE), (DESTINATION, _FIB_DESTINATION)):
        code.add(LOAD32, R1, R7, here)
        code.add(STORE32, R10, R1, _FIB + there)
    code.add(MOVE, R1, R6)
    code.add(MOVE, R2, R10)
    code.add(ADD_K, R2, 0, 0, _FIB)
    code.add(MOVE_K, R3, 0, 0, _FIB_BYTES)
    code.add(MOVE_K, R4, 0, 0, 0)
    code.add(CALL, 0, 0, 0, FIB_LOOKUP)
    code.jump("pass", JUMP_NOT_EQUAL_K, R0, 0, 0)
    # The header checksum gains what the hop limit loses (RFC 1141), both in the upper octet of a big-endian word.
    code.add(ADD_K, R9, 0, 0, -1)
    code.add(STORE8, R7, R9, TTL)
    code.add(LOAD16, R1, R7, HEADER_CHECKSUM)
    code.add(ADD_K, R1, 0, 0, _be16(0x0100))
    code.add(MOVE, R2, R1)
    code.add(SHIFT_RIGHT_K, R2, 0, 0, 16)
    code.add(ADD, R1, R2)
    code.add(STORE16, R7, R1, HEADER_CHECKSUM)
    for here, there in ((6, 0), (8, 2), (10, 4), (0, 6), (2, 8), (4, 10)):  # source, then destination
        code.add(LOAD16, R1, R10, _FIB + _FIB_MACS + there)
        code.add(STORE16, R7, R1, here)
    code.add(LOAD32, R1, R10, _FIB + _FIB_IFINDEX)
    code.add(MOVE_K, R2, 0, 0, 0)
    code.add(CALL, 0, 0, 0, REDIRECT)
    code.add(EXIT)
    code.label("pass")
    code.leave(XDP_PASS)
    return code.load("bench_bare")


def ping_pong(state_fd: int, turn: int) -> int:
    """Takes the number in the state's first word on by one whenever its last bit is ``turn``, and looks so many times.
    Two of them on two CPUs hand the cache line to and fro."""
    code = Code()
    code.lookup(state_fd, "end")
    for look in range(SPINS):
        code.add(LOAD64, R1, R0, 0)
        code.add(MOVE, R2, R1)
        code.add(AND_K, R2, 0, 0, 1)
        code.jump(f"not{look}", JUMP_NOT_EQUAL_K, R2, 0, turn)
        code.add(ADD_K, R1, 0, 0, 1)
        code.add(STORE64, R0, R1, 0)
        code.label(f"not{look}")
    code.label("end")
    code.leave(XDP_DROP)
    return code.load(f"bench_pingpong{turn}", bpf.PROG_TYPE_SCHED_CLS)  # starts at once, unlike XDP's test-run


def _be16(value: int) -> int:
    """As a little-endian load sees it."""
    return int.from_bytes(value.to_bytes(2, "big"), "little")
