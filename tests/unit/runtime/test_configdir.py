"""The directory is read while nobody writes in it: what is read while somebody does counts for nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.config import files as config_files
from reconciler.errors import ConfigError
from reconciler.places import Places
from reconciler.runtime import configdir
from reconciler.runtime.configdir import ConfigDirectory
from reconciler.runtime.snapshot import Fingerprints
from tests.unit.runtime.fakelive import write


@pytest.fixture
def after_reading(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What somebody does right after the first, the second, … reading."""
    read, done = config_files.load, list[Callable[[], None]]()

    def and_then(path: Path, cache: config_files.Cache | None = None) -> object:
        try:
            return read(path, cache)
        finally:
            if done:
                done.pop(0)()

    monkeypatch.setattr(config_files, "load", and_then)
    return done


def directory(places: Places) -> ConfigDirectory:
    return ConfigDirectory(places, lambda seconds: threading.Event().wait(seconds) and None)


def test_files_that_change_while_they_are_read_are_read_again(
    places: Places, after_reading: list[Callable[[], None]]
) -> None:
    write(places, port=1)
    after_reading.append(lambda: write(places, port=2))
    files = directory(places)
    assert b"port: 2" in files.load().files[0].content
    assert files.read_fingerprint == Fingerprints(places.config_dir).take().hex()


def test_an_error_in_files_that_change_while_they_are_read_counts_for_nothing(
    places: Places, after_reading: list[Callable[[], None]]
) -> None:
    path = places.config_dir / "a.yaml"
    path.write_text("proxies: [")
    after_reading.append(lambda: write(places))
    assert directory(places).load().proxies
    after_reading.append(lambda: bool(path.write_text("proxies: [")) and None)
    with pytest.raises(ConfigError):
        directory(places).load()


def test_files_that_never_stop_changing_are_given_up(
    places: Places, after_reading: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configdir, "_READ_TRIES", 3)

    def more() -> None:
        write(places, port=len(after_reading) + 1)

    write(places)
    after_reading.extend([more] * 10)
    with pytest.raises(ConfigError, match="never stop changing"):
        directory(places).load()
    assert len(after_reading) == 7
