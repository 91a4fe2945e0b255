"""Fingerprints go by content; settling waits for writers and for git."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from reconciler.runtime.snapshot import Fingerprints, index_lock, settle


def test_equal_content_has_equal_fingerprints_wherever_it_is(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.yaml").write_text("a")
        (tmp_path / name / "b.json").write_text("b")
        (tmp_path / name / "ignored.txt").write_text(name)
    assert Fingerprints(tmp_path / "one").take() == Fingerprints(tmp_path / "two").take()
    (tmp_path / "two" / "b.json").rename(tmp_path / "two" / "c.json")
    assert Fingerprints(tmp_path / "one").take() != Fingerprints(tmp_path / "two").take()


@pytest.mark.parametrize("name", ["a.yaml", "b.yaml", "c.yaml"])
def test_a_file_that_goes_or_comes_back_is_seen(tmp_path: Path, name: str) -> None:
    for each in ("a.yaml", "b.yaml", "c.yaml"):
        (tmp_path / each).write_text("x")
    fingerprints = Fingerprints(tmp_path)
    seen = [fingerprints.take()]
    (tmp_path / name).rename(tmp_path / "elsewhere")
    seen.append(fingerprints.take())
    (tmp_path / "elsewhere").rename(tmp_path / name)
    seen.append(fingerprints.take())
    assert seen[0] == seen[2] != seen[1]


def test_same_size_and_time_but_other_content_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("one")
    fingerprints = Fingerprints(tmp_path)
    before = fingerprints.take()
    times = file.stat()
    file.write_text("two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprints.take() != before


def test_what_another_one_has_read_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("one")
    beside = Fingerprints(tmp_path)
    expected = beside.take()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", lambda _: pytest.fail("it was read"))
        assert Fingerprints(tmp_path, beside=beside).take() == expected
    fingerprints = Fingerprints(tmp_path, beside=beside)
    (tmp_path / "new").write_text("two")
    (tmp_path / "new").rename(tmp_path / "a.yaml")
    assert fingerprints.take() == Fingerprints(tmp_path).take() != expected


def test_what_anybody_may_write_has_another_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a")
    fingerprints = Fingerprints(tmp_path)
    seen = [fingerprints.take()]
    for path, mode in ((tmp_path / "a.yaml", 0o666), (tmp_path, 0o777), (tmp_path / "a.yaml", 0o600)):
        path.chmod(mode)
        seen.append(fingerprints.take())
    tmp_path.chmod(0o700)
    assert len(set(seen)) == 4
    assert fingerprints.take() == seen[0]


def test_what_can_not_be_read_is_a_fingerprint_too(tmp_path: Path) -> None:
    missing = Fingerprints(tmp_path / "missing").take()
    empty = Fingerprints(tmp_path).take()
    (tmp_path / "dangling.yaml").symlink_to("nowhere")
    dangling = Fingerprints(tmp_path).take()
    os.mkfifo(tmp_path / "fifo.yaml")  # reading it would block for ever
    (tmp_path / "directory.yaml").mkdir()
    assert len({missing, empty, dangling, Fingerprints(tmp_path).take()}) == 4


def test_index_lock_of_trees_linked_trees_and_symlinks(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "config.d").mkdir(parents=True)
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for arguments in (
        ["init", "-q"],
        ["commit", "-q", "--allow-empty", "-m", "x"],
        ["worktree", "add", "-q", "../linked"],
    ):
        subprocess.run(["git", *identity, *arguments], cwd=tree, check=True, capture_output=True)
    (tmp_path / "elsewhere").symlink_to(tree / "config.d")
    assert index_lock(tree / "config.d") == tree / ".git" / "index.lock"
    assert index_lock(tmp_path / "elsewhere") == tree / ".git" / "index.lock"
    linked = index_lock(tmp_path / "linked")
    assert linked is not None
    assert linked.parent.resolve() == tree / ".git" / "worktrees" / "linked"
    assert index_lock(Path("/proc")) is None


def test_settle_waits_until_writing_pauses(tmp_path: Path) -> None:
    fingerprints = Fingerprints(tmp_path)
    sleeps = []

    def sleep_and_write(seconds: float) -> None:
        threading.Event().wait(seconds)
        sleeps.append(seconds)
        if len(sleeps) < 5:
            (tmp_path / "a.yaml").write_text("x" * len(sleeps))

    (tmp_path / "a.yaml").write_text("")

    settled = settle(fingerprints, quiet_sec=0.4, sleep=sleep_and_write)
    assert len(sleeps) >= 5
    assert (tmp_path / "a.yaml").read_text() == "xxxx"
    assert settled == Fingerprints(tmp_path).take()


def test_settle_does_not_sleep_for_old_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a")
    fingerprints = Fingerprints(tmp_path)
    settle(fingerprints, quiet_sec=0.01)

    def never(_seconds: float) -> None:
        pytest.fail("slept although nothing had changed for longer than the quiet period")

    settle(fingerprints, quiet_sec=0.01, sleep=never)


def test_a_checkout_that_begins_between_two_looks_is_waited_for(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    lock = tmp_path / ".git" / "index.lock"
    (tmp_path / "a.yaml").write_text("a")
    settle(Fingerprints(tmp_path), quiet_sec=0.01)  # afterwards the file is old enough

    class Racing(Fingerprints):
        looks = 0

        def take(self) -> bytes:
            self.looks += 1
            if self.looks == 2:
                lock.write_text("")
            return super().take()

    def sleep(seconds: float) -> None:
        threading.Event().wait(seconds)
        (tmp_path / "a.yaml").write_text("b")
        lock.unlink(missing_ok=True)

    settled = settle(Racing(tmp_path), quiet_sec=0.01, sleep=sleep)
    assert (tmp_path / "a.yaml").read_text() == "b"
    assert settled == Fingerprints(tmp_path).take()


def test_files_of_long_ago_are_no_reason_to_read_while_git_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    lock = tmp_path / ".git" / "index.lock"
    lock.write_text("")
    (tmp_path / "a.yaml").write_text("a")
    an_hour_later = time.time_ns() + 3_600_000_000_000
    monkeypatch.setattr("reconciler.runtime.snapshot.time.time_ns", lambda: an_hour_later)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        lock.unlink(missing_ok=True)

    settle(Fingerprints(tmp_path), quiet_sec=0.01, sleep=sleep)
    assert slept


def test_a_lock_left_by_a_crash_is_disregarded_in_the_end(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".git" / "index.lock").write_text("")
    (tmp_path / "a.yaml").write_text("a")
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        threading.Event().wait(seconds)

    settle(Fingerprints(tmp_path), quiet_sec=0.01, lock_patience_sec=0.2, sleep=sleep)
    assert sum(slept) >= 0.1


def test_a_lock_that_stood_for_too_long_is_not_waited_for_again(tmp_path: Path) -> None:
    """Each `status` would take half a minute."""
    config = tmp_path / "config.d"
    config.mkdir()
    (tmp_path / ".git").mkdir()
    (config / "a.yaml").write_text("one")
    lock = tmp_path / ".git" / "index.lock"
    lock.touch()
    fingerprints, slept = Fingerprints(config), [0.0]

    def sleep(seconds: float) -> None:
        slept[0] += seconds
        time.sleep(seconds)

    beside = Fingerprints(config, beside=fingerprints)

    def waits() -> bool:
        slept[0] = 0.0
        settle(fingerprints, quiet_sec=0.01, lock_patience_sec=0.2, sleep=sleep)
        return slept[0] > 0.1

    assert [waits() for _ in range(3)] == [True, False, False]
    settle(beside, quiet_sec=0.01, lock_patience_sec=1e9, sleep=lambda _: pytest.fail("waited again"))
    assert beside.outlasted == fingerprints.outlasted
    (config / "a.yaml").write_text("other")
    assert [waits(), waits()] == [True, False], "whoever has it may be at work again"
    lock.unlink()
    lock.write_text("of another git")
    assert [waits(), waits()] == [True, False]
    lock.unlink()
    assert not waits()
    lock.write_text("of another git")
    assert not waits(), "the files are as they were without it"
    (config / "a.yaml").write_text("yet another")
    assert waits()
