"""The engine and the daemon's loop, with a kernel that is a value: what is applied, held, tried again, and said."""

from __future__ import annotations

import errno
import shutil
import threading
from pathlib import Path

import pytest

from reconciler.answers import Sync
from reconciler.daemon.commands import DaemonCommands
from reconciler.daemon.loop import Loop
from reconciler.engine import Engine
from reconciler.errors import ConfigError, KernelError, Problem, RevproxyError, StaleError, TransactionError
from reconciler.places import Places
from reconciler.runtime.view import HeldError
from reconciler.state.objects import Allocation, KernelState, Observed
from tests.unit.runtime.fakelive import TEXT, FakeLive, break_, mend, write

# -- applying and holding --------------------------------------------------------------------------------------


def test_files_are_applied_once_and_kept_on_disk(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places)
    assert engine.status().sync is Sync.OUT_OF_SYNC
    first = engine.apply()
    assert (first.revision, live.executed) == (1, 1)
    assert {change.name for change in first.changes if change.object == "proxy"} == {"web"}
    again = engine.apply()
    assert (again.revision, again.changes, live.executed) == (1, (), 1)
    assert (places.last_good / "a.yaml").read_text() == TEXT.format(port=8080)
    assert len(places.history.read_text().splitlines()) == 1


def test_what_is_applied_is_named_in_the_kernel(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places)
    engine.apply()
    (file,) = live.manifest(live.state.revision).files
    assert file.path == "a.yaml"
    assert live.blobs[file.digest] == (places.config_dir / "a.yaml").read_bytes()


def test_status_says_what_is_live(engine: Engine, places: Places) -> None:
    write(places)
    engine.apply()
    status = engine.status()
    assert (status.sync, status.revision, status.differences, status.errors) == (Sync.SYNCED, 1, 0, ())
    (proxy,) = status.proxies
    assert proxy.listen == ("192.0.2.1:80/tcp",)
    (target,) = proxy.targets
    assert (target.address, target.weight, target.connections) == ("10.0.0.1:8080", 1, 5)
    assert [(each.name, each.attached) for each in status.interfaces] == [("eth0", True)]


def test_broken_files_are_held_and_all_errors_said(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places)
    engine.apply()
    break_(places)
    (places.config_dir / "c.yaml").write_text("apiVersion: 1")
    before = live.state
    with pytest.raises(ConfigError):
        engine.apply()
    status = engine.status()
    assert live.state is before
    assert status.sync is Sync.DEGRADED
    assert {Path(problem.file).name for problem in status.errors} == {"b.yaml", "c.yaml"}
    assert status.proxies
    assert status.attempt is not None
    assert status.attempt.result == "held"


@pytest.mark.parametrize("how", ["emptied", "only settings", "removed"])
def test_nothing_in_the_files_is_held_while_something_is_live(
    engine: Engine, places: Places, live: FakeLive, how: str
) -> None:
    write(places)
    engine.apply()
    if how == "removed":
        shutil.rmtree(places.config_dir)
    else:
        (places.config_dir / "a.yaml").unlink()
    if how == "only settings":
        (places.config_dir / "a.yaml").write_text("apiVersion: revproxy/v1\nsettings: {fast_path: true}\n")
    assert "--allow-empty" in engine.status().errors[0].message, "told before anybody has tried"
    with pytest.raises(HeldError, match="--allow-empty"):
        engine.apply()
    assert live.executed == 1
    assert engine.status().sync is Sync.DEGRADED
    if how != "removed":
        assert any(change.action == "delete" for change in engine.diff().changes)
    engine.apply(allow_empty=True)
    assert not live.state.state.proxies
    if how != "removed":
        assert engine.status().sync is Sync.SYNCED


def test_a_directory_that_is_gone_is_no_plan(engine: Engine, places: Places) -> None:
    """It would be one to take everything away; and `apply` holds against that."""
    write(places)
    plan = engine.saved_plan()
    engine.apply()
    places.config_dir.rename(places.config_dir.with_name("aside"))
    for ask in (engine.diff, engine.plan, engine.saved_plan):
        with pytest.raises(ConfigError, match=f"{places.config_dir}: there is no such directory"):
            ask()
    with pytest.raises(HeldError, match="--allow-empty"):
        engine.apply()
    assert engine.status().proxies
    with pytest.raises(StaleError):
        engine.apply(plan=plan)  # it has the files with it


def test_nothing_wanted_and_nothing_there_is_in_sync(engine: Engine) -> None:
    assert engine.status().sync is Sync.SYNCED
    assert engine.diff().empty
    assert engine.plan().empty
    assert engine.apply().changes == ()


def test_a_directory_that_was_never_there_is_a_mistake(engine: Engine, places: Places) -> None:
    places.config_dir.rmdir()
    with pytest.raises(ConfigError, match="no such directory"):
        engine.diff()
    assert engine.status().sync is Sync.DEGRADED


def test_an_interrupted_commit_is_cleared_up_before_the_next(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places)
    live.state = Observed(KernelState(), Allocation(), unfinished=True, exists=True)
    engine.apply()
    assert live.recovered == 1
    assert "web" in live.state.state.proxies


def test_an_interface_that_refuses_xdp_is_served_through_tc(engine: Engine, places: Places, live: FakeLive) -> None:
    live.native = True
    live.errors = [TransactionError(KernelError("attach xdp native", "eth0", errno.EOPNOTSUPP), rolled_back=True)]
    live.refused = lambda: frozenset({2})  # type: ignore[method-assign]
    write(places)
    engine.apply()
    assert live.executed == 2
    (interface,) = engine.status().interfaces
    assert (interface.mode, interface.attached) == ("off", True)
    assert any("refused" in str(warning) for warning in engine.status().warnings)


@pytest.mark.parametrize(
    ("undone", "executed"), [((True, True), 2), ((False,), 1)], ids=["refused once more", "not taken back"]
)
def test_an_interface_that_refuses_xdp_is_tried_without_it_once(
    engine: Engine, places: Places, live: FakeLive, undone: tuple[bool, ...], executed: int
) -> None:
    live.native = True
    refused = KernelError("attach xdp native", "eth0", errno.EOPNOTSUPP)
    live.errors = [TransactionError(refused, rolled_back=each) for each in undone]
    write(places)
    with pytest.raises(TransactionError):
        engine.apply()
    assert live.executed == executed


@pytest.mark.parametrize(("undone", "told"), [(True, ConfigError), (False, TransactionError)])
def test_files_that_a_commit_finds_wrong_are_held_as_wrong_files(
    engine: Engine, places: Places, live: FakeLive, undone: bool, told: type[Exception]
) -> None:
    """As when a test of theirs does not hold. An undo that failed counts for more."""
    wrong = ConfigError([Problem("a.yaml", 9, 3, "tests[0]", "goes elsewhere")])
    live.errors = [TransactionError(wrong, rolled_back=undone, residue=() if undone else ("map x",))]
    write(places)
    with pytest.raises(told, match=r"a\.yaml:9:3: goes elsewhere"):
        engine.apply()
    assert engine.attempt is not None
    assert engine.attempt.result == ("held" if undone else "failed")


def test_numbers_of_revisions_go_on_when_the_kernel_has_lost_them(
    engine: Engine, places: Places, live: FakeLive
) -> None:
    """As behind `down`, and a start of the machine: a number means one thing in the history."""
    for number in (1, 2):
        write(places, number)
        engine.apply()
    live.state = Observed(KernelState(), Allocation())
    assert engine.apply().revision == 3
    assert [each.number for each in engine.revisions.history()] == [1, 2, 3]


def test_a_failed_commit_shows_until_something_changes(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places)
    live.errors = [KernelError("load", "program tc_ingress", errno.EINVAL, "the verifier says no")]
    with pytest.raises(KernelError):
        engine.apply()
    status = engine.status()
    assert status.sync is Sync.DEGRADED
    assert "the verifier says no" in status.errors[0].message
    write(places, port=9090)
    assert engine.status().sync is Sync.OUT_OF_SYNC


# -- the loop ------------------------------------------------------------------------------------------------


def test_the_loop_applies_and_does_not_repeat_itself(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places)
    loop = Loop(engine)
    assert loop.look(frozenset({"start"})) is None
    assert loop.look(frozenset({"resync"})) is None
    assert live.executed == 1


def test_a_permanent_failure_is_tried_again_only_after_a_change(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places)
    live.errors = [TransactionError(KernelError("load", "x", errno.EINVAL), rolled_back=True)] * 3
    loop = Loop(engine)
    for _ in range(3):
        assert loop.look(frozenset({"resync"})) is None
    assert live.executed == 1
    loop.look(frozenset({"reload"}))
    assert live.executed == 2
    write(places, port=9090)
    loop.look(frozenset({"files"}))
    assert live.executed == 3
    live.native = True
    loop.look(frozenset({"network"}))
    assert live.executed == 4
    assert "web" in live.state.state.proxies


def test_what_an_interface_refused_is_tried_again_at_resync(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places)
    refused = TransactionError(KernelError("attach tc ingress", "eth0", errno.EINVAL), rolled_back=True)
    live.errors = [refused, refused, TransactionError(KernelError("load", "x", errno.EINVAL), rolled_back=True)]
    loop = Loop(engine)
    for reason in ("start", "network", "command", "files"):
        loop.look(frozenset({reason}))
    assert live.executed == 1
    loop.look(frozenset({"resync"}))
    assert live.executed == 2
    assert len(engine.revisions.history()) == 1, "the same is no news"
    for _ in range(2):
        loop.look(frozenset({"resync"}))
    assert live.executed == 3, "it fails for another reason now"


def test_a_transient_failure_is_tried_again_ever_more_slowly(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places)
    live.errors = [TransactionError(KernelError("attach", "eth0", errno.EBUSY), rolled_back=True) for _ in range(10)]
    loop = Loop(engine)
    delays = [loop.look(frozenset({"retry"})) for _ in range(10)]
    assert delays[:4] == [1, 2, 4, 8]
    assert delays[-1] == 60
    assert loop.look(frozenset({"retry"})) is None
    live.errors = [KernelError("attach", "eth0", errno.EBUSY)]
    write(places, port=9090)
    assert loop.look(frozenset({"files"})) == 1


def test_the_loop_waits_for_broken_files_and_takes_mended_ones(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places)
    loop = Loop(engine)
    loop.look(frozenset({"start"}))
    break_(places)
    write(places, port=9090)
    assert loop.look(frozenset({"files"})) is None
    assert live.executed == 1
    mend(places)
    loop.look(frozenset({"files"}))
    assert live.executed == 2


def test_broken_files_at_boot_bring_the_last_good_ones(places: Places, live: FakeLive) -> None:
    write(places)
    Engine(places, live=live).apply()  # type: ignore[arg-type]
    break_(places)
    booted = FakeLive()
    engine = Engine(places, live=booted)  # type: ignore[arg-type]
    loop = Loop(engine)
    loop.look(frozenset({"start"}))
    assert "web" in booted.state.state.proxies
    status = engine.status()
    assert status.sync is Sync.DEGRADED
    assert "in force is revision 1, the last good one" in status.warnings[0].message
    mend(places)
    loop.look(frozenset({"files"}))
    assert (engine.status().sync, engine.status().warnings) == (Sync.SYNCED, ())


@pytest.mark.parametrize("files", ["kept", "gone", "broken"])
def test_a_last_good_link_that_is_lost_at_boot(places: Places, live: FakeLive, files: str) -> None:
    """The history says which files those were; where they are lost as well, so is said."""
    write(places)
    Engine(places, live=live).apply()  # type: ignore[arg-type]
    break_(places)
    if files == "broken":
        (places.last_good / "a.yaml").write_text("nonsense: [")
    else:
        places.last_good.unlink()
    if files == "gone":
        shutil.rmtree(places.revisions)
    booted = FakeLive()
    engine = Engine(places, live=booted)  # type: ignore[arg-type]
    Loop(engine).look(frozenset({"start"}))
    assert ("web" in booted.state.state.proxies) == (files == "kept")
    (warning,) = engine.status().warnings
    said = {"kept": "in force is revision 1", "gone": "revision 1 are not in", "broken": "not YAML"}
    assert said[files] in warning.message


def test_nothing_was_ever_applied_at_boot(places: Places, engine: Engine) -> None:
    break_(places)
    Loop(engine).look(frozenset({"start"}))
    assert engine.status().warnings == ()


def test_a_commit_that_could_not_be_written_down_is_told_and_written_later(
    places: Places, engine: Engine, live: FakeLive
) -> None:
    """The disk is full; the commit holds all the same."""
    write(places)
    places.state_dir.write_text("no directory")
    loop = Loop(engine)
    loop.look(frozenset({"start"}))
    assert live.state.revision.number == 1
    status = engine.status()
    assert status.sync is Sync.SYNCED
    assert "not in the history" in status.warnings[0].message
    places.state_dir.unlink()
    loop.look(frozenset({"resync"}))
    assert engine.status().warnings == ()
    assert (places.last_good / "a.yaml").read_text() == TEXT.format(port=8080)
    assert [each.number for each in engine.archive.entries()] == [1]


@pytest.mark.parametrize("there", [True, False], ids=["empty", "gone"])
def test_a_directory_that_is_not_mounted_at_boot_does_too(places: Places, there: bool) -> None:
    write(places)
    Engine(places, live=FakeLive()).apply()  # type: ignore[arg-type]
    (places.config_dir / "a.yaml").unlink()
    if not there:
        places.config_dir.rmdir()
    booted = FakeLive()
    engine = Engine(places, live=booted)  # type: ignore[arg-type]
    assert engine.status().sync is Sync.DEGRADED
    loop = Loop(engine)
    loop.look(frozenset({"start"}))
    assert "web" in booted.state.state.proxies
    status = engine.status()
    assert status.sync is Sync.DEGRADED
    assert [each.result for each in engine.archive.entries()] == ["applied", "refused", "applied"]
    places.config_dir.mkdir(exist_ok=True)
    write(places)
    loop.look(frozenset({"files"}))
    assert engine.status().sync is Sync.SYNCED


def test_a_directory_that_is_meant_to_be_empty_at_boot(places: Places) -> None:
    write(places)
    Engine(places, live=FakeLive()).apply()  # type: ignore[arg-type]
    (places.config_dir / "a.yaml").unlink()
    booted = FakeLive()
    engine = Engine(places, live=booted)  # type: ignore[arg-type]
    with pytest.raises(HeldError, match="allow-empty"):
        engine.apply()
    engine.apply(allow_empty=True)
    for _ in range(2):
        Loop(engine).look(frozenset({"start"}))
        assert booted.executed == 0
        assert engine.status().sync is Sync.SYNCED


def test_broken_files_later_bring_nothing_back(places: Places) -> None:
    """What was taken away on purpose stays away, also where the copy on disk could not be brought up to date."""
    live = FakeLive()
    engine = Engine(places, live=live)  # type: ignore[arg-type]
    loop = Loop(engine)
    loop.look(frozenset({"start"}))
    write(places)
    engine.apply()
    (places.config_dir / "a.yaml").unlink()
    engine.apply(allow_empty=True)
    (places.last_good / "a.yaml").write_text(TEXT.format(port=8080))
    break_(places)
    loop.look(frozenset({"files"}))
    assert not live.state.state.proxies


def test_a_suspended_loop_does_nothing(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places)
    loop = Loop(engine)
    loop.suspended = True
    loop.look(frozenset({"files"}))
    assert live.executed == 0


def test_a_data_plane_that_could_not_be_taken_down_is_looked_after(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down() -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(engine, "down", down)
    loop = Loop(engine)
    with pytest.raises(OSError, match="no room"):
        DaemonCommands(engine, loop, threading.Event()).down()
    assert not loop.suspended


def test_the_loop_clears_up_at_start_even_with_broken_files(engine: Engine, places: Places, live: FakeLive) -> None:
    break_(places)
    live.state = Observed(KernelState(), Allocation(), unfinished=True, exists=True)
    Loop(engine).look(frozenset({"start"}))
    assert live.recovered == 1


def test_a_target_that_is_no_address_is_told(engine: Engine) -> None:
    with pytest.raises(RevproxyError, match="target"):
        engine.connections(target="web:80")
