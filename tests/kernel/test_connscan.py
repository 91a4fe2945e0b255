"""Connection tables read piece by piece: the same connections as when they are read as a whole, whatever the pieces."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from ipaddress import ip_network

import numpy as np
import pytest

from reconciler.kernel import connections, connlines, connscan, layout, scan
from reconciler.kernel.arrays import Array
from reconciler.kernel.conntable import Table, active_settings, expired_entries, read_table, records
from reconciler.kernel.maps import Map, Maps
from reconciler.kernel.sweep import Sweeper
from reconciler.state.selection import SORTS, STATES, Query
from tests.kernel.kernelmaps import connection_entry, connection_tables, endpoint

SECOND = 1_000_000_000
NOW = 10_000 * SECOND
ANY, FIN, RST, PLAIN, SYN = (layout.CONSTANTS[f"HEARD_{name}"] for name in ("ANY", "FIN", "RST", "PLAIN", "SYN"))
EVERY = Query(states=frozenset(STATES))


@pytest.fixture(params=[1, 7, 1024])
def maps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maps]:
    """Read in pieces of so many blocks."""
    monkeypatch.setattr(scan, "AT_ONCE", request.param)
    with connection_tables() as found:
        for number, name in ((1, b"web"), (2, b"dns"), (3, b"api")):
            found["proxy_name"].put(number, np.array([(name,)], layout.proxy_name))
        yield found


def fill(maps: Maps, chance: random.Random, count: int, *, one_limit: bool = False) -> None:
    """Connections of both families in every state, some with one direction only, some of two listeners to one target
    from one port, some past their limits, some of which the client's entry has been decided anew. ``one_limit``: all
    established, with the same limit."""
    for _ in range(count):
        version = chance.choice((4, 4, 6))
        last = chance.randrange(5)
        client, listen, target = (
            (f"198.51.100.{last}:{chance.randrange(1000, 1040)}", f"192.0.2.{last % 2}:80", f"10.0.0.{last % 3}:8080")
            if version == 4
            else (f"[2001:db8::{last}]:{chance.randrange(1000, 1040)}", f"[2001:db8::f{last % 2}]:80", "[fd00::1]:80")
        )
        heard = chance.choice(((ANY | PLAIN, ANY | PLAIN), (ANY, 0), (ANY | FIN, ANY | FIN), (ANY | FIN | PLAIN, ANY),
                               (ANY | SYN, ANY | RST)))  # fmt: skip
        idle_sec = chance.choice((20, 60))
        if one_limit:
            heard, idle_sec = (ANY | PLAIN, ANY | PLAIN), 30
        keys, values = connection_entry(
            version, client, listen, target,
            ids=(chance.choice((1, 2, 3, 9)), chance.randrange(1, 5)), heard=heard, idle_sec=idle_sec,
            times_ns=(NOW - chance.randrange(100, 200) * SECOND, NOW - chance.randrange(0, 80) * SECOND),
            counts=tuple(chance.randrange(1, 10**6) for _ in range(4)),
        )  # fmt: skip
        values[1]["c"]["last_ns"] = NOW - chance.randrange(0, 80) * SECOND
        only = chance.choice((slice(0, 1), slice(1, 2), slice(0, 2), slice(0, 2), slice(0, 2)))
        maps[f"connection{version}"].put_many(keys[only], values[only])


def as_a_whole(maps: Maps) -> dict[int, Array]:
    """What there is, brought together by the reader of whole tables."""
    found = {}
    for version in (4, 6):
        table = read_table(maps, version)
        live = table.one_each & ~expired_entries(table, active_settings(maps), NOW)
        found[version] = records(table, np.flatnonzero(live))
    return found


def as_rows(found: Array) -> list[bytes]:
    return sorted(row.tobytes() for row in found)


@pytest.mark.parametrize("seed", range(2))
def test_pieces_give_what_the_whole_gives(maps: Maps, seed: int) -> None:
    fill(maps, random.Random(seed), 150)
    found = connections.listing(maps, EVERY, now_ns=NOW)
    whole = np.concatenate(list(as_a_whole(maps).values()))
    assert as_rows(found.rows[found.order]) == as_rows(whole)
    live = whole[whole["kind"] != STATES.index("closed")]
    counts = connections.count(maps, now_ns=NOW)
    assert counts.total == len(live)
    assert counts.targets == {number: int((live["target"] == number).sum()) for number in set(live["target"].tolist())}
    for query in (
        Query(proxy="web"),
        Query(proxy="?9"),
        Query(client=ip_network("198.51.100.2/31")),
        Query(target=endpoint("10.0.0.1:8080")),
        Query(client_port=1007),
        Query(states=frozenset({"closing"})),
    ):
        rows = connections.connections(maps, query, now_ns=NOW)
        assert connections.count(maps, query, now_ns=NOW).total == len(rows)
        every = connections.connections(maps, EVERY, now_ns=NOW)
        assert rows == [row for row in every if fits(row, query)]


def fits(row: connections.Connection, query: Query) -> bool:
    return (
        query.proxy in (None, row.proxy)
        and (query.client is None or row.client.ip in query.client)
        and query.target in (None, row.target)
        and query.client_port in (None, row.client.port)
        and row.state in query.states
    )


def test_lines_say_what_rows_say(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connlines, "AT_ONCE", 16)
    fill(maps, random.Random(11), 80)
    times_ns, ends = (NOW - 90 * SECOND, NOW - 40 * SECOND), ("198.51.100.9:9", "192.0.2.1:53", "10.0.0.1:53")
    maps["connection4"].put_many(*connection_entry(4, *ends, protocol=17, times_ns=times_ns))
    maps["proxy_name"].put(3, np.array([('a"\\ü'.encode(),)], layout.proxy_name))
    now_ns = NOW - 30 * SECOND + SECOND // 4  # no whole seconds, and another CPU's clock is ahead
    steps = list(connlines.lines(connections.listing(maps, EVERY, now_ns=now_ns)))
    assert max(map(len, steps)) == 16
    rows = connections.connections(maps, EVERY, now_ns=now_ns)
    assert [json.loads(line) for step in steps for line in step] == list(map(as_answer, rows))
    assert {row.client.ip.version for row in rows} == {4, 6}
    assert {str(row.protocol) for row in rows} == {"tcp", "udp"}
    assert min(row.idle_sec for row in rows) == 0


def as_answer(row: connections.Connection) -> dict[str, object]:
    counted = ("packets_forward", "bytes_forward", "packets_reverse", "bytes_reverse")
    return {
        **{name: str(getattr(row, name)) for name in ("proxy", "protocol", "client", "listen", "target", "state")},
        **{name: getattr(row, name) for name in counted},
        **{name: round(getattr(row, name), 1) for name in ("age_sec", "idle_sec")},
    }


@pytest.mark.parametrize("sort", SORTS)
def test_the_first_few_are_the_first_of_all(maps: Maps, sort: str) -> None:
    fill(maps, random.Random(sort), 120)
    every = connections.connections(maps, EVERY, sort=sort, now_ns=NOW)
    assert len({row.age_sec for row in every}) > 20
    for limit in (0, 1, 10, 1000):
        first = connections.connections(maps, EVERY, sort=sort, limit=limit, now_ns=NOW)
        keys = [order(row, sort) for row in every]
        assert keys == sorted(keys)
        assert [order(row, sort) for row in first] == keys[:limit]


def order(row: connections.Connection, sort: str) -> tuple[object, ...]:
    """What a connection is sorted by; equal ones by age, with the oldest first."""
    address = {"client": row.client, "target": row.target}.get(sort)
    if address:
        return address.ip.version, address.ip, address.port, -row.age_sec
    first = {
        "age": -row.age_sec,
        "idle": -row.idle_sec,
        "bytes": -row.bytes_forward - row.bytes_reverse,
        "packets": -row.packets_forward - row.packets_reverse,
        "proxy": row.proxy,
        "state": STATES.index(row.state),
    }[sort]
    return first, -row.age_sec


def test_an_entry_that_comes_twice_counts_once(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it may in a table that is written to meanwhile."""

    def twice(table: Map, position: scan.Position | None = None) -> Iterator[tuple[Array, Array]]:
        for _ in range(2):
            yield from scan.pieces(table, position)

    fill(maps, random.Random(7), 100)

    def both() -> tuple[list[bytes], int]:
        found = connections.listing(maps, now_ns=NOW)
        return as_rows(found.rows[found.order]), connections.count(maps, now_ns=NOW).total

    once = both()
    monkeypatch.setattr(connscan, "pieces", twice)
    assert both() == once


@pytest.mark.parametrize("at_once", [1, 20, 1 << 18])
def test_sweeping_in_parts_deletes_what_has_expired_and_no_more(maps: Maps, at_once: int) -> None:
    fill(maps, random.Random(at_once), 150, one_limit=True)
    before = as_a_whole(maps)
    expired = sum(
        int((table.one_each & expired_entries(table, active_settings(maps), NOW)).sum())
        for table in (read_table(maps, version) for version in (4, 6))
    )
    assert expired > 20
    sweeper, swept = Sweeper(), 0
    for _ in range(-(-400 // at_once)):
        swept += sweeper.sweep(maps, at_once=at_once, now_ns=NOW).count
    assert swept == expired
    for version in (4, 6):
        table: Table = read_table(maps, version)
        assert not expired_entries(table, active_settings(maps), NOW).any()
        assert as_rows(as_a_whole(maps)[version]) == as_rows(before[version])
