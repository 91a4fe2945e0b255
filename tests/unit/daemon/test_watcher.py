"""The watcher tells every way in which a configuration directory changes, once, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netlab import wait_for
from reconciler.daemon import watcher as watcher_module
from reconciler.daemon.watcher import Watcher, pause_after, watch_points
from reconciler.runtime.snapshot import settle

QUIET_SEC = 0.03


class Changes:
    """Counts calls, and lets a test wait for them."""

    def __init__(self) -> None:
        self.count = 0
        self._condition = threading.Condition()

    def __call__(self) -> None:
        with self._condition:
            self.count += 1
            self._condition.notify_all()

    def wait(self, count: int, timeout_sec: float = 10.0) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: self.count >= count, timeout_sec), (
                f"{self.count} of {count} changes"
            )

    def stay(self, count: int) -> None:
        """No further change within several quiet periods."""
        with self._condition:
            assert not self._condition.wait_for(lambda: self.count > count, QUIET_SEC * 12), "told a change too many"


Start = Callable[..., Changes]


@pytest.fixture
def start() -> Iterator[Start]:
    watchers: list[Watcher] = []

    # poll_sec so long that inotify alone has to do it
    def run(directory: Path, *, poll_sec: float = 600.0, inotify: bool = True) -> Changes:
        changes = Changes()
        watcher = Watcher(directory, changes, quiet_sec=QUIET_SEC, poll_sec=poll_sec, inotify=inotify)
        watchers.append(watcher)
        watcher.start()
        return changes

    yield run
    for watcher in watchers:
        watcher.stop()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "config.d"
    made.mkdir()
    (made / "a.yaml").write_text("one")
    return made


def test_written_created_and_removed_files_are_told(start: Start, directory: Path) -> None:
    changes = start(directory)
    (directory / "a.yaml").write_text("two")
    changes.wait(1)
    (directory / "b.json").write_text("{}")
    changes.wait(2)
    (directory / "a.yaml").unlink()
    changes.wait(3)


def test_an_editors_rename_is_told(start: Start, directory: Path) -> None:
    changes = start(directory)
    (directory / ".a.yaml.swp").write_text("two")
    (directory / ".a.yaml.swp").rename(directory / "a.yaml")
    changes.wait(1)


def test_the_same_content_is_no_change(start: Start, directory: Path) -> None:
    changes = start(directory)
    (directory / "a.yaml").write_text("one")
    (directory / "notes.txt").write_text("not ours")
    (directory / "a.yaml").read_text()
    list(directory.iterdir())
    changes.stay(0)


def test_a_burst_is_one_change(start: Start, directory: Path) -> None:
    changes = start(directory)
    for number in range(200):
        (directory / f"{number}.yaml").write_text(str(number))
    changes.wait(1)
    changes.stay(1)


def test_a_swapped_symlink_to_the_directory_is_told_again_and_again(start: Start, tmp_path: Path) -> None:
    link = tmp_path / "current"
    for number in range(4):
        (tmp_path / f"release{number}").mkdir()
        (tmp_path / f"release{number}" / "a.yaml").write_text(str(number))
    link.symlink_to("release0")
    changes = start(link)
    for number in range(1, 4):
        (tmp_path / "fresh").symlink_to(f"release{number}")
        (tmp_path / "fresh").replace(link)
        changes.wait(number)
    (tmp_path / "release3" / "a.yaml").write_text("in place")
    changes.wait(4)


def test_a_swapped_data_symlink_behind_the_files_is_told(start: Start, tmp_path: Path) -> None:
    """As Kubernetes mounts a ConfigMap: a.yaml -> ..data/a.yaml, ..data -> ..<time>."""
    directory = tmp_path / "config.d"
    for number in range(3):
        (directory / f"..{number}").mkdir(parents=True)
        (directory / f"..{number}" / "a.yaml").write_text(str(number))
    (directory / "..data").symlink_to("..0")
    (directory / "a.yaml").symlink_to("..data/a.yaml")
    changes = start(directory)
    for number in (1, 2):
        (directory / "..fresh").symlink_to(f"..{number}")
        (directory / "..fresh").replace(directory / "..data")
        changes.wait(number)


def test_a_file_behind_a_symlink_is_watched_where_it_is(start: Start, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "real.yaml").write_text("one")
    (directory / "b.yaml").symlink_to(tmp_path / "elsewhere" / "real.yaml")
    changes = start(directory)
    (tmp_path / "elsewhere" / "real.yaml").write_text("two")
    changes.wait(1)


def test_a_directory_removed_and_made_anew_is_followed(start: Start, directory: Path) -> None:
    changes = start(directory)
    shutil.rmtree(directory)
    changes.wait(1)
    directory.mkdir()
    (directory / "a.yaml").write_text("two")
    changes.wait(2)
    (directory / "a.yaml").write_text("three")
    changes.wait(3)


def test_a_directory_made_anew_under_the_same_number_is_followed(start: Start, directory: Path) -> None:
    """At once, as tools do that write all of it: it has the number of the one before on most file systems."""
    changes = start(directory)
    for text in ("two", "three", "four"):
        before = changes.count
        shutil.rmtree(directory)
        directory.mkdir()
        (directory / "a.yaml").write_text(text)
        changes.wait(before + 1)
        changes.stay(before + 1)
        (directory / "a.yaml").write_text(f"{text} more")
        changes.wait(before + 2)


def test_an_exchanged_directory_is_told(start: Start, directory: Path, tmp_path: Path) -> None:
    changes = start(directory)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.yaml").write_text("two")
    directory.rename(tmp_path / "old")
    (tmp_path / "other").rename(directory)
    changes.wait(1)
    told = changes.count
    (directory / "a.yaml").write_text("three")
    changes.wait(told + 1)


def test_a_directory_that_does_not_exist_yet_is_waited_for(start: Start, tmp_path: Path) -> None:
    changes = start(tmp_path / "etc" / "revproxy" / "config.d")
    (tmp_path / "etc" / "revproxy" / "config.d").mkdir(parents=True)
    (tmp_path / "etc" / "revproxy" / "config.d" / "a.yaml").write_text("one")
    changes.wait(1)
    told = changes.count
    (tmp_path / "etc" / "revproxy" / "config.d" / "a.yaml").write_text("two")
    changes.wait(told + 1)


def test_without_inotify_polling_finds_changes(start: Start, directory: Path) -> None:
    changes = start(directory, poll_sec=0.05, inotify=False)
    (directory / "a.yaml").write_text("two")
    changes.wait(1)


def test_what_no_watch_tells_is_found_by_polling(start: Start, tmp_path: Path) -> None:
    """A grandparent exchanged: inotify on the directory and its parent says nothing of it."""
    (tmp_path / "one" / "b" / "config.d").mkdir(parents=True)
    (tmp_path / "two" / "b" / "config.d").mkdir(parents=True)
    (tmp_path / "two" / "b" / "config.d" / "a.yaml").write_text("two")
    changes = start(tmp_path / "one" / "b" / "config.d", poll_sec=0.05)
    (tmp_path / "one").rename(tmp_path / "zero")
    (tmp_path / "two").rename(tmp_path / "one")
    changes.wait(1)


def git(tree: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *identity, *arguments], cwd=tree, check=True, capture_output=True)


def work_tree(directory: Path) -> tuple[Path, Path]:
    """The configuration's directory in a fresh one, and where git's lock would stand."""
    found = directory / "tree" / "config.d"
    found.mkdir(parents=True)
    git(found.parent, "init")
    return found, found.parent / ".git" / "index.lock"


def test_a_checkout_is_one_change_after_git_let_go(start: Start, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    directory = tree / "deploy" / "config.d"
    directory.mkdir(parents=True)
    git(tree, "init")
    for revision in ("one", "two"):
        for number in range(100):
            (directory / f"{number}.yaml").write_text(f"{revision} {number}")
        git(tree, "add", ".")
        git(tree, "commit", "-m", revision)
    seen: list[set[str]] = []
    changes = start(directory)
    git(tree, "checkout", "-q", "HEAD~1")
    changes.wait(1)
    seen.append({path.read_text().split()[0] for path in directory.iterdir()})
    changes.stay(1)
    assert seen == [{"one"}]


def test_a_standing_index_lock_is_waited_for(start: Start, tmp_path: Path) -> None:
    directory, lock = work_tree(tmp_path)
    changes = start(directory)
    lock.write_text("")
    (directory / "a.yaml").write_text("half of it")
    changes.stay(0)
    (directory / "b.yaml").write_text("the rest")
    lock.unlink()
    changes.wait(1)
    changes.stay(1)


def test_a_lock_that_outlasted_the_patience_is_told_when_it_goes(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files have not changed since, and may be applied now."""
    patience = {**settle.__kwdefaults__, "lock_patience_sec": 0.2}
    monkeypatch.setattr(settle, "__kwdefaults__", patience)
    directory, lock = work_tree(tmp_path)
    changes = start(directory, poll_sec=0.05)
    lock.write_text("")
    (directory / "a.yaml").write_text("half of it")
    changes.wait(1)
    changes.stay(1)
    lock.unlink()
    changes.wait(2)
    changes.stay(2)


def test_what_git_puts_back_before_it_lets_go_is_no_change(start: Start, tmp_path: Path) -> None:
    directory, lock = work_tree(tmp_path)
    (directory / "a.yaml").write_text("one")
    changes = start(directory)
    lock.write_text("")
    (directory / "a.yaml").write_text("two")
    changes.stay(0)
    (directory / "a.yaml").write_text("one")
    lock.unlink()
    changes.stay(0)


def test_watch_points_of_plain_and_linked_directories(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    assert watch_points(real) == {str(real): frozenset(), str(tmp_path): frozenset({"real"})}
    link = tmp_path / "link"
    link.symlink_to("real")
    assert watch_points(link) == {str(real): frozenset(), str(tmp_path): frozenset({"link", "real"})}
    assert watch_points(tmp_path / "no" / "such") == {str(tmp_path): frozenset({"no"})}


def test_watch_points_end_with_a_symlink_to_itself(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert watch_points(loop) == {str(tmp_path): frozenset({"loop"})}


def test_symlinks_are_looked_for_where_something_has_changed_and_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    look = watcher_module._symlinks
    monkeypatch.setattr(watcher_module, "_symlinks", lambda path: looks.append(path) or look(path))
    directory, other = str(tmp_path / "one"), str(tmp_path / "other")
    for each in (directory, other):
        Path(each).mkdir()
        Path(each, "file").touch()
    links = watcher_module._KnownLinks()

    def remembered() -> bool:
        before = len(looks)
        assert links(directory) == []
        return len(looks) == before

    assert not remembered()
    assert not remembered()  # it has changed just now
    wait_for(remembered, "a directory that has not changed for a while")
    Path(directory, "link").symlink_to("file")
    assert links(directory) == [f"{directory}/link"]
    Path(other, "link").symlink_to("file")
    wait_for(lambda: links(directory) and links._known is not None, "the same a while later")
    assert links(other) == [f"{other}/link"]
    Path(directory, "link").unlink()
    assert links(directory) == []


@pytest.mark.parametrize(
    ("took_sec", "pause_sec"), [(0.0, 2.0), (0.0002, 2.0), (0.00125, 10.0), (0.0025, 20.0), (0.5, 30.0)]
)
def test_the_poll_takes_no_more_than_its_share(took_sec: float, pause_sec: float) -> None:
    assert pause_after(took_sec, 2.0) == pytest.approx(pause_sec)
