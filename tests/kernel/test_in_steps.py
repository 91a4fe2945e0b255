"""Large tables gone through step by step: connections flushed and reset, while others come and go."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from reconciler.kernel import connections, layout, scan
from reconciler.kernel.busy import busy
from reconciler.kernel.codec import C, pack_target
from reconciler.kernel.flushing import Flusher
from reconciler.kernel.maps import InterruptedReading, Maps
from reconciler.kernel.resets import Resetter
from reconciler.state.objects import Endpoint
from reconciler.state.selection import STATES, Query
from tests.kernel.kernelmaps import connection_entry, endpoint, private_maps, small_arrays

NOW, SECOND = 2_000_000_000_000, 1_000_000_000
LISTEN, TARGET = "192.0.2.1:80", "10.0.0.1:8080"
WEB, DNS = 1, 2
BOTH, CLIENTS, TARGETS = slice(None), slice(0, 1), slice(1, 2)


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Maps]:
    """Read a few blocks at a time."""
    monkeypatch.setattr(scan, "AT_ONCE", 2)
    with small_arrays(), private_maps() as found:
        for number, name in ((WEB, b"web"), (DNS, b"dns")):
            found["proxy_name"].put(number, np.array([(name,)], layout.proxy_name))
            found["target"].put(10 * number, pack_target(endpoint(TARGET), number))
        yield found


def put(maps: Maps, number: int, proxy: int, only: slice = BOTH, *, told: bool = False, protocol: int = 6) -> None:
    """One connection; ``only``: the entries that are there of it."""
    client = f"198.51.100.{number % 250}:{1000 + number}"
    keys, values = connection_entry(
        4, client, LISTEN, TARGET, ids=(proxy, 10 * proxy), times_ns=(NOW - SECOND, NOW), protocol=protocol
    )
    values["c"]["packets"] = [number, 1000 + number]
    if told:
        values["c"]["flags"] |= C["CONNECTION_TOLD"]
    maps["connection4"].put_many(keys[only], values[only])


def fill(maps: Maps) -> None:
    """A hundred connections of either proxy: a tenth of them halves, a tenth to be told of."""
    for number in range(200):
        only = {3: CLIENTS, 7: TARGETS}.get(number % 20, BOTH)
        put(maps, number, WEB if number % 2 else DNS, only, told=number % 20 in (4, 5, 7))


def test_flushing_in_steps_ends_what_is_meant_and_nothing_else(maps: Maps) -> None:
    fill(maps)
    flusher, steps, count, told = Flusher(Query(proxy="web", states=frozenset(STATES))), 0, 0, []
    while (ended := flusher.step(maps, at_once=8, now_ns=NOW)) is not None:
        steps, count = steps + 1, count + ended.count
        told += ended.told.tolist()
        put(maps, 200 + steps % 20, DNS)  # others begin meanwhile
    assert steps > 5
    assert count == 100
    left = connections.connections(maps, now_ns=NOW)
    assert {row.proxy for row in left} == {"dns"}
    assert len(left) == 100 + min(steps, 20)
    assert len(maps["connection4"].items()[0]) == 2 * len(left)
    events = np.array(told, layout.connection_event)
    assert (events["kind"] == C["EVENT_FLUSHED"]).all()
    # Those of which both entries were there, and those of which only the target's was.
    forward, reverse = events["packets_forward"], events["packets_reverse"]
    assert sorted(reverse.tolist()) == [1000 + number for number in range(200) if number % 20 in (5, 7)]
    assert ((forward == reverse - 1000) | (forward == 0)).all()
    assert flusher.step(maps) is None


@pytest.mark.parametrize(
    ("query", "count"),
    [
        (Query(states=frozenset(STATES)), 200),
        (Query(target=Endpoint(endpoint(TARGET).ip, 1), states=frozenset(STATES)), 0),
        (Query(states=frozenset({"syn"})), 0),
        (Query(states=frozenset({"established"}), proxy="dns"), 100),
    ],
)
def test_flushing_by_filters(maps: Maps, query: Query, count: int) -> None:
    fill(maps)
    flusher, flushed = Flusher(query), 0
    while (ended := flusher.step(maps, at_once=8, now_ns=NOW)) is not None:
        flushed += ended.count
    assert flushed == count
    assert connections.count(maps, now_ns=NOW).total == 200 - count


def test_resetting_in_steps_marks_each_once(maps: Maps) -> None:
    fill(maps)
    put(maps, 300, WEB, protocol=17)
    resetter, steps = Resetter({("web", endpoint(TARGET))}), 1
    while resetter.step(maps, at_once=8):
        steps += 1
    assert steps > 5
    assert resetter.marked == 100
    keys, values = maps["connection4"].items()
    marked = values["c"]["flags"] & C["CONNECTION_RESET"] != 0
    assert (marked == ((values["c"]["proxy"] == WEB) & (keys["protocol"] == 6))).all()
    assert not Resetter({("mail", endpoint(TARGET))}).step(maps)


def test_whoever_waits_interrupts_a_long_reading(maps: Maps) -> None:
    fill(maps)
    answers = iter([False, False, True])
    maps.wanted = lambda: next(answers)
    with pytest.raises(InterruptedReading):
        connections.count(maps, now_ns=NOW)
    maps.wanted = lambda: True
    with pytest.raises(InterruptedReading):
        busy(maps)
    maps.wanted = None
    assert connections.count(maps, now_ns=NOW).total == 200
