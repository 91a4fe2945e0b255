"""The clock that commits to be confirmed go by, set by a test."""

from __future__ import annotations

import pytest

from reconciler.runtime import control


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds since the machine was started."""
    now = [1000.0]
    monkeypatch.setattr(control, "boot_clock", lambda: now[0])
    monkeypatch.setattr("reconciler.runtime.revisions.boot_clock", lambda: now[0])
    return now
