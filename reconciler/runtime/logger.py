"""The logger that modules have: structlog's, which is loaded when something is said and not before. Commands of a
person mostly log nothing, and it takes a tenth of a second."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

_set_up: list[Callable[[], None]] = []
_GRAVE: Final = ("warning", "error", "exception", "critical")


def when_used(set_up: Callable[[], None]) -> None:
    """Have this called before the first thing is said, unless something else is to be already."""
    if not _set_up:
        _set_up.append(set_up)


class Logger:
    """structlog's logger of a name: ``info("noun_verb_past", field=value)`` and so on."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        try:
            import structlog
        except OSError as error:  # no descriptor is left to load it with: whoever says something goes on all the same
            return partial(_say, f"{self._name}: {method}" if method in _GRAVE else "", error)
        while _set_up:
            _set_up.pop()()
        return getattr(structlog.get_logger(self._name), method)


def _say(what: str, trouble: OSError, event: str = "", **fields: object) -> None:
    """In a line of its own, without structlog; nothing of what is not grave."""
    if not what:
        return
    said = " ".join(f"{name}={value}" for name, value in fields.items())
    with suppress(OSError):
        sys.stderr.write(f"{what}: {event} {said} (no log: {trouble.strerror})\n")
