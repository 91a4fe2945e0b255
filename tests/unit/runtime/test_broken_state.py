"""Files in the state directory that are no longer what was written there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.answers import Sync
from reconciler.daemon.loop import Loop
from reconciler.engine import Engine
from reconciler.places import Places
from reconciler.runtime.control import Control, ControlFile
from reconciler.runtime.drains import Drains
from reconciler.state.objects import Endpoint, Share
from reconciler.state.share import Drain
from tests.unit.runtime.fakelive import TARGET, FakeLive, write

FILES = (
    "control.json",
    "conditions.json",
    "drains.json",
    "sysctls.json",
    "left.json",
    "history.jsonl",
    "last-good",
    "revisions",
)


def _content(text: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text)


def _replace(path: Path, how: Callable[[Path], object]) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    how(path)


def _unreadable(path: Path) -> None:
    path.symlink_to(path)


def _directory(path: Path) -> None:
    path.mkdir()
    (path / "file").write_text("")


WRONG: dict[str, Callable[[Path], object]] = {
    "empty": _content(b""),
    "zeroes": _content(b"\0" * 4096),
    "truncated": _content(b'{"boot": "'),
    "no text": _content(b'["\xff\xfe"]'),
    "null": _content(b"null"),
    "a number": _content(b"7"),
    "a list": _content(b"[1]"),
    "a list of lists": _content(b"[[1, 2], [3, 4]]"),
    "an object": _content(b'{"a": 1}'),
    "an object of lists": _content(b'{"boot": [], "sysctls": [], "suspended": [1], "hold": 3, "number": []}'),
    "an object of objects": _content(b'{"boot": {}, "sysctls": {"a": {}}, "suspended": {}, "unconfirmed": {}}'),
    "a wrong number": _content(
        b'{"unconfirmed": {"previous": "x", "within_sec": "x", "deadline": "x", "boot": 3, "until": 7},'
        b' "number": "x", "time": 3, "result": "applied"}'
    ),
    "deep": _content(b"[" * 200_000),
    "a long number": _content(b"9" * 10_000),
    "a directory": _directory,
    "a loop": _unreadable,
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_it_is_served_all_the_same(places: Places, wrong: str) -> None:
    """After a start of the machine: nothing is in the kernel."""
    write(places, 1)
    Engine(places, live=FakeLive()).apply()  # type: ignore[arg-type]
    for name in FILES:
        _replace(places.state_dir / name, WRONG[wrong])

    engine = Engine(places, live=FakeLive())  # type: ignore[arg-type]
    warned = [each.message for each in engine.status().warnings]
    assert any("drains.json" in each for each in warned)
    assert engine.apply().changes
    status = engine.status(keep=True)
    assert (status.sync, status.errors) == (Sync.SYNCED, ())
    assert [each.message for each in status.warnings if "drains.json.broken" in each.message]
    assert os.path.lexists(places.state_dir / "drains.json.broken")
    engine.revisions.suspend()
    assert Engine(places, live=FakeLive()).revisions.control.suspended  # type: ignore[arg-type]
    write(places, 2)
    number = engine.apply().revision
    assert [each.number for each in engine.revisions.history() if each.current] == [number]
    assert (places.last_good / "a.yaml").read_bytes() == (places.config_dir / "a.yaml").read_bytes()


def test_the_daemon_serves_all_the_same(places: Places, live: FakeLive) -> None:
    write(places, 1)
    places.state_dir.mkdir()
    (places.state_dir / "drains.json").write_text("nonsense")
    engine = Engine(places, live=live)  # type: ignore[arg-type]
    Loop(engine).look(frozenset({"start"}))
    assert live.executed == 1
    assert not (places.state_dir / "drains.json").exists()


def test_what_is_drained_stays_so_whatever_becomes_of_the_file(engine: Engine, places: Places, live: FakeLive) -> None:
    """As long as the kernel knows; and what it knows is written down again."""
    write(places, 1)
    engine.apply()
    drain = Drain(Endpoint(TARGET, 8080), "web")
    state = replace(live.state.state, shares={(drain.proxy, drain.endpoint): Share(drained=True)})
    live.state = replace(live.state, state=state)
    file = places.state_dir / "drains.json"
    file.write_text("[")
    assert engine.view().runtime.drains == {drain}
    assert file.read_text() == "["  # who only looks changes nothing
    engine.tend(live.state)
    assert engine.view().runtime.drains == {drain}
    assert Drains(places.state_dir).load().keys() == {drain}


def test_what_was_set_aside_before_stays(engine: Engine, places: Places, live: FakeLive) -> None:
    places.state_dir.mkdir()
    for text in ("one", "two"):
        (places.state_dir / "drains.json").write_text(text)
        engine.tend(live.state)
    aside = ["drains.json.broken", "drains.json.broken1"]
    assert [(places.state_dir / name).read_text() for name in aside] == ["one", "two"]


def test_what_was_said_counts_on_while_the_file_does_not_say_it(engine: Engine, places: Places) -> None:
    """A process that knows that reconciling is suspended does not take it up because of nonsense in a file."""
    engine.revisions.suspend()
    assert engine.revisions.control.suspended
    places.control.write_text("nonsense")
    assert engine.revisions.control.suspended
    engine.tend(engine.observe())
    assert engine.revisions.control.suspended
    assert Engine(places, live=FakeLive()).revisions.control.suspended  # type: ignore[arg-type]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e300", "-1"])
def test_a_commit_does_not_wait_for_ever(places: Places, number: str) -> None:
    places.state_dir.mkdir()
    fields = f'"within_sec": {number}, "deadline": {number}, "previous": 0, "boot": "b", "until": "u"'
    places.control.write_text(f'{{"unconfirmed": {{{fields}}}}}')
    assert ControlFile(places.control).read() == Control()


@pytest.mark.parametrize(
    "line",
    [
        b"null",
        b"7",
        b"[" * 100_000,
        b'{"number": "x", "time": "2026-01-01T00:00:00+00:00", "result": "applied"}',
        b'{"number": 1%s, "time": "2026-01-01T00:00:00+00:00", "result": "applied"}' % (b"0" * 30),
        b'{"number": 9, "time": "yesterday", "result": "applied"}',
    ],
    ids=range(6),
)
def test_a_line_of_the_history_that_is_none_is_left_out(engine: Engine, places: Places, line: bytes) -> None:
    write(places, 1)
    engine.apply()
    with places.history.open("ab") as history:
        history.write(line + b"\n")
    assert [each.number for each in engine.revisions.history()] == [1]
    write(places, 2)
    assert engine.apply().revision == 2
