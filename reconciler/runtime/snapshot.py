"""When the files of a directory can be read as one: not while git or anybody else is in the middle of writing.

A fingerprint says what the directory holds now. It counts once no ``index.lock`` of the enclosing git work tree
stood before or after it and the files have been quiet for a moment.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from reconciler.config.files import SUFFIXES, anybody_may_write

QUIET_SEC: Final = 0.15
LOCK_PATIENCE_SEC: Final = 30.0
_LARGEST_BYTES: Final = 8 << 20  # beyond it the stat alone tells a change; the loader refuses such files anyway

_Identity = tuple[int, int, int, int, int]


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

    def take(self) -> bytes:
        """A digest of every configuration file's name and content, or of the reason why there is none, and of what
        anybody may write.

        ``newest_ns`` is afterwards the latest time (CLOCK_REALTIME) at which the directory or one of its files
        changed. Never raises :class:`OSError`: what can't be read is part of the fingerprint.
        """
        digest = hashlib.sha256()
        self.newest_ns = 0
        try:
            own = self.directory.stat()
            names = sorted(filter(is_config_file, os.listdir(self.directory)))  # noqa: PTH208  # names, not paths
        except OSError as error:
            self._digests.clear()
            return digest.digest() + errno.errorcode.get(error.errno or 0, "?").encode()
        self.newest_ns = own.st_ctime_ns
        if anybody_may_write(own):
            digest.update(b"open")
        kept: dict[str, tuple[_Identity, bytes]] = {}
        for name in names:
            kept[name] = self._one(name)
            digest.update(name.encode(errors="surrogateescape") + b"\0" + kept[name][1])
        self._digests = kept
        return digest.digest()

    def _one(self, name: str) -> tuple[_Identity, bytes]:
        path = os.path.join(self.directory, name)  # noqa: PTH118  # a thousand of them at each look
        try:
            found = os.stat(path)  # noqa: PTH116
            identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            self.newest_ns = max(self.newest_ns, found.st_ctime_ns)
            for each in (self, self.beside):
                known = each._digests.get(name) if each else None
                if known and known[0] == identity:
                    return known
            if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_BYTES:
                return identity, hashlib.sha256(repr((found.st_mode, identity)).encode()).digest()
            open_to_all = b"open" if anybody_may_write(found) else b""
            return identity, hashlib.sha256(Path(path).read_bytes()).digest() + open_to_all
        except OSError as error:
            return (0, 0, 0, 0, 0), f"errno {error.errno}".encode()


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


def _stands(lock: Path | None) -> bool:
    return lock is not None and os.path.exists(lock)  # noqa: PTH110  # unlike Path.exists(), never raises


def settle(
    fingerprints: Fingerprints,
    *,
    quiet_sec: float = QUIET_SEC,
    lock_patience_sec: float = LOCK_PATIENCE_SEC,
    sleep: Callable[[float], None] = time.sleep,
) -> bytes:
    """Wait until the files can be read as one, and give their fingerprint.

    That is when no index lock stands and two fingerprints at least ``quiet_sec`` apart agree; files whose last
    change is that old already need no waiting. A lock that stands for ``lock_patience_sec`` while the files do
    not change was left by a crash, or is held by a git that waits for a person: it is then disregarded.
    ``sleep`` may raise to end the waiting.
    """
    lock = index_lock(fingerprints.directory)
    seen, since = fingerprints.take(), time.monotonic()
    while True:
        locked = _stands(lock)
        unchanged_sec = time.monotonic() - since
        if not locked:
            unchanged_sec = max(unchanged_sec, (time.time_ns() - fingerprints.newest_ns) / 1e9)
        if unchanged_sec >= (lock_patience_sec if locked else quiet_sec):
            again = fingerprints.take()
            if again == seen and (locked or not _stands(lock)):
                return seen
        else:
            sleep(min(quiet_sec, 0.05) if locked else quiet_sec)
            again = fingerprints.take()
        if again != seen:
            seen, since = again, time.monotonic()
