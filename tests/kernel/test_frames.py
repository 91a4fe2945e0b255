"""The probe's packets, as scapy reads them, and what is found wrong with one that was rewritten."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from reconciler.kernel.frames import Packet, faults
from reconciler.state.objects import Endpoint, Protocol

MAC = bytes.fromhex("020000000002")


def end(text: str, port: int) -> Endpoint:
    return Endpoint(ip_address(text), port)


PACKETS = [
    Packet(2, MAC, source, destination, protocol)
    for source, destination in (
        (end("192.0.2.1", 40000), end("198.51.100.1", 80)),
        (end("2001:db8::1", 40000), end("2001:db8::2", 53)),
    )
    for protocol in Protocol
]


def rewritten(packet: Packet, **changes: object) -> bytes:
    """As the programs should do it, with checksums by scapy; ``changes`` to what it is then."""
    read = Ether(packet.frame())
    network = read[IP] if packet.version == 4 else read[IPv6]
    transport = read[TCP] if packet.protocol is Protocol.TCP else read[UDP]
    network.dst, transport.dport = ("10.0.0.9" if packet.version == 4 else "fd00::9"), 8080
    if packet.version == 4:
        network.ttl -= 1
        del network.chksum
    else:
        network.hlim -= 1
    del transport.chksum
    read = Ether(bytes(read))
    for name, value in changes.items():
        setattr(read[{"ip": IP, "ip6": IPv6, "tcp": TCP, "udp": UDP}[name.split("_")[0]]], name.split("_", 1)[1], value)
    return bytes(read)


def found(packet: Packet, frame: bytes) -> list[str]:
    target = end("10.0.0.9" if packet.version == 4 else "fd00::9", 8080)
    return list(faults(packet, frame, packet.source, target))


@pytest.mark.parametrize("packet", PACKETS, ids=str)
def test_a_packet_is_what_scapy_makes_of_the_same(packet: Packet) -> None:
    read = Ether(packet.frame())
    again = Ether(packet.frame())
    network, transport = (IP if packet.version == 4 else IPv6), (TCP if packet.protocol is Protocol.TCP else UDP)
    if packet.version == 4:
        del again[IP].chksum
    del again[transport].chksum
    assert bytes(again) == packet.frame(), "a checksum"
    assert (read[network].src, read[network].dst) == (str(packet.source.ip), str(packet.destination.ip))
    assert (read[transport].sport, read[transport].dport) == (packet.source.port, packet.destination.port)
    assert packet.protocol is Protocol.UDP or read[TCP].flags == "S"


@pytest.mark.parametrize("packet", PACKETS, ids=str)
def test_a_packet_rewritten_well_has_no_fault(packet: Packet) -> None:
    assert found(packet, rewritten(packet)) == []


@pytest.mark.parametrize("packet", PACKETS, ids=str)
def test_every_fault_is_found(packet: Packet) -> None:
    network = "ip" if packet.version == 4 else "ip6"
    transport = str(packet.protocol)
    good = rewritten(packet)
    assert "does not go from" in found(packet, rewritten(packet, **{f"{transport}_dport": 8081}))[0]
    assert "does not go from" in found(packet, packet.frame())[0]
    assert any("checksum is wrong" in each for each in found(packet, rewritten(packet, **{f"{transport}_chksum": 1})))
    assert found(packet, good[:-1] + b"x")[-1] == "its payload has changed"
    assert found(packet, good + b"x") == [
        f"its length or kind has changed: {len(good) + 1} bytes instead of {len(good)}"
    ]
    if packet.version == 4:
        assert found(packet, rewritten(packet, ip_chksum=1)) == ["its IPv4 header checksum is wrong"]
    hops = {"ip_ttl": 62} if packet.version == 4 else {"ip6_hlim": 62}
    assert "its hop limit went from 64 to 62" in found(packet, rewritten(packet, **hops)), network
