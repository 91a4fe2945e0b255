"""The parts of README.md that are to be typed or saved: fenced blocks, each below a comment with its name."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def block(name: str) -> str:
    """What stands in the block of that name."""
    found = re.search(rf"<!-- {re.escape(name)} -->\n```(?:sh|yaml|ini)\n(.*?)```", TEXT, re.DOTALL)
    assert found, name
    return found[1]
