"""What was applied, and what was said to the reconciler about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The revision that stays."""

    revision: int


@dataclass(frozen=True, slots=True)
class Suspension:
    """Whether reconciling is suspended, and since when (ISO 8601 in UTC)."""

    suspended: bool
    since: str | None = None


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One revision that was applied or refused. ``number``: of a refused one, that which it would have got.
    ``result``: applied, refused (the files can't be applied) or failed (and rolled back). ``cause``: apply, files (the
    daemon saw them change), plan, rollback, expired (not confirmed in time), last-good, found (in force without a line:
    whoever made it was killed). ``files``: names of those that differ from the revision before. ``of``: the revision
    gone back to. ``error``: why it was refused or failed.
    ``current``: this is what is applied now. Times are ISO 8601 in UTC."""

    number: int
    time: str
    result: str
    cause: str = "apply"
    commit: str | None = None
    author: str | None = None
    message: str | None = None
    files: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    operations: int = 0
    duration_sec: float = 0.0
    of: int | None = None
    error: str = ""
    current: bool = False
