"""The packets that the probe sends, as bytes, and what is wrong with one that was rewritten (RFC 791, 8200, 9293,
768)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from reconciler.state.objects import Endpoint, IPAddress, Protocol

HOPS: Final = 64
_ETHERNET: Final = 14
_PEER: Final = bytes.fromhex("0200000000fe")  # whoever sent it: nobody looks at that
_PAYLOAD: Final = b"revproxy"
_SYN, _ACK = 0x02, 0x10


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet that arrives: ``mac`` is the hardware address of the interface ``ifindex``. ``opens``: with TCP a SYN,
    else one from the midst of a connection."""

    ifindex: int
    mac: bytes
    source: Endpoint
    destination: Endpoint
    protocol: Protocol
    opens: bool = True

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.source.ip.version

    def frame(self) -> bytes:
        """From the Ethernet header on, every checksum right."""
        ports = self.source.port.to_bytes(2, "big") + self.destination.port.to_bytes(2, "big")
        if self.protocol is Protocol.TCP:
            flags = _SYN if self.opens else _ACK
            transport = ports + bytes((0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0x20, 0, 0, 0, 0, 0)) + _PAYLOAD
            place = 16
        else:
            transport = ports + (8 + len(_PAYLOAD)).to_bytes(2, "big") + b"\0\0" + _PAYLOAD
            place = 6
        pseudo = pseudo_header(self.source.ip, self.destination.ip, self.protocol.number, len(transport))
        checksum = (0xFFFF ^ sum16(pseudo + transport)) or 0xFFFF
        transport = transport[:place] + checksum.to_bytes(2, "big") + transport[place + 2 :]
        return self.mac + _PEER + self._network_header(len(transport)) + transport

    def _network_header(self, length: int) -> bytes:
        addresses = self.source.ip.packed + self.destination.ip.packed
        if self.version == 6:
            return b"\x86\xdd\x60\0\0\0" + length.to_bytes(2, "big") + bytes((self.protocol.number, HOPS)) + addresses
        start = b"\x45\0" + (20 + length).to_bytes(2, "big") + b"\0\0\x40\0" + bytes((HOPS, self.protocol.number))
        checksum = 0xFFFF ^ sum16(start + b"\0\0" + addresses)
        return b"\x08\0" + start + checksum.to_bytes(2, "big") + addresses

    def __str__(self) -> str:
        return f"{self.protocol} {self.source} -> {self.destination}"


def sum16(content: bytes) -> int:
    """The ones' complement sum of 16-bit words (RFC 1071)."""
    if len(content) % 2:
        content += b"\0"
    total = sum(int.from_bytes(content[at : at + 2], "big") for at in range(0, len(content), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo_header(source: IPAddress, destination: IPAddress, protocol: int, length: int) -> bytes:
    """What a transport checksum covers besides the transport header and payload."""
    addresses = source.packed + destination.packed
    if source.version == 6:
        return addresses + length.to_bytes(4, "big") + bytes((0, 0, 0, protocol))
    return addresses + bytes((0, protocol)) + length.to_bytes(2, "big")


def faults(packet: Packet, frame: bytes, source: Endpoint, destination: Endpoint) -> Iterator[str]:
    """What is wrong with ``frame``, which ``packet`` was rewritten into and which should now go from ``source`` to
    ``destination``; nothing if all is right."""
    before = packet.frame()
    if len(frame) != len(before) or frame[12:14] != before[12:14]:
        yield f"its length or kind has changed: {len(frame)} bytes instead of {len(before)}"
        return
    header, size, hops_at = (20, 4, 8) if packet.version == 4 else (40, 16, 7)
    network, transport = frame[_ETHERNET : _ETHERNET + header], frame[_ETHERNET + header :]
    addresses = network[header - 2 * size :]
    found = (addresses[:size], transport[:2], addresses[size:], transport[2:4])
    wanted = tuple(part for end in (source, destination) for part in (end.ip.packed, end.port.to_bytes(2, "big")))
    if found != wanted:
        yield f"it does not go from {source} to {destination}: {frame.hex()}"
        return
    if packet.version == 4 and sum16(network) != 0xFFFF:
        yield "its IPv4 header checksum is wrong"
    pseudo = pseudo_header(source.ip, destination.ip, packet.protocol.number, len(transport))
    if sum16(pseudo + transport) != 0xFFFF:
        yield f"its {str(packet.protocol).upper()} checksum is wrong"
    if not frame.endswith(_PAYLOAD):
        yield "its payload has changed"
    if network[hops_at] not in (HOPS, HOPS - 1):
        yield f"its hop limit went from {HOPS} to {network[hops_at]}"
