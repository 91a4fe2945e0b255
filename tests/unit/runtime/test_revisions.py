"""Going back, and confirming, with a kernel that is a value."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from reconciler import answers, waiter
from reconciler.answers import Sync
from reconciler.daemon.loop import Loop
from reconciler.engine import Engine
from reconciler.errors import (
    ForeignProgramError,
    KernelError,
    NothingToConfirmError,
    RevproxyError,
    TransactionError,
    UnfinishedError,
)
from reconciler.kernel.transaction import Result
from reconciler.places import Places
from reconciler.runtime import control
from reconciler.runtime.revisions import LONGEST_SEC
from reconciler.state.plan import Plan
from tests.unit.runtime.fakelive import FakeLive, break_, mend, write
from tests.unit.runtime.revising import FILES, again, lose_listeners, port


def apply_unconfirmed(engine: Engine, places: Places) -> None:
    """Revision 1, and revision 2, which has thirty seconds to be confirmed."""
    write(places, 1)
    engine.apply()
    write(places, 2)
    engine.apply(confirm_within_sec=30)


def unfinished(live: FakeLive) -> Callable[..., Result]:
    """Executions that hold, behind which something is still different."""
    execute = live.execute

    def run(plan: Plan, verify: object = None) -> Result:
        execute(plan, verify)
        lose_listeners(live)
        return Result()

    return run


class KilledError(BaseException):
    """Nothing that comes after it is done."""


def killed(live: FakeLive, *, switched: bool = True) -> Callable[..., Result]:
    """Executions in which the process is killed, behind the switch or ahead of it."""
    execute = live.execute

    def run(plan: Plan, verify: object = None) -> Result:
        if switched:
            execute(plan, verify)
        raise KilledError

    return run


# -- going back ------------------------------------------------------------------------------------------------------


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


# -- confirming ------------------------------------------------------------------------------------------------------


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
    apply_unconfirmed(engine, places)
    engine.revisions.suspend()
    loop = Loop(engine)
    monkeypatch.setattr(engine, "adopt", lambda: clock.__setitem__(0, clock[0] + 31))
    assert loop.look(FILES) == 0.0
    loop.look(FILES)
    assert port(live) == 1


def test_it_goes_back_also_while_files_are_being_edited(
    engine: Engine, places: Places, live: FakeLive, clock: list[float]
) -> None:
    apply_unconfirmed(engine, places)
    loop = Loop(engine)
    loop.hold.take(180)
    assert loop.look(FILES) == 30.0
    clock[0] += 30
    loop.look(FILES)
    assert port(live) == 1


def test_one_that_can_not_go_back_is_told_by_every_process_until_it_can(
    engine: Engine, places: Places, live: FakeLive, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_unconfirmed(engine, places)
    engine.revisions.suspend()  # also then
    clock[0] += 31
    loop, taken = Loop(again(places, live)), ForeignProgramError("eth0 carries somebody else's program")
    with monkeypatch.context() as patched:
        patched.setattr(live, "facts", lambda _config: raising(taken))
        loop.look(FILES)
    for each in (engine, again(places, live)):
        status = each.status()
        assert status.sync is Sync.DEGRADED
        assert [problem.message for problem in status.errors] == [
            "revision 2 was not confirmed in time, and can't be rolled back: eth0 carries somebody else's program"
        ]
        told = {condition.type: (condition.status, condition.reason) for condition in status.conditions}
        assert (told["Degraded"], told["Progressing"]) == (("True", "RollbackFailed"), ("True", "RollingBack"))
    assert port(live) == 2
    loop.look(FILES)
    assert port(live) == 1
    assert engine.status().errors == ()


def raising(error: Exception) -> None:
    raise error


def test_confirmed_it_stays(engine: Engine, places: Places, live: FakeLive, clock: list[float]) -> None:
    apply_unconfirmed(engine, places)
    assert engine.revisions.confirm() == answers.Confirmed(2)
    clock[0] += 100
    Loop(engine).look(FILES)
    assert port(live) == 2
    assert engine.status().sync is Sync.SYNCED


def test_a_word_that_comes_too_late_is_none(engine: Engine, places: Places, live: FakeLive, clock: list[float]) -> None:
    apply_unconfirmed(engine, places)
    clock[0] += 31
    with pytest.raises(NothingToConfirmError):
        engine.revisions.confirm()
    assert port(live) == 1


def test_applying_again_gives_it_its_time_and_goes_back_as_far(
    engine: Engine, places: Places, live: FakeLive, clock: list[float]
) -> None:
    apply_unconfirmed(engine, places)
    clock[0] += 20
    write(places, 3)
    assert engine.apply(confirm_within_sec=60).unconfirmed.left_sec == 60  # type: ignore[union-attr]
    clock[0] += 50
    assert engine.apply().unconfirmed.left_sec == 60, "without a duration: the same again"  # type: ignore[union-attr]
    clock[0] += 60
    engine.revisions.expire()
    assert port(live) == 1


def test_files_that_change_meanwhile_wait(engine: Engine, places: Places, live: FakeLive) -> None:
    apply_unconfirmed(engine, places)
    write(places, 3)
    loop = Loop(engine)
    loop.look(FILES)
    assert port(live) == 2
    assert "confirm" in engine.status().waiting
    engine.revisions.confirm()
    loop.look(FILES)
    assert port(live) == 3


def test_it_goes_back_while_suspended_too(engine: Engine, places: Places, live: FakeLive, clock: list[float]) -> None:
    apply_unconfirmed(engine, places)
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
    apply_unconfirmed(engine, places)
    monkeypatch.setattr(control, "boot_id", lambda: "another")
    booted = FakeLive()
    Loop(again(places, booted)).look(frozenset({"start"}))
    assert port(booted) == 1


def test_a_first_commit_that_waited_is_not_made_again_after_a_start_of_the_machine(
    engine: Engine, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started anew because nobody could get in any more, say. What was before it is nothing, and so is the kernel."""
    write(places, 1)
    engine.apply(confirm_within_sec=30)
    monkeypatch.setattr(control, "boot_id", lambda: "another")
    monkeypatch.setattr("reconciler.runtime.revisions.boot_id", lambda: "another")
    booted = FakeLive()
    loop = Loop(again(places, booted))
    for reason in ("start", "resync", "reload"):
        loop.look(frozenset({reason}))
        assert booted.executed == 0, reason
    status = again(places, booted).status()
    assert (status.sync, "not confirmed" in status.waiting) == (Sync.OUT_OF_SYNC, True)
    write(places, 2)
    loop.look(FILES)
    assert port(booted) == 2


def test_what_only_puts_right_what_others_changed_is_not_to_be_confirmed(
    engine: Engine, places: Places, live: FakeLive, clock: list[float]
) -> None:
    write(places, 1)
    engine.apply()
    clock[0] += 100
    lose_listeners(live)
    assert engine.apply(confirm_within_sec=30).unconfirmed is None
    assert live.state.state.listeners
    write(places, 2)
    Loop(engine).look(FILES)
    assert engine.status().unconfirmed is None, "nobody asked for that"
    clock[0] += 31
    Loop(engine).look(FILES)
    assert port(live) == 2


def test_what_it_goes_back_to_is_kept_however_often_it_is_applied_again(
    engine: Engine, places: Places, live: FakeLive, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reconciler.runtime.history.KEPT", 3)
    monkeypatch.setattr("reconciler.runtime.history.RECORDS", 5)
    write(places, 1)
    engine.apply()
    for number in range(2, 12):
        write(places, number)
        again(places, live).apply(confirm_within_sec=30)
    clock[0] += 31
    Loop(engine).look(FILES)
    assert port(live) == 1


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
    write(places, 1)
    engine.apply()
    write(places, 2)
    with monkeypatch.context() as once:
        once.setattr(live, "execute", killed(live))
        with pytest.raises(KilledError):
            engine.apply(confirm_within_sec=30)
    assert port(live) == 2
    clock[0] += 30
    Loop(again(places, live)).look(frozenset({"start"}))
    assert port(live) == 1


def test_killed_ahead_of_the_switch_there_is_nothing_to_confirm_or_to_go_back_to(
    engine: Engine, places: Places, live: FakeLive, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    with monkeypatch.context() as once:
        once.setattr(live, "execute", killed(live, switched=False))
        with pytest.raises(KilledError):
            engine.apply(confirm_within_sec=30)
    after = again(places, live)
    assert after.status().unconfirmed is None
    clock[0] += 30
    Loop(after).look(frozenset({"start"}))
    assert port(live) == 2, "the files say so, and nothing holds them"


@pytest.mark.parametrize(("made", "raised"), [(killed, KilledError), (unfinished, UnfinishedError)])
def test_a_rollback_that_ended_behind_its_switch_holds_the_files(
    engine: Engine,
    places: Places,
    live: FakeLive,
    monkeypatch: pytest.MonkeyPatch,
    made: Callable[[FakeLive], Callable[..., Result]],
    raised: type[BaseException],
) -> None:
    for number in (1, 2):
        write(places, number)
        engine.apply()
    with monkeypatch.context() as once:
        once.setattr(live, "execute", made(live))
        with pytest.raises(raised):
            engine.revisions.rollback()
    for one in (engine, again(places, live)):
        Loop(one).look(frozenset({"start"}))
        assert port(live) == 1


def test_a_commit_that_holds_but_is_not_finished_is_still_to_be_confirmed(
    engine: Engine, places: Places, live: FakeLive, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    with monkeypatch.context() as once:
        once.setattr(live, "execute", unfinished(live))
        with pytest.raises(UnfinishedError):
            engine.apply(confirm_within_sec=30)
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
def test_what_a_daemon_had_just_applied_when_it_ended_is_taken_over(
    engine: Engine, places: Places, live: FakeLive, monkeypatch: pytest.MonkeyPatch, age_sec: float, taken: bool
) -> None:
    loop = Loop(engine)
    for number in (1, 2, 3):
        write(places, number)
        loop.look(FILES)
    monkeypatch.setattr("reconciler.runtime.clock.age_sec", lambda _: age_sec)
    unconfirmed = again(places, live).apply(confirm_within_sec=30).unconfirmed
    assert (unconfirmed is not None) == taken
    assert unconfirmed is None or unconfirmed.previous == 2


def test_who_waits_without_a_daemon_tries_again_when_the_host_is_in_trouble(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def roll_back(_places: Places) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(waiter, "wait", lambda _places: len(tries) < 2)
    monkeypatch.setattr(waiter, "_roll_back", roll_back)
    monkeypatch.setattr(waiter, "_PAUSE_SEC", 0)
    assert waiter.main([str(each) for each in (places.config_dir, places.run_dir, places.state_dir, "bpf")]) == 0
    assert len(tries) == 2
