"""What was said to the reconciler survives whatever ends the process that writes it, and whatever the disk does."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.engine import Engine
from reconciler.errors import RevproxyError
from reconciler.places import Places
from reconciler.runtime.control import Control, ControlFile, Hold
from tests.unit.runtime.fakelive import FakeLive, write

STEPS = ("open", "write", "fsync", "replace")


def trouble(monkeypatch: pytest.MonkeyPatch, step: str, number: int) -> None:
    """Have that step of writing fail; number 0: kill the process there."""

    def fail(*_: object, **__: object) -> None:
        if not number:
            os._exit(9)
        raise OSError(number, os.strerror(number))

    if step == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        real = getattr(os, step)
        # Only files that are written: everything else goes on working.
        monkeypatch.setattr(
            os,
            step,
            lambda *args, **more: fail() if step != "open" or args[1] & os.O_CREAT else real(*args, **more),
        )


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("what", ["suspend", "resume", "confirm"])
def test_killed_anywhere_the_old_word_holds(engine: Engine, places: Places, what: str, step: str) -> None:
    """Or the new one: never half of it."""
    prepare(engine, places, what)
    before = engine.revisions.control
    child = os.fork()
    if child == 0:
        with pytest.MonkeyPatch.context() as patched:
            trouble(patched, step, 0)
            getattr(engine.revisions, what)()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert ControlFile(places.control).read() == before
    getattr(engine.revisions, what)()
    assert said(engine, what)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("what", ["suspend", "resume", "confirm"])
def test_what_the_disk_does_not_take_is_refused(
    engine: Engine, places: Places, monkeypatch: pytest.MonkeyPatch, what: str, step: str
) -> None:
    prepare(engine, places, what)
    before = engine.revisions.control
    with monkeypatch.context() as patched:
        trouble(patched, step, errno.ENOSPC)
        with pytest.raises(RevproxyError, match=r"control\.json can't be written: No space left"):
            getattr(engine.revisions, what)()
    assert engine.revisions.control == before
    getattr(engine.revisions, what)()
    assert said(engine, what)


def test_a_loss_of_power_takes_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the content nor, by its place in the directory, the file."""
    synced = []

    def sync(descriptor: int) -> None:
        there = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((there.name, there.is_dir() and sorted(path.name for path in there.iterdir())))

    monkeypatch.setattr(os, "fsync", sync)
    ControlFile(tmp_path / "state" / "control.json").write(Control(suspended="now"))
    assert synced == [(".control.json.new", False), ("state", ["control.json"])]


def test_it_is_whole_behind_short_writes_and_what_a_killed_process_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_some = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write_some(descriptor, content[:7]))
    (tmp_path / ".control.json.new").write_text("half of something longer " * 20)
    ControlFile(tmp_path / "control.json").write(Control(suspended="now"))
    assert ControlFile(tmp_path / "control.json").read() == Control(suspended="now")


def prepare(engine: Engine, places: Places, what: str) -> None:
    """Something that this word changes."""
    write(places, 1)
    engine.apply()
    if what == "resume":
        engine.revisions.suspend()
    elif what == "confirm":
        write(places, 2)
        engine.apply(confirm_within_sec=600)


def said(engine: Engine, what: str) -> bool:
    now = ControlFile(engine.places.control).read()
    return {"suspend": bool(now.suspended), "resume": not now.suspended, "confirm": now.unconfirmed is None}[what]


def test_a_rollback_that_was_killed_ahead_of_its_switch_holds_no_files(
    engine: Engine, places: Places, live: FakeLive
) -> None:
    write(places, 1)
    engine.apply()
    hold = Hold(engine.files.fingerprint(), "rolled back", once_beyond=live.state.revision.number)
    engine.revisions.file.change(lambda now: replace(now, hold=hold))
    assert engine.revisions.waiting(engine.view()) == ""
    engine.revisions.file.change(lambda now: replace(now, hold=replace(hold, once_beyond=None)))
    assert engine.revisions.waiting(engine.view()) == "rolled back"


def test_what_an_older_version_wrote_is_understood(tmp_path: Path) -> None:
    file = tmp_path / "control.json"
    file.write_text('{"hold": {"files": "abc", "reason": "rolled back"}, "down": false}')
    assert ControlFile(file).read() == Control(hold=Hold("abc", "rolled back"))


def test_an_apply_that_holds_is_none_that_failed_because_of_the_disk(
    engine: Engine, places: Places, live: FakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken down before, which an apply ends; the file that says so can't be changed."""
    write(places, 1)
    engine.revisions.taken_down()
    trouble(monkeypatch, "replace", errno.EROFS)
    assert engine.apply().revision == 1
    assert live.executed == 1
