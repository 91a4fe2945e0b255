"""The socket for those who may ask and change nothing."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reconciler.api.client import DaemonClient
from reconciler.api.routes import ROUTES
from reconciler.api.server import Server
from reconciler.errors import DaemonError, RevproxyError
from reconciler.places import READ_SOCKET
from tests.unit.api.fakecommands import DIFFERENCE, INSTANCE, STATUS, FakeCommands
from tests.unit.api.rawhttp import get, post

SOMEBODY, THEIR_GROUP, READERS = 64999, 64998, 64997
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")


@pytest.fixture
def group() -> int:
    return os.getgid()


@pytest.fixture
def path(commands: FakeCommands, group: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(1) as pool:
        Path(directory).chmod(0o755)
        path = Path(directory) / "revproxyd.sock"
        server = Server(path, commands, pool.submit, INSTANCE, read_group=group)
        server.start()
        yield path
        server.stop()
        assert not list(Path(directory).iterdir())


def test_readers_get_all_there_is_and_change_nothing(path: Path, commands: FakeCommands) -> None:
    readers = path.with_name(READ_SOCKET)
    for each in (path, readers):
        assert stat.S_IMODE(each.stat().st_mode) == 0o660
    client = DaemonClient(readers)
    assert client.status() == STATUS
    assert client.diff() == DIFFERENCE
    assert client.connection_count() == 12
    for route in ROUTES:
        if route.method == "POST":
            status, said = post(readers, route.path, b"{}")
            assert status == 403, route.path
            assert f"changing takes root, or the group of {path}" in said["error"]
    assert get(readers, "/v1/nothing")[0] == 404
    assert {name for name, _ in commands.calls} == {"status", "diff", "connection_count"}
    with pytest.raises(DaemonError, match=r"revproxyd-read.sock is for reading"):
        client.apply()


@needs_root
@pytest.mark.parametrize("group", [READERS])
def test_who_may_do_what(path: Path) -> None:
    """By the ordinary way, which tries the other socket first."""
    code = (
        "import sys; from pathlib import Path; from reconciler.api.client import DaemonClient\n"
        "client = DaemonClient(Path(sys.argv[1]))\n"
        "for call in (client.status, client.apply):\n"
        "    try: print(type(call()).__name__)\n"
        "    except Exception as error: print(error)\n"
    )

    def told(*groups: int) -> list[str]:
        return subprocess.run(
            [sys.executable, "-c", code, path],
            user=SOMEBODY,
            group=THEIR_GROUP,
            extra_groups=groups,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()

    assert path.with_name(READ_SOCKET).stat().st_gid == READERS
    reading = f"{path.with_name(READ_SOCKET)} is for reading: changing takes root, or the group of {path}"
    assert told(READERS) == ["Status", reading]
    assert told() == [f"{path}: permission denied: talking to revproxyd takes root"] * 2
    assert told(READERS, os.getgid()) == ["Status", "Applied"]


@needs_root
def test_a_group_that_the_daemon_is_no_member_of() -> None:
    code = (
        "import os, sys; from pathlib import Path; from reconciler.api.server import listen\n"
        f"os.setgroups([]); os.setresgid({THEIR_GROUP}, {THEIR_GROUP}, {THEIR_GROUP}); os.setuid({SOMEBODY})\n"
        f"listen(Path(sys.argv[1]), {READERS})\n"
    )
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        path = Path(directory) / "sock"
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
        assert "the daemon's user has to be one of its members" in done.stderr
        assert not path.exists()


def test_a_socket_that_can_not_be_made(tmp_path: Path, commands: FakeCommands) -> None:
    with ThreadPoolExecutor(1) as pool:
        server = Server(tmp_path / "gone" / "sock", commands, pool.submit, INSTANCE, read_group=os.getgid())
        with pytest.raises(RevproxyError, match="gone/sock: No such file"):
            server.start()
