"""Whether a terminal is to be written to in colour."""

from __future__ import annotations

import os
from typing import TextIO


def shows_colour(stream: TextIO) -> bool:
    """It is a terminal that knows colours (``TERM`` is not ``dumb``), and NO_COLOR (no-color.org) does not say no."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
