"""What is rewritten, to the byte, and what is not ours and left as it is."""

from __future__ import annotations

import os
from ipaddress import ip_address

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Ether

from tests.kernel.dataplane import (
    TC_REDIRECT,
    XDP_PASS,
    DataPlane,
)
from tests.kernel.flowing import (
    CLIENT,
    LISTEN,
    PASS,
    REDIRECT,
    TARGET,
    families,
    hooks,
    new_flow,
    protocols,
    send,
    translated,
    unused_ports,
)
from tests.kernel.packets import Flow, frame, to_client, to_server

pytestmark = pytest.mark.root


@families
@protocols
@hooks
@pytest.mark.parametrize("size", [0, 1, 7, 1000])
def test_request_and_reply_are_rewritten_to_the_byte(
    plane: DataPlane, version: int, protocol: int, hook: str, size: int
) -> None:
    flow, payload = new_flow(version, protocol), os.urandom(size)
    request = frame(flow, payload=payload)
    assert send(plane, hook, request) == (REDIRECT[hook], to_server(request, translated(flow)))
    reply = frame(translated(flow).reply(), "SA", payload, towards="srv")
    assert send(plane, hook, reply, "srv") == (REDIRECT[hook], to_client(reply, flow.reply()))


@families
@protocols
def test_one_program_continues_what_the_other_began(plane: DataPlane, version: int, protocol: int) -> None:
    flow = new_flow(version, protocol)
    for hook in ("tc", "xdp", "tc"):
        request = frame(flow, "A", b"x")
        assert send(plane, hook, request) == (REDIRECT[hook], to_server(request, translated(flow)))


@families
@hooks
def test_target_without_port_keeps_the_clients(plane: DataPlane, version: int, hook: str) -> None:
    plane.target(1 if version == 4 else 2, TARGET[version], 0)
    plane.open_port(80, "PORT_TARGET")
    flow = new_flow(version, 6)
    request = frame(flow)
    assert send(plane, hook, request)[1] == to_server(request, translated(flow, port=80))
    reply = frame(translated(flow, port=80).reply(), "SA", towards="srv")
    assert send(plane, hook, reply, "srv")[1] == to_client(reply, flow.reply())


@hooks
def test_udp_without_checksum_stays_without(plane: DataPlane, hook: str) -> None:
    flow = new_flow(4, 17)
    request = frame(flow, payload=b"data", chksum=0)
    verdict, after = send(plane, hook, request)
    assert (verdict, after) == (REDIRECT[hook], to_server(request, translated(flow)))
    assert Ether(after)[UDP].chksum == 0


@families
@hooks
def test_udp_checksum_that_comes_out_zero_is_sent_as_ffff(plane: DataPlane, version: int, hook: str) -> None:
    flow = new_flow(version, 17)
    # The two payload bytes that make the rewritten packet's sum come out as zero.
    probe = Ether(to_server(frame(flow, payload=b"\0\0"), translated(flow)))
    payload = int(probe[UDP].chksum).to_bytes(2, "big")
    request = frame(flow, payload=payload)
    _, after = send(plane, hook, request)
    assert Ether(after)[UDP].chksum == 0xFFFF


@hooks
def test_ip_options_are_carried_along(plane: DataPlane, hook: str) -> None:
    flow = new_flow(4, 6)
    packet = Ether(frame(flow))
    packet[IP].options = [IPOption_NOP()] * 8
    del packet[IP].ihl, packet[IP].len, packet[IP].chksum
    request = bytes(packet)
    assert send(plane, hook, request) == (REDIRECT[hook], to_server(request, translated(flow)))


@families
@protocols
def test_partial_checksum_is_left_to_tc(plane: DataPlane, version: int, protocol: int) -> None:
    flow = new_flow(version, protocol)
    packet = Ether(frame(flow, payload=b"from a veth peer"))
    transport = packet[TCP] if protocol == 6 else packet[UDP]
    network = packet[IP] if version == 4 else packet[IPv6]
    raw = bytes(network.payload)
    words = np.frombuffer(network_addresses(network) + bytes([0, protocol]) + len(raw).to_bytes(2, "big"), ">u2")
    total = int(words.sum())
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    transport.chksum = total
    request = bytes(packet)
    assert plane.xdp(request) == (XDP_PASS, request)
    assert plane.tc(request)[0] == TC_REDIRECT


def network_addresses(network: IP | IPv6) -> bytes:
    return ip_address(network.src).packed + ip_address(network.dst).packed


def foreign_frames() -> dict[str, bytes]:
    client, listen = CLIENT[4], LISTEN[4]
    first, later, extension = (Ether(frame(Flow(client, listen, 900, 80))) for _ in range(3))
    first[IP].flags, later[IP].frag = "MF", 100
    for each in (first, later):
        del each[IP].chksum
    extension = Ether(frame(Flow(CLIENT[6], LISTEN[6], 900, 80)))
    tcp = extension[TCP].copy()
    extra = IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()
    extension[IPv6].remove_payload()
    del extension[IPv6].nh, extension[IPv6].plen
    arp = bytes.fromhex("ffffffffffff0200000000010806") + bytes(28)
    broadcast = frame(Flow(client, listen, 900, 80))
    good = frame(Flow(client, listen, 900, 80))
    return {
        "other address": frame(Flow(client, "10.0.1.2", 900, 80)),
        "other address v6": frame(Flow(CLIENT[6], "fd00:1::2", 900, 80)),
        "other port": frame(Flow(client, listen, 900, 81)),
        "target's port": frame(Flow(client, listen, 900, 8080)),
        "transit to a target": frame(Flow(client, TARGET[4], 900, 8080)),
        "transit from a target": frame(Flow(TARGET[4], client, 8080, 900)),
        "first fragment": bytes(first),
        "later fragment": bytes(later),
        "IPv6 routing header": bytes(extension / IPv6ExtHdrRouting(addresses=["fd00:1::9"]) / tcp),
        "IPv6 extensions without end": bytes(extension / (IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()) / extra / tcp),
        "arp": arp,
        "ethernet multicast": b"\x01" + broadcast[1:],
        "empty": good[:14],
        "cut in the IP header": good[:30],
        "cut in the TCP header": good[:50],
        "total length beyond the frame": good[:16] + b"\xff\xff" + good[18:],
        "total length below the header": good[:16] + b"\x00\x10" + good[18:],
        "IP version 5": good[:14] + b"\x55" + good[15:],
        "header length 16": good[:14] + b"\x44" + good[15:],
        "icmp": good[:23] + b"\x01" + good[24:],
    }


# The kernel makes no skb of these, or takes the length from the skb; and first fragments are TC's.
XDP_ONLY = {"first fragment", "empty", "cut in the IP header", "total length beyond the frame"}


@pytest.mark.parametrize(
    ("name", "hook"),
    [(name, hook) for name in foreign_frames() for hook in ("xdp", "tc") if hook == "xdp" or name not in XDP_ONLY],
)
def test_foreign_packets_pass_untouched_and_uncounted(plane: DataPlane, name: str, hook: str) -> None:
    data = foreign_frames()[name]
    before = plane.outcomes()
    assert send(plane, hook, data) == (PASS[hook], data)
    assert plane.outcomes() == before


@families
@hooks
def test_listener_is_of_one_interface(plane: DataPlane, version: int, hook: str) -> None:
    data = frame(new_flow(version, 6), towards="srv")
    assert send(plane, hook, data, "srv") == (PASS[hook], data)


@hooks
def test_listener_is_of_one_protocol(plane: DataPlane, hook: str) -> None:
    plane.listener("cli", LISTEN[4], 4242, 17, 1)
    data = frame(Flow(CLIENT[4], LISTEN[4], next(unused_ports), 4242, 6))
    assert send(plane, hook, data) == (PASS[hook], data)
