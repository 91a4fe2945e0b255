"""A server of the API on a socket of its own. A module that has commands of its own has a fixture ``commands``."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reconciler.api.server import Server
from reconciler.runtime.events import Events
from tests.unit.api.fakecommands import INSTANCE, FakeCommands


@pytest.fixture
def commands() -> FakeCommands:
    return FakeCommands()


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def path(tmp_path: Path, commands: FakeCommands, events: Events) -> Iterator[Path]:
    path = tmp_path / "revproxyd.sock"
    with ThreadPoolExecutor(1) as pool:
        server = Server(path, commands, pool.submit, INSTANCE, events)
        server.start()
        yield path
        server.stop()
    assert not path.exists()
