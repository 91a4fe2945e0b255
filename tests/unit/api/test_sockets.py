"""Sockets that a stranger removes, or puts something else in place of."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reconciler.api.client import DaemonClient
from reconciler.api.server import Server
from reconciler.errors import RevproxyError
from reconciler.runtime.events import Events
from tests.unit.api.fakecommands import INSTANCE, FakeCommands


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with ThreadPoolExecutor(1) as pool:
        path = tmp_path / "run" / "revproxyd.sock"
        path.parent.mkdir()
        server = Server(path, FakeCommands(), pool.submit, INSTANCE, Events(), read_group=os.getgid())
        server.start()
        yield server
        server.stop()


def _asked(connection: socket.socket) -> bytes:
    connection.sendall(b"GET /v1/instance HTTP/1.1\r\nHost: x\r\n\r\n")
    return connection.recv(65536)


def _with_directory(path: Path) -> None:
    shutil.rmtree(path.parent)


def _another_file(path: Path) -> None:
    path.unlink()
    path.write_text("")


@pytest.mark.parametrize("attack", [Path.unlink, _with_directory, _another_file])
@pytest.mark.parametrize("name", ["revproxyd.sock", "revproxyd-read.sock"])
def test_they_are_made_again(server: Server, tmp_path: Path, attack: Callable[[Path], None], name: str) -> None:
    path = tmp_path / "run" / name
    with socket.socket(socket.AF_UNIX) as before:
        before.connect(str(path))
        assert _asked(before).startswith(b"HTTP/1.1 200")
        attack(path)
        server.tend()
        assert DaemonClient(path).instance() == INSTANCE
        assert _asked(before).startswith(b"HTTP/1.1 200")  # who was connected stays so
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_they_stay_while_they_are_there(server: Server, tmp_path: Path) -> None:
    before = {path: path.stat().st_ino for path in (tmp_path / "run").iterdir()}
    server.tend()
    assert {path: path.stat().st_ino for path in (tmp_path / "run").iterdir()} == before
    assert len(before) == 2


def test_what_cannot_be_made_again_is_an_error_and_tried_again(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "run" / "revproxyd.sock"
    path.unlink()
    path.mkdir()
    (path / "file").write_text("")
    with pytest.raises(RevproxyError, match=r"revproxyd\.sock"):
        server.tend()
    shutil.rmtree(path)
    server.tend()
    assert DaemonClient(path).instance() == INSTANCE
