"""What all tests share: those that need root are marked by their folder, and left out without it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

NEED_ROOT = ("kernel", "e2e", "vm", "bench")

# Of this checkout: all processes of all tests compile the programs once.
os.environ.setdefault("REVPROXY_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "programs"))


def pytest_report_header() -> str | None:
    """Say at the top what this run can't do."""
    if os.geteuid() == 0:
        return None
    return f"not root: skipping {', '.join(f'tests/{folder}' for folder in NEED_ROOT)} and what else is marked root"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder, and skip what can't run here."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] in NEED_ROOT:
            item.add_marker(pytest.mark.root)
        if os.geteuid() != 0 and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))
