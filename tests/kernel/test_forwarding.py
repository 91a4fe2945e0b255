"""The way out: redirected, to the stack, through lo, or left to the other program."""

from __future__ import annotations

import pytest

from reconciler.kernel import layout
from tests.kernel.dataplane import (
    TC_REDIRECT,
    TC_SHOT,
    TC_UNSPEC,
    XDP_PASS,
    XDP_REDIRECT,
    DataPlane,
    dest,
)
from tests.kernel.flowing import (
    PASS,
    by_lo,
    families,
    new_flow,
    protocols,
    send,
    translated,
    unused_ports,
)
from tests.kernel.packets import Flow, frame, rewritten, to_client, to_server

pytestmark = pytest.mark.root


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
        plane.switch(0, generation=next(unused_ports))
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
    plane.switch(0, generation=next(unused_ports))
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
        plane.switch(0, generation=next(unused_ports))
        assert plane.xdp(request)[1] == to_client(request, translated(flow)), "out of the other interface"
    finally:
        plane.namespace.command("ip route change 10.9.0.0/16 via 10.0.2.254")
        plane.switch(0, generation=next(unused_ports))


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
