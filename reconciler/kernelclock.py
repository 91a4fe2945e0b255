"""The clocks that only run, as the kernel has them: also in a container with a time namespace of its own, which are
shifted there for its processes and not for programs in the kernel, nor for who looks from outside."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Final

_OFFSETS: Final = Path("/proc/self/timens_offsets")
_NS: Final = 1_000_000_000


def monotonic_ns() -> int:
    """CLOCK_MONOTONIC in nanoseconds, which connections are dated by."""
    return time.monotonic_ns() - _offset_ns("monotonic")


def boot_sec() -> float:
    """CLOCK_BOOTTIME in seconds: since the machine was started, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - _offset_ns("boottime") / _NS


@cache
def _offset_ns(clock: str) -> int:
    """What this process's namespace adds to a clock. A kernel without such namespaces has no file that says it."""
    try:
        lines = _OFFSETS.read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next((int(sec) * _NS + int(ns) for name, sec, ns in map(str.split, lines) if name == clock), 0)
