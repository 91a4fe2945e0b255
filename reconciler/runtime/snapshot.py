"""When the files of a directory can be read as one: not while git or anybody else is in the middle of writing.

A fingerprint says what the directory holds now. It counts once no ``index.lock`` of the enclosing git work tree, or of
one that a symlinked file leads into, stood before or after it and the files have been quiet for a moment.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import is_
from pathlib import Path
from typing import Final

from reconciler.config.files import SUFFIXES, anybody_may_write

QUIET_SEC: Final = 0.15
LOCK_PATIENCE_SEC: Final = 30.0
_LARGEST_BYTES: Final = 8 << 20  # beyond it the stat alone tells a change; the loader refuses such files anyway

_Identity = tuple[int, int, int, int, int]
Standing = tuple[tuple[Path, _Identity], ...]
"""Locks that stand, and which they are."""


def is_config_file(name: str) -> bool:
    """A file of that name in the directory is read."""
    return name.endswith(SUFFIXES) and not name.startswith(".")


@dataclass(slots=True)
class Fingerprints:
    """Fingerprints of one directory's configuration files, by content. Unchanged files are not read again.
    ``beside``: another one, of the same directory, whose files need not be read again either."""

    directory: Path
    _digests: dict[str, tuple[_Identity, bytes]] = field(default_factory=dict)
    newest_ns: int = 0
    beside: Fingerprints | None = None
    outlasted: tuple[Standing, bytes] | None = None
    """The locks that stood for too long, and the files then."""
    unlocked: bytes = b""  # the files when no lock stood
    _whole: tuple[bool, bytes] | None = None  # of these digests: whether anybody may write the directory, and all of it

    def take(self) -> bytes:
        """A digest of every configuration file's name and content, or of the reason why there is none, and of what
        anybody may write.

        ``newest_ns`` is afterwards the latest time (CLOCK_REALTIME) at which the directory or one of its files
        changed. Never raises :class:`OSError`: what can't be read is part of the fingerprint.
        """
        self.newest_ns = 0
        try:
            own = self.directory.stat()
            names = [name for name in os.listdir(self.directory) if is_config_file(name)]  # noqa: PTH208
        except OSError as error:
            self._digests, self._whole = {}, None
            return hashlib.sha256().digest() + errno.errorcode.get(error.errno or 0, "?").encode()
        names.sort()
        self.newest_ns = own.st_ctime_ns
        kept = self._each(names)
        known, self._digests = self._digests, kept
        open_to_all = anybody_may_write(own)
        # The very same entries, for each is taken over if it is still that of its file.
        same = len(known) == len(kept) and all(map(is_, known.values(), kept.values()))
        if not same or self._whole is None or self._whole[0] != open_to_all:
            pieces = (name.encode(errors="surrogateescape") + b"\0" + kept[name][1] for name in names)
            self._whole = open_to_all, hashlib.sha256((b"open" if open_to_all else b"") + b"".join(pieces)).digest()
        return self._whole[1]

    def _each(self, names: Iterable[str]) -> dict[str, tuple[_Identity, bytes]]:
        """Of each file, in this order. A thousand of them at each look: hence no calls but the kernel's."""
        known, beside = self._digests, self.beside._digests if self.beside else {}
        before = os.path.join(self.directory, "")  # noqa: PTH118
        kept = {}
        newest_ns = self.newest_ns
        for name in names:
            try:
                found = os.stat(before + name)  # noqa: PTH116
                identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
                newest_ns = max(newest_ns, identity[4])
                entry = known.get(name)
                if entry is None or entry[0] != identity:
                    entry = beside.get(name)
                    if entry is None or entry[0] != identity:
                        entry = identity, _content_digest(Path(before + name), found, identity)
            except OSError as error:
                entry = (0, 0, 0, 0, 0), f"errno {error.errno}".encode()
            kept[name] = entry
        self.newest_ns = newest_ns
        return kept


def _content_digest(path: Path, found: os.stat_result, identity: _Identity) -> bytes:
    """Also of whether anybody may write it. Raises :class:`OSError`."""
    if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_BYTES:
        return hashlib.sha256(repr((found.st_mode, identity)).encode()).digest()
    return hashlib.sha256(path.read_bytes()).digest() + (b"open" if anybody_may_write(found) else b"")


def index_lock(directory: Path) -> Path | None:
    """Where git puts its lock while it rewrites the work tree that contains ``directory``; None outside of one.

    Follows symlinks, and the ``.git`` files of linked work trees and submodules (gitrepository-layout(5)).
    """
    real = Path(os.path.realpath(directory))
    for parent in (real, *real.parents):
        git = parent / ".git"
        if os.path.isdir(git):  # noqa: PTH112  # Path.is_dir() raises where a directory can't be entered
            return git / "index.lock"
        if os.path.isfile(git):  # noqa: PTH113
            try:
                text = git.read_text(errors="replace").strip()
            except OSError:
                return None
            return parent / text.removeprefix("gitdir:").strip() / "index.lock"
    return None


def index_locks(directory: Path) -> tuple[Path, ...]:
    """:func:`index_lock` of the directory, and of those that its symlinked files are in really."""
    found = dict.fromkeys([index_lock(directory)])
    try:
        names = [entry.path for entry in os.scandir(directory) if entry.is_symlink() and is_config_file(entry.name)]
    except OSError:
        names = []
    for there in {os.path.dirname(os.path.realpath(name)) for name in names}:  # noqa: PTH120
        found[index_lock(Path(there))] = None
    return tuple(lock for lock in found if lock is not None)


def standing(directory: Path) -> Standing:
    """Which locks stand there, empty if none does."""
    found = []
    for lock in index_locks(directory):
        with contextlib.suppress(OSError):
            seen = lock.stat()
            found.append((lock, (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)))
    return tuple(found)


def settle(
    fingerprints: Fingerprints,
    *,
    quiet_sec: float = QUIET_SEC,
    lock_patience_sec: float = LOCK_PATIENCE_SEC,
    sleep: Callable[[float], None] = time.sleep,
    read: Callable[[], None] | None = None,
    whole: Callable[[], bool] = lambda: False,
    seen: bytes | None = None,
) -> bytes:
    """Wait until the files can be read as one, and give their fingerprint.

    That is when no index lock stands and two fingerprints at least ``quiet_sec`` apart agree; files whose last
    change is that old already need no waiting. Nor do files that are what they were when no lock stood.

    A lock that stands for ``lock_patience_sec`` while the files do not change was left by a crash, or is held by a git
    that waits for a person. They may then be of two commits: ``outlasted`` of ``fingerprints`` says so, until there is
    another answer, and as long as lock and files are the same it is not waited for again.

    ``sleep`` may raise to end the waiting. ``read`` is called before the second of the two: what it finds then is that
    of the fingerprint, once this returns. ``whole``: what it has found last is all of one commit, and so not a part of
    a checkout, whatever git is at; then a lock is not waited for either. ``seen``: the first one, taken just now.
    """
    directory, beside = fingerprints.directory, fingerprints.beside
    seen, since = seen or fingerprints.take(), time.monotonic()
    asked: bytes | None = None
    while True:
        locks = standing(directory)
        unchanged_sec = time.monotonic() - since
        if not locks:
            unchanged_sec = max(unchanged_sec, (time.time_ns() - fingerprints.newest_ns) / 1e9)
        untouched = seen == fingerprints.unlocked
        known = untouched or (locks, seen) in (fingerprints.outlasted, beside.outlasted if beside else None)
        patience_sec = quiet_sec if not locks else 0.0 if known else lock_patience_sec
        early = unchanged_sec < patience_sec and bool(locks) and unchanged_sec >= quiet_sec and asked != seen
        if early or unchanged_sec >= patience_sec:
            asked = seen
            if read:
                read()
            again = fingerprints.take()
            if again == seen and (whole() if early else locks or not standing(directory)):
                fingerprints.outlasted = (locks, seen) if locks and not untouched else None
                fingerprints.unlocked = fingerprints.unlocked if locks else seen
                return seen
        else:
            sleep(min(quiet_sec, 0.05) if locks else quiet_sec)
            again = fingerprints.take()
        if again != seen:
            seen, since = again, time.monotonic()
