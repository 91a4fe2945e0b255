"""Reading and rewriting frames for the packet model: bytes and integers only.

The RFCs followed: 791 (IPv4), 8200 (IPv6), 768, 9293, 7323 (UDP, TCP and its timestamps), 1071 (checksums), 792 and
4443 (ICMP)."""

from __future__ import annotations

from dataclasses import dataclass

ETHERNET = 14
ICMP4, TCP, UDP, ICMP6 = 1, 6, 17, 58
HOP_BY_HOP, FRAGMENT, DESTINATION_OPTIONS = 0, 44, 60
FIN, SYN, RST, ACK = 1, 2, 4, 16

# How far a chain of IPv6 extension headers is followed: a bound of ours, not of an RFC.
EXTENSIONS, EXTENSION_BYTES = 4, 64

Key = tuple[bytes, bytes, int, int, int]  # source, destination, source port, destination port, protocol


@dataclass(slots=True)
class Packet:
    """An IP packet in a frame. Offsets are the frame's."""

    version: int
    source: bytes
    destination: bytes
    protocol: int
    hop_limit: int
    length: int  # from the IP header on
    content: int  # offset of what follows the IP header and extensions
    plain: bool  # without options and extensions
    fragment: str = ""  # "", "first", "later"
    fragment_id: bytes = b""
    sport: int = 0
    dport: int = 0
    flags: int = 0  # TCP's

    @property
    def end(self) -> int:
        """Offset of the first byte behind the packet; a frame may go on with padding."""
        return ETHERNET + self.length

    @property
    def key(self) -> Key:
        return (self.source, self.destination, self.sport, self.dport, self.protocol)


def word(data: bytes | bytearray, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def read_packet(frame: bytes) -> Packet | None:
    """The well-formed IP packet in an untagged frame, None if there is none, or none whose end can be reached."""
    kind = frame[12:14]
    if kind == b"\x08\x00":
        return read_ipv4(frame)
    if kind == b"\x86\xdd":
        return read_ipv6(frame)
    return None


def read_ipv4(frame: bytes) -> Packet | None:
    if len(frame) < ETHERNET + 20 or frame[14] >> 4 != 4:
        return None
    header, total = (frame[14] & 15) * 4, word(frame, 16)
    if header < 20 or total < header or ETHERNET + total > len(frame):
        return None
    where = word(frame, 20)
    fragment = "later" if where & 0x1FFF else "first" if where & 0x2000 else ""
    content = ETHERNET + header
    return Packet(
        4, frame[26:30], frame[30:34], frame[23], frame[22], total, content, header == 20, fragment, frame[18:20]
    )


def read_ipv6(frame: bytes) -> Packet | None:
    if len(frame) < ETHERNET + 40 or frame[14] >> 4 != 6:
        return None
    length = 40 + word(frame, 18)
    end = ETHERNET + length
    if end > len(frame):
        return None
    protocol, at, fragment, number = frame[20], ETHERNET + 40, "", b""
    headers = 0
    while protocol in (HOP_BY_HOP, DESTINATION_OPTIONS, FRAGMENT) and headers < EXTENSIONS:
        if at + 8 > end or (protocol == FRAGMENT and number):
            return None
        size = 8 if protocol == FRAGMENT else 8 + frame[at + 1] * 8
        if protocol == FRAGMENT:
            where, number = word(frame, at + 2), frame[at + 4 : at + 8]
            fragment = "later" if where & 0xFFF8 else "first" if where & 1 else ""
        protocol, at, headers = frame[at], at + size, headers + 1
        if at > end or at > ETHERNET + 40 + EXTENSION_BYTES:
            return None
        if fragment == "later":
            break
    return Packet(6, frame[22:38], frame[38:54], protocol, frame[21], length, at, not headers, fragment, number)


def read_ports(frame: bytes, packet: Packet) -> bool:
    """Fill in ports and flags. False: neither TCP nor UDP, or the packet ends within its fixed header."""
    at = packet.content
    if packet.protocol not in (TCP, UDP) or at + (20 if packet.protocol == TCP else 8) > packet.end:
        return False
    packet.sport, packet.dport = word(frame, at), word(frame, at + 2)
    if packet.protocol == TCP:
        packet.flags = frame[at + 13]
    return True


def checksum_at(protocol: int) -> int:
    """Offset of the checksum in the transport header."""
    return 16 if protocol == TCP else 6


def total(data: bytes | bytearray) -> int:
    """The ones' complement sum of its 16-bit words, as a residue; an odd byte is padded with zero."""
    value = int.from_bytes(data, "big")
    return (value << 8 if len(data) & 1 else value) % 65535


def pseudo_header(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    return (total(source) + total(destination) + protocol + length) % 65535


def has_only_pseudo_header(frame: bytes, packet: Packet) -> bool:
    """Whether the checksum is what a sender leaves for its hardware to finish: the uncomplemented sum of the
    pseudo-header."""
    check = word(frame, packet.content + checksum_at(packet.protocol))
    length = packet.end - packet.content
    return check != 0 and check % 65535 == pseudo_header(packet.source, packet.destination, packet.protocol, length)


def mend(frame: bytearray, at: int, before: int, after: int, *, udp: bool = False) -> None:
    """Change a checksum so that it is as right or as wrong as it was, the sum of what it covers having changed from
    ``before`` to ``after``. A computed zero is sent as 0xffff in UDP, where zero means that there is none."""
    if udp and frame[at] == 0 == frame[at + 1]:
        return
    check = (word(frame, at) + before - after) % 65535
    if udp and not check:
        check = 0xFFFF
    frame[at : at + 2] = check.to_bytes(2, "big")


def write_addresses(frame: bytearray, network: int, version: int, source: bytes, destination: bytes) -> tuple[int, int]:
    """Into the IP header at this offset, its own checksum included. The sums of the addresses before and after."""
    start = network + (12 if version == 4 else 8)
    end = start + (8 if version == 4 else 32)
    before, new = total(frame[start:end]), source + destination
    after = total(new)
    frame[start:end] = new
    if version == 4:
        mend(frame, network + 10, before, after)
    return before, after


def write_ports(
    frame: bytearray, at: int, protocol: int, sport: int, dport: int, sums: tuple[int, int], end: int
) -> None:
    """Into the transport header at this offset, and its checksum if that lies before ``end``. ``sums``: of the
    addresses before and after."""
    before, after = sums[0] + word(frame, at) + word(frame, at + 2), sums[1] + sport + dport
    frame[at : at + 4] = (sport << 16 | dport).to_bytes(4, "big")
    check = at + checksum_at(protocol)
    if check + 2 <= end:
        mend(frame, check, before, after, udp=protocol == UDP)


def next_hop(frame: bytearray, version: int) -> None:
    """One hop further."""
    if version == 6:
        frame[ETHERNET + 7] -= 1
        return
    frame[ETHERNET + 8] -= 1
    mend(frame, ETHERNET + 10, 0x100, 0)


def read_quoted(frame: bytes, packet: Packet) -> Packet | None:
    """The packet that an ICMP error is about, its ports read. None: no error, or more than plain headers and that of a
    first fragment."""
    kinds = (3, 11, 12) if packet.version == 4 else (1, 2, 3, 4)
    protocol = ICMP4 if packet.version == 4 else ICMP6
    header = 20 if packet.version == 4 else 40
    inner = packet.content + 8
    if packet.protocol != protocol or not packet.plain or packet.fragment or inner + header + 8 > packet.end:
        return None
    if frame[packet.content] not in kinds or frame[inner] >> 4 != packet.version:
        return None
    if packet.version == 4:
        if frame[inner] & 15 != 5 or word(frame, inner + 6) & 0x1FFF:
            return None
        source, destination, inner_protocol = (
            frame[inner + 12 : inner + 16],
            frame[inner + 16 : inner + 20],
            frame[inner + 9],
        )
    else:
        source, destination, inner_protocol = (
            frame[inner + 8 : inner + 24],
            frame[inner + 24 : inner + 40],
            frame[inner + 6],
        )
    at = inner + header
    if packet.version == 6 and inner_protocol == FRAGMENT:
        if at + 16 > packet.end or word(frame, at + 2) & 0xFFF8:
            return None
        inner_protocol, at = frame[at], at + 8
    if inner_protocol not in (TCP, UDP):
        return None
    ports = {"sport": word(frame, at), "dport": word(frame, at + 2)}
    return Packet(packet.version, source, destination, inner_protocol, 0, 0, at, True, **ports)


def total_of_icmp(frame: bytearray, packet: Packet) -> int:
    """What the ICMP checksum covers, itself left out."""
    data = frame[packet.content : packet.end]
    data[2:4] = b"\0\0"
    pseudo = total(frame[ETHERNET + 8 : ETHERNET + 40]) if packet.version == 6 else 0
    return total(data) + pseudo
