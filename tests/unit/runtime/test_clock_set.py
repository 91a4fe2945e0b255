"""The clock on the wall is set by hours while something runs, forwards and backwards: times that are told are another
afterwards, and nothing happens earlier or later for it."""

from __future__ import annotations

import ast
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest

import reconciler
from reconciler.config import files as config_files
from reconciler.daemon.loop import Loop
from reconciler.engine import Engine
from reconciler.places import Places
from reconciler.runtime import clock as told
from reconciler.runtime.events import Events
from reconciler.runtime.history import APPLIED
from reconciler.runtime.snapshot import Fingerprints, settle
from tests.unit.runtime.fakelive import FakeLive, write
from tests.unit.runtime.revising import FILES, again, port

HOURS = (5, -5)

Set = Callable[[float], None]

TELLING = {
    "daemon/accesslog.py": "a line's time",
    "daemon/connlog.py": "when a connection was opened and closed, of the kernel's clock that only runs",
    "daemon/process.py": "a metric: when it was looked",
    "doctor/look.py": "how old git's lock is, whether commits are of the future",
    "runtime/clock.py": "what all the others tell",
    "runtime/commits.py": "when a revision was applied",
    "runtime/drains.py": "since when a target is drained",
    "runtime/events.py": "when something happened",
    # When a file was written is told by that clock alone: whatever it says, two looks have to agree.
    "config/files.py": "whether a file was written just now",
    "daemon/watcher.py": "whether a directory was changed just now",
    "runtime/signed.py": "whether a key is valid at this time",
    "runtime/snapshot.py": "how long files have been as they are",
}
"""Who asks the clock on the wall, and what for."""


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Set:
    """Set it by so many hours."""
    shift, time_ns = [0.0], time.time_ns

    class Wall(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # a plain datetime will do
            return datetime.now(tz) + timedelta(hours=shift[0])

    monkeypatch.setattr(told, "datetime", Wall)
    monkeypatch.setattr(time, "time_ns", lambda: time_ns() + int(shift[0] * 3600e9))

    def by(hours: float) -> None:
        shift[0] += hours

    return by


def test_nobody_else_asks_that_clock() -> None:
    """Who measures how long something takes asks one that only runs."""
    package = Path(reconciler.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                asked = (node.value.id, node.attr)
                if asked in {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("time", "CLOCK_REALTIME")}:
                    found.add(str(path.relative_to(package)))
    assert found == set(TELLING)


@pytest.mark.parametrize("hours", [0, *HOURS])
@pytest.mark.parametrize(("age_sec", "taken"), [(59.0, True), (61.0, False)])
def test_what_the_daemon_has_just_applied_is_taken_over(
    engine: Engine, places: Places, clock: list[float], set_clock: Set, hours: float, age_sec: float, taken: bool
) -> None:
    loop = Loop(engine)
    for number in (1, 2):
        write(places, number)
        loop.look(FILES)
    set_clock(hours)
    clock[0] += age_sec
    assert (engine.apply(confirm_within_sec=30).unconfirmed is not None) == taken


def test_what_another_process_applied_in_the_future_was_not_just_now(
    engine: Engine, places: Places, live: FakeLive, set_clock: Set
) -> None:
    for number in (1, 2):
        write(places, number)
        Loop(engine).look(FILES)
    set_clock(-5)
    assert again(places, live).apply(confirm_within_sec=30).unconfirmed is None


@pytest.mark.parametrize("hours", HOURS)
def test_an_unconfirmed_commit_has_the_time_it_was_given(
    engine: Engine, places: Places, live: FakeLive, clock: list[float], set_clock: Set, hours: float
) -> None:
    loop = Loop(engine)
    write(places, 1)
    engine.apply()
    write(places, 2)
    first = engine.apply(confirm_within_sec=30).unconfirmed
    assert first is not None
    assert engine.status().unconfirmed == first
    set_clock(hours)
    clock[0] += 29
    loop.look(FILES)
    waiting = engine.status().unconfirmed
    assert waiting is not None
    assert waiting.left_sec == 1.0
    assert told.age_sec(waiting.deadline) == pytest.approx(-1, abs=0.5), "on the clock that there is now"
    assert port(live) == 2
    clock[0] += 1
    loop.look(FILES)
    assert port(live) == 1


@pytest.mark.parametrize("hours", HOURS)
def test_revisions_go_by_their_numbers(
    engine: Engine, places: Places, live: FakeLive, set_clock: Set, hours: float
) -> None:
    for number in (1, 2, 3):
        write(places, number)
        engine.apply()
        set_clock(hours)
    assert [each.number for each in engine.archive.entries() if each.result == APPLIED] == [1, 2, 3]
    engine.revisions.rollback()
    assert port(live) == 2
    assert engine.status().revision == 4


@pytest.mark.parametrize("hours", HOURS)
def test_files_are_read_as_soon_as_they_are_quiet(places: Places, set_clock: Set, hours: float) -> None:
    """Those written before the clock was set, and those written after, which the host's own clock still dates."""
    cache, slept = config_files.Cache(), list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        threading.Event().wait(seconds)

    write(places, 1)
    fingerprints = Fingerprints(places.config_dir)
    assert config_files.load(places.config_dir, cache).files
    set_clock(hours)
    for number in (2, 3):
        write(places, number)
        assert settle(fingerprints, quiet_sec=0.05, sleep=sleep) == Fingerprints(places.config_dir).take()
        (file,) = config_files.load(places.config_dir, cache).files
        assert f"port: {number}".encode() in file.content
    assert sum(slept) < 1


@pytest.mark.parametrize("hours", HOURS)
def test_events_go_by_their_numbers(set_clock: Set, hours: float) -> None:
    events = Events()
    events.publish("one")
    set_clock(hours)
    events.publish("two")
    (one, two), missed = events.after(0)
    assert ((one.kind, two.kind), missed) == (("one", "two"), 0)
    assert (two.time_ns - one.time_ns) / 3600e9 == pytest.approx(hours, abs=0.1), "the time is that of the clock"
    assert [each.kind for each in events.after(one.number)[0]] == ["two"]
