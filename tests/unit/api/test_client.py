"""``reconciler.Client``: through the daemon where one runs, on the kernel where none does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import reconciler
from reconciler import answers
from reconciler.answers import Sync
from reconciler.api.server import Server
from reconciler.client import Client
from reconciler.errors import DaemonError, LockedError
from reconciler.places import Places, instance_lock

BY_DAEMON = answers.Status(Sync.SYNCED, revision=1)
BY_HAND = answers.Status(Sync.SYNCED, revision=2)


class FakeCommands:
    """Of the daemon or, as the engine, of the command line."""

    def __init__(self, status: answers.Status) -> None:
        self._status = status
        self.live = SimpleNamespace(hold=lambda **_: None, let_go=lambda: None)

    def totals_command(self) -> None:
        """There are few connections."""

    def __getattr__(self, name: str) -> Any:
        def answer(**_: Any) -> Any:
            if name == "status":
                return self._status
            return answers.Applied(self._status.revision) if name == "apply" else answers.TakenDown()

        return answer


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "run").mkdir()
    return Places(tmp_path / "config", tmp_path / "run", tmp_path / "state", tmp_path / "bpf")


Serve = Callable[..., None]


@pytest.fixture
def serve(places: Places) -> Iterator[Serve]:
    servers: list[Server] = []
    with ThreadPoolExecutor(1) as pool:

        def start(config_dir: str | None = str(places.config_dir)) -> None:
            instance = answers.Instance(4711, "0.1.0", config_dir, str(places.bpffs_dir))
            servers.append(Server(places.socket, FakeCommands(BY_DAEMON), pool.submit, instance))
            servers[-1].start()

        yield start
        for server in servers:
            server.stop()


@pytest.fixture
def client(places: Places, monkeypatch: pytest.MonkeyPatch) -> Client:
    return by_hand(Client(run_dir=places.run_dir), monkeypatch)


def by_hand(client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(client, "_direct", lambda: FakeCommands(BY_HAND))
    return client


def test_without_a_daemon_the_kernel_is_asked(client: Client) -> None:
    assert client.instance() is None
    assert client.status() == BY_HAND
    assert client.apply().revision == 2


def test_a_running_daemon_is_asked(client: Client, serve: Serve) -> None:
    serve()
    instance = client.instance()
    assert instance is not None
    assert instance.pid == 4711
    assert client.status() == BY_DAEMON
    assert client.apply().revision == 1


def test_a_change_by_hand_waits_for_the_lock_and_then_finds_the_daemon(
    client: Client, serve: Serve, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reconciler.client._LOCK_WAIT_SEC", 0.0)
    with instance_lock(places):
        with pytest.raises(LockedError):
            client.apply()
        assert client.status() == BY_HAND  # looking takes no lock
    monkeypatch.setattr("reconciler.client._LOCK_WAIT_SEC", 1.0)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with instance_lock(places):
            held.set()
            assert release.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(10)
    threading.Timer(0.1, serve).start()  # the daemon opens its socket a moment after it took the lock
    assert client.apply().revision == 1
    release.set()
    holder.join()


def test_a_daemon_of_other_files_is_not_asked_about_ours(
    places: Places, serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serve()
    (tmp_path / "link").symlink_to(places.config_dir)
    assert Client(run_dir=places.run_dir, config_dir=tmp_path / "link").status() == BY_DAEMON
    other = Client(run_dir=places.run_dir, config_dir=tmp_path / "other")
    with pytest.raises(DaemonError, match="--config-dir"):
        other.status()
    other.down()  # the files have no part in that
    monkeypatch.setenv("REVPROXY_BPFFS_DIR", "/elsewhere")
    with pytest.raises(DaemonError, match="--bpffs-dir"):
        Client(run_dir=places.run_dir).down()


def test_a_daemon_with_its_configuration_on_the_command_line(
    places: Places, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(None)
    monkeypatch.setenv("REVPROXY_CONFIG_DIR", str(places.config_dir))
    assert Client(run_dir=places.run_dir).status() == BY_DAEMON
    with pytest.raises(DaemonError, match="command line"):
        Client(run_dir=places.run_dir, config_dir=places.config_dir).status()


def test_the_package_offers_the_client() -> None:
    assert reconciler.Client is Client
    with pytest.raises(AttributeError):
        reconciler.nothing  # noqa: B018  # looking it up is the test
