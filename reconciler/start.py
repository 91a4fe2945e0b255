"""Where both programs begin: before anything else is imported, so that Ctrl-C at any moment ends them without a word
of Python's, and a standard stream that was closed is none that a file of ours could become."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn


def _ignored(what: sys.UnraisableHookArgs) -> None:
    """What goes wrong while an object is cleared away (a library's that lacked a file descriptor, say) is no news for
    whoever waits for an answer: a line, and no traceback."""
    sys.stderr.write(f"{Path(sys.argv[0]).name}: ignored: {what.exc_type.__name__}: {what.exc_value}\n")


def _prepare() -> None:
    sys.unraisablehook = _ignored
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # The lowest number that is free is taken: the streams' own ones, in order.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale of eight bits has no letters for most names
        sys.stdout.reconfigure(errors="backslashreplace")


def revproxyctl() -> NoReturn:
    """The command line."""
    _prepare()
    from reconciler.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()


def revproxyd() -> NoReturn:
    """The daemon."""
    _prepare()
    from reconciler.spared import spare

    spare()
    from reconciler.daemon import main

    main()
