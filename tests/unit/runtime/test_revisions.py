"""Going back, confirming, waiting to be told, and drift, with a kernel that is a value."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from typing import Any

import pytest

from reconciler import answers
from reconciler.answers import Sync
from reconciler.engine import Engine, HeldError
from reconciler.errors import (
    KernelError,
    NothingToConfirmError,
    RevproxyError,
    StaleError,
    TransactionError,
    UnfinishedError,
)
from reconciler.kernel.transaction import Result
from reconciler.places import Places
from reconciler.runtime import control, savedplan
from reconciler.runtime.loop import Loop
from reconciler.runtime.revisions import LONGEST_SEC
from reconciler.state.plan import Plan
from tests.unit.runtime.test_engine import TEXT, FakeLive, break_, engine, live, mend, places, write

__all__ = ["engine", "live", "places"]  # fixtures

MANUAL = "settings: {sync: manual}\n"
FILES = frozenset({"files"})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds since the machine was started."""
    now = [1000.0]
    monkeypatch.setattr(control, "boot_clock", lambda: now[0])
    monkeypatch.setattr("reconciler.runtime.revisions.boot_clock", lambda: now[0])
    return now


def again(places: Places, live: FakeLive) -> Engine:
    """The engine of another process."""
    return Engine(places, live=live)  # type: ignore[arg-type]


def port(live: FakeLive) -> int:
    """The port of the one target that is live."""
    (proxy,) = live.state.state.proxies.values()
    assert proxy.default4 is not None
    return proxy.default4.members[0][0].port


def manual(places: Places, number: int) -> None:
    (places.config_dir / "a.yaml").write_text(TEXT.format(port=number) + MANUAL)


def lose_listeners(live: FakeLive) -> None:
    """As somebody with bpftool would."""
    live.state = replace(live.state, state=replace(live.state.state, listeners={}))


# -- going back ------------------------------------------------------------------------------------------------


def test_rollback_brings_the_files_of_before_and_holds_those_there_are(
    engine: Engine, places: Places, live: FakeLive
) -> None:
    for number in (1, 2, 3):
        write(places, number)
        engine.apply()
    assert engine.revisions.rollback().revision == 4
    assert port(live) == 2
    loop = Loop(again(places, live))
    loop.look(frozenset({"start"}))
    loop.look(frozenset({"reload"}))
    assert port(live) == 2
    status = engine.status()
    assert (status.sync, "rolled back" in status.waiting) == (Sync.OUT_OF_SYNC, True)
    write(places, 4)
    loop.look(FILES)
    assert port(live) == 4
    write(places, 3)
    loop.look(FILES)
    assert port(live) == 3, "they have changed, and changed back"


def test_apply_is_the_other_way_out_of_a_rollback(engine: Engine, places: Places, live: FakeLive) -> None:
    for number in (1, 2):
        write(places, number)
        engine.apply()
    engine.revisions.rollback(1)
    engine.apply()
    assert port(live) == 2
    assert engine.status().sync is Sync.SYNCED
    assert [(each.cause, each.of) for each in engine.revisions.history()] == [
        ("apply", None),
        ("apply", None),
        ("rollback", 1),
        ("apply", None),
    ]


def test_a_rollback_that_fails_holds_nothing(engine: Engine, places: Places, live: FakeLive) -> None:
    for number in (1, 2):
        write(places, number)
        engine.apply()
    live.errors = [TransactionError(KernelError("update", "map x", errno.EIO), rolled_back=True)]
    with pytest.raises(TransactionError):
        engine.revisions.rollback()
    assert engine.revisions.control.hold is None
    assert engine.revisions.history()[-1].result == "failed"
    assert port(live) == 2


def test_what_there_is_not_to_go_back_to(engine: Engine, places: Places) -> None:
    with pytest.raises(RevproxyError, match="nothing is applied"):
        engine.revisions.rollback()
    write(places)
    engine.apply()
    for number, word in ((None, "before"), (1, "is what is applied"), (2, "no applied revision 2")):
        with pytest.raises(RevproxyError, match=word):
            engine.revisions.rollback(number)


def test_rollback_while_the_files_are_broken(engine: Engine, places: Places, live: FakeLive) -> None:
    for number in (1, 2):
        write(places, number)
        engine.apply()
    break_(places)
    engine.revisions.rollback()
    assert port(live) == 1
    mend(places)
    Loop(engine).look(FILES)
    assert port(live) == 2, "mended is changed"


# -- confirming ------------------------------------------------------------------------------------------------


def test_without_a_word_it_goes_back_when_the_time_is_up(
    engine: Engine, places: Places, live: FakeLive, clock: list[float]
) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    unconfirmed = engine.apply(confirm_within_sec=30).unconfirmed
    assert unconfirmed is not None
    assert (unconfirmed.revision, unconfirmed.previous, unconfirmed.left_sec) == (2, 1, 30.0)
    loop = Loop(again(places, live))  # the daemon was started anew meanwhile
    assert loop.look(FILES) == 30.0
    clock[0] += 29
    assert loop.look(FILES) == 1.0
    assert port(live) == 2
    clock[0] += 1
    loop.look(FILES)
    assert port(live) == 1
    assert loop.look(FILES) is None
    assert engine.status().sync is Sync.OUT_OF_SYNC
    with pytest.raises(NothingToConfirmError):
        engine.revisions.confirm()
    assert engine.archive.entries()[-1].cause == "expired"


def test_time_that_runs_out_during_a_look_is_not_missed(
    engine: Engine, places: Places, live: FakeLive, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    engine.apply(confirm_within_sec=30)
    engine.revisions.suspend()
    loop = Loop(engine)
    monkeypatch.setattr(engine, "adopt", lambda: clock.__setitem__(0, clock[0] + 31))
    assert loop.look(FILES) == 0.0
    loop.look(FILES)
    assert port(live) == 1


def test_it_goes_back_also_while_files_are_being_edited(
    engine: Engine, places: Places, live: FakeLive, clock: list[float]
) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    engine.apply(confirm_within_sec=30)
    loop = Loop(engine)
    loop.hold.take(180)
    assert loop.look(FILES) == 30.0
    clock[0] += 30
    loop.look(FILES)
    assert port(live) == 1


def test_confirmed_it_stays(engine: Engine, places: Places, live: FakeLive, clock: list[float]) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    engine.apply(confirm_within_sec=30)
    assert engine.revisions.confirm() == answers.Confirmed(2)
    clock[0] += 100
    Loop(engine).look(FILES)
    assert port(live) == 2
    assert engine.status().sync is Sync.SYNCED


def test_a_word_that_comes_too_late_is_none(engine: Engine, places: Places, live: FakeLive, clock: list[float]) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    engine.apply(confirm_within_sec=30)
    clock[0] += 31
    with pytest.raises(NothingToConfirmError):
        engine.revisions.confirm()
    assert port(live) == 1


def test_applying_again_gives_it_its_time_and_goes_back_as_far(
    engine: Engine, places: Places, live: FakeLive, clock: list[float]
) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    engine.apply(confirm_within_sec=30)
    clock[0] += 20
    write(places, 3)
    assert engine.apply(confirm_within_sec=60).unconfirmed.left_sec == 60  # type: ignore[union-attr]
    clock[0] += 50
    assert engine.apply().unconfirmed.left_sec == 60, "without a duration: the same again"  # type: ignore[union-attr]
    clock[0] += 60
    engine.revisions.expire()
    assert port(live) == 1


def test_files_that_change_meanwhile_wait(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    engine.apply(confirm_within_sec=30)
    write(places, 3)
    loop = Loop(engine)
    loop.look(FILES)
    assert port(live) == 2
    assert "confirm" in engine.status().waiting
    engine.revisions.confirm()
    loop.look(FILES)
    assert port(live) == 3


def test_it_goes_back_while_suspended_too(engine: Engine, places: Places, live: FakeLive, clock: list[float]) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    engine.apply(confirm_within_sec=30)
    engine.revisions.suspend()
    clock[0] += 30
    Loop(engine).look(FILES)
    assert port(live) == 1


def test_the_first_commit_goes_back_to_nothing(
    engine: Engine, places: Places, live: FakeLive, clock: list[float]
) -> None:
    write(places, 1)
    engine.apply(confirm_within_sec=30)
    clock[0] += 30
    Loop(engine).look(FILES)
    assert live.state.state.proxies == {}


def test_after_a_start_of_the_machine_what_was_confirmed_is_put_in_force(
    engine: Engine, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    engine.apply(confirm_within_sec=30)
    monkeypatch.setattr(control, "boot_id", lambda: "another")
    booted = FakeLive()
    Loop(again(places, booted)).look(frozenset({"start"}))
    assert port(booted) == 1


def test_a_commit_that_fails_leaves_nothing_to_confirm(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    live.errors = [TransactionError(KernelError("update", "map x", errno.EIO), rolled_back=True)]
    with pytest.raises(TransactionError):
        engine.apply(confirm_within_sec=30)
    assert engine.revisions.control.unconfirmed is None
    assert engine.revisions.unconfirmed() is None


def test_killed_behind_the_switch_it_goes_back_all_the_same(
    engine: Engine, places: Places, live: FakeLive, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    execute = live.execute

    def killed(plan: Plan, verify: object = None) -> Result:
        execute(plan, verify)
        raise KilledError

    write(places, 1)
    engine.apply()
    write(places, 2)
    monkeypatch.setattr(live, "execute", killed)
    with pytest.raises(KilledError):
        engine.apply(confirm_within_sec=30)
    monkeypatch.setattr(live, "execute", execute)
    assert port(live) == 2
    clock[0] += 30
    Loop(again(places, live)).look(frozenset({"start"}))
    assert port(live) == 1


def test_a_commit_that_holds_but_is_not_finished_is_still_to_be_confirmed(
    engine: Engine, places: Places, live: FakeLive, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = live.execute

    def unfinished(plan: Plan, verify: object = None) -> Result:
        execute(plan, verify)
        lose_listeners(live)
        return Result()

    write(places, 1)
    engine.apply()
    write(places, 2)
    monkeypatch.setattr(live, "execute", unfinished)
    with pytest.raises(UnfinishedError):
        engine.apply(confirm_within_sec=30)
    monkeypatch.setattr(live, "execute", execute)
    clock[0] += 30
    Loop(engine).look(FILES)
    assert port(live) == 1


def test_it_is_refused_where_nothing_can_be_written_down(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places, 1)
    places.state_dir.write_text("a file")
    with pytest.raises(RevproxyError, match=r"control\.json"):
        engine.apply(confirm_within_sec=30)
    assert live.executed == 0


@pytest.mark.parametrize("seconds", [0.0, 0.5, LONGEST_SEC + 1])
def test_times_that_can_not_be_meant(engine: Engine, places: Places, live: FakeLive, seconds: float) -> None:
    write(places, 1)
    with pytest.raises(RevproxyError, match="days"):
        engine.apply(confirm_within_sec=seconds)
    assert live.executed == 0


@pytest.mark.parametrize(("age_sec", "taken"), [(59.0, True), (61.0, False)])
def test_what_the_daemon_has_just_applied_is_taken_over(
    engine: Engine, places: Places, monkeypatch: pytest.MonkeyPatch, age_sec: float, taken: bool
) -> None:
    loop = Loop(engine)
    for number in (1, 2):
        write(places, number)
        loop.look(FILES)
    monkeypatch.setattr("reconciler.runtime.clock.age_sec", lambda _: age_sec)
    unconfirmed = engine.apply(confirm_within_sec=30).unconfirmed
    assert (unconfirmed is not None) == taken
    assert unconfirmed is None or unconfirmed.previous == 1


# -- saved plans -----------------------------------------------------------------------------------------------


def test_a_plan_survives_its_file_and_is_applied(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    saved = savedplan.parse(json.loads(json.dumps(answers.to_json(engine.saved_plan()))))
    assert saved.plan.changes == engine.plan().changes
    assert engine.apply(plan=saved).changes == saved.plan.changes
    assert (port(live), engine.archive.entries()[-1].cause) == (2, "plan")
    assert engine.status().waiting == "", "the files are those of the plan"


def test_a_plan_with_other_files_holds_those_there_are(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    saved = engine.saved_plan()
    write(places, 3)
    engine.apply(plan=saved)
    Loop(engine).look(FILES)
    assert port(live) == 2
    assert "saved plan" in engine.status().waiting


def stale(engine: Engine, saved: answers.SavedPlan, live: FakeLive) -> None:
    before = live.executed
    with pytest.raises(StaleError, match="make it anew"):
        engine.apply(plan=saved)
    assert live.executed == before


def test_a_plan_is_stale_when_the_kernel_or_the_host_moved_on(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    saved = engine.saved_plan()
    there = live.state
    lose_listeners(live)
    stale(engine, saved, live)
    live.state = there
    live.native = True  # the driver can do what it could not
    stale(engine, saved, live)
    live.native = False
    stale(engine, replace(saved, tag="another"), live)
    engine.apply()
    stale(engine, saved, live)


def test_a_plan_is_stale_also_where_it_would_do_the_same_again(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    saved = engine.saved_plan()
    for number in (3, 1):
        write(places, number)
        engine.apply()
    stale(engine, saved, live)


@pytest.mark.parametrize("content", ["x", "[]", "{}", '{"format": "revproxy-plan/v1"}', '{"format": 3}'])
def test_what_is_no_plan(tmp_path: Any, content: str) -> None:
    path = tmp_path / "plan"
    path.write_text(content)
    with pytest.raises(RevproxyError, match="plan"):
        savedplan.load(path)


def test_a_plan_whose_files_are_damaged_is_refused(engine: Engine, places: Places) -> None:
    write(places, 1)
    saved = engine.saved_plan()
    with pytest.raises(RevproxyError, match="damaged"):
        engine.apply(plan=replace(saved, files=(answers.PlanFile("a.yaml", "!"),)))


# -- waiting to be told ----------------------------------------------------------------------------------------


def test_manual_waits_and_keeps_what_is_applied_in_force(engine: Engine, places: Places, live: FakeLive) -> None:
    loop = Loop(engine)
    manual(places, 1)
    loop.look(FILES)
    assert live.executed == 0
    assert engine.status().sync is Sync.OUT_OF_SYNC
    engine.apply()
    manual(places, 2)
    lose_listeners(live)
    loop.look(FILES)
    assert (port(live), len(live.state.state.listeners)) == (1, 1), "repaired, and not more than that"
    status = engine.status()
    assert (status.sync, status.policy) == (Sync.OUT_OF_SYNC, "manual")
    write(places, 2)
    loop.look(FILES)
    assert port(live) == 2


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


# -- drift -----------------------------------------------------------------------------------------------------


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


def test_drift_is_put_right_while_the_files_are_broken(engine: Engine, places: Places, live: FakeLive) -> None:
    loop = Loop(engine)
    write(places, 1)
    loop.look(FILES)
    break_(places)
    lose_listeners(live)
    loop.look(FILES)
    assert len(live.state.state.listeners) == 1
    assert engine.status().sync is Sync.DEGRADED


# -- what is told ----------------------------------------------------------------------------------------------


def test_refused_and_failed_attempts_are_in_the_history_once(engine: Engine, places: Places, live: FakeLive) -> None:
    loop = Loop(engine)
    write(places, 1)
    loop.look(FILES)
    break_(places)
    for _ in range(3):
        loop.look(FILES)
    mend(places)
    write(places, 2)
    live.errors = [TransactionError(KernelError("update", "map x", errno.EIO), rolled_back=True)]
    loop.look(FILES)
    found = engine.revisions.history()
    assert [(each.number, each.result, each.files) for each in found] == [
        (1, "applied", ("a.yaml",)),
        (2, "refused", ("b.yaml",)),
        (2, "failed", ("a.yaml",)),
    ]
    assert "EIO" in found[2].error
    status = engine.status()
    assert status.attempt is not None
    assert (status.revision, status.attempt.revision, status.attempt.result) == (1, 2, "failed")


def test_a_commit_that_holds_is_not_said_to_have_failed(
    engine: Engine, places: Places, live: FakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = live.execute

    def unfinished(plan: Plan, verify: object = None) -> Result:
        execute(plan, verify)
        lose_listeners(live)
        return Result(pending=KernelError("detach", "eth1", errno.EBUSY))

    write(places, 1)
    monkeypatch.setattr(live, "execute", unfinished)
    with pytest.raises(UnfinishedError, match=r"revision 1 is applied, but .*detach eth1: EBUSY.*proxy web"):
        engine.apply()
    assert engine.attempt is not None
    assert engine.attempt.result == "applied"
    assert [each.result for each in engine.archive.entries()] == ["applied"]
    monkeypatch.setattr(live, "execute", execute)
    loop = Loop(engine)
    loop.look(FILES)
    assert engine.status().sync is Sync.SYNCED


def test_a_file_without_content_that_had_some_is_held(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places, 1)
    other = places.config_dir / "b.yaml"
    other.write_text(TEXT.format(port=1).replace("web", "other").replace("port: 80,", "port: 81,"))
    engine.apply()
    other.write_text("")
    with pytest.raises(HeldError, match=r"b\.yaml.*--allow-empty"):
        engine.apply()
    assert engine.status().sync is Sync.DEGRADED
    assert set(live.state.state.proxies) == {"web", "other"}
    engine.apply(allow_empty=True)
    assert set(live.state.state.proxies) == {"web"}
    assert engine.status().sync is Sync.SYNCED
    assert engine.apply().changes == ()


def test_a_file_that_never_had_content_is_none_of_that(engine: Engine, places: Places) -> None:
    write(places, 1)
    (places.config_dir / "b.yaml").write_text("")
    engine.apply()
    write(places, 2)
    engine.apply()
    assert engine.status().sync is Sync.SYNCED


def test_conditions_follow_the_loop(engine: Engine, places: Places) -> None:
    loop = Loop(engine)
    write(places, 1)
    loop.look(FILES)
    first = engine.status().conditions
    assert {each.type: each.status for each in first} == {"Synced": "True", "Degraded": "False", "Progressing": "False"}
    break_(places)
    loop.look(FILES)
    second = {each.type: each for each in engine.status().conditions}
    assert (second["Degraded"].status, second["Degraded"].reason) == ("True", "FilesWrong")
    assert second["Degraded"].last_transition > first[1].last_transition
    assert second["Progressing"] == replace(first[2], reason="Stuck", message=second["Progressing"].message)


def test_another_program_is_another_situation(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places)
    view = engine.view()
    live.tag = "another"
    assert not engine.view().same_situation(view)


def test_what_kept_connections_needed_is_freed_without_a_word(
    engine: Engine, places: Places, live: FakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(places)
    engine.apply()
    monkeypatch.setattr(live, "sweep", lambda: 1, raising=False)
    allocation = replace(live.state.allocation, retired_targets=frozenset({7}))
    live.state = replace(live.state, allocation=allocation)
    engine.view()
    live.state = replace(live.state, unfinished=True)
    engine.sweep()
    assert (live.recovered, live.state.unfinished) == (1, False)


# -- killed before it could be written down --------------------------------------------------------------------


def test_a_revision_without_a_line_is_found_and_can_be_gone_back_to(
    engine: Engine, places: Places, live: FakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill right behind the commit: the kernel has it, the history does not."""
    write(places, 1)
    engine.apply()
    write(places, 2)
    with monkeypatch.context() as killed:
        killed.setattr("reconciler.runtime.commits.Commits._tell", lambda *_: None)
        engine.apply()
    assert [each.number for each in engine.archive.entries()] == [1]
    write(places, 3)
    after = again(places, live)
    Loop(after).look(frozenset({"start"}))
    told = [(each.number, each.cause, each.files) for each in after.archive.entries()]
    assert told == [(1, "apply", ("a.yaml",)), (2, "found", ("a.yaml",)), (3, "files", ("a.yaml",))]
    after.revisions.rollback()
    assert port(live) == 2
