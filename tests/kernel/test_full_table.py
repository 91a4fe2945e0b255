"""The full connection table: nobody established is lost, and newcomers get in."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.kernel.dataplane import (
    XDP_DROP,
    XDP_REDIRECT,
    DataPlane,
    dest,
)
from tests.kernel.flowing import (
    DROP,
    LISTEN,
    REDIRECT,
    TARGET,
    age,
    families,
    hooks,
    new_flow,
    send,
    translated,
)
from tests.kernel.packets import Flow, frame, to_server

pytestmark = pytest.mark.root


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


FLOODS = {
    "a target that refuses": (("cli", "S"), ("srv", "RA")),
    "senders that asked for nothing": (("cli", "S"), ("srv", "SA"), ("cli", "R")),
    "of nobody's connections": (("cli", "A"), ("srv", "R")),
}


@families
@hooks
@pytest.mark.parametrize("flood", FLOODS)
def test_what_is_answered_with_rst_keeps_nobody_out(small: DataPlane, version: int, hook: str, flood: str) -> None:
    old = new_flow(version, 6)
    establish(small, hook, old)
    came_through = 0
    for _ in range(20):
        for _ in range(20):
            forged = new_flow(version, 6)
            for side, flags in FLOODS[flood]:
                flow = forged if side == "cli" else translated(forged).reply()
                send(small, hook, frame(flow, flags, towards=side), side)
        came_through += send(small, hook, frame(new_flow(version, 6)))[0] == REDIRECT[hook]
    assert came_through >= 17
    request = frame(old, "A")
    assert send(small, hook, request)[1] == to_server(request, translated(old))
