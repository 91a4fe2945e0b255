"""Waiting to be told, and drift, with a kernel that is a value."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from reconciler.answers import Sync
from reconciler.daemon.loop import Loop
from reconciler.engine import Engine
from reconciler.errors import KernelError
from reconciler.places import Places
from reconciler.state.objects import Endpoint, ProgramState, Share
from tests.unit.runtime.fakelive import TARGET, TEXT, FakeLive, break_, write
from tests.unit.runtime.revising import FILES, again, lose_listeners, manual, port

# -- waiting to be told ----------------------------------------------------------------------------------------------


def test_manual_waits_and_keeps_what_is_applied_in_force(engine: Engine, places: Places, live: FakeLive) -> None:
    loop = Loop(engine)
    manual(places, 1)
    loop.look(FILES)
    assert live.executed == 0
    assert engine.status().sync is Sync.OUT_OF_SYNC
    engine.apply()
    assert engine.status().waiting == "", "there is nothing to apply"
    manual(places, 2)
    lose_listeners(live)
    loop.look(FILES)
    assert (port(live), len(live.state.state.listeners)) == (1, 1), "repaired, and not more than that"
    status = engine.status()
    assert (status.sync, status.policy) == (Sync.OUT_OF_SYNC, "manual")
    write(places, 2)
    loop.look(FILES)
    assert port(live) == 2


def test_suspended_it_stays_when_it_is_taken_down(engine: Engine, live: FakeLive) -> None:
    live.down = lambda _originals: ()  # type: ignore[attr-defined]
    engine.revisions.suspend()
    engine.down()
    assert (bool(engine.revisions.control.suspended), engine.revisions.control.down) == (True, True)


def test_suspended_over_restarts(engine: Engine, places: Places, live: FakeLive) -> None:
    since = engine.revisions.suspend().since
    assert engine.revisions.suspend().since == since
    write(places, 1)
    loop = Loop(again(places, live))
    assert loop.look(frozenset({"start"})) is None
    assert (live.executed, engine.status().suspended) == (0, since)
    engine.apply()
    assert port(live) == 1, "who says so is obeyed"
    engine.revisions.resume()
    write(places, 2)
    loop.look(FILES)
    assert port(live) == 2


def test_after_a_start_of_the_machine_what_was_approved_is_put_in_force(places: Places, live: FakeLive) -> None:
    manual(places, 1)
    again(places, live).apply()
    manual(places, 2)
    booted = FakeLive()
    Loop(again(places, booted)).look(frozenset({"start"}))
    assert port(booted) == 1
    again(places, booted).revisions.taken_down()
    down = FakeLive()
    Loop(again(places, down)).look(frozenset({"start"}))
    assert down.executed == 0, "what was taken down on purpose stays down"


# -- drift -----------------------------------------------------------------------------------------------------------


def test_drift_is_put_right_counted_and_told_and_no_revision(engine: Engine, places: Places, live: FakeLive) -> None:
    loop = Loop(engine)
    write(places, 1)
    loop.look(FILES)
    seen = engine.events.last
    lose_listeners(live)
    loop.look(frozenset({"resync"}))
    assert len(live.state.state.listeners) == 1
    (event,), lost = engine.events.after(seen)
    assert (event.kind, lost) == ("drift_repaired", 0)
    assert event.fields == {"revision": 1, "objects": [{"action": "update", "object": "proxy", "name": "web"}]}
    status = engine.status()
    assert (status.revision, status.drift_repaired) == (1, 1)
    assert len(engine.archive.entries()) == 1


def test_a_line_of_the_log_names_no_more_than_some_of_what_was_put_right(engine: Engine) -> None:
    """As where somebody has wiped the maps of a hundred thousand routes."""
    objects = [("update", "route", f"web/10.0.{number}.0/24") for number in range(200)]
    with capture_logs() as lines:
        engine._commits.tell_drift(objects, 1)
    (line,) = lines
    assert (line["event"], line["number"]) == ("drift_repaired", 200)
    assert 0 < len(line["objects"]) <= 50
    assert line["objects"][0] == "route web/10.0.0.0/24"


def test_an_edit_is_no_drift_and_neither_is_the_host(engine: Engine, places: Places, live: FakeLive) -> None:
    loop = Loop(engine)
    for number in (1, 2):
        write(places, number)
        loop.look(FILES)
    live.native = True
    loop.look(frozenset({"network: link"}))
    assert live.executed == 3
    assert [event.kind for event in engine.events.after(0)[0]] == ["config_applied", "config_applied"]
    assert engine.status().drift_repaired == 0


def test_shares_that_move_without_a_commit_are_no_drift(engine: Engine, places: Places, live: FakeLive) -> None:
    loop = Loop(engine)
    write(places, 1)
    loop.look(FILES)
    half = {("web", Endpoint(TARGET, 1)): Share(2)}
    live.state = replace(live.state, state=replace(live.state.state, shares=half))
    loop.look(frozenset({"resync"}))
    assert live.state.state.shares == {}
    assert engine.status().drift_repaired == 0


def test_the_first_proxy_of_an_idle_host_is_no_drift(engine: Engine, places: Places, live: FakeLive) -> None:
    """A service that was installed has nothing to do at first, and makes nothing."""
    loop = Loop(engine)
    loop.look(frozenset({"start"}))
    assert live.executed == 0
    write(places, 1)
    loop.look(FILES)
    assert [event.kind for event in engine.events.after(0)[0]] == ["config_applied"]
    assert engine.status().drift_repaired == 0


def test_another_version_of_the_programs_is_no_drift(
    engine: Engine, places: Places, live: FakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the first look of a daemon that was upgraded, with what somebody has done meanwhile."""
    write(places, 1)
    Loop(engine).look(FILES)
    monkeypatch.setattr(live, "tag", "another")
    lose_listeners(live)
    upgraded = again(places, live)
    Loop(upgraded).look(frozenset({"start"}))
    (event,) = upgraded.events.after(0)[0]
    assert event.fields["objects"] == [{"action": "update", "object": "proxy", "name": "web"}]
    assert live.state.state.program == ProgramState("another", 100000)


def test_what_somebody_did_and_the_files_now_say_is_no_drift(engine: Engine, places: Places, live: FakeLive) -> None:
    """Nothing of it is put right."""
    loop = Loop(engine)
    write(places, 1)
    loop.look(FILES)
    lose_listeners(live)
    (places.config_dir / "a.yaml").write_text(TEXT.format(port=2).replace("eth0", "eth9"))
    loop.look(FILES)
    assert live.state.state.listeners == {}
    assert [event.kind for event in engine.events.after(0)[0]] == ["config_applied", "config_applied"]


def test_drift_that_can_not_be_put_right_while_the_files_wait_is_told(
    engine: Engine, places: Places, live: FakeLive
) -> None:
    loop = Loop(engine)
    manual(places, 1)
    engine.apply()
    manual(places, 2)
    lose_listeners(live)
    live.errors = [KernelError("update", "map listener4", errno.ENOMEM)]
    loop.look(FILES)
    status = engine.status()
    assert (status.sync, [each.message for each in status.errors]) == (Sync.DEGRADED, ["update map listener4: ENOMEM"])
    loop.look(FILES)
    assert engine.status().sync is Sync.OUT_OF_SYNC


def test_drift_is_put_right_while_the_files_are_broken(engine: Engine, places: Places, live: FakeLive) -> None:
    loop = Loop(engine)
    write(places, 1)
    loop.look(FILES)
    break_(places)
    lose_listeners(live)
    loop.look(FILES)
    assert len(live.state.state.listeners) == 1
    assert engine.status().sync is Sync.DEGRADED
