"""The memory of events: order, waiting, and what is lost by who reads too slowly."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np

from reconciler.kernel import layout
from reconciler.runtime.connlog import ConnectionBatch
from reconciler.runtime.events import Events


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


def connections(*ports: int) -> ConnectionBatch:
    """Connections opened by clients with these ports."""
    rows = np.zeros(len(ports), layout.connection_event)
    rows["family"], rows["client_port_be"], rows["kind"] = 4, ports, layout.CONSTANTS["EVENT_OPENED"]
    return ConnectionBatch(rows, {0: "web"})


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
