"""IPv6 extensions, fragments and ICMP errors."""

from __future__ import annotations

import os

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    fragment6,
)
from scapy.layers.l2 import Ether

from tests.kernel.dataplane import (
    TC_REDIRECT,
    TC_UNSPEC,
    XDP_PASS,
    DataPlane,
)
from tests.kernel.flowing import (
    LISTEN,
    OTHER_TARGET,
    REDIRECT,
    TARGET,
    families,
    hooks,
    new_flow,
    protocols,
    send,
    sent,
    translated,
    unused_ports,
    use_fullnat,
)
from tests.kernel.packets import Flow, frame, rewritten, to_server

pytestmark = pytest.mark.root


@hooks
def test_ipv6_extensions_are_carried_along(plane: DataPlane, hook: str) -> None:
    flow = new_flow(6, 6)
    packet = Ether(frame(flow, payload=b"behind extensions"))
    tcp = packet[TCP].copy()
    packet[IPv6].remove_payload()
    del packet[IPv6].nh, packet[IPv6].plen
    request = bytes(packet / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / tcp)
    assert send(plane, hook, request) == (REDIRECT[hook], to_server(request, translated(flow)))


def fragments(flow: Flow, payload: bytes, towards: str = "cli", number: int = 77) -> list[bytes]:
    """One packet in pieces."""
    whole = Ether(frame(flow, "A", payload, towards=towards))
    if flow.version == 4:
        whole[IP].id = number
        return [bytes(piece) for piece in fragment(whole, 400)]
    network = whole[IPv6]
    pieces = fragment6(
        IPv6(bytes(IPv6(src=network.src, dst=network.dst) / IPv6ExtHdrFragment(id=number) / network.payload)), 400
    )
    return [bytes(Ether(src=whole.src, dst=whole.dst) / piece) for piece in pieces]


@families
@protocols
def test_fragments_follow_their_first(plane: DataPlane, version: int, protocol: int) -> None:
    flow, payload = new_flow(version, protocol), os.urandom(1000)
    pieces = fragments(flow, payload, number=next(unused_ports))
    assert len(pieces) >= 3
    for piece in pieces:
        assert plane.xdp(piece) == (XDP_PASS, piece)
    verdict, first = plane.tc(pieces[0])
    assert verdict == TC_REDIRECT
    assert sent(first, protocol) == translated(flow)
    for piece in pieces[1:]:
        verdict, after = plane.tc(piece)
        want, network = Ether(piece), Ether(after).payload
        assert (verdict, network.src, network.dst) == (TC_REDIRECT, flow.src, TARGET[version])
        assert after[-len(bytes(want.payload.payload)) :] == bytes(want.payload.payload), "nothing else of it changes"
    # Put together at the target, the checksum is right.
    parts = [Ether(first), *(Ether(plane.tc(piece)[1]) for piece in pieces[1:])]
    if version == 4:
        joined = b"".join(bytes(part[IP].payload) for part in parts)
        packet = IP(src=flow.src, dst=TARGET[4], proto=protocol) / joined
    else:
        joined = b"".join(bytes(part[IPv6ExtHdrFragment].payload) for part in parts)
        packet = IPv6(src=flow.src, dst=TARGET[6], nh=protocol) / joined
    layer = TCP if protocol == 6 else UDP
    again = packet.__class__(bytes(packet))
    found = again[layer].chksum
    del again[layer].chksum
    assert again.__class__(bytes(again))[layer].chksum == found


@families
def test_fragment_before_its_first_passes_untouched(plane: DataPlane, version: int) -> None:
    flow = new_flow(version, 17)
    plane.tc(frame(flow))
    late = fragments(flow, bytes(1000), number=next(unused_ports))[1]
    assert plane.tc(late) == (TC_UNSPEC, late)


def icmp_error(kind: str, quoted: bytes, src: str, dst: str, towards: str, size: int | None = None) -> bytes:
    """An ICMP error by ``src`` about the packet in this frame."""
    inner = Ether(quoted).payload
    peer = Ether(frame(Flow(src, dst, 1, 1), towards=towards))
    peer.remove_payload()
    quoted_bytes = bytes(inner)[:size]
    if inner.version == 4:
        types = {"unreachable": (3, 3), "too big": (3, 4), "time": (11, 0)}
        number, code = types[kind]
        return bytes(peer / IP(src=src, dst=dst) / ICMP(type=number, code=code, nexthopmtu=1400) / quoted_bytes)
    layers = {
        "unreachable": ICMPv6DestUnreach(code=4),
        "too big": ICMPv6PacketTooBig(mtu=1400),
        "time": ICMPv6TimeExceeded(),
    }
    return bytes(peer / IPv6(src=src, dst=dst) / layers[kind] / quoted_bytes)


def check_icmp(after: bytes, src: str, dst: str, quoted: bytes, size: int | None) -> None:
    """Outer addresses, the quoted packet byte for byte (hop limit aside), and every checksum."""
    packet = Ether(after)
    network = packet.payload
    assert (network.src, network.dst) == (src, dst)
    fresh = Ether(after)
    if network.version == 4:
        del fresh[IP].chksum, fresh[ICMP].chksum
        inner = after[14 + 20 + 8 :]
    else:
        fresh.payload.payload.cksum = None
        inner = after[14 + 40 + 8 :]
    assert bytes(fresh) == after, "checksums"
    want = bytes(Ether(quoted).payload)[:size]
    assert inner == want


@families
@protocols
@pytest.mark.parametrize("mode", ["dnat", "fullnat"])
@pytest.mark.parametrize("kind", ["unreachable", "too big", "time"])
@pytest.mark.parametrize("size", [None, "least"], ids=["whole", "eight bytes"])
def test_icmp_errors_reach_who_is_meant(
    plane: DataPlane, version: int, protocol: int, mode: str, kind: str, size: str | None
) -> None:
    if mode == "fullnat":
        use_fullnat(plane, version)
    quote = ((20 if version == 4 else 40) + 8) if size else None
    router = "10.0.2.254" if version == 4 else "fd00:2::254"
    flow = new_flow(version, protocol)
    request = frame(flow, payload=b"abcdefgh", ttl=64)
    _, arrived = plane.tc(request)
    leaves = sent(arrived, protocol)
    # By the target itself, and by a router on the way: about what the client sent.
    for speaker, known_as in ((TARGET[version], LISTEN[version]), (router, router)):
        error = icmp_error(kind, rewritten(request, leaves, hops=0), speaker, leaves.src, "srv", quote)
        assert plane.xdp(error, "srv") == (XDP_PASS, error)
        verdict, after = plane.tc(error, "srv")
        assert verdict == TC_REDIRECT
        check_icmp(after, known_as, flow.src, request, quote)
    # About what the target answered, by the client.
    reply = frame(leaves.reply(), "SA", b"12345678", towards="srv")
    plane.tc(reply, "srv")
    error = icmp_error(kind, rewritten(reply, flow.reply(), hops=0), flow.src, flow.dst, "cli", quote)
    verdict, after = plane.tc(error)
    assert verdict == TC_REDIRECT
    check_icmp(after, leaves.src, TARGET[version], reply, quote)


@pytest.mark.parametrize("mode", ["dnat", "fullnat"])
@protocols
def test_icmp_errors_about_first_fragments_reach_who_is_meant(plane: DataPlane, protocol: int, mode: str) -> None:
    """With IPv6 a router cuts nothing, but tells the sender: also of a fragment that is too long."""
    if mode == "fullnat":
        use_fullnat(plane, 6)
    flow = new_flow(6, protocol)
    first, second, *_ = fragments(flow, os.urandom(1000), number=next(unused_ports))
    arrived = plane.tc(first)[1]
    leaves = sent(arrived, protocol)
    for size in (None, 40 + 8 + 8, 40 + 8 + 18):
        error = icmp_error("too big", arrived, "fd00:2::254", leaves.src, "srv", size)
        verdict, after = plane.tc(error, "srv")
        assert verdict == TC_REDIRECT
        want = bytearray(first)
        want[21] -= 1  # a hop further
        check_icmp(after, "fd00:2::254", flow.src, bytes(want), size)
    for quoted, size in ((plane.tc(second)[1], None), (arrived, 40 + 8)):
        error = icmp_error("too big", quoted, "fd00:2::254", leaves.src, "srv", size)
        assert plane.tc(error, "srv") == (TC_UNSPEC, error), "which connection it was is not told"


@families
def test_icmp_error_of_the_own_stack_is_translated_on_its_way_out(plane: DataPlane, version: int) -> None:
    flow = new_flow(version, 6)
    request = frame(flow)
    plane.tc(request)
    own = "10.0.1.1" if version == 4 else "fd00:1::1"
    error = icmp_error("too big", rewritten(request, translated(flow), hops=0), own, flow.src, "cli")
    verdict, after = plane.tc(error, egress=True)
    assert verdict == TC_UNSPEC
    check_icmp(after, own, flow.src, request, None)


@families
def test_icmp_errors_about_others_pass_untouched(plane: DataPlane, version: int) -> None:
    flow = new_flow(version, 6)
    stranger = icmp_error("time", frame(flow), TARGET[version], flow.src, "srv")
    assert plane.tc(stranger, "srv") == (TC_UNSPEC, stranger)
    request = frame(flow)
    plane.tc(request)
    # It quotes a packet of ours, but is not for who sent that.
    quoted = rewritten(request, translated(flow), hops=0)
    elsewhere = icmp_error("time", quoted, TARGET[version], OTHER_TARGET[version], "srv")
    assert plane.tc(elsewhere, "srv") == (TC_UNSPEC, elsewhere)
