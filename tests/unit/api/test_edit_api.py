"""Edits over the API: the daemon holds still while a command edits, and no longer."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reconciler import answers
from reconciler.api.client import DaemonClient
from reconciler.api.routes import MAX_EDIT_SEC
from reconciler.client import Client
from reconciler.daemon.hold import Hold
from reconciler.daemon.loop import Loop
from reconciler.errors import DaemonError, KernelError, LockedError, UsageError
from tests.unit.api.fakecommands import FakeCommands

DETAIL = answers.InterfaceDetail(
    "eth0", 2, wanted="off", conflicts=(answers.Conflict("tc ingress", "x", answers.Program(7, "a", "b"), "hides"),)
)


class Commands(FakeCommands):
    """With a real hold."""

    def __init__(self) -> None:
        super().__init__()
        self.hold = Hold()

    def begin_edit(self, seconds: int) -> answers.EditHold:
        return answers.EditHold(self.hold.take(seconds))

    def end_edit(self, token: str) -> None:
        self.hold.release(token)

    def interfaces(self) -> tuple[answers.InterfaceDetail, ...]:
        return (DETAIL,)


@pytest.fixture
def commands() -> Commands:
    return Commands()


@pytest.fixture
def daemon(path: Path) -> DaemonClient:
    return DaemonClient(path)


def test_the_daemon_is_held_while_the_block_runs(daemon: DaemonClient, commands: Commands) -> None:
    with daemon.held(30):
        assert 0 < commands.hold.remaining_sec <= 30
        with pytest.raises(LockedError, match="being edited by another"), daemon.held(30):
            pass
        assert commands.hold.remaining_sec > 0
    assert commands.hold.remaining_sec == 0


def test_an_edit_waits_for_another(daemon: DaemonClient, commands: Commands) -> None:
    done = threading.Event()
    first = commands.hold.take(30)
    threading.Timer(0.3, lambda: (done.set(), commands.hold.release(first))).start()
    with daemon.held(30, wait_sec=20):
        assert done.is_set()
        assert commands.hold.remaining_sec > 0


def test_an_error_in_the_block_lets_go(daemon: DaemonClient, commands: Commands) -> None:
    with pytest.raises(KernelError), daemon.held(30):
        raise KernelError("attach", "eth0")
    assert commands.hold.remaining_sec == 0


@pytest.mark.parametrize("seconds", [0, -1, MAX_EDIT_SEC + 1])
def test_nobody_holds_it_for_ever(daemon: DaemonClient, commands: Commands, seconds: int) -> None:
    with pytest.raises(UsageError, match=f"from 1 to {MAX_EDIT_SEC}"), daemon.held(seconds):
        pass
    assert commands.hold.remaining_sec == 0


def test_interfaces_come_through_as_they_were(daemon: DaemonClient) -> None:
    assert daemon.interfaces() == (DETAIL,)


class _Revisions:
    """Nothing is to be confirmed, and nobody has suspended the daemon."""

    control = SimpleNamespace(suspended=False)

    def expire(self) -> None:
        pass

    def left_sec(self) -> None:
        pass


class _Engine:
    """Must not be asked for anything but what is to be confirmed."""

    revisions = _Revisions()
    steering = SimpleNamespace(to_reset=False)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


def test_the_loop_does_not_look_while_it_is_held() -> None:
    loop = Loop(_Engine())  # type: ignore[arg-type]
    token = loop.hold.take(30)
    again_sec = loop.look(frozenset({"files"}))
    assert again_sec is not None
    assert 0 < again_sec <= 30
    loop.hold.release(token)
    with pytest.raises(AssertionError):
        loop.look(frozenset({"files"}))


def test_the_files_are_read_also_by_who_may_not_ask_the_daemon(
    tmp_path: Path, daemon: DaemonClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "apiVersion: revproxy/v1\nproxies:\n  - name: web\n    listen: {interfaces: [eth0], port: 80}\n"
    (tmp_path / "a.yaml").write_text(text + "    default_target: {ip: 10.0.0.1, port: 8080}\n")

    def denied(_connection: object) -> None:
        raise PermissionError

    monkeypatch.setattr("reconciler.api.client._Connection.connect", denied)
    with pytest.raises(DaemonError, match="permission denied"):
        daemon.instance()
    client = Client(run_dir=tmp_path, config_dir=tmp_path)
    assert [each.name for each in client.proxies()] == ["web"]
    with pytest.raises(DaemonError, match="permission denied"):
        client.remove_proxy("web")
    with pytest.raises(DaemonError, match="permission denied"):
        client.remove_proxy("web", apply=False)
