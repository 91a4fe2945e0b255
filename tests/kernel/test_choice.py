"""Which target a connection goes to: routes, groups, drains, and the slot that is read."""

from __future__ import annotations

import random

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from reconciler.kernel import layout
from reconciler.state.share import NOBODY
from tests.kernel.dataplane import (
    DataPlane,
    dest,
)
from tests.kernel.flowing import (
    DROP,
    LISTEN,
    OTHER_TARGET,
    PASS,
    REDIRECT,
    TARGET,
    families,
    hooks,
    new_flow,
    protocols,
    send,
    translated,
)
from tests.kernel.packets import Flow, connection_hash, frame, to_server

pytestmark = pytest.mark.root


@families
@hooks
def test_a_listener_of_a_proxy_that_is_not_there_is_none(plane: DataPlane, version: int, hook: str) -> None:
    """As where somebody has wiped its entry: the packet is the stack's."""
    plane.put("proxy", 1, bytes(layout.proxy_slots.itemsize))
    request = frame(new_flow(version, 6))
    assert send(plane, hook, request) == (PASS[hook], request)


@families
@hooks
def test_a_route_that_is_not_in_this_slot_leaves_it_to_the_default(plane: DataPlane, version: int, hook: str) -> None:
    default = {"dest4": dest("TARGET", 1)} if version == 4 else {"dest6": dest("TARGET", 2)}
    plane.proxy(1, flags=layout.CONSTANTS[f"PROXY_ROUTES{version}"], **default)
    plane.route(1, "192.168.0.0/16" if version == 4 else "fd77::/16", 0)
    flow = new_flow(version, 6)
    request = frame(flow)
    assert send(plane, hook, request) == (REDIRECT[hook], to_server(request, translated(flow)))


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
