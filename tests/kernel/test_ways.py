"""Ways out, which connections share: what their entries remember of them, and for how long."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from reconciler.kernel import bpf, layout
from tests.kernel.dataplane import (
    PROXY_SRV_MAC,
    SERVER_MAC,
    TC_REDIRECT,
    TC_UNSPEC,
    XDP_PASS,
    XDP_REDIRECT,
    DataPlane,
    dest,
    pack,
)
from tests.kernel.flowing import age, connection, families, new_flow, translated, unused_ports
from tests.kernel.packets import Flow, frame, rewritten, to_server

pytestmark = pytest.mark.root

NEIGHBOUR = {4: "10.0.2.9", 6: "fd00:2::9"}
NEIGHBOUR_MAC = bytes.fromhex("020000000009")
EVERYTHING = (1 << 22) * 250
"""Nanoseconds, some more than a second: no way is remembered for longer."""


def way_of(plane: DataPlane, flow: Flow) -> tuple[int, np.ndarray]:
    number = int(connection(plane, flow)[1]["c"]["way"][0])
    way = plane.get("way", number)
    assert number, f"{flow} has none"
    assert way is not None
    return number, way[0]


def change(plane: DataPlane, flow: Flow, **fields: int) -> None:
    key, value = connection(plane, flow)
    for name, content in fields.items():
        value["c"][name] = content
    plane.put(f"connection{flow.version}", key, value.tobytes())


def places(plane: DataPlane, number: int, show_after: int = 0) -> None:
    """How many ways each CPU has room for, and after how long the kernel is to see a packet go one of them."""
    plane.put("way", 0, pack(layout.way_head, places=number, show_after=show_after).ljust(layout.way.itemsize, b"\0"))


def forget(plane: DataPlane, number: int) -> None:
    for index in range(1, 1 + number * bpf.possible_cpus()):
        plane.put("way", index, bytes(layout.way.itemsize))


@pytest.fixture
def neighbour(plane: DataPlane) -> Iterator[DataPlane]:
    """``plane`` with the targets 7 (IPv4) and 8 (IPv6), next to this host."""
    for version, number in ((4, 7), (6, 8)):
        plane.target(number, NEIGHBOUR[version], 8080)
        mac = NEIGHBOUR_MAC.hex(":")
        plane.namespace.command(f"ip neigh replace {NEIGHBOUR[version]} lladdr {mac} dev srv nud permanent")
    yield plane
    for version in (4, 6):
        plane.namespace.command(f"ip neigh del {NEIGHBOUR[version]} dev srv")


@pytest.fixture
def few(neighbour: DataPlane) -> Iterator[DataPlane]:
    """The same, with room for one way for each CPU."""
    forget(neighbour, 1)
    places(neighbour, 1)
    yield neighbour
    places(neighbour, (layout.WAYS - 1) // bpf.possible_cpus())
    forget(neighbour, 1)
    neighbour.switch(0, generation=next(unused_ports))


def to_neighbour(plane: DataPlane, version: int) -> None:
    plane.proxy(1, **{f"dest{version}": dest("TARGET", 7 if version == 4 else 8)})


def at_neighbour(request: bytes, flow: Flow) -> bytes:
    return NEIGHBOUR_MAC + to_server(request, translated(flow, NEIGHBOUR[flow.version]))[6:]


@families
def test_an_entry_knows_its_way_by_number(neighbour: DataPlane, version: int) -> None:
    first, second, third = (new_flow(version, 17) for _ in range(3))
    for flow in (first, second):
        assert neighbour.xdp(frame(flow)) == (XDP_REDIRECT, to_server(frame(flow), translated(flow)))
    to_neighbour(neighbour, version)
    assert neighbour.xdp(frame(third)) == (XDP_REDIRECT, at_neighbour(frame(third), third))
    ways = [way_of(neighbour, flow)[1] for flow in (first, second, third)]
    for way, mac in zip(ways, (SERVER_MAC, SERVER_MAC, NEIGHBOUR_MAC), strict=True):
        assert way["dmac"].tobytes() == mac
        assert way["smac"].tobytes() == PROXY_SRV_MAC
        assert int(way["ifindex"]) == neighbour.ifindex("srv")
        assert int(way["mtu"]) == 1500
        assert int(way["flags"]) == layout.CONSTANTS["OUT_XDP"]
    numbers = {way_of(neighbour, flow)[0] for flow in (first, second)}
    assert len(numbers) <= bpf.possible_cpus(), "each CPU has its own"
    assert way_of(neighbour, third)[0] not in numbers


@families
def test_what_is_remembered_is_gone_by(neighbour: DataPlane, version: int) -> None:
    """As long as it is fresh, and no longer: shown by a number that is another connection's."""
    flow, other = new_flow(version, 17), new_flow(version, 17)
    neighbour.xdp(frame(flow))
    to_neighbour(neighbour, version)
    neighbour.xdp(frame(other))
    number, way = way_of(neighbour, other)
    for hook, verdict in (("xdp", XDP_REDIRECT), ("tc", TC_REDIRECT)):
        wrong, right = at_neighbour(frame(flow), flow), to_server(frame(flow), translated(flow))
        wrong = wrong[:6] + right[6:]
        send = neighbour.xdp if hook == "xdp" else neighbour.tc
        change(neighbour, flow, way=number, way_time=int(way["asked_ns"]) >> 26 & 0xFFFF)
        assert send(frame(flow)) == (verdict, wrong), "fresh"
        change(neighbour, flow, way=number, way_time=((int(way["asked_ns"]) - EVERYTHING) >> 26) & 0xFFFF)
        assert send(frame(flow)) == (verdict, right), "asked for longer than a second ago"
        change(neighbour, flow, way=number)
        age(neighbour, flow, 1)
        assert send(frame(flow)) == (verdict, right), "after a second without packets its time may be any"
        change(neighbour, flow, way=number, way_generation=1)
        assert send(frame(flow)) == (verdict, right), "a route has changed"


@families
def test_where_no_place_is_left_the_kernel_finds_the_way_for_each_packet(few: DataPlane, version: int) -> None:
    def asked_by_every_cpu(seconds_ago: int) -> None:
        """Every CPU's only place is taken by the way to the gateway."""
        for number in range(1, 1 + bpf.possible_cpus()):
            taken = pack(layout.way, **{**common, "asked_ns": common["asked_ns"] - seconds_ago * 10**9})
            few.put("way", number, taken)

    flow = new_flow(version, 17)
    few.xdp(frame(flow))
    way = way_of(few, flow)[1]
    common = {name: int(way[name]) for name in ("asked_ns", "ifindex", "mtu", "flags")}
    common |= {name: way[name].tobytes() for name in ("dmac", "smac")}  # type: ignore[misc]
    asked_by_every_cpu(0)
    to_neighbour(few, version)
    other = new_flow(version, 17)
    for _ in range(2):
        assert few.xdp(frame(other)) == (XDP_PASS, frame(other)), "nothing of it is changed"
        moved = rewritten(frame(other), translated(other, NEIGHBOUR[version]))
        assert few.tc(frame(other)) == (TC_REDIRECT, moved), "its hardware addresses are the kernel's to write"
    assert int(connection(few, other)[1]["c"]["way"][0]) == 0
    assert few.xdp(frame(flow)) == (XDP_REDIRECT, to_server(frame(flow), translated(flow))), "the other one goes on"

    asked_by_every_cpu(3)
    assert few.xdp(frame(other)) == (XDP_REDIRECT, at_neighbour(frame(other), other)), "nobody goes by it any more"
    assert way_of(few, other)[1]["dmac"].tobytes() == NEIGHBOUR_MAC


SHOW_AFTER = 45


@pytest.fixture
def shown(neighbour: DataPlane) -> Iterator[DataPlane]:
    """The same, where the kernel is to see a packet of each way every 3 s. On one CPU: each has ways of its own."""
    processors = os.sched_getaffinity(0)
    neighbour.namespace.run(os.sched_setaffinity, 0, {min(processors)})
    forget(neighbour, 4)
    places(neighbour, 4, SHOW_AFTER)
    for version in (4, 6):
        neighbour.tc(frame(new_flow(version, 17)))  # which notes the interface's hardware address
    forget(neighbour, 4)
    yield neighbour
    forget(neighbour, 4)
    places(neighbour, (layout.WAYS - 1) // bpf.possible_cpus())
    neighbour.switch(0, generation=next(unused_ports))
    neighbour.namespace.run(os.sched_setaffinity, 0, processors)


def last_shown(plane: DataPlane, flow: Flow, units_ago: int | None = None) -> int:
    """When the kernel saw a packet go this connection's way, after having made it so many units ago."""
    number, way = way_of(plane, flow)
    if units_ago is not None:
        way = way.copy()
        way["shown"] = (int(way["asked_ns"]) >> 26) - units_ago
        plane.put("way", number, way.tobytes())
    return int(way["shown"])


def left(request: bytes) -> bytes:
    """As XDP leaves a packet that TC shall show: by then the stack takes it for another host's."""
    return bytes(octet ^ mark for octet, mark in zip(request, b"\x02revpx", strict=False)) + request[6:]


@families
def test_the_kernel_sees_now_and_then_a_packet_of_each_way(shown: DataPlane, version: int) -> None:
    """By what goes past it, it would never know that a neighbour is in use, nor ask whether it is still there."""
    flow = new_flow(version, 17)
    request, sent = frame(flow), to_server(frame(flow), translated(flow))
    redirected, through_kernel = (XDP_REDIRECT, sent), (TC_REDIRECT, rewritten(request, translated(flow)))
    assert shown.xdp(request) == redirected, "a new way is one that was just used"

    last_shown(shown, flow, SHOW_AFTER - 10)
    age(shown, flow, 1)
    assert shown.xdp(request) == redirected, "not yet"

    before = last_shown(shown, flow, SHOW_AFTER + 1)
    assert shown.xdp(request) == redirected, "the entry remembers its way: nothing is asked"
    age(shown, flow, 1)
    assert shown.xdp(request) == (XDP_PASS, left(request)), "left to TC"
    assert last_shown(shown, flow) == before, "XDP has shown nothing to anybody"
    assert shown.tc(left(request)) == through_kernel, "hardware addresses are the kernel's to write"
    assert last_shown(shown, flow) > before
    assert shown.xdp(request) == redirected, "once was enough"
    age(shown, flow, 1)
    assert shown.xdp(request) == redirected


@families
def test_a_new_connection_shows_a_way_too(shown: DataPlane, version: int) -> None:
    known, fresh = new_flow(version, 17), new_flow(version, 17)
    shown.xdp(frame(known))
    last_shown(shown, known, SHOW_AFTER + 1)
    assert shown.xdp(frame(fresh)) == (XDP_PASS, left(frame(fresh)))
    assert shown.tc(left(frame(fresh))) == (TC_REDIRECT, rewritten(frame(fresh), translated(fresh)))
    assert shown.xdp(frame(fresh)) == (XDP_REDIRECT, to_server(frame(fresh), translated(fresh)))


@families
def test_packets_close_together_wait_twice_as_long(shown: DataPlane, version: int) -> None:
    """One that TC has would be overtaken by those behind it."""
    flow = new_flow(version, 17)
    shown.xdp(frame(flow))
    for units, verdict in ((SHOW_AFTER + 1, XDP_REDIRECT), (2 * SHOW_AFTER + 1, XDP_PASS)):
        last_shown(shown, flow, units)
        shown.xdp(frame(flow))  # the last packet is from just now
        change(shown, flow, way_generation=1)  # and the way is to be asked for
        assert shown.xdp(frame(flow))[0] == verdict
    through_kernel = rewritten(frame(flow), translated(flow))
    assert shown.tc(frame(flow)) == (TC_REDIRECT, through_kernel), "XDP has not noted it as the way to go"


@families
def test_where_tc_is_gone_hardly_any_packet_is_lost(shown: DataPlane, version: int) -> None:
    """XDP leaves it one, and no other until it has shown one or half a minute has passed."""
    flow = new_flow(version, 17)
    request, sent = frame(flow), to_server(frame(flow), translated(flow))
    shown.xdp(request)
    last_shown(shown, flow, SHOW_AFTER + 1)
    age(shown, flow, 1)
    assert shown.xdp(request) == (XDP_PASS, left(request))
    for _ in range(3):
        age(shown, flow, 1)
        assert shown.xdp(request) == (XDP_REDIRECT, sent)
    number, way = way_of(shown, flow)
    way = way.copy()
    way["left"] -= 8  # 34 seconds
    shown.put("way", number, way.tobytes())
    age(shown, flow, 1)
    assert shown.xdp(request) == (XDP_PASS, left(request))
    assert shown.tc(left(request))[0] == TC_REDIRECT
    last_shown(shown, flow, SHOW_AFTER + 1)
    age(shown, flow, 1)
    assert shown.xdp(request) == (XDP_PASS, left(request)), "TC is there"


@families
def test_tc_takes_from_xdp_only_what_it_left(shown: DataPlane, version: int) -> None:
    flow = new_flow(version, 17)
    request = frame(flow)
    assert shown.tc(request)[0] == TC_REDIRECT
    for octet in range(6):
        another = bytearray(left(request))
        another[octet] ^= 0x10
        assert shown.tc(bytes(another)) == (TC_UNSPEC, bytes(another)), "to another host"
