"""The daemon's log: structured events on stderr, for a person or as one JSON object a line."""

from __future__ import annotations

import logging
import sys
from typing import Any, Final, TextIO

import structlog

from reconciler import terminal

LEVELS: Final = ("debug", "info", "warning", "error")


class _Forward(logging.Handler):
    """Brings what libraries log (aiohttp, asyncio, watchdog) into the same stream."""

    def emit(self, record: logging.LogRecord) -> None:
        event = structlog.get_logger(record.name)
        event.log(record.levelno, "library_said", message=record.getMessage(), exc_info=record.exc_info)


def set_up(form: str, level: str, stream: TextIO = sys.stderr) -> None:
    """Configure logging for the whole process. ``form``: console or json; ``level``: one of :data:`LEVELS`."""
    threshold = getattr(logging, level.upper())
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json":
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        processors += [structlog.dev.ConsoleRenderer(colors=terminal.shows_colour(stream))]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[_Forward()], force=True)


def quiet() -> None:
    """For a program that uses this package and has not said what is to become of its log: warnings on stderr, and
    nothing on stdout, which is the program's."""
    if not structlog.is_configured():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )
