"""Hints: where the programs note the keys of clients' entries, to find them when the table is full."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from reconciler.kernel import layout
from tests.kernel.dataplane import XDP_REDIRECT, DataPlane, dest, pack
from tests.kernel.packets import Flow, frame

pytestmark = pytest.mark.root

LISTEN, CLIENT, TARGET = "10.0.1.1", "192.168.7.7", "10.9.0.1"


@pytest.fixture
def plane() -> Iterator[DataPlane]:
    """Room for 64 connections; one CPU opens them all."""
    made = DataPlane(f"rphint-{os.getpid()}", connections=64)
    try:
        made.device("srv")
        made.device("cli")
        made.listener("cli", LISTEN, 80, 6, 1)
        made.proxy(1, dest4=dest("TARGET", 1))
        made.target(1, TARGET, 8080)
        made.namespace.run(os.sched_setaffinity, 0, {min(os.sched_getaffinity(0))})
        yield made
    finally:
        made.close()


def key(port: int) -> bytes:
    ends = {"saddr_be": bytes(map(int, CLIENT.split("."))), "daddr_be": bytes(map(int, LISTEN.split(".")))}
    return pack(layout.connection_key4, **ends, sport_be=port, dport_be=80, protocol=6)


def opened(plane: DataPlane, port: int) -> int:
    """A connection from this port; where its key was noted."""
    verdict, _ = plane.xdp(frame(Flow(CLIENT, LISTEN, port, 80), "S"))
    assert verdict == XDP_REDIRECT
    entry = plane.get("connection4", key(port))
    assert entry is not None
    return int(entry["hint"][0])


def noted(plane: DataPlane, place: int) -> bytes:
    value = plane.get("hint4", place)
    assert value is not None
    return value.tobytes()


def test_every_connection_has_a_place_of_its_own(plane: DataPlane) -> None:
    places = {port: opened(plane, port) for port in range(2000, 2064)}
    assert len(set(places.values())) == len(places)
    for port, place in places.items():
        assert noted(plane, place) == key(port)


def test_places_that_are_taken_stay_so_while_others_are_empty(plane: DataPlane) -> None:
    first = opened(plane, 3000)
    taken = range(first + 1, first + 1 + layout.HINT_PLACES)
    for place in taken:
        plane.put("hint4", place, key(4000 + place))
    assert opened(plane, 3001) not in {first, *taken}
    for place in taken:
        assert noted(plane, place) == key(4000 + place)
