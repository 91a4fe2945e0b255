"""Live connections as the tables hold them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import numpy as np
import pytest

from reconciler.answers import to_json
from reconciler.kernel import connections, connlines, layout, otherlayout
from reconciler.kernel.busy import busy
from reconciler.kernel.codec import pack_target
from reconciler.kernel.conntable import created_ns, states
from reconciler.kernel.counters import read_stats
from reconciler.kernel.flushing import flush
from reconciler.kernel.maps import Maps
from reconciler.kernel.sweep import Sweeper
from reconciler.state.objects import Endpoint
from reconciler.state.selection import STATES, Query
from tests.kernel.kernelmaps import connection_entry, connection_tables, endpoint, private_maps

SECOND = 1_000_000_000
NOW = 10_000 * SECOND
ANY, SYN, FIN, RST, PLAIN = (layout.CONSTANTS[f"HEARD_{name}"] for name in ("ANY", "SYN", "FIN", "RST", "PLAIN"))
CLIENT, LISTEN, TARGET = "198.51.100.1:40000", "192.0.2.1:80", "10.0.0.1:8080"


@pytest.fixture
def maps() -> Iterator[Maps]:
    with connection_tables() as found:
        for number, name in ((1, b"web"), (2, b"dns")):
            found["proxy_name"].put(number, np.array([(name,)], layout.proxy_name))
        yield found


def put(maps: Maps, *arguments: Any, version: int = 4, only: slice = slice(None), **more: Any) -> None:
    more.setdefault("times_ns", (NOW - 20 * SECOND, NOW - 5 * SECOND))
    keys, values = connection_entry(version, *(arguments or (CLIENT, LISTEN, TARGET)), **more)
    maps[f"connection{version}"].put_many(keys[only], values[only])


def test_both_directions_are_one_row(maps: Maps) -> None:
    put(maps, counts=(3, 300, 2, 2000))
    ((line,),) = connlines.lines(connections.listing(maps, now_ns=NOW))
    assert json.loads(line) == {
        "proxy": "web",
        "protocol": "tcp",
        "client": CLIENT,
        "listen": LISTEN,
        "target": TARGET,
        "state": "established",
        "packets_forward": 3,
        "bytes_forward": 300,
        "packets_reverse": 2,
        "bytes_reverse": 2000,
        "age_sec": 20.0,
        "idle_sec": 5.0,
    }


@pytest.mark.parametrize("version", [4, 6])
def test_none_at_all(maps: Maps, version: int) -> None:
    """Asked of what is pinned now, not of what was opened before."""
    assert connections.none_at_all(maps)
    ends = (CLIENT, LISTEN, TARGET) if version == 4 else ("[2001:db8::1]:5", "[2001:db8::2]:53", "[fd00::1]:5300")
    put(maps, *ends, version=version, only=slice(1))
    assert not connections.none_at_all(maps)
    maps.remove()
    assert connections.none_at_all(maps)
    maps.create(10)
    assert connections.none_at_all(maps)


def test_ipv6_and_udp(maps: Maps) -> None:
    put(
        maps, "[2001:db8::1]:5353", "[2001:db8::2]:53", "[fd00::1]:5300",
        version=6, protocol=17, ids=(2, 9), heard=(ANY, 0), counts=(1, 60, 0, 0),
    )  # fmt: skip
    (row,) = connections.connections(maps, now_ns=NOW)
    assert (row.proxy, str(row.protocol), row.state, row.target_id) == ("dns", "udp", "unreplied", 9)
    assert [str(row.client), str(row.listen), str(row.target)] == [
        "[2001:db8::1]:5353", "[2001:db8::2]:53", "[fd00::1]:5300",
    ]  # fmt: skip


@pytest.mark.parametrize("direction", [0, 1])
def test_one_direction_left(maps: Maps, direction: int) -> None:
    put(maps, only=slice(direction, direction + 1), counts=(3, 300, 2, 2000))
    (row,) = connections.connections(maps, now_ns=NOW)
    assert (row.client, row.target) == (endpoint(CLIENT), endpoint(TARGET))
    if direction == 0:  # the other one does not know what the client aimed at
        assert row.listen == endpoint(LISTEN)
    assert (row.packets_forward, row.packets_reverse) == ((3, 0) if direction == 0 else (0, 2))


def test_unknown_proxy(maps: Maps) -> None:
    put(maps, ids=(5, 1))
    assert connections.connections(maps, now_ns=NOW)[0].proxy == "?5"


@pytest.mark.parametrize(
    ("protocol", "own", "peer", "name"),
    [
        (6, ANY | SYN, 0, "syn"),
        (6, ANY | SYN, ANY | SYN, "syn"),
        (6, ANY | SYN | PLAIN, ANY | SYN, "established"),
        (6, ANY | SYN, ANY | SYN | FIN, "closing"),
        (6, ANY | FIN, ANY | FIN, "closed"),
        (6, ANY, ANY | RST, "closed"),
        (17, ANY, 0, "unreplied"),
        (17, ANY, ANY, "established"),
    ],
)
def test_state_names(protocol: int, own: int, peer: int, name: str) -> None:
    both = [(own, peer)] if name in ("syn", "unreplied") else [(own, peer), (peer, own)]
    for one, other in both:
        (found,) = states(*(np.asarray([each], np.uint8) for each in (protocol, one, other)))
        assert STATES[found] == name


@pytest.mark.parametrize(
    ("heard", "idle_sec", "limit_sec"),
    [
        ((ANY | PLAIN, ANY | PLAIN), 60, 60),
        ((ANY, 0), 60, 30),
        ((ANY, 0), 20, 20),
        ((ANY | FIN, ANY | FIN), 60, 10),
        ((ANY, ANY | RST), 60, 10),
        ((ANY | FIN | PLAIN, ANY), 60, 60),
        ((ANY | PLAIN, ANY | PLAIN), 0, 1),
    ],
)
def test_expiry(maps: Maps, heard: tuple[int, int], idle_sec: int, limit_sec: int) -> None:
    put(maps, heard=heard, idle_sec=idle_sec, times_ns=(0, NOW))
    before, at = NOW + limit_sec * SECOND - 1, NOW + limit_sec * SECOND
    every = Query(states=frozenset(STATES))
    assert len(connections.connections(maps, every, now_ns=before)) == 1
    assert connections.count(maps, every, now_ns=before).total == 1
    assert Sweeper().sweep(maps, now_ns=before).count == 0
    assert connections.connections(maps, every, now_ns=at) == []
    assert connections.count(maps, now_ns=at).total == 0
    assert Sweeper().sweep(maps, now_ns=at).count == 1
    assert len(maps["connection4"].items()[0]) == 0


def test_one_busy_direction_keeps_both(maps: Maps) -> None:
    keys, values = connection_entry(4, CLIENT, LISTEN, TARGET, times_ns=(0, NOW))
    values[1]["c"]["last_ns"] = NOW - 5000 * SECOND
    maps["connection4"].put_many(keys, values)
    assert Sweeper().sweep(maps, now_ns=NOW + SECOND).count == 0
    assert len(maps["connection4"].items()[0]) == 2
    assert connections.connections(maps, now_ns=NOW + SECOND)[0].idle_sec == 1.0


def test_clock_of_another_cpu_may_be_ahead(maps: Maps) -> None:
    put(maps, times_ns=(NOW + SECOND, NOW + SECOND), idle_sec=0)
    assert connections.connections(maps, now_ns=NOW)[0].idle_sec == 0


def test_counting_and_flushing(maps: Maps) -> None:
    for number in range(40):
        ids = (1, 10) if number < 30 else (2, 11)
        put(maps, f"198.51.100.{number}:1000", LISTEN, TARGET, ids=ids)
    put(maps, "[2001:db8::1]:1000", "[2001:db8::2]:80", "[fd00::1]:80", version=6, ids=(2, 12))
    counts = connections.count(maps, now_ns=NOW)
    assert counts.total == 41
    assert counts.proxies == {1: 30, 2: 11}
    assert counts.targets == {10: 30, 11: 10, 12: 1}
    assert flush(maps, Query(proxy="dns"), now_ns=NOW).count == 11
    assert connections.count(maps, now_ns=NOW).proxies == {1: 30}
    assert len(maps["connection4"].items()[0]) == 60
    assert len(maps["connection6"].items()[0]) == 0


def test_busy_names_targets_proxies_and_ports(maps: Maps) -> None:
    put(maps, ids=(1, 10))
    put(maps, "198.51.100.9:1000", "192.0.2.1:53", "10.0.0.1:5300", ids=(2, 11), only=slice(1, 2))
    found = busy(maps)
    assert found.targets == {10, 11}
    assert found.proxies == {1, 2}
    assert found.ports == {80: 1, 8080: 2, 53: 1, 5300: 2}


def test_many_connections_in_one_go() -> None:
    with private_maps() as maps:
        keys = np.zeros(2000, layout.connection_key4)
        values = np.zeros(2000, layout.connection4)
        one_keys, one_values = connection_entry(4, CLIENT, LISTEN, TARGET, times_ns=(0, NOW))
        keys[0::2], keys[1::2] = one_keys[0], one_keys[1]
        values[0::2], values[1::2] = one_values[0], one_values[1]
        ports = np.arange(1000) + 1024
        keys["sport_be"][0::2] = values["sport_be"][0::2] = ports
        keys["dport_be"][1::2] = values["dport_be"][1::2] = ports
        maps["connection4"].put_many(keys, values)
        assert connections.count(maps, now_ns=NOW).total == 1000
        rows = connections.connections(maps, now_ns=NOW)
        assert {row.client.port for row in rows} == set(ports.tolist())


def test_stats_are_sums_over_cpus(maps: Maps) -> None:
    maps["target"].put(10, pack_target(endpoint(TARGET), 1))
    maps["target"].put(11, pack_target(endpoint("10.0.0.2:8080"), 1))
    for number, first in ((10, 1), (11, 100)):
        value = maps["target_stats"].values_array(1)
        for offset, name in enumerate(layout.target_stats.names):
            value[name][0, 0] = first + offset
            value[name][0, -1] += 1000
        maps["target_stats"].put(number, value)
    outcome = maps["outcome"].values_array(1)
    outcome[0, 0] = 7
    maps["outcome"].put(layout.OUTCOMES.index("drop_denied"), outcome)
    put(maps, ids=(1, 10))
    found = to_json(read_stats(maps, now_ns=NOW))
    assert found["drops"]["denied"] == 7
    assert set(found["drops"]) == {name[5:] for name in layout.OUTCOMES if name.startswith("drop_")}
    web = found["proxies"]["web"]
    assert web["targets"][TARGET] == {
        "connections": 1, "opened": 1001,
        "packets_forward": 1002, "bytes_forward": 1003, "packets_reverse": 1004, "bytes_reverse": 1005,
    }  # fmt: skip
    assert (web["connections"], web["bytes_reverse"], found["bytes_reverse"]) == (1, 2109, 2109)
    assert found["proxies"]["dns"]["opened"] == 0


def test_a_filter_gives_just_those_of_all_that_it_fits(maps: Maps) -> None:
    """With both directions' counters, and where only one direction is left."""
    for number in range(60):
        client, listen, target = (f"198.51.100.{number % 5}:{1000 + number % 3}", f"192.0.2.{number % 7}:80",
                                  f"10.0.0.{number % 4}:8080")  # fmt: skip
        only = {0: slice(0, 1), 1: slice(1, 2)}.get(number % 6, slice(0, 2))
        put(maps, client, listen, target, only=only, counts=(1, 100, 2, 200))
        put(maps, f"[2001:db8::{number % 5}]:{number + 1}", "[2001:db8::ff]:80", "[fd00::1]:80", version=6)
    every = connections.connections(maps, now_ns=NOW)
    assert len(every) == 120
    assert {each.packets_reverse for each in every if each.client.ip.version == 4} == {0, 2}
    for network in ("198.51.100.3/32", "198.51.100.0/30", "2001:db8::2/127", "192.0.2.0/24", "0.0.0.0/0", "::/0"):
        asked = ip_network(network, strict=False)
        found = connections.connections(maps, Query(client=asked), now_ns=NOW)
        assert found == [each for each in every if each.client.ip in asked], network
    for address in ("10.0.0.2", "fd00::1", "10.0.0.9"):
        target = Endpoint(ip_address(address), 0)
        found = connections.connections(maps, Query(target=target), now_ns=NOW)
        assert found == [each for each in every if each.target.ip == target.ip], address


def test_two_listeners_connections_from_one_port_to_one_target_share_an_entry(maps: Maps) -> None:
    for listen in ("192.0.2.1:80", "192.0.2.2:80"):
        put(maps, CLIENT, listen, TARGET, counts=(1, 100, 2, 200))
    found = connections.connections(maps, now_ns=NOW)
    assert sorted(str(each.listen) for each in found) == ["192.0.2.1:80", "192.0.2.2:80"]
    assert [each.packets_reverse for each in found] == [2, 2]


@pytest.mark.parametrize("age_sec", [-0.5, 0, 1, 3600, 200 * 86400])
@pytest.mark.parametrize("now_sec", [1, 17_179_869, 17_179_870, 10**9])
def test_creation_is_what_its_last_bits_say(now_sec: int, age_sec: float) -> None:
    """At any uptime, as when the 32 bits have just begun anew (17,179,869 s); another CPU's clock may be ahead."""
    if age_sec > now_sec:
        return
    created = int((now_sec - age_sec) * SECOND)
    bits = np.array([created >> layout.CREATED_SHIFT & 0xFFFFFFFF], np.uint32)
    found = int(created_ns(bits, np.array([now_sec * SECOND], np.uint64))[0])
    assert 0 <= created - found < 1 << layout.CREATED_SHIFT


def test_connections_of_a_layout_with_the_whole_time_keep_it() -> None:
    before = np.zeros(1, np.dtype([("created_ns", "<u8"), ("last_ns", "<u8")]))
    before["created_ns"], before["last_ns"] = NOW - SECOND, NOW
    after = np.zeros(1, layout.connection)
    otherlayout.convert(before, after)
    found = int(created_ns(after["created"], after["last_ns"])[0])
    assert found >> layout.CREATED_SHIFT == (NOW - SECOND) >> layout.CREATED_SHIFT
    assert int(after["stamp"][0]) == 0
