"""How much of what could be tried is: all of it in CI, a part of it with ``make test``, so that this takes minutes.

``REVPROXY_TEST_THOROUGH=each`` makes each kind of kernel operation of a commit fail, kills the process there, and draws
as many examples as each property test says; ``all`` does the first with every single operation.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

_SAID = os.environ.get("REVPROXY_TEST_THOROUGH", "")
assert _SAID in ("", "each", "all"), f"REVPROXY_TEST_THOROUGH={_SAID}: each or all"

EVERY_ONE = _SAID == "all"
EACH_KIND = bool(_SAID)


def part(numbers: Sequence[int], step: int) -> list[int]:
    """All of them, or one of ``step``, the first included."""
    return list(numbers if EACH_KIND else numbers[::step])


def examples(number: int) -> int:
    """How many to draw: all of them, or a third."""
    return number if EACH_KIND else -(-number // 3)
