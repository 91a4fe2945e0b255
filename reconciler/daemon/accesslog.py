"""The access log: a line of JSON for each connection that has ended, fed from the events. :class:`AccessLog`.

Written by a thread of its own, so that a slow disk or reader holds up nothing else. What it is too slow for, or what
the kernel had no room for, is told in the log itself: ``{"time": ..., "lost": 17, "reason": "slow_log"}``.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from reconciler.errors import RevproxyError
from reconciler.runtime.events import Events, Single, Slice
from reconciler.runtime.logger import Logger
from reconciler.runtime.wholefile import end_of_last

STDOUT: Final = "-"
_AT_ONCE: Final = 5000
_WAIT_SEC: Final = 0.5
_LOOK_SEC: Final = 1.0  # how often it is looked whether somebody took the file away
_END_SEC: Final = 5.0
_MODE: Final = 0o640
_LOST: Final = "events_lost"
_BEGIN: Final = b'{"time"'  # of each line

_log = Logger("accesslog")


class AccessLog:
    """Appends to the file ``target``, or writes to stdout for ``-``. The file is opened anew when it was renamed or
    removed, and on :meth:`reopen`: nothing is lost over a rotation."""

    def __init__(self, target: str, events: Events) -> None:
        self._target, self._events = target, events
        self._number = events.last
        self._descriptor = -1
        self._unwritten = 0
        self._troubled = False
        self._fed = True
        self._rest = b""
        self._reopen = threading.Event()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="accesslog", daemon=True)

    def start(self) -> None:
        """Begin. Raises :class:`RevproxyError` if the file can't be written."""
        try:
            self._open()
            self._rest = self._end_of_last()
        except OSError as error:
            raise RevproxyError(f"--access-log {self._target}: {error.strerror}") from error
        self._thread.start()

    def note_settings(self, stats_enabled: bool) -> None:
        """What the files say of events of connections; without them there is nothing to log."""
        if stats_enabled != self._fed:
            self._fed = stats_enabled
            if not stats_enabled:
                _log.warning("access_log_without_events", hint="set stats_enabled: true in settings")

    def reopen(self) -> None:
        """Open the file anew, after what has happened until now is in the old one."""
        self._reopen.set()

    def stop(self) -> None:
        """Write what there is, and end. A reader that takes nothing is not waited for long."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(_END_SEC)

    # -- in its thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        waited = 0.0
        while True:
            ending = self._end.is_set()
            reopening = self._reopen.is_set()
            self._write_all()
            if ending:
                break
            waited += _WAIT_SEC
            if reopening or waited >= _LOOK_SEC:
                waited = 0.0
                if reopening:
                    self._reopen.clear()
                self._open_anew(always=reopening)
            self._events.pieces(self._number, timeout_sec=_WAIT_SEC, limit=1)
        self._close()

    def _write_all(self) -> None:
        """Everything that has happened until now."""
        last = self._events.last
        while self._number < last:
            pieces, missed = self._events.pieces(self._number, limit=_AT_ONCE)
            self._number = pieces[-1].last if pieces else self._number + missed
            lines = [_lost(missed, "slow_log")] if missed else []
            for piece in pieces:
                lines += _lines(piece)
            if lines:
                self._write(lines)

    def _write(self, lines: list[str]) -> None:
        """One write for all of them. What can't be written is counted, and told once it can be."""
        told = _lost(self._unwritten, "not_written").encode() if self._unwritten else b""
        data = self._rest + told + "".join(lines).encode()
        try:
            if self._descriptor < 0:
                self._open()
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            # The rest of a line that was begun comes first next time, or the file would hold half of one.
            begun, end, whole = (b"", b"", data) if data.startswith(_BEGIN) else data.partition(b"\n")
            self._rest = begun + end
            self._unwritten = whole.count(b"\n") + (self._unwritten - 1 if told and told in whole else 0)
            self._say_trouble(error)
            return
        self._rest, self._unwritten = b"", 0
        if self._troubled:
            self._troubled = False
            _log.info("access_log_written_again", file=self._target)

    def _say_trouble(self, error: OSError) -> None:
        if not self._troubled:
            self._troubled = True
            _log.error("access_log_not_written", file=self._target, error=error.strerror)

    def _open(self) -> None:
        self._close()
        if self._target == STDOUT:
            self._descriptor = os.dup(1)
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        self._descriptor = os.open(self._target, flags, _MODE)

    def _end_of_last(self) -> bytes:
        """What is lacking behind what an earlier daemon wrote."""
        if self._target == STDOUT or not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            return b""
        try:
            with Path(self._target).open("rb") as file:
                return end_of_last(file)
        except PermissionError:
            return b""

    def _open_anew(self, *, always: bool) -> None:
        if self._target == STDOUT:
            return
        same = self._is_there()
        if same and not always:
            return
        if not same:
            self._rest = b""  # what is half written is so in the old file
        try:
            self._open()
        except OSError as error:
            self._say_trouble(error)

    def _is_there(self) -> bool:
        """Whether the file that is open is still the one of that name."""
        if self._descriptor < 0:
            return False
        ours = os.fstat(self._descriptor)
        try:
            named = Path(self._target).stat()
        except OSError as error:
            return error.errno != errno.ENOENT
        return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino) or not stat.S_ISREG(ours.st_mode)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _lines(piece: Single | Slice) -> list[str]:
    if isinstance(piece, Slice):
        return piece.batch.closed_lines(piece.start, piece.stop)
    fields = piece.event.fields
    return [_lost(int(fields["lost"]), str(fields["reason"]))] if piece.event.kind == _LOST else []


def _lost(number: int, reason: str) -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "lost": number, "reason": reason}) + "\n"
