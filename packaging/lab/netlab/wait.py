"""Waiting for a condition instead of for time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")
PATIENCE: Final = float(os.environ.get("REVPROXY_PATIENCE") or 1)
"""How many times longer than usual everything may take: more than 1 on a machine that is slow, an emulated one say."""


def wait_for(condition: Callable[[], T], what: str = "", *, timeout_sec: float = 10.0, interval_sec: float = 0.02) -> T:
    """Call ``condition`` until it returns something true, and return that.

    An :class:`AssertionError` or :class:`OSError` raised by it counts as "not yet". Raises :class:`TimeoutError` naming
    ``what``, with what the last call gave, once ``timeout_sec`` (times :data:`PATIENCE`) have passed; it is called at
    least once.
    """
    timeout_sec *= PATIENCE
    deadline = time.monotonic() + timeout_sec
    while True:
        failure: Exception | None = None
        answer: T | None = None
        try:
            answer = condition()
            if answer:
                return answer
        except (AssertionError, OSError) as error:
            failure = error
        if time.monotonic() >= deadline:
            subject = what or getattr(condition, "__name__", repr(condition))
            last = f"{failure!r}" if failure else f"{answer!r}"
            raise TimeoutError(f"not within {timeout_sec:g} s: {subject} (last: {last})") from failure
        time.sleep(interval_sec)
