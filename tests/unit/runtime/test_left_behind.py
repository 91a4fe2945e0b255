"""What of ours `down` could not take off is known again, in the same start of the machine and not in another."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.engine import Engine
from reconciler.places import Places
from reconciler.runtime import leftbehind
from reconciler.runtime.leftbehind import LeftBehind
from tests.unit.runtime.fakelive import FakeLive, write


def test_maps_are_written_down_before_they_are_given_up(
    engine: Engine, places: Places, live: FakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(places)
    engine.apply()
    ours = live.own_maps()
    known: list[frozenset[int]] = []

    def down(_originals: object) -> tuple[str, ...]:
        known.append(LeftBehind(places.state_dir / leftbehind.FILE).maps())
        return ()

    monkeypatch.setattr(live, "down", down, raising=False)
    engine.down()
    assert known == [ours]
    assert Engine(places, live=(later := FakeLive())).places is places  # type: ignore[arg-type]
    assert later.left() == ours  # type: ignore[attr-defined]


def test_they_add_up_and_another_start_of_the_machine_knows_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = LeftBehind(tmp_path / leftbehind.FILE)
    left.add({1, 2})
    left.add({2, 3})
    assert left.maps() == {1, 2, 3}
    monkeypatch.setattr(leftbehind, "boot_id", lambda: "another")
    assert left.maps() == frozenset()
    left.add({9})
    assert left.maps() == {9}
