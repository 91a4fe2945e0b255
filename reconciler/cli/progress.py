"""A bar on a terminal for what takes long: reading files with a hundred thousand routes, and applying them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from reconciler.cli.session import Session

Told = Callable[[int, int], None]
"""Called with how much is done, and of how much."""

_PATIENCE_SEC: Final = 1.0


def _nothing(_done: int, _of: int) -> None:
    """Nobody looks."""


@contextmanager
def bar(session: Session, text: str) -> Iterator[Told]:
    """Shown on stderr after a second, if that is a terminal, and gone afterwards. It moves with what it is told, and to
    and fro where that is nothing or all is done."""
    if session.quiet or not sys.stderr.isatty():
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, no_color=not session.color)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True)
    task = progress.add_task(text, total=None)

    def told(done: int, of: int) -> None:
        if done < of:
            progress.update(task, description="reading files", total=of, completed=done)
        else:
            progress.reset(task, description=text, total=None)

    timer = threading.Timer(_PATIENCE_SEC, progress.start)
    timer.daemon = True
    timer.start()
    try:
        yield told
    finally:
        timer.cancel()
        timer.join()
        progress.stop()
