"""What is kept in the state directory: history, the files of each revision, what was said, since when things are so."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.answers import HistoryEntry, Sync
from reconciler.config.model import SourceFile
from reconciler.errors import ConfigError, KernelError, Problem, RevproxyError
from reconciler.places import Places
from reconciler.runtime import control, history
from reconciler.runtime.conditions import Conditions, Situation
from reconciler.runtime.control import Control, ControlFile, Hold, Unconfirmed
from reconciler.runtime.history import History

ENTRY = HistoryEntry(1, "2026-01-02T03:04:05.000+00:00", "applied")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(state_dir=tmp_path / "state")


def file(name: str, content: str = "") -> SourceFile:
    text = (content or name).encode()
    return SourceFile.of(f"/etc/{name}", text)


# -- files of revisions ----------------------------------------------------------------------------------------


def test_each_revision_has_its_files_and_the_last_good_ones_are_whole(places: Places) -> None:
    kept = History(places)
    for number, names in ((1, ("a.yaml", "b.yaml")), (2, ("c.yaml",)), (2, ("d.yaml",))):
        kept.keep(number, [file(name) for name in names])
        kept.add(replace(ENTRY, number=number))
        assert {path.name: path.read_text() for path in places.last_good.iterdir()} == {name: name for name in names}
    assert [Path(path).name for path in kept.sources(1)] == ["a.yaml", "b.yaml"]
    assert list(kept.sources(2).values()) == [b"d.yaml"]
    assert sorted(path.name for path in places.revisions.iterdir()) == ["1", "2"]


def test_equal_files_are_one_on_disk(places: Places) -> None:
    kept = History(places)
    kept.keep(1, [file("a.yaml"), file("b.yaml", "one")])
    kept.keep(2, [file("a.yaml"), file("b.yaml", "two")])
    inodes = [[(places.revisions / n / name).stat().st_ino for n in "12"] for name in ("a.yaml", "b.yaml")]
    assert inodes[0][0] == inodes[0][1]
    assert inodes[1][0] != inodes[1][1]
    assert list(kept.sources(1).values()) == [b"a.yaml", b"one"]


@pytest.mark.parametrize("count", [1, 40])
def test_the_last_good_files_are_on_disk_before_they_are_called_so(
    places: Places, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A loss of power right behind a commit leaves no empty copies: not of the files, nor of directories."""
    kept = History(places)
    kept.keep(1, [file("same.yaml")])
    synced: list[str] = []
    synced_before: dict[str, list[str]] = {}
    sync, exchange = os.fsync, os.replace

    def syncing(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    def exchanging(source: Path, target: Path) -> None:
        synced_before[target.name] = synced.copy()
        exchange(source, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", exchanging)
    names = [f"{number}.yaml" for number in range(count)]
    kept.keep(2, [file("same.yaml"), *map(file, names)])
    draft = places.revisions / ".2.new"
    assert sorted(synced_before["2"]) == sorted(map(str, [*(draft / name for name in names), draft]))
    assert synced_before["last-good"][-1] == str(places.revisions)
    assert synced[-1] == str(places.state_dir), "and then it is"


def test_files_that_can_not_be_brought_to_disk_are_not_called_good(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = History(places)
    kept.keep(1, [file("a.yaml", "one")])

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    for names in (["a.yaml"], ["a.yaml", "b.yaml"]):
        with pytest.raises(OSError, match="Input/output"):
            kept.keep(2, [file(name, "two") for name in names])
    assert places.last_good.resolve().name == "1"
    assert (places.last_good / "a.yaml").read_text() == "one"


@pytest.mark.parametrize("other", [False, True], ids=["same process", "another process"])
def test_a_kept_file_that_somebody_wrote_to_is_copied_anew(places: Places, other: bool) -> None:
    kept = History(places)
    kept.keep(1, [file("a.yaml", "one"), file("b.yaml", "one"), file("c.yaml", "one")])
    (places.revisions / "1" / "a.yaml").write_text("eno")
    (places.revisions / "1" / "b.yaml").unlink()
    kept = History(places) if other else kept
    kept.keep(2, [file("a.yaml", "one"), file("b.yaml", "one"), file("c.yaml", "one")])
    assert kept.sources(2) == {str(places.revisions / "2" / f"{name}.yaml"): b"one" for name in "abc"}
    assert (places.revisions / "2" / "c.yaml").stat().st_nlink == 2


def test_only_so_many_revisions_and_lines_are_kept(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEPT", 3)
    monkeypatch.setattr(history, "RECORDS", 10)
    kept = History(places)
    for number in range(1, 31):
        kept.keep(number, [file("a.yaml", str(number))])
        kept.add(replace(ENTRY, number=number))
    assert sorted(int(path.name) for path in places.revisions.iterdir()) == [28, 29, 30]
    numbers = [each.number for each in kept.entries()]
    assert 10 <= len(numbers) <= 11
    assert numbers == list(range(31 - len(numbers), 31))
    assert kept.last_number == 30
    with pytest.raises(RevproxyError, match="28, 29, 30"):
        kept.applied(5)


def test_what_is_applied_is_kept_below_others_too(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """The history was lost, but not the files: numbers begin anew."""
    monkeypatch.setattr(history, "KEPT", 3)
    kept = History(places)
    for number in (7, 8, 9, 1):
        kept.keep(number, [file("a.yaml", str(number))])
    assert (places.last_good / "a.yaml").read_text() == "1"


def test_what_a_killed_process_left_is_in_nobodys_way(places: Places) -> None:
    kept = History(places)
    kept.keep(1, [file("a.yaml", "1")])
    (places.revisions / ".2.new").mkdir()
    (places.revisions / ".2.new" / "b.yaml").write_text("half")
    (places.state_dir / "last-good.new").symlink_to("revisions/2")
    kept.keep(2, [file("a.yaml", "2")])
    assert {path.name: path.read_text() for path in places.last_good.iterdir()} == {"a.yaml": "2"}
    assert sorted(path.name for path in places.state_dir.iterdir()) == ["last-good", "revisions"]


def test_going_back_passes_over_what_is_not_kept(places: Places) -> None:
    kept = History(places)
    for number in (1, 2, 3):
        kept.add(replace(ENTRY, number=number))
        if number != 2:
            kept.keep(number, [file("a.yaml", str(number))])
    assert kept.before(3) == 1


def test_what_was_refused_drives_out_nothing_that_can_be_gone_back_to(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "KEPT", 3)
    monkeypatch.setattr(history, "RECORDS", 10)
    kept = History(places)
    for number in range(1, 5):
        kept.keep(number, [file("a.yaml", str(number))])
        kept.add(replace(ENTRY, number=number))
    for number in range(40):
        kept.add(replace(ENTRY, number=5, result="refused", error=str(number)))
    assert kept.last_number == 4, "no number is used twice"
    assert (kept.before(5), kept.before(4), kept.before(3)) == (4, 3, 2)
    found = History(places).entries()
    assert 10 <= len(found) <= 11
    assert [each.number for each in found[:3]] == [2, 3, 4]
    assert found[-1].error == "39"


def test_going_back_passes_over_what_was_refused(places: Places) -> None:
    kept = History(places)
    for number, result in ((1, "applied"), (2, "refused"), (2, "applied"), (3, "failed"), (3, "applied")):
        kept.add(replace(ENTRY, number=number, result=result))
        if result == "applied":
            kept.keep(number, [file("a.yaml", str(number))])
    assert kept.before(3) == 2
    assert kept.before(2) == 1
    with pytest.raises(RevproxyError, match="nothing to go back to"):
        kept.before(1)


@pytest.mark.parametrize(
    ("numbers", "told"),
    [((), "there are: none"), ((1, 2), "there are: 1, 2"), (range(1, 13), "12 are, the latest: 3, 4, ")],
)
def test_which_revisions_can_be_gone_back_to_is_told(places: Places, numbers: Sequence[int], told: str) -> None:
    kept = History(places)
    for number in numbers:
        kept.keep(number, [file("a.yaml")])
        kept.add(replace(ENTRY, number=number))
    with pytest.raises(RevproxyError, match=f"no applied revision 99 is kept; {told}"):
        kept.applied(99)


def test_lines_that_are_none_and_those_of_the_first_version(places: Places) -> None:
    places.state_dir.mkdir()
    old = {"revision": 4, "time": ENTRY.time, "result": "applied", "files": ["a.yaml"], "changes": []}
    places.history.write_text(json.dumps(old) + "\nnonsense\n[]\n" + json.dumps({"number": 5}) + "\n")
    assert [each.number for each in History(places).entries()] == [4]


def test_a_line_that_was_not_finished_spoils_no_other(places: Places) -> None:
    """The disk was full, or the power went."""
    History(places).add(ENTRY)
    with places.history.open("a") as lines:
        lines.write('{"number": 2, "resu')
    History(places).add(replace(ENTRY, number=3))
    assert [each.number for each in History(places).entries()] == [1, 3]
    assert places.history.read_text().count("\n") == 3


def test_another_process_adds_and_this_one_sees_it(places: Places) -> None:
    one, other = History(places), History(places)
    one.add(ENTRY)
    assert [each.number for each in other.entries()] == [1]
    other.add(replace(ENTRY, number=2))
    assert [each.number for each in one.entries()] == [1, 2]


# -- what was said ---------------------------------------------------------------------------------------------


def test_what_was_said_outlives_the_process(places: Places) -> None:
    said = Control("2026-01-02T03:04:05+00:00", Hold("abc", "why"), Unconfirmed(3, 30.0, 99.5, "boot", "then"), True)
    ControlFile(places.control).write(said)
    assert ControlFile(places.control).read() == said
    assert [path.name for path in places.state_dir.iterdir()] == ["control.json"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"hold": 3}', b"\xff"])
def test_what_can_not_be_read_counts_as_nothing_said(places: Places, content: bytes) -> None:
    places.state_dir.mkdir()
    places.control.write_bytes(content)
    assert ControlFile(places.control).read() == Control()


def test_what_can_not_be_written_is_told(places: Places) -> None:
    places.state_dir.write_text("a file")
    with pytest.raises(RevproxyError, match=r"control\.json"):
        ControlFile(places.control).write(Control(down=True))


def test_time_that_is_left_does_not_outlive_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "boot_clock", lambda: 100.0)
    waiting = Unconfirmed(1, 30.0, 112.5, control.boot_id(), "")
    assert waiting.left_sec() == 12.5
    assert replace(waiting, deadline=99.0).left_sec() == 0.0
    assert replace(waiting, boot="another").left_sec() == 0.0


# -- conditions ------------------------------------------------------------------------------------------------


def kinds(situation: Situation, conditions: Conditions) -> dict[str, tuple[str, str]]:
    return {each.type: (each.status, each.reason) for each in conditions.of(situation)}


PROBLEMS = ConfigError([Problem("a.yaml", 1, 1, "", "wrong")])
OUT = Sync.OUT_OF_SYNC
DIFFERENT, FINE = ("False", "Different"), ("False", "AsExpected")
REFUSED, BUSY = KernelError("attach", "eth0", 22), KernelError("attach", "eth0", 11)
FAILED = ("True", "CommitFailed")
SITUATIONS = [
    (Situation(), Sync.SYNCED, ("True", "InSync"), FINE, ("False", "Idle")),
    (Situation(2), OUT, DIFFERENT, FINE, ("True", "Pending")),
    (Situation(2, waiting="x"), OUT, DIFFERENT, FINE, ("False", "AwaitingApply")),
    (Situation(2, suspended="x"), OUT, DIFFERENT, FINE, ("False", "Suspended")),
    (Situation(0, PROBLEMS), Sync.DEGRADED, ("False", "FilesWrong"), ("True", "FilesWrong"), ("False", "Stuck")),
    (Situation(1, REFUSED), Sync.DEGRADED, DIFFERENT, FAILED, ("False", "Stuck")),
    (Situation(1, BUSY), Sync.DEGRADED, DIFFERENT, FAILED, ("True", "Retrying")),
]


@pytest.mark.parametrize(("situation", "sync", "synced", "degraded", "progressing"), SITUATIONS)
def test_each_situation_has_its_conditions(
    tmp_path: Path,
    situation: Situation,
    sync: Sync,
    synced: tuple[str, str],
    degraded: tuple[str, str],
    progressing: tuple[str, str],
) -> None:
    found = kinds(situation, Conditions(tmp_path / "x"))
    assert situation.sync is sync
    assert found == {"Synced": synced, "Degraded": degraded, "Progressing": progressing}


def test_since_when_is_kept_over_restarts_and_looking_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(100))
    monkeypatch.setattr("reconciler.runtime.conditions.now", lambda: f"t{next(times)}")
    path = tmp_path / "conditions.json"
    first = Conditions(path).of(Situation(), keep=True)
    assert Conditions(path).of(Situation()) == first
    Conditions(path).of(Situation(1))
    assert Conditions(path).of(Situation()) == first, "who only looks writes nothing"
    second = {each.type: each for each in Conditions(path).of(Situation(1), keep=True)}
    assert second["Synced"].last_transition > first[0].last_transition
    assert second["Degraded"] == first[1]
