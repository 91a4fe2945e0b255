"""A moment in which the daemon does not follow the files: a command edits them, and applies the edit itself.

Without it the watcher's look and the command's apply would race: whichever came second had nothing to report, and a
failed edit might be tried once more before it is taken back.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from reconciler.errors import LockedError


class Hold:
    """Held by one at a time, for a limited time. Used on the worker's thread only. ``released`` is called when it is
    given back: what came meanwhile has to be looked at."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._token = ""
        self._until = 0.0
        self.released: Callable[[], object] = lambda: None

    @property
    def remaining_sec(self) -> float:
        """For how long it is held at most; 0: it is not."""
        return max(0.0, self._until - self._clock()) if self._token else 0.0

    def take(self, seconds: float) -> str:
        """Hold it; what to give it back with. Raises :class:`LockedError` if it is held."""
        if self.remaining_sec:
            raise LockedError("the files are being edited by another command")
        self._token, self._until = secrets.token_hex(8), self._clock() + seconds
        return self._token

    def release(self, token: str) -> None:
        """Give it back. Nothing to do if it ran out."""
        if token == self._token:
            self._token = ""
            self.released()
