"""The memory of events: order, waiting, and what is lost by who reads too slowly."""

from __future__ import annotations

import threading

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
