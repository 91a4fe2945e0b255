"""An engine with directories of its own, a kernel that is a value, and a clock that somebody sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.engine import Engine
from reconciler.places import Places
from tests.bootclock import clock
from tests.unit.runtime.fakelive import FakeLive

__all__ = ["clock"]  # a fixture


@pytest.fixture
def live() -> FakeLive:
    return FakeLive()


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "config.d").mkdir()
    return Places(tmp_path / "config.d", tmp_path / "run", tmp_path / "state", tmp_path / "bpf")


@pytest.fixture
def engine(places: Places, live: FakeLive) -> Engine:
    return Engine(places, live=live)  # type: ignore[arg-type]
