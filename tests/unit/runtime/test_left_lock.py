"""A git that was killed leaves its lock, and files that may be of two commits: they are held, and it is said why."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from netlab import wait_for
from reconciler.engine import Engine
from reconciler.errors import ConfigError
from reconciler.places import Places
from reconciler.runtime import snapshot
from reconciler.runtime.snapshot import Fingerprints, index_locks, settle
from reconciler.runtime.view import HeldError
from tests.unit.runtime.fakelive import TEXT, FakeLive

OTHER = TEXT.replace("web", "dns").replace("80,", "53,")
_NOBODY = ("-c", "user.name=t", "-c", "user.email=t@example.org")


def git(directory: Path, *words: str) -> None:
    subprocess.run(["git", *_NOBODY, *words], cwd=directory, check=True, capture_output=True)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "__kwdefaults__", {**settle.__kwdefaults__, "lock_patience_sec": 0.3})


@pytest.fixture
def tree(places: Places) -> Path:
    """Two commits, each of two files; the first is checked out."""
    tree = places.config_dir
    git(tree, "-c", "init.defaultBranch=master", "init", "-q")
    for port in (8080, 8081):
        (tree / "a.yaml").write_text(TEXT.format(port=port))
        (tree / "b.yaml").write_text(OTHER.format(port=port))
        git(tree, "add", ".")
        git(tree, "commit", "-q", "-m", str(port))
    git(tree, "checkout", "-q", "--detach", "HEAD~1")
    return tree


def kill_a_checkout_between_two_files(tree: Path) -> Path:
    """With a filter that takes its time with the second; the lock that is left."""
    script = "cat; if test %f = b.yaml; then sleep 20; fi"
    (tree / ".git" / "info" / "attributes").write_text("*.yaml filter=slow\n")
    checkout = subprocess.Popen(
        ["git", "-c", f"filter.slow.smudge={script}", "-c", "filter.slow.clean=cat", "checkout", "-q", "master"],
        cwd=tree,
        process_group=0,
    )
    wait_for(lambda: "8081" in (tree / "a.yaml").read_text(), "the first file")
    os.killpg(checkout.pid, signal.SIGKILL)
    checkout.wait()
    return tree / ".git" / "index.lock"


def test_a_mixed_tree_is_not_applied(tree: Path, engine: Engine, live: FakeLive) -> None:
    engine.apply()
    before = live.state
    lock = kill_a_checkout_between_two_files(tree)
    assert lock.exists()
    assert not (tree / "b.yaml").exists(), "git removes a file before it writes it"
    for _ in range(2):
        with pytest.raises(HeldError, match="may be of two commits"):
            engine.apply()
        (tree / "b.yaml").write_text(OTHER.format(port=8080))  # as where git had not begun with it
    status = engine.status()
    assert status.sync == "Degraded"
    assert status.errors[0].file == str(lock)
    assert f"rm {lock}" in status.errors[0].message
    assert live.state == before
    lock.unlink()
    git(tree, "checkout", "-q", "-f", "master")
    engine.apply()
    assert engine.status().sync == "Synced"
    assert live.state.revision.number == 2


def test_edits_are_held_with_a_word_until_the_lock_is_gone(tree: Path, engine: Engine, live: FakeLive) -> None:
    engine.apply()
    lock = tree / ".git" / "index.lock"
    lock.touch()
    (tree / "a.yaml").write_text(TEXT.format(port=9))
    with pytest.raises(HeldError):
        engine.apply()
    lock.unlink()
    engine.apply()
    assert live.state.revision.number == 2


def test_broken_files_are_told_beside_the_lock(tree: Path, engine: Engine) -> None:
    (tree / ".git" / "index.lock").touch()
    (tree / "b.yaml").write_text("nonsense: [")
    with pytest.raises(ConfigError) as refused:
        engine.apply()
    assert [Path(each.file).name for each in refused.value.problems] == ["index.lock", "b.yaml"]


def test_whole_commits_and_what_was_read_before_are_not_held(
    tree: Path, engine: Engine, places: Places, live: FakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tree / ".git" / "index.lock"
    lock.touch()
    engine.apply()
    assert live.state.revision.number == 1, "they are those of HEAD"
    lock.unlink()
    (tree / "a.yaml").write_text(TEXT.format(port=9))
    engine.apply()
    assert live.state.revision.number == 2
    lock.touch()
    monkeypatch.setattr(settle, "__kwdefaults__", {**settle.__kwdefaults__, "lock_patience_sec": 1e9})
    assert engine.status().sync == "Synced", "not even waited for: they are what they were"
    monkeypatch.setattr(settle, "__kwdefaults__", {**settle.__kwdefaults__, "lock_patience_sec": 0.1})
    with pytest.raises(HeldError):  # another process can't tell
        Engine(places, live=live).apply()  # type: ignore[arg-type]


def test_a_lock_is_not_waited_for_where_the_files_are_all_of_a_commit(
    tree: Path, places: Places, live: FakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a process that has not seen them before. Half a minute it would be for each command without a daemon."""
    monkeypatch.setattr(settle, "__kwdefaults__", {**settle.__kwdefaults__, "lock_patience_sec": 1e9})
    (tree / ".git" / "index.lock").touch()
    Engine(places, live=live).apply()  # type: ignore[arg-type]
    assert live.state.revision.number == 1

    class WaitedError(Exception):
        pass

    def sleep(_seconds: float) -> None:
        slept.append(_seconds)
        if len(slept) > 20:
            raise WaitedError

    for path, text in ((tree / "a.yaml", TEXT.format(port=8081)), (tree / "c.yaml", "")):  # half of the other; one more
        slept: list[float] = []
        before = path.read_text() if path.exists() else None
        path.write_text(text)
        with pytest.raises(WaitedError):
            Engine(places, live=live, sleep=sleep).apply()  # type: ignore[arg-type]
        path.unlink() if before is None else path.write_text(before)
    assert live.state.revision.number == 1


def test_the_lock_of_the_tree_that_a_file_leads_into_counts(tree: Path, tmp_path: Path) -> None:
    directory = tmp_path / "links"
    directory.mkdir()
    (directory / "own.yaml").write_text("a")
    (directory / "web.yaml").symlink_to(tree / "a.yaml")
    (directory / "also.yaml").symlink_to("web.yaml")
    (directory / "ignored.txt").symlink_to(tmp_path)
    lock = tree / ".git" / "index.lock"
    assert index_locks(directory) == (lock,)
    assert index_locks(tree) == (lock,)
    settle(Fingerprints(directory), quiet_sec=0.01)
    lock.touch()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        lock.unlink()

    settle(Fingerprints(directory), quiet_sec=0.01, sleep=sleep)
    assert slept


def test_files_of_another_tree_are_held_whatever_head_is_here(
    tree: Path, tmp_path: Path, live: FakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "links"
    directory.mkdir()
    git(directory, "init", "-q")
    (directory / "web.yaml").symlink_to(tree / "a.yaml")
    git(directory, "add", ".")
    git(directory, "commit", "-q", "-m", "a link")
    assert len(index_locks(directory)) == 2
    (tree / ".git" / "index.lock").touch()
    monkeypatch.setattr(snapshot, "QUIET_SEC", 0.01)
    engine = Engine(Places(directory, tmp_path / "run", tmp_path / "state", tmp_path / "bpf"), live=live)  # type: ignore[arg-type]
    with pytest.raises(HeldError):
        engine.apply()
