"""History and conditions, of attempts that failed or were killed too, with a kernel that is a value."""

from __future__ import annotations

import errno
import itertools
from dataclasses import replace
from ipaddress import ip_interface
from typing import Any

import pytest

from reconciler.answers import Sync
from reconciler.config.model import Config
from reconciler.daemon.loop import Loop
from reconciler.engine import Engine
from reconciler.errors import (
    KernelError,
    TransactionError,
    UnfinishedError,
)
from reconciler.kernel.transaction import Result
from reconciler.places import Places
from reconciler.runtime.git import Commit
from reconciler.runtime.view import HeldError
from reconciler.state.facts import HostFacts
from reconciler.state.objects import Attachment, Endpoint, XdpMode
from reconciler.state.operations import Detach
from reconciler.state.plan import Plan
from tests.unit.runtime.fakelive import TARGET, TEXT, FakeLive, break_, mend, write
from tests.unit.runtime.revising import FILES, again, lose_listeners, port

# -- what is told ----------------------------------------------------------------------------------------------------


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


def test_a_file_that_is_too_large_is_not_read_whole_for_the_history(engine: Engine, places: Places) -> None:
    write(places, 1)
    with (places.config_dir / "b.yaml").open("wb") as file:
        file.truncate(1 << 40)  # more than there is memory
    Loop(engine).look(FILES)
    (found,) = engine.revisions.history()
    assert (found.result, found.files) == ("refused", ("a.yaml", "b.yaml"))
    assert "b.yaml:1:1: too large" in found.error


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


@pytest.mark.parametrize("what", ["health", "address"])
def test_what_moves_on_during_a_commit_leaves_nothing_unfinished_and_is_no_drift(
    engine: Engine, places: Places, live: FakeLive, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A target that comes back by quarters, or an interface whose addresses change, each between one look of a commit
    and the next. There is another look for that."""
    asked, facts, carry_out = itertools.count(), live.facts, live.execute

    def health(*_: object) -> dict[tuple[str, Endpoint], int]:
        return {("web", Endpoint(TARGET, 1)): next(asked) % 3}

    def moving(config: Config) -> HostFacts:
        found, number = facts(config), next(asked) + 1
        eth0 = replace(found.interfaces["eth0"], addresses=(ip_interface(f"192.0.2.{number}/24"),))
        return replace(found, interfaces=found.interfaces | {"eth0": eth0})

    def execute(plan: Plan, verify: Any) -> Result:
        done = carry_out(plan, verify)
        live.state = replace(live.state, state=verify._view.desired.state)
        return done

    monkeypatch.setattr(live, "execute", execute)
    if what == "health":
        monkeypatch.setattr(engine.steering, "_health", health)
    else:
        monkeypatch.setattr(live, "facts", moving)
    loop = Loop(engine)
    for number in range(1, 6):
        write(places, number)
        loop.look(FILES)
        assert engine.attempt is not None
        assert (engine.attempt.result, engine.attempt.message) == ("applied", "")
    assert [each.result for each in engine.revisions.history()] == ["applied"] * 5
    assert engine.status().drift_repaired == 0


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


def test_suspended_the_daemon_remembers_what_it_was_asked(
    engine: Engine, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(100))
    monkeypatch.setattr("reconciler.runtime.conditions.now", lambda: f"t{next(times):02}")
    write(places, 1)
    loop = Loop(engine)
    loop.look(FILES)
    engine.revisions.suspend()
    write(places, 2)
    loop.look(FILES)
    first = engine.status(keep=True).conditions
    assert engine.status(keep=True).conditions == engine.status().conditions == first


def test_a_look_that_fails_before_it_can_compare_is_told_until_one_does_not(
    engine: Engine, places: Places, live: FakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another version's maps can't be read: files and kernel are known, and differ."""

    def refuse() -> None:
        raise KernelError("take over", "/pins", detail="nobody knows how they are laid out")

    loop = Loop(engine)
    write(places, 1)
    live.state = replace(live.state, unfinished=True)
    with monkeypatch.context() as broken:
        broken.setattr(live, "recover", refuse)
        for reason in ("start", "resync"):
            loop.look(frozenset({reason}))
            status = engine.status()
            assert status.sync is Sync.DEGRADED, reason
            assert [each.message for each in status.errors] == ["take over /pins: nobody knows how they are laid out"]
            assert {each.type: each.status for each in status.conditions}["Degraded"] == "True"
    loop.look(frozenset({"resync"}))
    assert (engine.status().sync, engine.status().errors) == (Sync.SYNCED, ())


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


def test_nothing_is_freed_while_files_wait_and_nothing_given_back_while_suspended(
    engine: Engine, places: Places, live: FakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they say is not what is in force; and who suspended it wants nothing changed."""
    write(places, 1)
    engine.apply()
    monkeypatch.setattr(live, "sweep", lambda: 1, raising=False)
    freed: list[object] = []
    monkeypatch.setattr(live, "free", freed.append)
    live.state = replace(live.state, allocation=replace(live.state.allocation, retired_targets=frozenset({7})))
    state = live.state.state
    idle = Attachment(9, "eth9", XdpMode.OFF)
    live.state = replace(live.state, state=replace(state, attachments={**state.attachments, 9: idle}))
    engine.revisions.suspend()
    engine.view()
    engine.sweep()
    assert not any(isinstance(each, Detach) for operations in freed for each in operations)  # type: ignore[attr-defined]
    engine.revisions.resume()
    engine.sweep()
    assert any(isinstance(each, Detach) for operations in freed for each in operations)  # type: ignore[attr-defined]
    freed.clear()
    write(places, 2)
    engine.sweep()
    assert freed == []


def test_a_file_that_was_lost_from_the_kernel_is_put_back(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places)
    engine.apply()
    (file,) = live.manifest(live.state.revision).files
    content = live.blobs.pop(file.digest)
    live.state = replace(live.state, files_lost=True, blobs=frozenset(live.blobs))
    Loop(engine).look(frozenset({"resync"}))
    assert live.blobs[file.digest] == content
    assert engine.status().revision == 1


def test_a_commit_is_that_of_the_files_as_they_are_only_if_they_are_its(
    engine: Engine, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked_out = {"id": "a" * 40}
    monkeypatch.setattr(
        "reconciler.runtime.commits.commit_of", lambda *_: Commit(checked_out["id"], "somebody", "something")
    )
    write(places)
    engine.apply()
    assert engine.status().commit == "a" * 40
    checked_out["id"] = "b" * 40
    assert engine.status().commit == "b" * 40, "it says the same, in other files or words"
    checked_out["id"] = "b" * 40 + "-dirty"
    assert engine.status().commit == "a" * 40


# -- killed before it could be written down --------------------------------------------------------------------------


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
