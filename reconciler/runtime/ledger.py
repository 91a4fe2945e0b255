"""Commits that hold, on their way into the history: what could not be written is kept, and tried again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reconciler.errors import Problem
from reconciler.runtime.logger import Logger

if TYPE_CHECKING:
    from reconciler.answers import HistoryEntry
    from reconciler.config.model import SourceFile
    from reconciler.places import Places
    from reconciler.runtime.history import History

_log = Logger("engine")


class Ledger:
    """Of one process. A full disk keeps no commit back."""

    def __init__(self, archive: History, places: Places) -> None:
        self._archive, self._places = archive, places
        self._lines: list[HistoryEntry] = []
        self._files: tuple[int, Sequence[SourceFile]] | None = None
        self._why = ""

    def write(self, entry: HistoryEntry, files: Sequence[SourceFile]) -> None:
        """Keep a revision's files, and its line."""
        self._lines.append(entry)
        self._files = entry.number, files
        self._write()

    def try_again(self) -> None:
        """If something is not written yet: it may be possible now."""
        if self._why:
            self._write()

    def warnings(self) -> tuple[Problem, ...]:
        """What somebody should know who relies on it."""
        if not self._why:
            return ()
        lacking = "the last commit is not in the history, or not what a start of the host falls back to"
        return (Problem("", 0, 0, "", f"{lacking}: {self._why}"),)

    def _write(self) -> None:
        self._why = ""
        try:
            if self._files:
                self._archive.keep(*self._files)
                self._files = None
        except OSError as error:
            self._note(error)
        try:
            while self._lines:
                self._archive.add(self._lines[0])
                self._lines.pop(0)
        except OSError as error:
            self._note(error)

    def _note(self, error: OSError) -> None:
        self._why = str(error)
        _log.warning("state_dir_not_written", path=str(self._places.state_dir), error=self._why)
