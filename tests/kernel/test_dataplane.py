"""What the programs do with a packet: choice, rewriting, forwarding, and leaving alone."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from ipaddress import ip_address

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    fragment6,
)
from scapy.layers.l2 import Ether

from reconciler.kernel import layout
from reconciler.state.share import NOBODY
from tests.kernel.dataplane import (
    TC_REDIRECT,
    TC_SHOT,
    TC_UNSPEC,
    XDP_DROP,
    XDP_PASS,
    XDP_REDIRECT,
    DataPlane,
    dest,
    pack,
)
from tests.kernel.packets import Flow, connection_hash, frame, rewritten, to_client, to_server

pytestmark = pytest.mark.root

LISTEN = {4: "10.0.1.1", 6: "fd00:1::1"}
CLIENT = {4: "192.168.7.7", 6: "fd77::7"}
TARGET = {4: "10.9.0.1", 6: "fd09::1"}
OTHER_TARGET = {4: "10.9.0.2", 6: "fd09::2"}
families = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])
protocols = pytest.mark.parametrize("protocol", [6, 17], ids=["tcp", "udp"])
hooks = pytest.mark.parametrize("hook", ["xdp", "tc"])


@pytest.fixture(scope="module")
def _plane() -> Iterator[DataPlane]:
    plane = DataPlane(f"rpdp-{os.getpid()}")
    for ifname in ("cli", "srv"):
        plane.device(ifname)
    yield plane
    plane.close()


_ports = iter(range(1024, 65000))


@pytest.fixture
def plane(_plane: DataPlane) -> DataPlane:
    """Proxy 1 on port 80 of ``cli``, both families and protocols, to target 1 (IPv4) and 2 (IPv6), port 8080."""
    _plane.settings()
    _plane.switch(0)
    for version in (4, 6):
        for protocol in (6, 17):
            _plane.listener("cli", LISTEN[version], 80, protocol, 1)
    _plane.proxy(1, dest4=dest("TARGET", 1), dest6=dest("TARGET", 2))
    _plane.target(1, TARGET[4], 8080)
    _plane.target(2, TARGET[6], 8080)
    _plane.target(3, OTHER_TARGET[4], 8080)
    _plane.target(4, OTHER_TARGET[6], 8080)
    return _plane


def new_flow(version: int, protocol: int, src: str | None = None) -> Flow:
    """A client's connection to the listener that no test has used yet."""
    return Flow(src or CLIENT[version], LISTEN[version], next(_ports), 80, protocol)


def translated(flow: Flow, target: str | None = None, port: int = 8080) -> Flow:
    return Flow(flow.src, target or TARGET[flow.version], flow.sport, port, flow.protocol)


def send(plane: DataPlane, hook: str, data: bytes, ifname: str = "cli") -> tuple[int, bytes]:
    return plane.xdp(data, ifname) if hook == "xdp" else plane.tc(data, ifname)


REDIRECT = {"xdp": XDP_REDIRECT, "tc": TC_REDIRECT}
PASS = {"xdp": XDP_PASS, "tc": TC_UNSPEC}
DROP = {"xdp": XDP_DROP, "tc": TC_SHOT}


# -- rewriting ---------------------------------------------------------------------------------------------------


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


# -- what is not ours --------------------------------------------------------------------------------------------


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
    data = frame(Flow(CLIENT[4], LISTEN[4], next(_ports), 4242, 6))
    assert send(plane, hook, data) == (PASS[hook], data)


# -- choice ------------------------------------------------------------------------------------------------------


@families
@hooks
def test_longest_source_prefix_wins_then_default(plane: DataPlane, version: int, hook: str) -> None:
    wide, narrow, denied = (
        ("172.16.0.0/12", "172.16.5.0/24", "172.16.5.128/25")
        if version == 4
        else ("fdaa::/16", "fdaa:5::/32", "fdaa:5:8000::/33")
    )
    targets = (
        {"wide": (5, "10.9.0.5"), "narrow": (6, "10.9.0.6")}
        if version == 4
        else {
            "wide": (7, "fd09::5"),
            "narrow": (8, "fd09::6"),
        }
    )
    flag = "PROXY_ROUTES4" if version == 4 else "PROXY_ROUTES6"
    default = {"dest4": dest("TARGET", 1)} if version == 4 else {"dest6": dest("TARGET", 2)}
    plane.proxy(1, flags=layout.CONSTANTS[flag], **default)
    for number, ip in targets.values():
        plane.target(number, ip, 8080)
    plane.route(1, wide, dest("TARGET", targets["wide"][0]))
    plane.route(1, narrow, dest("TARGET", targets["narrow"][0]))
    plane.route(1, denied, dest("DENY"))
    plane.route(2, "0.0.0.0/0" if version == 4 else "::/0", dest("DENY"))  # another proxy's: no matter
    clients = (
        {"172.17.0.1": "wide", "172.16.5.1": "narrow", "172.16.5.200": "", "192.168.1.1": "default"}
        if version == 4
        else {"fdaa:6::1": "wide", "fdaa:5::1": "narrow", "fdaa:5:8000::1": "", "fdbb::1": "default"}
    )
    for src, rule in clients.items():
        flow = new_flow(version, 6, src)
        request = frame(flow)
        verdict, after = send(plane, hook, request)
        if not rule:
            assert verdict == DROP[hook]
        else:
            target = targets[rule][1] if rule in targets else TARGET[version]
            assert (verdict, after) == (REDIRECT[hook], to_server(request, translated(flow, target)))
    assert plane.outcomes()["drop_denied"] >= 1


@families
@protocols
@pytest.mark.parametrize("balance", ["MAGLEV", "SOURCE"])
def test_group_member_is_chosen_by_the_hash(plane: DataPlane, version: int, protocol: int, balance: str) -> None:
    table = random.Random(5).choices([1, 3] if version == 4 else [2, 4], k=251)
    plane.group(1, table)
    ips = {1: TARGET[4], 2: TARGET[6], 3: OTHER_TARGET[4], 4: OTHER_TARGET[6]}
    plane.proxy(1, balance=layout.CONSTANTS[f"BALANCE_{balance}"], **{f"dest{version}": dest("GROUP", 1)})
    chosen = set()
    for index in range(40):
        src = f"192.168.9.{index}" if version == 4 else f"fd77:9::{index:x}"
        flow = new_flow(version, protocol, src)
        want = table[connection_hash(flow, by_source=balance == "SOURCE") % 251]
        request = frame(flow)
        assert send(plane, "tc" if index % 2 else "xdp", request)[1] == to_server(request, translated(flow, ips[want]))
        chosen.add(want)
    assert len(chosen) == 2


def test_random_balance_uses_every_member(plane: DataPlane) -> None:
    plane.group(2, [1, 3])
    plane.proxy(1, balance=layout.CONSTANTS["BALANCE_RANDOM"], dest4=dest("GROUP", 2))
    chosen = {Ether(plane.xdp(frame(new_flow(4, 6)))[1])[IP].dst for _ in range(64)}
    assert chosen == {TARGET[4], OTHER_TARGET[4]}


@hooks
def test_proxy_without_target_of_the_family_drops_and_counts(plane: DataPlane, hook: str) -> None:
    plane.proxy(1, dest6=dest("TARGET", 2))
    before = plane.outcomes().get("drop_no_target", 0)
    assert send(plane, hook, frame(new_flow(4, 6)))[0] == DROP[hook]
    assert plane.outcomes()["drop_no_target"] == before + 1


@hooks
def test_drained_target_takes_no_new_connection_and_keeps_the_old(plane: DataPlane, hook: str) -> None:
    old = new_flow(4, 6)
    send(plane, hook, frame(old))
    plane.target(1, TARGET[4], 8080, flags=layout.CONSTANTS["TARGET_DRAINED"])
    assert send(plane, hook, frame(new_flow(4, 6)))[0] == DROP[hook]
    request = frame(old, "A")
    assert send(plane, hook, request) == (REDIRECT[hook], to_server(request, translated(old)))


@hooks
def test_a_group_of_nobody_drops_and_counts(plane: DataPlane, hook: str) -> None:
    plane.group(9, [NOBODY])
    plane.proxy(1, dest4=dest("GROUP", 9))
    before = plane.outcomes().get("drop_no_target", 0)
    assert send(plane, hook, frame(new_flow(4, 6)))[0] == DROP[hook]
    assert plane.outcomes()["drop_no_target"] == before + 1


# -- connections -------------------------------------------------------------------------------------------------


@families
@protocols
@hooks
def test_established_connection_stays_where_it_is(plane: DataPlane, version: int, protocol: int, hook: str) -> None:
    flow = new_flow(version, protocol)
    send(plane, hook, frame(flow))
    number = 3 if version == 4 else 4
    plane.proxy(1, **{f"dest{version}": dest("TARGET", number)})
    request = frame(flow, "A", b"still here")
    assert send(plane, hook, request)[1] == to_server(request, translated(flow))
    fresh = new_flow(version, protocol)
    request = frame(fresh)
    assert send(plane, hook, request)[1] == to_server(request, translated(fresh, OTHER_TARGET[version]))
    plane.listener("cli", LISTEN[version], 80, protocol, 0)
    request = frame(flow, "A", b"the listener is gone")
    assert send(plane, hook, request)[1] == to_server(request, translated(flow))


def connection(plane: DataPlane, flow: Flow) -> tuple[bytes, np.ndarray]:
    key = pack(
        layout.connection_key4 if flow.version == 4 else layout.connection_key6,
        saddr_be=ip_address(flow.src).packed,
        daddr_be=ip_address(flow.dst).packed,
        sport_be=flow.sport,
        dport_be=flow.dport,
        protocol=flow.protocol,
    )
    value = plane.get(f"connection{flow.version}", key)
    assert value is not None, f"no entry for {flow}"
    return key, value.copy()


def age(plane: DataPlane, flow: Flow, seconds: int) -> None:
    """Make one direction's entry look as if nothing had come for that long."""
    key, value = connection(plane, flow)
    value["c"]["last_ns"] -= seconds * 1_000_000_000
    plane.put(f"connection{flow.version}", key, value.tobytes())


@families
@protocols
@hooks
@pytest.mark.parametrize("heard", ["unanswered", "answered", "established"])
def test_idle_connection_ends_at_its_limit(
    plane: DataPlane, version: int, protocol: int, hook: str, heard: str
) -> None:
    # A server answers a forged SYN too: only the client's next packet makes a TCP connection.
    limit = 300 if heard == "established" or (heard == "answered" and protocol == 17) else 30
    for idle, moved in ((limit - 2, False), (limit + 2, True)):
        plane.proxy(1, dest4=dest("TARGET", 1), dest6=dest("TARGET", 2), idle_sec=300)
        flow = new_flow(version, protocol)
        send(plane, hook, frame(flow))
        if heard != "unanswered":
            send(plane, hook, frame(translated(flow).reply(), "SA", towards="srv"), "srv")
        if heard == "established":
            send(plane, hook, frame(flow, "A"))
        for direction in (flow, translated(flow).reply()):
            age(plane, direction, idle)
        plane.proxy(1, dest4=dest("TARGET", 3), dest6=dest("TARGET", 4))
        request = frame(flow, "A")
        target = OTHER_TARGET[version] if moved else TARGET[version]
        assert send(plane, hook, request)[1] == to_server(request, translated(flow, target))


@families
@hooks
def test_traffic_one_way_keeps_both_directions(plane: DataPlane, version: int, hook: str) -> None:
    flow = new_flow(version, 17)
    send(plane, hook, frame(flow))
    reply = translated(flow).reply()
    send(plane, hook, frame(reply, towards="srv"), "srv")
    age(plane, reply, 5000)
    data = frame(reply, towards="srv")
    assert send(plane, hook, data, "srv") == (REDIRECT[hook], to_client(data, flow.reply()))


@families
@hooks
def test_syn_on_a_closing_connection_starts_a_new_one(plane: DataPlane, version: int, hook: str) -> None:
    for ending in ("fins", "reset"):
        flow = new_flow(version, 6)
        plane.proxy(1, dest4=dest("TARGET", 1), dest6=dest("TARGET", 2))
        send(plane, hook, frame(flow))
        reply = translated(flow).reply()
        send(plane, hook, frame(reply, "SA", towards="srv"), "srv")
        if ending == "fins":
            send(plane, hook, frame(flow, "FA"))
            send(plane, hook, frame(reply, "FA", towards="srv"), "srv")
        else:
            send(plane, hook, frame(reply, "R", towards="srv"), "srv")
        plane.proxy(1, dest4=dest("TARGET", 3), dest6=dest("TARGET", 4))
        last = frame(flow, "A")
        assert send(plane, hook, last)[1] == to_server(last, translated(flow)), "its last words still reach it"
        again = frame(flow, "S")
        assert send(plane, hook, again)[1] == to_server(again, translated(flow, OTHER_TARGET[version]))


@families
@hooks
def test_connection_whose_reply_would_be_anothers_is_refused(plane: DataPlane, version: int, hook: str) -> None:
    plane.listener("cli", LISTEN[version], 443, 6, 1)
    first = new_flow(version, 6)
    send(plane, hook, frame(first))
    second = Flow(first.src, first.dst, first.sport, 443)
    before = plane.outcomes().get("drop_conflict", 0)
    assert send(plane, hook, frame(second))[0] == DROP[hook]
    assert plane.outcomes()["drop_conflict"] == before + 1
    reply = frame(translated(first).reply(), "SA", towards="srv")
    assert send(plane, hook, reply, "srv")[1] == to_client(reply, first.reply())


@families
@hooks
def test_entries_count_packets_and_bytes_of_their_direction(plane: DataPlane, version: int, hook: str) -> None:
    flow = new_flow(version, 6)
    reply = translated(flow).reply()
    stats_before = plane.get("target_stats", 1 if version == 4 else 2).copy()  # type: ignore[union-attr]
    requests = [frame(flow), frame(flow, "A", b"x" * 100)]
    answers = [frame(reply, "SA", b"y" * 10, towards="srv")]
    for data in requests:
        send(plane, hook, data)
    for data in answers:
        send(plane, hook, data, "srv")
    for direction, frames in ((flow, requests), (reply, answers)):
        _, entry = connection(plane, direction)
        assert entry["c"]["packets"] == len(frames)
        assert entry["c"]["bytes"] == sum(len(data) - 14 for data in frames)
    stats = plane.get("target_stats", 1 if version == 4 else 2)
    assert stats is not None
    grown = {name: int(stats[name].sum() - stats_before[name].sum()) for name in layout.target_stats.names or ()}
    assert grown == {
        "connections": 1,
        "packets_forward": 2,
        "bytes_forward": sum(len(data) - 14 for data in requests),
        "packets_reverse": 1,
        "bytes_reverse": len(answers[0]) - 14,
    }


# -- forwarding --------------------------------------------------------------------------------------------------


@families
@protocols
def test_without_fast_path_the_stack_forwards(plane: DataPlane, version: int, protocol: int) -> None:
    plane.settings(fast_path=False)
    flow = new_flow(version, protocol)
    request = frame(flow)
    assert plane.xdp(request) == (XDP_PASS, request)
    assert plane.tc(request) == (TC_UNSPEC, rewritten(request, translated(flow), hops=0))
    reply = frame(translated(flow).reply(), "SA", towards="srv")
    for hook in ("xdp", "tc"):
        assert send(plane, hook, reply, "srv") == (PASS[hook], reply)
    leaving = frame(translated(flow).reply(), "SA")
    assert plane.tc(leaving, egress=True) == (TC_UNSPEC, rewritten(leaving, flow.reply(), hops=0))


@families
def test_last_hop_is_left_to_the_stack(plane: DataPlane, version: int) -> None:
    flow = new_flow(version, 6)
    plane.xdp(frame(flow))
    request = frame(flow, "A", ttl=1)
    assert plane.xdp(request) == (XDP_PASS, request)
    assert plane.tc(request) == (TC_REDIRECT, by_lo(rewritten(request, translated(flow), hops=0)))
    answer = frame(translated(flow).reply(), "A", towards="srv", ttl=1)
    assert plane.tc(answer, "srv") == (TC_REDIRECT, by_lo(answer)), "its sender is to find in the error what it sent"
    assert plane.tc(by_lo(answer), "lo") == (TC_UNSPEC, by_lo(answer)), "but not for ever"


@families
def test_longer_than_the_way_out_takes_is_left_to_the_stack(plane: DataPlane, version: int) -> None:
    flow = new_flow(version, 6)
    plane.xdp(frame(flow))
    plane.namespace.command("ip link set srv mtu 1400")
    try:
        plane.switch(0, generation=next(_ports))
        request = frame(flow, "A", bytes(1400))
        assert plane.xdp(request) == (XDP_PASS, request)
        assert plane.tc(request) == (TC_REDIRECT, by_lo(rewritten(request, translated(flow), hops=0)))
    finally:
        plane.namespace.command("ip link set srv mtu 1500")


def test_frames_to_another_host_are_nobodys(plane: DataPlane) -> None:
    """A promiscuous interface takes them too. XDP knows from TC which address is this host's, and which no more is."""
    flow = new_flow(4, 6)
    request = frame(flow)
    others = b"\x02\0\0\0\0\x77" + request[6:]
    index = plane.ifindex("cli")
    plane.put("hardware", index, bytes(8))
    assert plane.tc(others) == (TC_UNSPEC, others)
    assert plane.tc(request)[0] == TC_REDIRECT
    try:
        assert plane.xdp(request)[0] == XDP_REDIRECT
        assert plane.xdp(others) == (XDP_PASS, others)
        plane.put("hardware", index, bytes.fromhex("020000000077") + bytes(2))
        assert plane.xdp(request) == (XDP_PASS, request), "its address has changed meanwhile"
        assert plane.tc(request)[0] == TC_REDIRECT
        assert plane.xdp(request)[0] == XDP_REDIRECT
    finally:
        plane.put("hardware", index, bytes(8))


@families
def test_xdp_leaves_what_it_can_not_redirect_to_tc(plane: DataPlane, version: int) -> None:
    plane.put("device", plane.ifindex("srv"), bytes(4))
    plane.switch(0, generation=next(_ports))
    try:
        flow = new_flow(version, 6)
        request = frame(flow)
        for _ in range(2):
            assert plane.xdp(request) == (XDP_PASS, request)
            assert plane.tc(request) == (TC_REDIRECT, to_server(request, translated(flow)))
    finally:
        plane.device("srv")


@families
def test_unknown_neighbour_is_left_to_tc_which_has_it_found(plane: DataPlane, version: int) -> None:
    ip = "10.0.2.77" if version == 4 else "fd00:2::77"
    plane.target(9, ip, 8080)
    plane.proxy(1, **{f"dest{version}": dest("TARGET", 9)})
    flow = new_flow(version, 6)
    request = frame(flow)
    assert plane.xdp(request) == (XDP_PASS, request)
    assert plane.tc(request) == (TC_REDIRECT, rewritten(request, translated(flow, ip)))


@families
def test_target_on_this_host_is_delivered_to_the_stack(plane: DataPlane, version: int) -> None:
    ip = "10.0.2.1" if version == 4 else "fd00:2::1"
    plane.target(9, ip, 8080)
    plane.proxy(1, **{f"dest{version}": dest("TARGET", 9)})
    flow = new_flow(version, 6)
    request = frame(flow)
    assert plane.xdp(request) == (XDP_PASS, request)
    assert plane.tc(request) == (TC_UNSPEC, rewritten(request, translated(flow, ip), hops=0))
    leaving = frame(translated(flow, ip).reply(), "SA")
    assert plane.tc(leaving, egress=True) == (TC_UNSPEC, rewritten(leaving, flow.reply(), hops=0))


def test_route_change_takes_effect_with_the_generation(plane: DataPlane) -> None:
    flow = new_flow(4, 6)
    request = frame(flow)
    assert plane.xdp(request)[0] == XDP_REDIRECT
    plane.namespace.command("ip route change 10.9.0.0/16 via 10.0.1.100")
    try:
        assert plane.xdp(request)[1] == to_server(request, translated(flow)), "remembered for a second"
        plane.switch(0, generation=next(_ports))
        assert plane.xdp(request)[1] == to_client(request, translated(flow)), "out of the other interface"
    finally:
        plane.namespace.command("ip route change 10.9.0.0/16 via 10.0.2.254")
        plane.switch(0, generation=next(_ports))


# -- slots -------------------------------------------------------------------------------------------------------


@families
@hooks
def test_active_slot_decides(plane: DataPlane, version: int, hook: str) -> None:
    plane.proxy(2, dest4=dest("TARGET", 3), dest6=dest("TARGET", 4))
    plane.listener("cli", LISTEN[version], 80, 6, (1, 2))
    plane.listener("cli", LISTEN[version], 88, 6, (0, 2))
    for active, target in ((0, TARGET), (1, OTHER_TARGET), (0, TARGET)):
        plane.switch(active)
        flow = new_flow(version, 6)
        request = frame(flow)
        assert send(plane, hook, request)[1] == to_server(request, translated(flow, target[version]))
        absent = frame(Flow(flow.src, flow.dst, flow.sport, 88))
        assert (send(plane, hook, absent) == (PASS[hook], absent)) is (active == 0)
    plane.listener("cli", LISTEN[version], 88, 6, 0)


# -- fullnat -----------------------------------------------------------------------------------------------------

SOURCE = {4: "10.0.2.1", 6: "fd00:2::1"}


def use_fullnat(plane: DataPlane, version: int, ports: tuple[int, int] = (10000, 32767)) -> None:
    plane.settings(ports=ports)
    number = 1 if version == 4 else 2
    plane.target(number, TARGET[version], 8080, source=SOURCE[version])
    plane.proxy(1, mode=layout.CONSTANTS["MODE_FULLNAT"], **{f"dest{version}": dest("TARGET", number)})


def sent(data: bytes, protocol: int) -> Flow:
    """The flow a frame belongs to."""
    packet = Ether(data)
    network = packet[IP] if IP in packet else packet[IPv6]
    transport = packet[TCP] if protocol == 6 else packet[UDP]
    return Flow(network.src, network.dst, transport.sport, transport.dport, protocol)


@families
@protocols
@hooks
def test_fullnat_hides_the_client_and_brings_the_answer_back(
    plane: DataPlane, version: int, protocol: int, hook: str
) -> None:
    use_fullnat(plane, version)
    flow = new_flow(version, protocol)
    request = frame(flow, payload=b"who is there?")
    verdict, after = send(plane, hook, request)
    leaves = sent(after, protocol)
    assert (leaves.src, leaves.dst, leaves.dport) == (SOURCE[version], TARGET[version], 8080)
    assert 10000 <= leaves.sport <= 32767
    assert (verdict, after) == (REDIRECT[hook], to_server(request, leaves))
    again = frame(flow, "A", b"once more")
    assert send(plane, hook, again)[1] == to_server(again, leaves)
    reply = frame(leaves.reply(), "SA", b"me", towards="srv")
    assert send(plane, hook, reply, "srv") == (REDIRECT[hook], to_client(reply, flow.reply()))


@families
@protocols
def test_fullnat_source_ports_do_not_collide_and_exhaustion_is_refused(
    plane: DataPlane, version: int, protocol: int
) -> None:
    base = 40000 + 16 * protocol + version
    use_fullnat(plane, version, (base, base + 3))
    taken: set[int] = set()
    refused = 0
    before = plane.outcomes().get("drop_no_port", 0)
    for _ in range(40):
        verdict, after = plane.xdp(frame(new_flow(version, protocol)))
        if verdict == XDP_DROP:
            refused += 1
        else:
            port = sent(after, protocol).sport
            assert port not in taken
            taken.add(port)
    assert taken == set(range(base, base + 4))
    assert refused == 36
    assert plane.outcomes()["drop_no_port"] == before + 36


@hooks
def test_fullnat_without_a_source_address_is_refused(plane: DataPlane, hook: str) -> None:
    use_fullnat(plane, 4)
    plane.target(1, TARGET[4], 8080)
    assert send(plane, hook, frame(new_flow(4, 6)))[0] == DROP[hook]


def by_lo(data: bytes) -> bytes:
    """With the hardware addresses of lo, without which the stack would not take it from there."""
    return bytes(12) + data[12:]


@families
@protocols
def test_fullnat_goes_to_the_stack_through_lo_both_ways(plane: DataPlane, version: int, protocol: int) -> None:
    """It has an address of this host as its source, which the stack takes from no other interface."""
    use_fullnat(plane, version)
    plane.settings(fast_path=False)
    flow = new_flow(version, protocol)
    request = frame(flow)
    assert plane.xdp(request) == (XDP_PASS, request)
    verdict, after = plane.tc(request)
    leaves = sent(after, protocol)
    assert (leaves.src, leaves.dst) == (SOURCE[version], TARGET[version])
    assert (verdict, after) == (TC_REDIRECT, by_lo(rewritten(request, leaves, hops=0)))
    assert plane.tc(after, "lo") == (TC_UNSPEC, after), "come in by lo, it is nobody's any more"
    reply = frame(leaves.reply(), "SA", towards="srv")
    assert plane.tc(reply, "srv") == (TC_REDIRECT, by_lo(rewritten(reply, flow.reply(), hops=0)))
    assert plane.tc(reply, egress=True) == (TC_UNSPEC, reply), "on its way to lo from a target on this host"
    # From there it comes in by lo, and goes there again.
    again = by_lo(reply)
    assert plane.tc(again, "lo") == (TC_REDIRECT, rewritten(again, flow.reply(), hops=1))
    last = by_lo(frame(leaves.reply(), "A", towards="srv", ttl=1))
    assert plane.tc(last, "lo") == (TC_UNSPEC, last), "but not for ever"


@hooks
def test_a_source_address_of_zeros_but_for_its_end_is_one(plane: DataPlane, hook: str) -> None:
    use_fullnat(plane, 6)
    plane.target(2, TARGET[6], 8080, source="::1")
    assert send(plane, hook, frame(new_flow(6, 6)))[0] != DROP[hook]


# -- loopback addresses ------------------------------------------------------------------------------------------


def test_a_target_at_the_loopback_address_of_ipv6_is_reached_through_lo(plane: DataPlane) -> None:
    plane.target(9, "::1", 8080)
    plane.proxy(1, dest6=dest("TARGET", 9))
    flow = new_flow(6, 6)
    request = frame(flow)
    assert plane.xdp(request) == (XDP_PASS, request)
    assert plane.tc(request) == (TC_REDIRECT, by_lo(rewritten(request, translated(flow, "::1"), hops=0)))
    leaving = frame(translated(flow, "::1").reply(), "SA")
    assert plane.tc(leaving, egress=True) == (TC_UNSPEC, rewritten(leaving, flow.reply(), hops=0))


def test_loopback_addresses_from_the_wire_are_dropped_where_there_is_a_guard(plane: DataPlane) -> None:
    def udp(src: str, dst: str) -> bytes:
        return frame(Flow(src, dst, 5000, 9999, 17))

    forged = [udp("10.0.1.100", "127.0.0.1"), udp("10.0.1.100", "127.9.9.9"), udp("127.0.0.2", "10.0.1.1")]
    forged += [b"\xff" * 6 + each[6:] for each in forged]
    honest = [udp("10.0.1.100", "10.0.1.1"), udp("10.127.0.1", "128.0.0.127"), frame(new_flow(6, 17, "7f00::1"), "")]
    before = plane.outcomes().get("drop_loopback", 0)
    for each in forged:
        assert plane.tc(each) == (TC_UNSPEC, each), "the stack sees to that"
    assert plane.outcomes().get("drop_loopback", 0) == before
    flags = layout.CONSTANTS["DEVICE_DROP_LOOPBACK"] | layout.CONSTANTS["DEVICE_XDP_REDIRECT"]
    plane.put("device", plane.ifindex("cli"), flags.to_bytes(4, "little"))
    try:
        for each in forged:
            assert plane.xdp(each) == (XDP_PASS, each)
            assert plane.tc(each)[0] == TC_SHOT
            assert plane.tc(each, "srv") == (TC_UNSPEC, each)
        assert plane.outcomes()["drop_loopback"] == before + len(forged)
        for each in honest:
            assert plane.tc(each)[0] != TC_SHOT
        request = frame(flow := new_flow(4, 6))
        assert plane.tc(request) == (TC_REDIRECT, to_server(request, translated(flow)))
    finally:
        plane.device("cli")


# -- the full table ----------------------------------------------------------------------------------------------


@pytest.fixture
def small() -> Iterator[DataPlane]:
    """Room for 64 connections."""
    plane = DataPlane(f"rpdp-{os.getpid()}s", connections=64)
    try:
        plane.device("srv")
        plane.device("cli")
        for version in (4, 6):
            plane.listener("cli", LISTEN[version], 80, 6, 1)
        plane.proxy(1, dest4=dest("TARGET", 1), dest6=dest("TARGET", 2))
        plane.target(1, TARGET[4], 8080)
        plane.target(2, TARGET[6], 8080)
        yield plane
    finally:
        plane.close()


def establish(plane: DataPlane, hook: str, flow: Flow) -> None:
    """A handshake."""
    send(plane, hook, frame(flow))
    send(plane, hook, frame(translated(flow).reply(), "SA", towards="srv"), "srv")
    send(plane, hook, frame(flow, "A"))


@families
@hooks
def test_full_table_refuses_new_connections_and_loses_no_old_one(small: DataPlane, version: int, hook: str) -> None:
    flows = [new_flow(version, 6) for _ in range(64)]
    for flow in flows:
        establish(small, hook, flow)
    for _ in range(20):
        assert send(small, hook, frame(new_flow(version, 6)))[0] == DROP[hook]
    assert small.outcomes()["drop_table_full"] == 20
    for flow in flows:
        request = frame(flow, "A")
        assert send(small, hook, request)[1] == to_server(request, translated(flow))


@families
def test_full_table_makes_room_by_itself_once_connections_are_over(small: DataPlane, version: int) -> None:
    flows = [new_flow(version, 6) for _ in range(64)]
    for flow in flows:
        establish(small, "xdp", flow)
    assert small.xdp(frame(new_flow(version, 6)))[0] == XDP_DROP
    over = flows[:48]
    for flow in over:
        for direction in (flow, translated(flow).reply()):
            age(small, direction, 301)
    taken = 0
    for _ in range(60):
        flow = new_flow(version, 6)
        taken += small.xdp(frame(flow))[0] == XDP_REDIRECT
        establish(small, "xdp", flow)
    assert taken >= 40
    for flow in flows[48:]:
        request = frame(flow, "A")
        assert small.xdp(request)[1] == to_server(request, translated(flow)), "none that lives was touched"


@families
@hooks
def test_flood_of_syns_ends_no_connection_and_keeps_nobody_out(small: DataPlane, version: int, hook: str) -> None:
    old = [new_flow(version, 6) for _ in range(16)]
    for flow in old:
        establish(small, hook, flow)
    came_through = 0
    for _ in range(40):
        for _ in range(20):
            forged = new_flow(version, 6)
            send(small, hook, frame(forged))
            send(small, hook, frame(translated(forged).reply(), "SA", towards="srv"), "srv")
        client = new_flow(version, 6)
        came_through += send(small, hook, frame(client))[0] == REDIRECT[hook]
        send(small, hook, frame(client, "R"))
    assert came_through >= 36
    for flow in old:
        request = frame(flow, "A")
        assert send(small, hook, request)[1] == to_server(request, translated(flow))


# -- fragments, extension headers, ICMP errors ---------------------------------------------------------------------


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
    pieces = fragments(flow, payload, number=next(_ports))
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
    late = fragments(flow, bytes(1000), number=next(_ports))[1]
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
