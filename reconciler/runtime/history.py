"""The history on disk: a line of JSON for each applied and each refused revision, and the files of the applied ones.

``history.jsonl`` holds the latest :data:`RECORDS` lines; ``revisions/N/`` the files of revision N, for the latest
:data:`KEPT`; ``last-good`` is a symlink to the one that was applied last. Equal files of two revisions are one file on
disk (hard links). Nothing here decides what is live; the kernel does.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from reconciler.answers import HistoryEntry, from_json, to_json
from reconciler.config.model import SourceFile
from reconciler.errors import RevproxyError
from reconciler.places import Places
from reconciler.runtime import clock, statefile, wholefile
from reconciler.runtime.logger import Logger
from reconciler.runtime.statefile import BrokenError

RECORDS: Final = 1000
KEPT: Final = 100
APPLIED: Final = "applied"
_MOST_NUMBER: Final = 1 << 48
"""No instance makes as many revisions; the kernel keeps 64 bits of a number."""

_Identity = tuple[int, int, int, int]

_log = Logger("history")


class History:
    """One instance's history. Who writes holds the instance lock."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._known: tuple[tuple[int, int, int], tuple[HistoryEntry, ...]] | None = None
        self._copies: dict[str, tuple[bytes, _Identity]] = {}  # that were made last: digest of the content, and file
        self.spared: int | None = None
        """A revision that is kept however many come after it: an unconfirmed commit goes back to it."""

    # -- reading -------------------------------------------------------------------------------------------

    def entries(self) -> tuple[HistoryEntry, ...]:
        """All that is remembered, oldest first. Lines that are none are left out, and logged."""
        try:
            version = _version(self._places.history)
            if self._known is None or self._known[0] != version:
                content = statefile.read(self._places.history) or b""
                self._known = version, tuple(_parsed(self._places.history, content))
        except FileNotFoundError:
            return ()
        except (OSError, BrokenError) as error:
            _log.warning("state_dir_not_read", path=str(self._places.history), error=str(error))
            return ()
        return self._known[1]

    @property
    def last_number(self) -> int:
        """The number of the latest applied revision, 0 before the first."""
        return max((each.number for each in self.entries() if each.result == APPLIED), default=0)

    def applied(self, number: int) -> HistoryEntry:
        """The record of an applied revision whose files are kept. Raises :class:`RevproxyError`."""
        kept = {each.number: each for each in self.entries() if each.result == APPLIED and self._kept(each.number)}
        if number not in kept:
            latest = ", ".join(str(each) for each in sorted(kept)[-10:])
            others = f"{len(kept)} are, the latest: {latest}" if len(kept) > 10 else f"there are: {latest or 'none'}"
            raise RevproxyError(f"no applied revision {number} is kept; {others}")
        return kept[number]

    def before(self, number: int) -> int:
        """The latest kept revision that was applied before revision ``number``. Raises :class:`RevproxyError`."""
        found = [each.number for each in self.entries() if each.result == APPLIED and each.number < number]
        found = [each for each in found if self._kept(each)]
        if not found:
            raise RevproxyError(f"no revision was applied before {number}: there is nothing to go back to")
        return max(found)

    def sources(self, number: int) -> dict[str, bytes]:
        """Path -> content of a revision's files. Raises :class:`RevproxyError`."""
        directory = self._directory(number)
        try:
            return {str(path): path.read_bytes() for path in sorted(directory.iterdir())}
        except OSError as error:
            raise RevproxyError(f"the files of revision {number}: {error.filename}: {error.strerror}") from error

    def last_good(self) -> Path | None:
        """Where the files are that were applied last; None if they are not kept. Without the link, the history says
        which they were."""
        if self._places.last_good.is_dir():
            return self._places.last_good
        number = self.last_number
        return self._directory(number) if number and self._kept(number) else None

    def _directory(self, number: int) -> Path:
        return self._places.revisions / str(number)

    def _kept(self, number: int) -> bool:
        return self._directory(number).is_dir()

    # -- writing -------------------------------------------------------------------------------------------

    def add(self, entry: HistoryEntry) -> None:
        """Add a line. Raises :class:`OSError`."""
        self._places.state_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
        entries = (*self.entries(), entry)
        if len(entries) <= RECORDS + RECORDS // 10:  # rewritten now and then, not each time
            with self._places.history.open("a+b") as history:
                history.write(wholefile.end_of_last(history) + _line(entry).encode())
        else:
            entries = self._shortened(entries)
            wholefile.replace(self._places.history, "".join(map(_line, entries)))
        self._known = _version(self._places.history), entries  # so that a long history is read once, not at each commit

    def _shortened(self, entries: Sequence[HistoryEntry]) -> tuple[HistoryEntry, ...]:
        """The latest :data:`RECORDS`, but in place of what was refused what can still be gone back to."""
        applied = [each.number for each in entries if each.result == APPLIED]
        wanted = {*applied[-KEPT:], self.spared}
        surplus, left = len(entries) - RECORDS, []
        for entry in entries:
            if surplus and not (entry.result == APPLIED and entry.number in wanted):
                surplus -= 1
            else:
                left.append(entry)
        return tuple(left)

    def keep(self, number: int, files: Sequence[SourceFile]) -> None:
        """Keep the files of an applied revision, and make it the last good one: ``last-good`` is exchanged once they
        are on disk, so that it always leads to a whole copy, also after a loss of power. Raises :class:`OSError`."""
        self._places.revisions.mkdir(parents=True, exist_ok=True, mode=0o755)
        former = self._places.last_good.resolve() if self._places.last_good.is_dir() else None
        copy, draft = self._directory(number), self._places.revisions / f".{number}.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        made: list[str] = []
        self._copies = dict(self._copy(file, draft, former, made) for file in files)
        wholefile.sync_contents(made)
        wholefile.sync_names(draft)
        shutil.rmtree(copy, ignore_errors=True)
        draft.replace(copy)
        wholefile.sync_names(self._places.revisions)
        link = self._places.state_dir / "last-good.new"
        link.unlink(missing_ok=True)
        link.symlink_to(copy.relative_to(self._places.state_dir))
        os.replace(link, self._places.last_good)  # noqa: PTH105  # Path.replace() does not say that it is atomic
        wholefile.sync_names(self._places.state_dir)
        self._forget(number)

    def _copy(
        self, file: SourceFile, directory: Path, former: Path | None, made: list[str]
    ) -> tuple[str, tuple[bytes, _Identity]]:
        """As a link to the former revision's where that is the same, else noted in ``made``. Of a thousand files one is
        not: that what this process has copied is still that is seen without reading it."""
        name = os.path.basename(file.path)  # noqa: PTH119
        copy = f"{directory}/{name}"
        if former is not None:
            there = f"{former}/{name}"
            found = _identity(there)
            digest, known = self._copies.get(name, (b"", None))
            if found is not None:
                same = digest == file.digest if found == known else _holds(there, file.content)
                if same:
                    os.link(there, copy)
                    return name, (file.digest, found)
        with open(copy, "wb") as written:  # noqa: PTH123
            written.write(file.content)
        made.append(copy)
        identity = _identity(copy)
        assert identity is not None
        return name, (file.digest, identity)

    def _forget(self, latest: int) -> None:
        numbers = sorted(int(each.name) for each in self._places.revisions.iterdir() if each.name.isdecimal())
        for number in numbers[:-KEPT]:
            if number not in (latest, self.spared):
                shutil.rmtree(self._directory(number), ignore_errors=True)


def _identity(path: str) -> _Identity | None:
    """Of a regular file; None if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _holds(path: str, content: bytes) -> bool:
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read() == content


def _version(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_ino, found.st_size


def _line(entry: HistoryEntry) -> str:
    return json.dumps(to_json(entry), ensure_ascii=False, sort_keys=True) + "\n"


def _parsed(path: Path, content: bytes) -> Iterable[HistoryEntry]:
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            if line.strip():
                yield statefile.decoded(path, line.decode(errors="replace"), _decoded)
        except BrokenError as error:
            _log.warning("history_line_not_read", line=number, error=str(error))


def _decoded(record: Any) -> HistoryEntry:
    """The first version called the number ``revision``, and listed all files rather than those changed."""
    if "number" not in record and "revision" in record:
        record = {**record, "number": record["revision"]}
    entry = from_json(HistoryEntry, record)
    if not 0 <= entry.number <= _MOST_NUMBER:
        raise ValueError(f"there is no revision {entry.number}")
    clock.age_sec(entry.time)  # raises what it is not
    return entry
