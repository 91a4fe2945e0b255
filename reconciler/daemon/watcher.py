"""Notices that the files of the configuration directory have changed, however they were changed.

inotify (through watchdog) only says "look": what counts is the fingerprint of the files' content, so an editor's
rename, a swapped symlink, a ``git checkout`` or a directory made anew are all the same thing, and a burst of events is
one change. Identity is polled as well, slowly: no set of watches covers every way to exchange a directory. Without
inotify (limits, file systems that do not tell) the poll is all there is, and quicker.
"""

from __future__ import annotations

import inspect
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirModifiedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

from reconciler.runtime.signed import FilesAndHead
from reconciler.runtime.snapshot import QUIET_SEC, Fingerprints, settle, standing

_CHANGES: Final = frozenset({"created", "modified", "moved", "deleted", "closed"})  # not "opened", not reads
_EVENTS: Final = (
    *(DirCreatedEvent, DirDeletedEvent, DirModifiedEvent, DirMovedEvent),
    *(FileClosedEvent, FileCreatedEvent, FileDeletedEvent, FileModifiedEvent, FileMovedEvent),
)
_POLL_SEC: Final = 2.0
_POLL_WITHOUT_INOTIFY_SEC: Final = 0.5
_POLL_SHARE: Final = 1 / 8000  # of a CPU's time is what the poll may take, however many files there are
_LONGEST_POLL_SEC: Final = 30.0
_BURST_SEC: Final = 5.0  # a stream of events that never pauses is looked at this often
_SETTLED_NS: Final = 50_000_000  # the kernel's clock for files goes in steps of up to 10 ms
_MOST_SYMLINKS: Final = 40  # as many as the kernel follows

_ANY: Final[frozenset[str]] = frozenset()
_Identity = tuple[int, int]
Points = dict[str, frozenset[str]]
"""Real directory -> names in it that matter; the empty set stands for every name."""


class _StopWaiting(Exception):  # not an error
    """Raised out of a wait when the watcher is stopped."""


_Links = Callable[[str], Sequence[str]]


def _symlinks(directory: str) -> Sequence[str]:
    """The paths of the symlinks in a directory. Raises :class:`OSError`."""
    return [entry.path for entry in os.scandir(directory) if entry.is_symlink()]


class _KnownLinks:
    """:func:`_symlinks`, looked for again only in another directory than last time or in one that has changed since:
    to make a symlink, or to put one in a file's place, changes it."""

    def __init__(self) -> None:
        self._known: tuple[object, Sequence[str]] | None = None

    def __call__(self, directory: str) -> Sequence[str]:
        found = Path(directory).stat()
        identity = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
        if self._known is not None and self._known[0] == identity:
            return self._known[1]
        links = _symlinks(directory)
        # One that has changed just now might change again and still look the same.
        self._known = (identity, links) if time.time_ns() - found.st_ctime_ns > _SETTLED_NS else None
        return links


def watch_points(directory: Path, symlinks: _Links = _symlinks) -> Points:
    """Which directories to watch for what, so that a change of ``directory`` is told, also by way of symlinks.

    The directory itself, its parent (it may be removed and made anew), the parent of every symlink on the way to
    it and to the files in it (a swap is a rename there), and, where something is missing, the deepest directory
    there is.
    """
    points: Points = {}
    real = _follow(str(directory), points, is_directory=True)
    if real is None:
        return points
    points[real] = _ANY
    try:
        links = symlinks(real)
    except OSError:
        return points
    for link in links:
        _follow(link, points, is_directory=False)
    return points


def _follow(path: str, points: Points, *, is_directory: bool) -> str | None:
    """The real path of ``path``, None if it does not exist; adds what has to be watched on the way to ``points``."""
    here, rest = "/", [part for part in path.split("/") if part]
    for _ in range(_MOST_SYMLINKS * 8):
        if not rest:
            return here
        name = rest.pop(0)
        step = os.path.normpath(os.path.join(here, name))  # noqa: PTH118  # "here" has no symlinks left in it
        link = os.readlink(step) if os.path.islink(step) else None  # noqa: PTH114, PTH115
        if link is not None or not rest or not os.path.lexists(step):
            names = points.get(here)
            if names is None or names:  # not yet watched for every name
                points[here] = (names or _ANY) | {name}
        if link is not None:
            rest = [part for part in link.split("/") if part] + rest
            here = "/" if link.startswith("/") else here
        elif os.path.isdir(step) or (not rest and not is_directory and os.path.exists(step)):  # noqa: PTH112, PTH110
            here = step
        else:
            return None
    return None


def pause_after(took_sec: float, poll_sec: float) -> float:
    """How long to wait after a look that took so much CPU time, while inotify tells of most that happens: ``poll_sec``,
    longer where a thousand files make a look dear, half a minute at most."""
    return max(poll_sec, min(took_sec / _POLL_SHARE, _LONGEST_POLL_SEC))


class Watcher:
    """Calls ``changed`` from a thread of its own, once after each change of the directory's configuration files.

    ``changed`` is called for differences to what was there when :meth:`start` was called, or at the last call.
    ``head``: also when the git work tree that the directory is in is at another commit.
    """

    def __init__(
        self,
        directory: Path,
        changed: Callable[[], None],
        *,
        quiet_sec: float = QUIET_SEC,
        poll_sec: float = _POLL_SEC,
        inotify: bool = True,
        head: bool = False,
    ) -> None:
        self._directory, self._changed = directory, changed
        self._quiet_sec, self._poll_sec = quiet_sec, poll_sec
        self._inotify = inotify
        self.fingerprints = FilesAndHead(directory) if head else Fingerprints(directory)
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._moved = threading.Event()  # a directory on the way may be another one by the same number
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._observer: Any = None  # watchdog's Observer is a variable, not a type
        self._armed: Mapping[str, tuple[_Identity, frozenset[str]]] = {}
        self._reported = b""
        self._links = _KnownLinks()

    @property
    def polling(self) -> bool:
        """inotify could not be had: changes are found by looking, twice a second."""
        return not self._inotify

    def start(self) -> None:
        """Begin to watch. What changes from here on is told."""
        self._reported = self.fingerprints.take()
        self._arm()
        self._thread.start()

    def stop(self) -> None:
        """End the thread and give the watches back."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._disarm()

    def _run(self) -> None:
        pause_sec = self._poll_sec
        while not self._stopping.is_set():
            self._wake.wait(pause_sec if self._inotify else min(self._poll_sec, _POLL_WITHOUT_INOTIFY_SEC))
            began = time.thread_time()
            try:
                self._debounce()
                self._arm()
                self._look()
            except _StopWaiting:
                return
            waits = self.fingerprints.outlasted is not None  # for somebody to remove a lock, which nothing else tells
            pause_sec = self._poll_sec if waits else pause_after(time.thread_time() - began, self._poll_sec)

    def _look(self) -> None:
        seen = self.fingerprints.take()
        if self._let_go():
            self._reported = b""  # what was held because of it is not any more
        if seen == self._reported:
            return
        settled = settle(self.fingerprints, quiet_sec=self._quiet_sec, sleep=self._sleep, seen=seen)
        if settled != self._reported:
            self._reported = settled
            self._changed()

    def _let_go(self) -> bool:
        """A lock that stood for too long is gone, or is another git's."""
        outlasted = self.fingerprints.outlasted
        if outlasted is None or standing(self._directory) == outlasted[0]:
            return False
        self.fingerprints.outlasted = None
        return True

    def _debounce(self) -> None:
        """Let a burst of events pass: go on after a quiet moment, or after ``_BURST_SEC`` without one."""
        deadline = time.monotonic() + _BURST_SEC
        while self._wake.is_set() and time.monotonic() < deadline:
            self._wake.clear()
            self._sleep(self._quiet_sec)

    def _sleep(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise _StopWaiting

    # -- watches -------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Watch what has to be watched now; nothing to do while every watched directory is still the same one."""
        if not self._inotify:
            return
        wanted, moved = {}, self._moved.is_set()
        if moved:
            self._moved.clear()
        for path, names in watch_points(self._directory, self._links).items():
            try:
                found = Path(path).stat()
            except OSError:
                continue  # gone in this moment; the next look sees what came instead
            wanted[path] = ((found.st_dev, found.st_ino), names)
        if wanted == self._armed and not moved:
            return
        self._disarm()
        observer = Observer()
        try:
            for path, (_, names) in wanted.items():
                observer.schedule(_Handler(self._wake, self._moved, names), path, **_only_changes(observer))
            observer.start()
        except OSError:
            observer.stop()
            # A directory that vanished meanwhile is met again at the next look; otherwise there are no instances or
            # watches left (fs.inotify.max_user_*), and polling has to do.
            self._inotify = not all(os.path.isdir(path) for path in wanted)  # noqa: PTH112
            return
        self._observer, self._armed = observer, wanted
        # Whatever happened between the look at the paths and the start of the watches has to be looked for.
        self._wake.set()

    def _disarm(self) -> None:
        observer, self._observer, self._armed = self._observer, None, {}
        if observer is not None:
            observer.stop()
            observer.join()


def _only_changes(observer: Any) -> dict[str, Any]:
    """Have the kernel tell of nothing else: each poll reads the directories, and would wake three threads by that.
    Before 4.0 watchdog can't be asked for it."""
    known = inspect.signature(observer.schedule).parameters
    return {"event_filter": list(_EVENTS)} if "event_filter" in known else {}


class _Handler(FileSystemEventHandler):
    """Sets ``wake`` when something with one of the names changed (every name: empty set), and ``moved`` if there are
    names: those of directories and links on the way. One made anew often gets the number of the one removed."""

    def __init__(self, wake: threading.Event, moved: threading.Event, names: frozenset[str]) -> None:
        self._wake, self._moved, self._names = wake, moved, names

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type not in _CHANGES:
            return
        if self._names:
            ends = (event.src_path, getattr(event, "dest_path", ""))
            if not any(os.path.basename(os.fsdecode(end)) in self._names for end in ends if end):  # noqa: PTH119
                return
            self._moved.set()
        self._wake.set()
