"""The API over a real unix socket: what the client gets is what the commands gave, and nonsense is told apart."""

from __future__ import annotations

import errno
import json
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler import answers
from reconciler.api.client import DaemonClient, NoDaemonError
from reconciler.api.routes import MAX_BODY_BYTES
from reconciler.api.server import Server
from reconciler.errors import (
    TOLD,
    CapacityError,
    ConfigError,
    DaemonError,
    ForeignProgramError,
    KernelError,
    LockedError,
    NothingToConfirmError,
    Problem,
    RevproxyError,
    StaleError,
    TransactionError,
    UnfinishedError,
    UsageError,
)
from reconciler.runtime.savedplan import digest
from tests.unit.api.fakecommands import (
    CONNECTION,
    DIFFERENCE,
    ENTRY,
    EXPLANATION,
    INSTANCE,
    SAVED,
    STATS,
    STATUS,
    TESTED,
    UNCONFIRMED,
    FakeCommands,
)
from tests.unit.api.rawhttp import get, post, raw


def test_every_answer_comes_through_as_it_was(path: Path, commands: FakeCommands) -> None:
    client = DaemonClient(path)
    assert client.instance() == INSTANCE
    assert client.status() == STATUS
    assert client.diff() == DIFFERENCE
    assert client.plan() == answers.PlanAnswer(steps=("one",), counts={"port": 1})
    assert [*client.connections(proxy="web", target="[2001:db8::1]:80")] == [json.dumps(answers.to_json(CONNECTION))]
    assert client.connection_count(target="10.0.0.1:80") == 12
    assert client.flush(proxy="web") == 5
    assert client.stats() == STATS
    assert client.test() == TESTED
    assert client.explain("192.0.2.1:5", "[::1]:80", protocol="udp", interface="eth0") == EXPLANATION
    applied = answers.Applied(8, unconfirmed=UNCONFIRMED)
    assert client.apply(allow_empty=True, confirm_within_sec=30.0, plan=SAVED) == applied
    assert client.down() == answers.TakenDown(("interface eth0",))
    assert commands.calls[3:] == [
        ("connections", {"proxy": "web", "target": "[2001:db8::1]:80"}),
        ("connection_count", {"target": "10.0.0.1:80"}),
        ("flush", {"proxy": "web"}),
        ("stats", {}),
        ("test", {}),
        ("explain", {"source": "192.0.2.1:5", "to": "[::1]:80", "protocol": "udp", "interface": "eth0"}),
        ("apply", {"allow_empty": True, "confirm_within_sec": 30.0, "plan": SAVED}),
        ("down", {}),
    ]


def test_what_is_said_of_revisions_comes_through_as_it_was(path: Path, commands: FakeCommands) -> None:
    client = DaemonClient(path)
    assert client.saved_plan() == SAVED
    assert client.apply() == answers.Applied(8, unconfirmed=UNCONFIRMED)
    assert client.confirm() == answers.Confirmed(8)
    assert client.rollback() == client.rollback(3) == answers.Applied(9)
    assert client.history() == (ENTRY,)
    assert client.suspend() == answers.Suspension(True, "2026-01-02T03:04:05+00:00")
    assert client.resume() == answers.Suspension(False)
    assert [name for name, _ in commands.calls] == [
        "saved_plan",
        "apply",
        "confirm",
        "rollback",
        "rollback",
        "history",
        "suspend",
        "resume",
    ]
    assert [arguments["number"] for name, arguments in commands.calls if name == "rollback"] == [None, 3]
    assert commands.calls[1][1] == {"allow_empty": False, "confirm_within_sec": None, "plan": None}


def test_a_plan_is_larger_than_other_requests_may_be(path: Path, commands: FakeCommands) -> None:
    large = replace(SAVED, files=(answers.PlanFile("a.yaml", "QUJD" * MAX_BODY_BYTES),))
    large = replace(large, digest=digest(large))
    DaemonClient(path).apply(plan=large)
    assert commands.calls[0][1]["plan"] == large


def test_a_plan_of_another_version_is_refused_before_it_gets_anywhere(path: Path, commands: FakeCommands) -> None:
    with pytest.raises(StaleError, match=r"version 0\.0\.9"):
        DaemonClient(path).apply(plan=replace(SAVED, version="0.0.9"))
    assert commands.calls == []


def test_the_socket_is_for_owner_and_group(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_a_socket_left_by_a_killed_daemon_is_replaced(path: Path, commands: FakeCommands) -> None:
    with ThreadPoolExecutor(1) as pool:
        second = Server(path, commands, pool.submit, INSTANCE)
        second.start()
        assert DaemonClient(path).status() == STATUS
        second.stop()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KernelError("attach", "eth0", 19), 503),
        (KernelError("attach", "eth0", 22), 500),
        (LockedError("busy"), 409),
        (StaleError("stale"), 409),
        (NothingToConfirmError("nothing"), 409),
        (UnfinishedError(3, None, ["interface eth1"]), 503),
        (ForeignProgramError("theirs"), 409),
        (CapacityError("full"), 507),
        (TransactionError(ValueError("x"), rolled_back=True), 500),
        (RevproxyError("no such thing"), 400),
        (UsageError("that is none"), 400),
    ],
)
def test_errors_have_their_words_and_a_status(
    path: Path, commands: FakeCommands, error: Exception, status: int
) -> None:
    commands.error = error
    kind = type(error).__name__
    assert get(path, "/v1/status") == (status, {"error": str(error), "problems": [], "kind": kind})
    with pytest.raises(TOLD.get(kind, DaemonError), match=str(error).split(":")[0]):
        DaemonClient(path).status()


def test_an_error_of_a_kind_that_is_told_is_that_kind_here(path: Path, commands: FakeCommands) -> None:
    class VeryStaleError(StaleError):
        pass

    assert {LockedError, StaleError, CapacityError, ForeignProgramError, NothingToConfirmError, UsageError} <= {
        *TOLD.values()
    }
    commands.error = VeryStaleError("it has moved on")
    with pytest.raises(StaleError, match=r"^it has moved on$"):
        DaemonClient(path).apply()


def test_a_daemon_of_another_version_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = DaemonClient._request
    monkeypatch.setattr(
        DaemonClient,
        "_request",
        lambda self, method, where, body=None, **how: request(self, method, f"/v9{where}", body, **how),
    )
    with pytest.raises(DaemonError, match="is of another version"):
        DaemonClient(path).stats()


def test_problems_in_the_files_come_through_one_by_one(path: Path, commands: FakeCommands) -> None:
    problems = (Problem("a.yaml", 1, 2, "x", "first"), Problem("b.yaml", 3, 4, "y", "second"))
    commands.error = ConfigError(problems)
    assert post(path, "/v1/apply", b"")[0] == 422
    with pytest.raises(ConfigError) as caught:
        DaemonClient(path).apply()
    assert caught.value.problems == problems


def test_a_trouble_of_the_host_is_told_as_that(path: Path, commands: FakeCommands) -> None:
    commands.error = OSError(errno.ENOSPC, "No space left on device", "/var/lib/revproxy/x")
    status, answer = get(path, "/v1/stats")
    assert status == 500
    assert answer["error"] == "/var/lib/revproxy/x: No space left on device: make room there"
    commands.error = OSError(errno.EMFILE, "Too many open files")
    assert get(path, "/v1/stats")[0] == 503


def test_a_mistake_of_ours_is_an_answer_with_a_reference(path: Path, commands: FakeCommands) -> None:
    commands.error = ZeroDivisionError("oops")
    status, answer = get(path, "/v1/stats")
    assert status == 500
    assert "internal error" in answer["error"]
    assert "Traceback" not in answer["error"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "no JSON"),
        (b"[]", "object"),
        (b'"x"', "object"),
        (b"\xff\xfe", "no JSON"),
        (b'{"allow_empty": 1}', "allow_empty: must be boolean"),
        (b'{"allow_empty": "yes"}', "allow_empty: must be boolean"),
        (b'{"alow_empty": true}', "alow_empty: unknown key"),
        (b"[" * 60000, "no JSON"),
    ],
)
def test_a_body_that_is_none_is_refused(path: Path, commands: FakeCommands, body: bytes, word: str) -> None:
    status, answer = post(path, "/v1/apply", body)
    assert status == 400
    assert word in answer["error"]
    assert commands.calls == []


@pytest.mark.parametrize(
    ("where", "status"),
    [
        ("/", 404),
        ("/v2/status", 404),
        ("/v1/status/", 404),
        ("/v1/../etc/passwd", 404),
        ("/v1/apply", 405),
        ("/v1/status?verbose=1", 400),
        ("/v1/connections?count=maybe", 400),
        ("/v1/connections?prxy=web", 400),
        ("/v1/instance?x=1", 400),
    ],
)
def test_a_request_for_something_else_is_refused(path: Path, commands: FakeCommands, where: str, status: int) -> None:
    answer = get(path, where)
    assert answer[0] == status
    assert answer[1]["error"]
    assert commands.calls == []


def test_what_is_too_large_is_refused(path: Path, commands: FakeCommands) -> None:
    assert post(path, "/v1/rollback", b" " * (MAX_BODY_BYTES + 1))[0] == 413
    assert raw(path, b"GET /v1/status?" + b"x" * 20000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 400
    assert commands.calls == []


@pytest.mark.parametrize("request_", [b"\x00\x01\x02\x03\r\n\r\n", b"GET\r\n\r\n", b"GET /v1/status HTTP/x.y\r\n\r\n"])
def test_what_is_no_http_is_refused_and_the_server_goes_on(path: Path, request_: bytes) -> None:
    assert raw(path, request_)[0] == 400
    assert DaemonClient(path).status() == STATUS


def test_a_client_that_hangs_up_does_not_hurt(path: Path, commands: FakeCommands) -> None:
    commands.gate = threading.Event()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
    commands.gate.set()
    assert DaemonClient(path).status() == STATUS


def test_who_answers_is_told_while_the_worker_is_busy(path: Path, commands: FakeCommands) -> None:
    commands.gate = threading.Event()
    with ThreadPoolExecutor(1) as other:
        slow = other.submit(DaemonClient(path).status)
        assert DaemonClient(path).instance() == INSTANCE
        assert not slow.done()
        commands.gate.set()
        assert slow.result(10) == STATUS


def test_no_daemon_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NoDaemonError):
        DaemonClient(tmp_path / "revproxyd.sock").status()
    with pytest.raises(NoDaemonError, match="too long for a unix socket"):
        DaemonClient(tmp_path / ("x" * 108) / "revproxyd.sock").status()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "revproxyd.sock"))
    left.close()
    with pytest.raises(NoDaemonError):
        DaemonClient(tmp_path / "revproxyd.sock").status()
