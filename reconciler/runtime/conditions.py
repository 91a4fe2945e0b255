"""Synced, Degraded, Progressing: one condition each, with its reason and the time since when it is so."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from reconciler.answers import Condition, Sync, Unconfirmed
from reconciler.errors import ConfigError, ForeignProgramError, MetricsError, OverdueError, RevproxyError, UnsignedError
from reconciler.runtime import statefile, wholefile
from reconciler.runtime.clock import now
from reconciler.runtime.logger import Logger
from reconciler.runtime.statefile import BrokenError
from reconciler.runtime.view import HeldError

TRUE: Final = "True"
FALSE: Final = "False"

_log = Logger("conditions")


@dataclass(frozen=True, slots=True)
class Situation:
    """What the conditions follow from. ``error``: why the files are not applied, or the last commit failed;
    ``absent``: interfaces that are waited for; ``waiting``: why the files are not applied by themselves."""

    differences: int = 0
    error: RevproxyError | None = None
    waiting: str = ""
    suspended: str | None = None
    unconfirmed: Unconfirmed | None = None
    absent: tuple[str, ...] = ()

    @property
    def sync(self) -> Sync:
        """The three in one word."""
        if self.error:
            return Sync.DEGRADED
        return Sync.OUT_OF_SYNC if self.differences else Sync.SYNCED


def _synced(now_: Situation) -> tuple[str, str, str]:
    if isinstance(now_.error, ConfigError):
        return FALSE, _reason(now_.error), "the files are not applied"
    if now_.differences:
        return (
            FALSE,
            "Different",
            f"{_number(now_.differences, 'object')} differ{'s' * (now_.differences == 1)} from the files",
        )
    absent = f"; waiting for {', '.join(now_.absent)} to appear" if now_.absent else ""
    return TRUE, "InSync", "packets see what the files say" + absent


def _degraded(now_: Situation) -> tuple[str, str, str]:
    if now_.error:
        return TRUE, _reason(now_.error), str(now_.error).splitlines()[0]
    return FALSE, "AsExpected", "nothing is wrong"


def _progressing(now_: Situation) -> tuple[str, str, str]:
    if now_.unconfirmed:
        each = now_.unconfirmed
        back = f"revision {each.previous}" if each.previous else "nothing"
        if not each.left_sec:
            return TRUE, "RollingBack", f"revision {each.revision} was not confirmed in time, and goes back to {back}"
        return TRUE, "AwaitingConfirmation", f"revision {each.revision} goes back to {back} at {each.deadline}"
    if now_.suspended:
        return FALSE, "Suspended", f"suspended since {now_.suspended}"
    if now_.error:
        if now_.error.transient:
            return TRUE, "Retrying", "the last attempt failed, and is tried again"
        return FALSE, "Stuck", "the last attempt failed; it is tried again when something changes"
    if now_.waiting and now_.differences:
        return FALSE, "AwaitingApply", now_.waiting
    if now_.differences:
        return TRUE, "Pending", "differences are waiting to be put right"
    return FALSE, "Idle", "nothing is to be done"


def _reason(error: RevproxyError) -> str:
    if isinstance(error, HeldError):
        return "FilesHeld"
    if isinstance(error, UnsignedError):
        return "FilesNotSigned"
    if isinstance(error, ConfigError):
        return "FilesWrong"
    if isinstance(error, OverdueError):
        return "RollbackFailed"
    if isinstance(error, MetricsError):
        return "MetricsNotServed"
    return "ForeignProgram" if isinstance(error, ForeignProgramError) else "CommitFailed"


def _number(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


_JUDGES: Final = {"Synced": _synced, "Degraded": _degraded, "Progressing": _progressing}


def decode(stored: Any) -> dict[str, tuple[str, str]]:
    """By kind: the status, and since when. Raises what :func:`statefile.load` takes for a broken file."""
    return {str(kind): (str(status), str(since)) for kind, (status, since) in stored.items()}


class Conditions:
    """Remembers since when each condition has its status, also over restarts: in a file that only this writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._since: dict[str, tuple[str, str]] | None = None

    def of(self, situation: Situation, *, keep: bool = False) -> tuple[Condition, ...]:
        """The conditions in this situation. ``keep``: it is the present one, and the caller holds the instance lock:
        write changes down."""
        known = self._known()
        found = []
        for kind, judge in _JUDGES.items():
            status, reason, message = judge(situation)
            since = known[kind][1] if kind in known and known[kind][0] == status else now()
            found.append(Condition(kind, status, reason, message, since))
        latest = {each.type: (each.status, each.last_transition) for each in found}
        if keep and latest != known:
            self._since = latest
            self._write(latest)
        return tuple(found)

    def _known(self) -> dict[str, tuple[str, str]]:
        if self._since is None:
            try:
                self._since = statefile.load(self._path, decode) or {}
            except BrokenError as error:
                _log.warning("conditions_not_read", path=str(self._path), error=str(error))
                self._since = {}
        return self._since

    def _write(self, latest: dict[str, tuple[str, str]]) -> None:
        try:
            wholefile.replace(self._path, json.dumps(latest, sort_keys=True))
        except OSError as error:
            _log.warning("state_dir_not_written", path=str(self._path), error=str(error))
