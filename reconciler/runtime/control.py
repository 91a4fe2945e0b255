"""What was said to the reconciler and has to outlive it: suspended, files that are not to be applied, a commit that
waits to be confirmed. One small JSON file in the state directory, written whole or not at all.

Nothing here says what is live; the kernel does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Final

from reconciler import kernelclock
from reconciler.answers import from_json, to_json
from reconciler.errors import RevproxyError
from reconciler.runtime import statefile, wholefile
from reconciler.runtime.logger import Logger
from reconciler.runtime.statefile import BrokenError

LONGEST_SEC: Final = 7 * 86400.0
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

_log = Logger("control")


@dataclass(frozen=True, slots=True)
class Hold:
    """Files that are not applied by themselves as long as their fingerprint is this one. ``reason``: for a person.
    ``once_beyond``: it counts only once another revision than this one is in force, the commit that it is about being
    made; None: it is made."""

    files: str
    reason: str
    once_beyond: int | None = None


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """A commit that is rolled back when its time is up. ``previous``: the revision to go back to, 0 for none;
    ``within_sec``: how long it was given; ``deadline``: seconds of CLOCK_BOOTTIME in the boot ``boot``, which no
    change of the clock moves; ``until``: the same for a person, ISO 8601 in UTC; ``trouble``: why rolling back did not
    work when the time was up."""

    previous: int
    within_sec: float
    deadline: float
    boot: str
    until: str
    trouble: str = ""

    def left_sec(self) -> float:
        """Seconds that are left; 0 when the time is up. A machine that was started anew has none left."""
        if self.boot != boot_id():
            return 0.0
        return min(self.within_sec, max(0.0, self.deadline - boot_clock()))


@dataclass(frozen=True, slots=True)
class Control:
    """``suspended``: since when, ISO 8601; None if it is not. ``down``: everything was taken away on purpose."""

    suspended: str | None = None
    hold: Hold | None = None
    unconfirmed: Unconfirmed | None = None
    down: bool = False


class ControlFile:
    """Reads and writes :class:`Control`. Who writes holds the instance lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[tuple[int, int, int], Control] | None = None

    def read(self) -> Control:
        """What was said. In place of what is not as it was written counts what this process has read before, or else
        that nothing was said; and it is logged."""
        try:
            found = self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return Control()
        except OSError:  # what is wrong with it is said when it is read
            version = (0, 0, 0)
        else:
            version = (found.st_mtime_ns, found.st_ino, found.st_size)
        known = self._known[1] if self._known else Control()
        if self._known is None or self._known[0] != version:
            try:
                known = statefile.load(self._path, decode) or Control()
            except BrokenError as error:
                _log.error("control_not_read", path=str(self._path), error=str(error))
            self._known = (version, known)
        return known

    def write(self, control: Control) -> None:
        """Remember it, also through a loss of power. Raises :class:`RevproxyError` if it can't be written."""
        if control == self.read():
            return
        try:
            wholefile.replace(self._path, json.dumps(to_json(control), sort_keys=True) + "\n", durable=True)
        except OSError as error:
            raise RevproxyError(f"{self._path} can't be written: {error.strerror or error}") from error

    def change(self, how: Callable[[Control], Control]) -> Control:
        """Write what ``how`` makes of the present one, and return it."""
        control = how(self.read())
        self.write(control)
        return control


def decode(data: Any) -> Control:
    """What was written. Raises :class:`ValueError`."""
    control = from_json(Control, data)
    waiting = control.unconfirmed
    if waiting is not None and not (0 <= waiting.within_sec <= LONGEST_SEC and isfinite(waiting.deadline)):
        raise ValueError(f"a commit can't wait for {waiting.within_sec} s, until {waiting.deadline}")
    return control


def boot_id() -> str:
    """Which start of the machine this is."""
    return _BOOT_ID.read_text().strip()


def boot_clock() -> float:
    """Seconds since the machine was started, sleep included."""
    return kernelclock.boot_sec()
