"""The logger that modules have: structlog's, which is loaded when something is said and not before. Commands of a
person mostly log nothing, and it takes a tenth of a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_set_up: list[Callable[[], None]] = []


def when_used(set_up: Callable[[], None]) -> None:
    """Have this called before the first thing is said, unless something else is to be already."""
    if not _set_up:
        _set_up.append(set_up)


class Logger:
    """structlog's logger of a name: ``info("noun_verb_past", field=value)`` and so on."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        import structlog

        while _set_up:
            _set_up.pop()()
        return getattr(structlog.get_logger(self._name), method)
