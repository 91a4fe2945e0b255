"""Frames as they come and as they ought to leave, built and read with scapy; and the choice of target in Python."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.kernel.dataplane import CLIENT_MAC, PROXY_CLI_MAC, PROXY_SRV_MAC, SERVER_MAC

SEED = 0x72657670


@dataclass(frozen=True)
class Flow:
    """One direction of a connection."""

    src: str
    dst: str
    sport: int
    dport: int
    protocol: int = 6

    @property
    def version(self) -> int:
        return ip_address(self.src).version

    def reply(self) -> Flow:
        return replace(self, src=self.dst, dst=self.src, sport=self.dport, dport=self.sport)


def mac(address: bytes) -> str:
    return address.hex(":")


def frame(
    flow: Flow, flags: str = "S", payload: bytes = b"", ttl: int = 64, *, towards: str = "cli", **l4: object
) -> bytes:
    """A frame with right checksums arriving at interface ``towards`` of the proxy. ``l4``: fields of TCP or UDP."""
    peer, own = (CLIENT_MAC, PROXY_CLI_MAC) if towards == "cli" else (SERVER_MAC, PROXY_SRV_MAC)
    if flow.version == 4:
        network: Packet = IP(src=flow.src, dst=flow.dst, ttl=ttl)
    else:
        network = IPv6(src=flow.src, dst=flow.dst, hlim=ttl)
    if flow.protocol == 6:
        transport: Packet = TCP(sport=flow.sport, dport=flow.dport, flags=flags, **l4)
    else:
        transport = UDP(sport=flow.sport, dport=flow.dport, **l4)
    return bytes(Ether(src=mac(peer), dst=mac(own)) / network / transport / Raw(payload))


def rewritten(before: bytes, flow: Flow, *, hops: int = 1, source: bytes = b"", destination: bytes = b"") -> bytes:
    """The frame as it should leave: with the flow's addresses and ports, ``hops`` further, hardware addresses
    where given, and every checksum computed from nothing (a UDP checksum of zero stays)."""
    packet = Ether(before)
    network = packet[IP] if flow.version == 4 else packet[IPv6]
    network.src, network.dst = flow.src, flow.dst
    transport = packet[TCP] if flow.protocol == 6 else packet[UDP]
    transport.sport, transport.dport = flow.sport, flow.dport
    if flow.version == 4:
        network.ttl -= hops
        del network.chksum
    else:
        network.hlim -= hops
    if flow.protocol == 6 or transport.chksum:
        del transport.chksum
    if source:
        packet.src, packet.dst = mac(source), mac(destination)
    return bytes(packet)


def to_server(before: bytes, flow: Flow) -> bytes:
    """Redirected out of ``srv``."""
    return rewritten(before, flow, source=PROXY_SRV_MAC, destination=SERVER_MAC)


def to_client(before: bytes, flow: Flow) -> bytes:
    """Redirected out of ``cli``."""
    return rewritten(before, flow, source=PROXY_CLI_MAC, destination=CLIENT_MAC)


# -- the choice of target, as bpf/balance.h makes it -------------------------------------------------------------

_MASK = 0xFFFFFFFF


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & _MASK


def hash3(x: int, y: int, z: int, seed: int) -> int:
    """Bob Jenkins' lookup3 over three words."""
    start = (0xDEADBEEF + 12 + seed) & _MASK
    a, b, c = (start + x) & _MASK, (start + y) & _MASK, (start + z) & _MASK
    for bits, (one, two) in zip((14, 11, 25, 16, 4, 14, 24), ("cb", "ac", "ba", "cb", "ac", "ba", "cb"), strict=True):
        values = {"a": a, "b": b, "c": c}
        values[one] = ((values[one] ^ values[two]) - _rotate(values[two], bits)) & _MASK
        a, b, c = values["a"], values["b"], values["c"]
    return c


def fold(address: IPv4Address | IPv6Address) -> int:
    if isinstance(address, IPv4Address):
        return int(address)
    w = [int(address) >> shift & _MASK for shift in (96, 64, 32, 0)]
    return hash3(w[0], w[1], hash3(w[2], w[3], 0, SEED), SEED)


def connection_hash(flow: Flow, *, by_source: bool = False) -> int:
    client = fold(ip_address(flow.src))
    if by_source:
        return hash3(client, 0, 0, SEED)
    return hash3(client, fold(ip_address(flow.dst)), flow.sport << 16 | flow.dport, SEED + flow.protocol)
