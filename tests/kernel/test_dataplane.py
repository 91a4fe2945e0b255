"""What the programs do with a packet: choice, rewriting, forwarding, and leaving alone."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from ipaddress import ip_address

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether

from reconciler.kernel import layout
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
    fragment, later, extension = (Ether(frame(Flow(client, listen, 900, 80))) for _ in range(3))
    fragment[IP].flags, later[IP].frag = "MF", 100
    for each in (fragment, later):
        del each[IP].chksum
    extension = Ether(frame(Flow(CLIENT[6], LISTEN[6], 900, 80)))
    tcp = extension[TCP].copy()
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
        "first fragment": bytes(fragment),
        "later fragment": bytes(later),
        "IPv6 extension header": bytes(extension / IPv6ExtHdrDestOpt() / tcp),
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


# The kernel makes no skb of these, or takes the length from the skb.
XDP_ONLY = {"empty", "cut in the IP header", "total length beyond the frame"}


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
@pytest.mark.parametrize("answered", [False, True], ids=["unanswered", "answered"])
def test_idle_connection_ends_at_its_limit(
    plane: DataPlane, version: int, protocol: int, hook: str, answered: bool
) -> None:
    limit = 300 if answered else 30
    for idle, moved in ((limit - 2, False), (limit + 2, True)):
        plane.proxy(1, dest4=dest("TARGET", 1), dest6=dest("TARGET", 2), idle_sec=300)
        flow = new_flow(version, protocol)
        send(plane, hook, frame(flow))
        if answered:
            send(plane, hook, frame(translated(flow).reply(), "SA", towards="srv"), "srv")
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
    assert plane.tc(request) == (TC_UNSPEC, rewritten(request, translated(flow), hops=0))


@families
def test_longer_than_the_way_out_takes_is_left_to_the_stack(plane: DataPlane, version: int) -> None:
    flow = new_flow(version, 6)
    plane.xdp(frame(flow))
    plane.namespace.command("ip link set srv mtu 1400")
    try:
        plane.switch(0, generation=next(_ports))
        request = frame(flow, "A", bytes(1400))
        assert plane.xdp(request) == (XDP_PASS, request)
        assert plane.tc(request) == (TC_UNSPEC, rewritten(request, translated(flow), hops=0))
    finally:
        plane.namespace.command("ip link set srv mtu 1500")


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
