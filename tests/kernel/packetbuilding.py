"""Building packets for the differential test, as right or wrong as they are wanted."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.kernel import packetreading as reading
from tests.kernel.packetreading import TCP, UDP, Key


def transport(
    key: Key, flags: int, payload: bytes, check: str, options: bytes = b"", rng: random.Random | None = None
) -> bytes:
    """TCP or UDP with its checksum ``right``, ``wrong``, ``none`` or ``partial``."""
    source, destination, sport, dport, protocol = key
    ports = (sport << 16 | dport).to_bytes(4, "big")
    if protocol == TCP:
        said = 60 if rng and rng.random() < 0.05 else 20 + len(options)  # may be more than there is
        header = ports + bytes(8) + bytes([said << 2, flags]) + b"\x20\x00\0\0\0\0" + options
    else:
        header = ports + (8 + len(payload) & 0xFFFF).to_bytes(2, "big") + b"\0\0"
    data = bytearray(header + payload)
    pseudo = reading.pseudo_header(source, destination, protocol, len(data))
    value = {"none": 0, "partial": pseudo or 0xFFFF}.get(check, -(pseudo + reading.total(data)) % 65535)
    if check == "right" and protocol == UDP and not value:
        value = 0xFFFF
    if check == "wrong":
        value = (rng or random).choice([value ^ 1, value ^ 0x8000, 0xFFFF, 0, 0x1234])
    at = reading.checksum_at(protocol)
    data[at : at + 2] = value.to_bytes(2, "big")
    return bytes(data)


def ipv4(source: bytes, destination: bytes, protocol: int, content: bytes, ttl: int = 64, **more: Any) -> bytes:
    """``options``: bytes, a multiple of 4; ``where``: flags and fragment offset; ``number``: the identification."""
    options = more.get("options", b"")
    header = bytearray(20) + options
    header[0] = 0x40 | len(header) // 4
    header[2:4] = (len(header) + len(content)).to_bytes(2, "big")
    header[4:8] = (more.get("number", 0) << 16 | more.get("where", 0)).to_bytes(4, "big")
    header[8:10] = bytes([ttl, protocol])
    header[12:20] = source + destination
    header[10:12] = (-reading.total(header) % 65535).to_bytes(2, "big")
    return bytes(header) + content


def ipv6(
    source: bytes, destination: bytes, protocol: int, content: bytes, ttl: int = 64, extensions: Any = ()
) -> bytes:
    """``extensions``: pairs of a header's number and its bytes without the next header's number."""
    chain = b""
    for number, body in reversed(extensions):
        chain = bytes([protocol]) + body + chain
        protocol = number
    header = b"\x60\0\0\0" + (len(chain) + len(content)).to_bytes(2, "big") + bytes([protocol, ttl])
    return header + source + destination + chain + content


def packet_bytes(key: Key, content: bytes, ttl: int = 64, **more: Any) -> bytes:
    build: Callable[..., bytes] = ipv4 if len(key[0]) == 4 else ipv6
    return build(key[0], key[1], key[4], content, ttl, **more)
