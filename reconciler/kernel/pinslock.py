"""The lock on the directory of the pins, which whoever changes them holds, whatever run directory it was given.

The lock in the run directory keeps the processes of one instance apart. A command that was given another run directory,
and not the other places of that instance, would find no daemon and work on the pins of this one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Final

from reconciler.errors import LockedError

_PAUSE_SEC: Final = 0.05


class PinsLock:
    """Held from :meth:`take` to :meth:`release`, or to the end of the process."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def take(self, directory: Path, *, wait_sec: float = 0.0) -> None:
        """Hold it for the directory that is there now; where there is none yet, or no longer, there is nothing to hold.

        Waits up to ``wait_sec`` for another holder; raises :class:`LockedError` if it is still there then, and
        :class:`OSError` where the directory can't be opened.
        """
        deadline = time.monotonic() + wait_sec
        try:
            found = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            self.release()
            return
        if self._descriptor is not None and os.path.samestat(os.fstat(found), os.fstat(self._descriptor)):
            os.close(found)
            return
        self.release()
        try:
            while not _locked(found):
                if time.monotonic() >= deadline:
                    raise LockedError(f"the pins in {directory} are in use by {_holder(found)}: {_ADVICE}")
                time.sleep(_PAUSE_SEC)
        except BaseException:
            os.close(found)
            raise
        self._descriptor = found

    def release(self) -> None:
        """Give it back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_ADVICE: Final = "another instance, or this one with another --run-dir (an instance has all four places to itself)"


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EINTR):
            return False
        raise
    return True


def _holder(descriptor: int) -> str:
    """Who, as far as this process may know (``/proc/locks``, proc_locks(5))."""
    status = os.fstat(descriptor)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        words = line.split()
        if words[1:2] == ["FLOCK"] and place in words:
            return f"process {words[4]}"
    return "another process"
