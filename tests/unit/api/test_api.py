"""The API over a real unix socket: what the client gets is what the commands gave, and nonsense is told apart."""

from __future__ import annotations

import errno
import json
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reconciler import __version__, answers
from reconciler.answers import Sync
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
from reconciler.runtime.events import Events
from reconciler.runtime.savedplan import FORMAT

INSTANCE = answers.Instance(4711, "0.1.0", "/etc/revproxy/config.d", "/sys/fs/bpf/revproxy")
STATUS = answers.Status(
    sync=Sync.DEGRADED,
    revision=7,
    commit="abc",
    applied="2026-01-02T03:04:05+00:00",
    differences=1,
    interfaces=(answers.InterfaceStatus("eth0", "native", True),),
    proxies=(
        answers.ProxyStatus(
            "web",
            ("192.0.2.1:80/tcp",),
            ("eth0",),
            (answers.TargetStatus("10.0.0.1:8080", 1, "unchecked", "active", 3),),
        ),
    ),
    errors=(Problem("a.yaml", 3, 5, "proxies[0]", "wrong"),),
    attempt=answers.Attempt("2026-01-02T03:04:06+00:00", "held", "wrong"),
    pid=4711,
)
DIFFERENCE = answers.Difference((answers.Change("update", "proxy", "web", {"a": 1}, {"a": [2]}),), 4)
UNCONFIRMED = answers.Unconfirmed(8, 7, "2026-01-02T03:04:35+00:00", 29.5)
ENTRY = answers.HistoryEntry(
    7, "2026-01-02T03:04:05+00:00", "applied", "files", "abc", "A. U. Thor", "why", ("a.yaml",)
)
SAVED = answers.SavedPlan(
    FORMAT,
    __version__,
    "0123456789abcdef",
    "2026-01-02T03:04:05+00:00",
    "5" * 64,
    "6" * 64,
    answers.PlanAnswer(DIFFERENCE.changes, 4, ("one",), {"port": 1}),
    (answers.PlanFile("a.yaml", "QQ=="),),
)
CONNECTION = answers.Connection(
    "web", "tcp", "198.51.100.1:1", "192.0.2.1:80", "10.0.0.1:8080", "established", 1, 2, 3, 4, 5.5, 0.5
)
STATS = answers.Stats(
    connections=1,
    drops={"denied": 2},
    proxies={"web": answers.ProxyStats(targets={"10.0.0.1:8080": answers.TargetStats(1)})},
)
DRAINING = answers.Draining((answers.DrainingTarget("web", "10.0.0.1:8080", "draining", 3),), 3)
TESTED = answers.Tested(
    Sync.OUT_OF_SYNC,
    7,
    3,
    (answers.TestResult("a.yaml", 9, 5, "1.2.3.4:5", "5.6.7.8:80", "tcp", None, "deny", "pass", holds=False),),
    1,
)
EXPLANATION = answers.Explanation("redirect", "web", "default_target", "10.0.0.1:8080", "because", "eth0", "tc_ingress")


class FakeCommands:
    """Answers from a table; raises what it is told to."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.gate: threading.Event | None = None
        self.command: list[str] | None = None

    def _answer(self, name: str, value: Any, **arguments: Any) -> Any:
        self.calls.append((name, arguments))
        if self.gate:
            assert self.gate.wait(10)
        if self.error:
            raise self.error
        return value

    def status(self) -> answers.Status:
        return self._answer("status", STATUS)

    def diff(self) -> answers.Difference:
        return self._answer("diff", DIFFERENCE)

    def plan(self) -> answers.PlanAnswer:
        return self._answer("plan", answers.PlanAnswer(steps=("one",), counts={"port": 1}))

    def apply(self, **options: Any) -> answers.Applied:
        return self._answer("apply", answers.Applied(8, unconfirmed=UNCONFIRMED), **options)

    def saved_plan(self) -> answers.SavedPlan:
        return self._answer("saved_plan", SAVED)

    def confirm(self) -> answers.Confirmed:
        return self._answer("confirm", answers.Confirmed(8))

    def rollback(self, number: int | None = None) -> answers.Applied:
        return self._answer("rollback", answers.Applied(9), number=number)

    def history(self) -> tuple[answers.HistoryEntry, ...]:
        return self._answer("history", (ENTRY,))

    def suspend(self) -> answers.Suspension:
        return self._answer("suspend", answers.Suspension(True, "2026-01-02T03:04:05+00:00"))

    def resume(self) -> answers.Suspension:
        return self._answer("resume", answers.Suspension(False))

    def connections(self, **how: Any) -> Iterator[list[str]]:
        return iter(self._answer("connections", [[json.dumps(answers.to_json(CONNECTION))]], **how))

    def bequeathing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def list_command(self, _how: Mapping[str, Any]) -> list[str] | None:
        return self.command

    def connection_count(self, **filters: Any) -> int:
        return self._answer("connection_count", 12, **filters)

    def flush(self, **filters: Any) -> Iterator[int]:
        return iter(self._answer("flush", (2, 0, 3), **filters))

    def interfaces(self) -> tuple[answers.InterfaceDetail, ...]:
        return self._answer("interfaces", (answers.InterfaceDetail("eth0"),))

    def begin_edit(self, seconds: int) -> answers.EditHold:
        return self._answer("begin_edit", answers.EditHold("abc"), seconds=seconds)

    def end_edit(self, token: str) -> None:
        return self._answer("end_edit", None, token=token)

    def stats(self) -> answers.Stats:
        return self._answer("stats", STATS)

    def drain(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        return self._answer("drain", DRAINING, target=target, proxy=proxy)

    def undrain(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        return self._answer("undrain", DRAINING, target=target, proxy=proxy)

    def draining(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        return self._answer("draining", DRAINING, target=target, proxy=proxy)

    def test(self) -> answers.Tested:
        return self._answer("test", TESTED)

    def explain(
        self, source: str, to: str, *, protocol: str = "tcp", interface: str | None = None
    ) -> answers.Explanation:
        return self._answer("explain", EXPLANATION, source=source, to=to, protocol=protocol, interface=interface)

    def down(self) -> answers.TakenDown:
        return self._answer("down", answers.TakenDown(("interface eth0",)))


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
        submit: Callable[[Callable[[], Any]], Future[Any]] = pool.submit
        server = Server(path, commands, submit, INSTANCE, events)
        server.start()
        yield path
        server.stop()
    assert not path.exists()


def raw(path: Path, request: bytes) -> tuple[int, Any]:
    """Send bytes, read until the server closes; status and JSON of the answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body.startswith(b"{") else body


def post(path: Path, where: str, body: bytes) -> tuple[int, Any]:
    head = f"POST {where} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return raw(path, head.encode() + body)


def get(path: Path, where: str) -> tuple[int, Any]:
    return raw(path, f"GET {where} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())


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
        DaemonClient, "_request", lambda self, method, where, body=None: request(self, method, f"/v9{where}", body)
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
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "revproxyd.sock"))
    left.close()
    with pytest.raises(NoDaemonError):
        DaemonClient(tmp_path / "revproxyd.sock").status()
