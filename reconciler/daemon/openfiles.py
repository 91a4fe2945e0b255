"""How many files the daemon may have open: enough for a commit, and to undo one, while it watches and answers."""

from __future__ import annotations

import resource
from typing import Final

from reconciler.errors import RevproxyError

LEAST: Final = 256


def ensure() -> None:
    """Raise the limit to :data:`LEAST` if it is lower. Raises :class:`RevproxyError` where that may not be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= LEAST:
        return
    if hard != resource.RLIM_INFINITY and hard < LEAST:
        raise RevproxyError(f"this process may have {hard} files open, and needs {LEAST}: raise that limit (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (LEAST, hard))
