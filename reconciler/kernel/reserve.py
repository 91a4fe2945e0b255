"""File descriptors kept free for an undo: a commit that fails for lack of them can be taken back all the same."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from reconciler.errors import KernelError

UNDO: Final = 16
"""More than any step of an undo holds at a time: netlink takes half of them."""


@contextlib.contextmanager
def reserve() -> Iterator[ExitStack]:
    """So many descriptors are nobody else's until what is given is closed, or the block ends. Raises
    :class:`KernelError` if there are not so many."""
    with ExitStack() as kept:
        try:
            for _ in range(UNDO):
                kept.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise KernelError("open", f"{UNDO} files, so that a commit can be undone", error.errno or 0) from error
        yield kept
