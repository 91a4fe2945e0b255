"""Long lists over the socket: whole, in order, in little memory, and no trouble for anybody else."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from reconciler import answers
from reconciler.api import reader
from reconciler.api.client import DaemonClient
from reconciler.api.server import Server
from reconciler.errors import DaemonError, KernelError
from reconciler.state.totals import Totals
from tests.unit.api.fakecommands import INSTANCE, FakeCommands


class Lists(FakeCommands):
    """Connections that are made as they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.made = 0
        self.reading = threading.Event()

    def connections(self, **_how: Any) -> Iterator[list[str]]:
        self.reading.set()
        if self.gate:
            assert self.gate.wait(10)
        if self.error:
            raise self.error
        return self._made()

    def _made(self) -> Iterator[list[str]]:
        for step in range(self.steps):
            self.made += 1
            yield [json.dumps({"number": step * 1000 + each}) for each in range(1000)]


@pytest.fixture
def commands() -> Lists:
    return Lists()


def begin(path: Path) -> socket.socket:
    """Ask for the list, and read nothing of it."""
    asking = socket.socket(socket.AF_UNIX)
    asking.settimeout(10)
    asking.connect(str(path))
    asking.sendall(b"GET /v1/connections HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    return asking


@pytest.mark.parametrize("steps", [0, 1, 2, 40])
def test_a_list_comes_through_whole(path: Path, commands: Lists, steps: int) -> None:
    commands.steps = steps
    assert [json.loads(line)["number"] for line in DaemonClient(path).connections()] == list(range(steps * 1000))


def test_no_more_is_made_than_somebody_reads(path: Path, commands: Lists) -> None:
    commands.steps = 10_000
    with begin(path) as asking:
        assert asking.recv(10)
        before = -1
        while before != commands.made:
            before = commands.made
            time.sleep(0.2)
        assert before < 200
    assert DaemonClient(path).stats() is not None  # and the reader is free for others


def test_others_are_answered_while_tables_are_read(path: Path, commands: Lists) -> None:
    commands.gate = threading.Event()
    with begin(path):
        assert commands.reading.wait(10)
        gate, commands.gate = commands.gate, None
        assert DaemonClient(path, timeout_sec=5).status() is not None
        assert DaemonClient(path, timeout_sec=5).apply() is not None
        gate.set()


def test_so_many_long_lists_at_once(path: Path, commands: Lists, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_ROOM_SEC", 0.1)
    commands.steps = 1000
    held = [begin(path) for _ in range(reader._LISTS)]
    try:
        assert all(each.recv(10) for each in held)
        with pytest.raises(DaemonError, match="long lists are on their way"):
            list(DaemonClient(path).connections())
    finally:
        for each in held:
            each.close()
    monkeypatch.setattr(reader, "_ROOM_SEC", 10)
    commands.steps = 1
    assert len(list(DaemonClient(path).connections())) == 1000


def test_who_reads_nothing_for_long_is_cut_off(path: Path, commands: Lists, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_STALLED_SEC", 0.1)
    commands.steps = 1000
    lines = DaemonClient(path).connections()
    assert next(lines)
    before = -1
    while before != commands.made:
        before = commands.made
        time.sleep(0.3)
    with pytest.raises(DaemonError, match="connection lost"):
        list(lines)


def test_the_end_waits_for_nobody_who_reads(tmp_path: Path, commands: Lists) -> None:
    commands.steps = 1000
    with ThreadPoolExecutor(1) as pool:
        server = Server(tmp_path / "sock", commands, pool.submit, INSTANCE)
        server.start()
        with begin(tmp_path / "sock") as asking:
            assert asking.recv(10)
            started = time.monotonic()
            server.stop()
            assert time.monotonic() - started < 10


def writes(text: str) -> list[str]:
    """The command line of a process of this code."""
    return [sys.executable, "-c", f"import os, sys, time; {text}"]


def test_a_list_that_a_process_writes(path: Path, commands: Lists) -> None:
    """Whole, with no more of it made than somebody reads, and in its own words where it can't."""
    write = "from reconciler.runtime.list_child import write_array as write; "
    for steps in (0, 1, 300):
        made = f"([str(step * 1000 + each) for each in range(1000)] for step in range({steps}))"
        commands.command = writes(f"{write} write({made}, sys.stdout)")
        assert list(map(int, DaemonClient(path).connections())) == list(range(steps * 1000))
    commands.command = writes("sys.exit('no map connection4')")
    with pytest.raises(DaemonError, match="no map connection4"):
        DaemonClient(path).connections()
    commands.command = writes("print('{\"count\": 7}')")
    assert DaemonClient(path).connection_count() == 7
    commands.command = writes("print('[\\n1,', flush=True); sys.exit(1)")
    lines = DaemonClient(path).connections()
    assert next(lines) == "1"
    with pytest.raises(DaemonError, match="the list is cut off"):
        next(lines)


def test_what_tells_of_very_many_connections_has_them_counted_first(path: Path, commands: Lists) -> None:
    """By a process, not by the worker; and for a drain when it has begun, so that none that is left is overlooked."""
    totals, target = Totals({7: 3}, 5), "10.0.0.1:8080"
    commands.totals = writes(f"print({json.dumps(json.dumps(totals.to_json()))})")
    daemon = DaemonClient(path)
    within = ("counted", {"totals": totals})
    before = ("counted", {"totals": Totals()})
    for call, name, expected in (
        (daemon.status, "status", [within]),
        (lambda: daemon.draining(target), "draining", [within]),
        (lambda: daemon.undrain(target), "undrain", [within]),
        (
            lambda: daemon.drain(target),
            "draining",
            [before, ("drain", {"target": target, "proxy": None}), ("counted", {}), within],
        ),
    ):
        commands.calls.clear()
        call()
        assert commands.calls[:-2] == expected
        assert (commands.calls[-2][0], commands.calls[-1]) == (name, ("counted", {}))
    for wrong, word in (
        ("sys.exit('no map connection4')", "no map"),
        ("print('{')", "cut off"),
        ("print(1)", "no totals"),
    ):
        commands.totals = writes(wrong)
        with pytest.raises(DaemonError, match=word):
            daemon.status()
    commands.totals = None
    commands.calls.clear()
    daemon.drain(target)
    assert [name for name, _ in commands.calls] == ["drain"]


def test_the_end_ends_processes_that_write(tmp_path: Path, commands: Lists) -> None:
    commands.command = writes("print(f'[\\n{os.getpid()},\\n' + '1,\\n' * 10**7)")
    with ThreadPoolExecutor(1) as pool:
        server = Server(tmp_path / "sock", commands, pool.submit, INSTANCE)
        server.start()
        lines = DaemonClient(tmp_path / "sock").connections()
        process = int(next(lines))
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 5
        assert not Path(f"/proc/{process}").exists()
        with pytest.raises(DaemonError, match="the list is cut off"):
            list(lines)


def test_an_error_is_told_as_ever(path: Path, commands: Lists) -> None:
    commands.error = KernelError("read", "map connection4", 12)
    with pytest.raises(DaemonError, match="connection4"):
        DaemonClient(path).connections()


def test_the_array_of_an_older_daemon(path: Path) -> None:
    class Response:
        status = 200

        def __init__(self, *lines: bytes) -> None:
            self._lines = list(lines)

        def readline(self) -> bytes:
            return self._lines.pop(0) if self._lines else b""

        def read(self) -> bytes:
            return b"".join(self._lines)

    class Connection:
        def close(self) -> None: ...

    client = DaemonClient(path)

    def read(*lines: bytes) -> list[Any]:
        return [json.loads(each) for each in client._array(Connection(), Response(*lines))]  # type: ignore[arg-type]

    assert read(b'[{"a": 1}, {"a": 2}]') == [{"a": 1}, {"a": 2}]
    assert read(b"[]") == []
    with pytest.raises(DaemonError, match="connection lost"):
        read(b"[\n", b'{"a": 1},\n')


def test_a_connection_of_a_newer_daemon() -> None:
    said = dict.fromkeys(answers.Connection.__slots__, 0)
    assert answers.Connection.from_line(json.dumps({**said, "colour": "red"})) == answers.Connection(**said)
    with pytest.raises(ValueError, match="proxy"):
        answers.Connection.from_line("{}")
