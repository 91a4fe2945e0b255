"""Connections in the packet path: how they go on, end, begin anew, and are counted."""

from __future__ import annotations

import time

import pytest

from reconciler.kernel import layout
from tests.kernel.dataplane import (
    DataPlane,
    dest,
)
from tests.kernel.flowing import (
    DROP,
    LISTEN,
    OTHER_TARGET,
    REDIRECT,
    TARGET,
    age,
    connection,
    families,
    hooks,
    new_flow,
    protocols,
    send,
    translated,
)
from tests.kernel.packets import Flow, frame, to_client, to_server

pytestmark = pytest.mark.root

CLOCK_MONOTONIC_COARSE = 6


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
def test_answers_note_by_which_interface_they_come(plane: DataPlane, version: int, hook: str) -> None:
    """It stays served as long as there are connections that come by it."""
    flow = new_flow(version, 6)
    send(plane, hook, frame(flow))
    reply = translated(flow).reply()
    send(plane, hook, frame(reply, "SA", towards="srv"), "srv")
    assert int(connection(plane, reply)[1]["in_ifindex"][0]) == plane.ifindex("srv")


@families
@hooks
def test_unanswered_it_ends_no_later_than_established(plane: DataPlane, version: int, hook: str) -> None:
    for idle, moved in ((8, False), (12, True)):
        plane.proxy(1, dest4=dest("TARGET", 1), dest6=dest("TARGET", 2), idle_sec=10)
        flow = new_flow(version, 6)
        send(plane, hook, frame(flow))
        for direction in (flow, translated(flow).reply()):
            age(plane, direction, idle)
        plane.proxy(1, dest4=dest("TARGET", 3), dest6=dest("TARGET", 4))
        request = frame(flow)
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
def test_entries_know_when_they_were_used_to_the_tick(plane: DataPlane, version: int, hook: str) -> None:
    flow = new_flow(version, 17)
    tick_ns = round(time.clock_getres(CLOCK_MONOTONIC_COARSE) * 1e9)
    for _ in range(5):
        before = time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE)
        send(plane, hook, frame(flow))
        after = time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE)
        _, entry = connection(plane, flow)
        assert before - tick_ns <= int(entry["c"]["last_ns"][0]) <= after
        time.sleep(3 * tick_ns / 1e9)


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
@pytest.mark.parametrize("forger", ["cli", "srv"])
def test_a_reset_that_nobody_heeds_ends_nothing(plane: DataPlane, version: int, hook: str, forger: str) -> None:
    """RFC 5961: who gets a RST with a wrong sequence number answers with an ACK."""
    flow = new_flow(version, 6)
    reply = translated(flow).reply()
    plane.proxy(1, dest4=dest("TARGET", 1), dest6=dest("TARGET", 2), idle_sec=300)
    send(plane, hook, frame(flow))
    send(plane, hook, frame(reply, "SA", towards="srv"), "srv")
    send(plane, hook, frame(flow, "A"))
    sides = {"cli": flow, "srv": reply}
    victim = "srv" if forger == "cli" else "cli"
    for idle, moved in ((298, False), (11, True)):
        send(plane, hook, frame(sides[forger], "R", towards=forger), forger)
        if not moved:
            send(plane, hook, frame(sides[victim], "A", towards=victim), victim)
        for direction in (flow, reply):
            age(plane, direction, idle)
        plane.proxy(1, dest4=dest("TARGET", 3), dest6=dest("TARGET", 4))
        request = frame(flow, "A")
        target = OTHER_TARGET[version] if moved else TARGET[version]
        assert send(plane, hook, request)[1] == to_server(request, translated(flow, target))


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
