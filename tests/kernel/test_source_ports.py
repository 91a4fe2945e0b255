"""Source ports and addresses of full NAT: ports of TCP are taken in turn, found while there are any, other ones at
another time, refused when there is none; an address changes as a whole."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from ipaddress import ip_address
from itertools import count, pairwise

import pytest

from reconciler.kernel import layout
from reconciler.kernel.codec import change_sources, unpack_source
from tests.kernel.dataplane import TC_SHOT, XDP_DROP, DataPlane, dest
from tests.kernel.flowing import sent
from tests.kernel.packets import Flow, frame

pytestmark = pytest.mark.root

LISTEN = {4: "10.0.1.1", 6: "fd00:1::1"}
CLIENT = {4: "192.0.2.{}", 6: "2001:db8::{}"}
TARGET = {4: "10.9.0.1", 6: "fd09::1"}
SOURCE = {4: "10.0.2.1", 6: "fd00:2::1"}


@pytest.fixture(scope="module")
def plane() -> Iterator[DataPlane]:
    plane = DataPlane(f"rpsp-{os.getpid()}")
    for version in (4, 6):
        for protocol in (6, 17):
            plane.listener("cli", LISTEN[version], 80, protocol, 1)
        plane.target(version, TARGET[version], 8080, source=SOURCE[version])
    plane.proxy(1, mode=layout.CONSTANTS["MODE_FULLNAT"], dest4=dest("TARGET", 4), dest6=dest("TARGET", 6))
    for ifname in ("cli", "srv"):
        plane.device(ifname)
    yield plane
    plane.close()


_bases = count(20000, 1500)


@pytest.fixture
def first() -> int:
    """The first port of a range that no test has used."""
    return next(_bases)


def open_some(
    plane: DataPlane, hook: str, version: int, number: int, protocol: int = 6, first_client: int = 0
) -> tuple[list[int], int]:
    """The ports that so many new clients got, and how many were refused."""
    got, refused = [], 0
    for client in range(first_client, first_client + number):
        flow = Flow(CLIENT[version].format(1 + client % 200), LISTEN[version], 1024 + client, 80, protocol)
        verdict, after = (plane.xdp if hook == "xdp" else plane.tc)(frame(flow))
        if verdict == (XDP_DROP if hook == "xdp" else TC_SHOT):
            refused += 1
        else:
            got.append(sent(after, protocol).sport)
    return got, refused


@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_a_range_is_used_up_before_anybody_is_refused(
    plane: DataPlane, first: int, hook: str, version: int, protocol: int
) -> None:
    _empty(plane)
    plane.settings(ports=(first, first + 31))
    before = plane.outcomes().get("drop_no_port", 0)
    got, refused = open_some(plane, hook, version, 32, protocol)
    assert (sorted(got), refused) == (list(range(first, first + 32)), 0)
    assert open_some(plane, hook, version, 8, protocol, first_client=100) == ([], 8)
    assert plane.outcomes()["drop_no_port"] == before + 8


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_tcp_takes_ports_in_turn(plane: DataPlane, first: int, hook: str, version: int) -> None:
    """One that was given back is not taken again before all others: the target may still be in TIME-WAIT there."""
    _empty(plane)
    plane.settings(ports=(first, first + 99))
    got = []
    for _ in range(2):
        ports, refused = open_some(plane, hook, version, 100)
        assert not refused
        got += ports
        _empty(plane)
    assert {(after - before) % 100 for before, after in pairwise(got)} == {1}


@pytest.mark.parametrize("version", [4, 6])
def test_udp_takes_ports_that_nobody_can_guess(plane: DataPlane, first: int, version: int) -> None:
    _empty(plane)
    plane.settings(ports=(first, first + 999))
    got, refused = open_some(plane, "xdp", version, 100, protocol=17)
    assert not refused
    steps = [(after - before) % 1000 for before, after in pairwise(got)]
    assert len(set(steps)) > 80


@pytest.mark.parametrize("version", [4, 6])
def test_a_crowded_range_refuses_nobody(plane: DataPlane, first: int, version: int) -> None:
    """Seven ports of ten are taken in the end."""
    _empty(plane)
    plane.settings(ports=(first, first + 999))
    got, refused = open_some(plane, "xdp", version, 700)
    assert refused == 0
    assert len(set(got)) == 700


def test_a_client_that_tries_again_gets_other_ports(plane: DataPlane, first: int) -> None:
    """Of those that are drawn, as UDP's all are."""
    plane.settings(ports=(first, first + 999))
    seen = set()
    deadline = time.monotonic() + 10
    while len(seen) < 3 and time.monotonic() < deadline:
        _empty(plane)
        seen.update(open_some(plane, "xdp", 4, 1, protocol=17)[0])
    assert len(seen) == 3


def _empty(plane: DataPlane) -> None:
    for version in (4, 6):
        table = plane.connections(version)
        table.delete_many(table.keys())


@pytest.mark.parametrize("version", [4, 6])
def test_a_source_address_changes_as_a_whole(plane: DataPlane, first: int, version: int) -> None:
    """Packets go on with the old one while the new one is written."""
    plane.settings(ports=(first, first + 999))
    addresses = [SOURCE[version], *(f"10.0.2.{last}" if version == 4 else f"fd99:9::{last}" for last in (7, 8, 9))]
    client = count(1)

    def source() -> str:
        flow = Flow(CLIENT[version].format(next(client)), LISTEN[version], 5000, 80, 6)
        return sent(plane.xdp(frame(flow))[1], 6).src

    _empty(plane)
    assert source() == addresses[0]
    for before, after in pairwise(addresses):
        values = plane.get("target", version)
        assert values is not None
        filled, exchanged = change_sources(values, [ip_address(after)])
        plane.put("target", version, filled.tobytes())
        assert source() == before
        assert str(unpack_source(filled[0])) == before
        plane.put("target", version, exchanged.tobytes())
        assert source() == after
        assert str(unpack_source(exchanged[0])) == after
    plane.target(version, TARGET[version], 8080, source=SOURCE[version])
