"""TCP timestamps (RFC 7323) for the packet model: where they are, and what full NAT makes of them."""

from __future__ import annotations

import random

from tests.kernel import packetreading as reading
from tests.kernel.packetreading import ACK, SYN, TCP, Packet, read_packet, read_ports

CLOCK_NS = 1 << 17  # a unit of the clock that clients' timestamps are made to follow
OPTIONS = 16  # looked at: a bound of ours


def timestamps_at(frame: bytes | bytearray, packet: Packet) -> int:
    """Offset of the values in TCP's timestamps option, what is said before what is echoed; 0 if there are none."""
    if packet.protocol != TCP or packet.fragment == "later":
        return 0
    at, end = packet.content + 20, packet.content + (frame[packet.content + 12] >> 4) * 4
    if end > packet.end:
        return 0
    for _ in range(OPTIONS):
        if at + 10 > end or not frame[at]:
            return 0
        if frame[at : at + 2] == b"\x08\x0a":
            return at + 2
        length = 1 if frame[at] == 1 else frame[at + 1]
        if not length:
            return 0
        at += length
    return 0


def number(frame: bytes | bytearray, at: int) -> int:
    return int.from_bytes(frame[at : at + 4], "big")


def stamp_of(frame: bytes, packet: Packet, clock: int) -> int:
    """What full NAT adds to a client's timestamps: they then begin as our clock's. 0: it has none."""
    at = timestamps_at(frame, packet)
    if not at or packet.flags & (SYN | ACK) != SYN:
        return 0
    return (clock - number(frame, at) & 0xFFFFFFFF) or 1


def restamp(frame: bytearray, packet: Packet, stamp: int, *, reply: bool) -> None:
    """The client's timestamps as the target is to see them, and their echoes as the client is to."""
    at = timestamps_at(frame, packet)
    if not at or not stamp:
        return
    at += 4 if reply else 0
    before = reading.total(frame[packet.content : at + 4])
    known = number(frame, at)
    value = known + (stamp if not reply else -stamp if known else 0) & 0xFFFFFFFF
    frame[at : at + 4] = value.to_bytes(4, "big")
    reading.mend(frame, packet.content + 16, before, reading.total(frame[packet.content : at + 4]))


def clock_between(frame: bytes, started: int, ended: int) -> int:
    """What the programs' clock said, which a packet that opens a connection then says; if it can't have said that while
    they ran (ns), something that it can."""
    packet = read_packet(frame)
    at = timestamps_at(frame, packet) if packet and read_ports(frame, packet) else 0
    said, latest = number(frame, at), ended // CLOCK_NS
    possible = at and latest - said & 0xFFFFFFFF <= latest - started // CLOCK_NS
    return said if possible else latest & 0xFFFFFFFF


def random_options(rng: random.Random) -> bytes:
    """TCP's, with timestamps as many systems place them, and as none should."""
    stamps = b"\x08\x0a" + rng.choice([rng.randbytes(8), rng.randbytes(4) + bytes(4), b"\xff" * 8])
    options = rng.choice(
        [
            b"",
            b"\1" * rng.choice([12, 40]),
            b"\1\1" + stamps,
            b"\2\4\5\xb4\4\2" + stamps + b"\1\3\3\7",
            b"\2\4\5\xb4\1\3\3\6\1\1" + stamps + b"\4\2\0\0",
            b"\1" * rng.choice([0, 1, 3, 5, 15, 16, 27]) + stamps,
            b"\3\3\7" + stamps,
            b"\1\1" + stamps[: rng.randrange(2, 10)],
            rng.choice([b"\0", b"\5\0", b"\x08\x09", b"\5\1", b"\xfe\xff"]) + stamps,
            rng.randbytes(rng.choice([4, 20])) + stamps,
        ]
    )
    return options.ljust(-(-len(options) // 4) * 4, rng.choice([b"\0", b"\1"]))[:40]
