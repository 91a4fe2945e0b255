"""The memory of events: order, waiting, and what is lost by who reads too slowly."""

from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import Mapping

import numpy as np

from reconciler.api.streams import as_answer
from reconciler.daemon.connlog import CLOSED, OPENED, ConnectionBatch, marks
from reconciler.kernel import layout
from reconciler.runtime.events import Events, Slice


def test_events_come_in_order_with_their_fields() -> None:
    events = Events()
    events.publish("target_down", target="10.0.0.1:80")
    events.publish("target_up", target="10.0.0.1:80")
    found, lost = events.after(0)
    assert [(event.number, event.kind) for event in found] == [(1, "target_down"), (2, "target_up")]
    assert found[0].fields == {"target": "10.0.0.1:80"}
    assert lost == 0
    assert events.after(1) == (found[1:], 0)
    assert events.after(2) == ((), 0)


def test_a_slow_reader_is_told_how_many_it_lost() -> None:
    events = Events(memory=3)
    for number in range(10):
        events.publish("tick", number=number)
    found, lost = events.after(4)
    assert [event.number for event in found] == [8, 9, 10]
    assert lost == 3


def test_waiting_ends_when_one_comes() -> None:
    events = Events()
    threading.Timer(0.05, lambda: events.publish("late")).start()
    found, _ = events.after(0, timeout_sec=30)
    assert [event.kind for event in found] == ["late"]


WEB = {0: "web"}


def connections(*ports: int, names: Mapping[int, str] = WEB) -> ConnectionBatch:
    """Connections opened by clients with these ports."""
    rows = np.zeros(len(ports), layout.connection_event)
    rows["family"], rows["client_port_be"], rows["kind"] = 4, ports, layout.CONSTANTS["EVENT_OPENED"]
    return ConnectionBatch(rows, names)


def test_connections_that_come_one_by_one_take_no_more_memory_than_many_at_once() -> None:
    events, count = Events(), 5000
    tracemalloc.start()
    try:
        for port in range(count):
            events.publish_batch(connections(port))
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used < 1.5 * count * layout.connection_event.itemsize
    found, lost = events.after(0)
    assert [event.number for event in found] == [*range(1, count + 1)]
    assert [event.fields["client"] for event in found] == [f"0.0.0.0:{port}" for port in range(count)]
    assert lost == 0


def test_what_happens_in_between_stays_in_between() -> None:
    events = Events()
    events.publish_batch(connections(1, 2))
    events.publish("config_applied", revision=2)
    events.publish_batch(connections(3))
    events.publish_batch(connections(4))
    found, _ = events.after(0)
    assert [event.fields.get("client", event.kind) for event in found] == [
        *("0.0.0.0:1", "0.0.0.0:2", "config_applied", "0.0.0.0:3", "0.0.0.0:4"),
    ]
    assert [event.number for event in found] == [1, 2, 3, 4, 5]
    found, _ = events.after(4)
    assert [event.fields["client"] for event in found] == ["0.0.0.0:4"]


def test_each_is_told_by_the_names_of_its_time() -> None:
    events = Events()
    events.publish_batch(connections(1))
    events.publish_batch(connections(2, names={0: "other"}))
    assert [event.fields["proxy"] for event in events.after(0)[0]] == ["web", "other"]


def mixed(count: int) -> ConnectionBatch:
    """Connections opened and ended in every way, of both families, of known and unknown proxies and protocols."""
    chance = np.random.default_rng(count)
    rows = np.zeros(count, layout.connection_event)
    for name in rows.dtype.names or ():
        kind = rows[name].dtype
        rows[name] = np.frombuffer(chance.bytes(kind.itemsize * rows[name].size), kind).reshape(rows[name].shape)
    rows["family"], rows["kind"] = chance.choice([4, 6], count), chance.integers(0, 9, count)
    rows["proxy"], rows["protocol"] = chance.integers(0, 4, count), chance.choice([6, 17, 50], count)
    rows["created_ns"] = chance.integers(0, 10**15, count)
    # Whole milliseconds: which way halves are rounded is no matter.
    rows["time_ns"] = rows["created_ns"] + (chance.integers(-10, 10**8, count) * 10**6).astype(np.uint64)
    return ConnectionBatch(rows, {0: "web", 1: 'a "b"\\', 2: "ö\ufffd"})


def test_connections_begun_one_after_the_other_are_told_apart() -> None:
    """Their ports and the ticks at which they began go up together."""
    rows = np.zeros(64 * 256, layout.connection_event)
    number = np.arange(len(rows))
    rows["client_port_be"] = 30000 + number % 256 * 64
    rows["created_ns"] = (1 << 30) + (number // 256 << layout.CREATED_SHIFT)
    assert len(set(marks(rows))) == len(rows)


def test_lines_say_what_events_say() -> None:
    events = Events()
    events.publish("config_applied", revision=2)
    events.publish_batch(mixed(1000))
    (_, piece), _ = events.pieces(0)
    assert isinstance(piece, Slice)
    found, _ = events.after(1)
    told = [as_answer(event).to_json() for event in found]
    everything = frozenset[str]()
    lines = piece.batch.event_lines(piece.start, piece.stop, piece.first, everything, None)
    assert list(map(json.loads, lines)) == told
    ended = [each for each in told if each["kind"] == CLOSED]
    assert 500 < len(ended) < 1000
    left_out = ("number", "kind")
    log = [{name: value for name, value in each.items() if name not in left_out} for each in ended]
    assert list(map(json.loads, piece.batch.closed_lines(piece.start, piece.stop))) == log
    assert [list(json.loads(line)) for line in piece.batch.closed_lines(0, 50)] == [list(each) for each in log][
        : len(piece.batch.closed_lines(0, 50))
    ]
    for kinds, proxy in (
        (frozenset({OPENED}), None),
        (frozenset({CLOSED}), "web"),
        (everything, 'a "b"\\'),
        (everything, "?3"),
    ):
        some = piece.batch.event_lines(100, 900, 102, kinds, proxy)
        wanted = [each for each in told[100:900] if not kinds or each["kind"] in kinds]
        assert list(map(json.loads, some)) == [each for each in wanted if proxy in (None, each["proxy"])]
        assert some


def test_pieces_are_cut_where_no_more_are_wanted() -> None:
    events = Events()
    for port in range(3):
        events.publish_batch(mixed(300 + port))
        events.publish("config_applied", revision=port)
    last, number, seen = events.last, 0, 0
    while number < last:
        pieces, lost = events.pieces(number, limit=100)
        assert not lost
        assert sum(map(len, pieces)) == min(100, last - number)
        assert [piece.first for piece in pieces] == [number + 1, *(piece.last + 1 for piece in pieces[:-1])]
        number, seen = pieces[-1].last, seen + sum(map(len, pieces))
    assert seen == last == 906
