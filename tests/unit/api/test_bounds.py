"""Clients that are slow, many, greedy or half gone: each is bounded, and nobody else notices."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from reconciler.api import client
from reconciler.api import server as api
from reconciler.api.client import DaemonClient
from reconciler.api.routes import MAX_BODY_BYTES
from reconciler.errors import DaemonError
from reconciler.runtime import webguard
from tests.unit.api.fakecommands import STATUS, FakeCommands

GET = b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v1/drain HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n"


def open_to(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    connection.settimeout(10)
    return connection


def rest(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


@pytest.mark.parametrize("sent", [b"", b"GET /v1/st", GET[:-2], b"\r\n" * 3])
def test_a_request_that_never_comes_whole(path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(webguard, "QUIET_SEC", 0.2)
    with open_to(path) as connection:
        connection.sendall(sent)
        assert rest(connection) == b""


def test_headers_that_drip_get_no_more_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webguard, "QUIET_SEC", 0.5)
    with open_to(path) as connection:
        started = time.monotonic()
        connection.sendall(GET[:-2])
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for number in range(200):
                connection.sendall(b"X-%d: y\r\n" % number)
                time.sleep(0.05)
        assert time.monotonic() - started < 8


def test_the_second_request_on_a_connection_has_its_own_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webguard, "QUIET_SEC", 0.4)
    with open_to(path) as connection:
        connection.sendall(GET + GET[:10])
        assert rest(connection).count(b"HTTP/1.1 200") == 1


def test_a_body_that_never_comes_whole(path: Path, monkeypatch: pytest.MonkeyPatch, commands: FakeCommands) -> None:
    monkeypatch.setattr(api, "_READ_SEC", 0.2)
    monkeypatch.setattr(webguard, "QUIET_SEC", 0.5)
    with open_to(path) as connection:
        connection.sendall(POST + b'{"target"')
        assert rest(connection).startswith(b"HTTP/1.1 408")
    assert commands.calls == []


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: %d\r\n" % (MAX_BODY_BYTES + 1),
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"X: " + b"x" * 20_000 + b"\r\n",
        b"X: y\r\n" * 20_000,
    ],
    ids=["longer than may be", "longer than there is", "of unsaid length", "a long header", "many headers"],
)
def test_what_is_too_large_is_refused_before_it_has_come(path: Path, commands: FakeCommands, head: bytes) -> None:
    with open_to(path) as connection:
        request = b"POST /v1/drain HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + head + b"\r\n"
        with contextlib.suppress(BrokenPipeError):  # it was refused already
            connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        assert rest(connection).startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
    assert commands.calls == []


def test_a_client_that_has_only_finished_sending_is_answered(path: Path, commands: FakeCommands) -> None:
    commands.gate = threading.Event()
    with open_to(path) as connection:
        connection.sendall(GET)
        connection.shutdown(socket.SHUT_WR)
        threading.Timer(0.3, commands.gate.set).start()
        assert rest(connection).startswith(b"HTTP/1.1 200")


def test_who_closes_before_all_is_said_is_not_waited_for(path: Path, commands: FakeCommands) -> None:
    for pause_sec in (0.0, 0.3):
        with open_to(path) as connection:
            connection.sendall(POST + b'{"target"')
            time.sleep(pause_sec)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(10)  # a third of what a body may take
            assert b"HTTP/1.1 200" not in rest(connection)
    assert commands.calls == []


def test_requests_one_behind_the_other_are_answered_in_their_order(path: Path, commands: FakeCommands) -> None:
    with open_to(path) as connection:
        sender = threading.Thread(target=connection.sendall, args=((GET + POST + b'{"target": "1.2.3.4"') * 300,))
        sender.start()
        connection.settimeout(10)
        answers: list[bytes] = []
        stream = connection.makefile("rb")
        while len(answers) < 600:
            answers.append(stream.readline())
            length = 0
            while (line := stream.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            stream.read(length)
        sender.join()
    assert [each.split()[1] for each in answers] == [b"200", b"400"] * 300
    assert {name for name, _ in commands.calls} == {"status"}


def test_so_many_connections_and_then_a_word(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webguard, "MAX_CONNECTIONS", 20)
    with ExitStack() as held:
        for _ in range(20):
            held.enter_context(open_to(path)).sendall(GET[:5])
        with open_to(path) as one_more:
            found = rest(one_more)
        assert found.startswith(b"HTTP/1.1 503")
        assert b"connections are open already" in found
    for _ in range(100):  # as soon as they are gone there is room again
        with open_to(path) as connection:
            connection.sendall(GET.replace(b"Host", b"Connection: close\r\nHost"))
            if rest(connection).startswith(b"HTTP/1.1 200"):
                break
            time.sleep(0.05)
    assert DaemonClient(path).status() == STATUS


def test_who_hangs_up_leaves_nothing(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # only how many
    for _ in range(200):
        with open_to(path) as connection:
            connection.sendall(GET[:20])
    assert DaemonClient(path).status() == STATUS
    for _ in range(100):
        if len(os.listdir("/proc/self/fd")) <= before:  # noqa: PTH208
            return
        time.sleep(0.05)
    raise AssertionError("descriptors are left")


def test_a_client_waits_while_the_daemon_takes_up_nobody(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as waiting:
        listener.bind(str(path))
        listener.listen(1)
        refused = 0
        while not refused:
            connection = waiting.enter_context(socket.socket(socket.AF_UNIX))
            connection.setblocking(False)
            refused = connection.connect_ex(str(path))
        assert refused == errno.EAGAIN
        with pytest.raises(DaemonError, match=r"did not answer within 0\.2 s: it is busy"):
            DaemonClient(path, timeout_sec=0.2).status()


def test_who_it_is_that_answers_is_not_waited_for_as_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no work: a daemon that does not say it hangs."""
    monkeypatch.setattr(client, "_QUICK_SEC", 0.1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        with pytest.raises(DaemonError, match=r"did not answer within 0\.1 s: it hangs"):
            DaemonClient(tmp_path / "sock").instance()
