"""Drains through the API and the client: what is asked for, and how long is waited."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler import answers
from reconciler.api.client import DaemonClient
from reconciler.client import Client
from tests.unit.api.fakecommands import DRAINING, FakeCommands
from tests.unit.api.rawhttp import post, raw


def state(name: str, connections: int) -> answers.Draining:
    return answers.Draining((answers.DrainingTarget("web", "10.0.0.1:80", name, connections),), connections)


def test_there_and_back(path: Path, commands: FakeCommands) -> None:
    client = DaemonClient(path)
    assert client.drain("10.0.0.1:8080", proxy="web") == DRAINING
    assert client.undrain("10.0.0.1:8080") == DRAINING
    assert client.draining("10.0.0.1:8080", proxy="web") == DRAINING
    assert commands.calls == [
        ("drain", {"target": "10.0.0.1:8080", "proxy": "web"}),
        ("undrain", {"target": "10.0.0.1:8080", "proxy": None}),
        ("draining", {"target": "10.0.0.1:8080", "proxy": "web"}),
    ]


@pytest.mark.parametrize("body", [b"", b"{}", b'{"target": 1}', b'{"target": "x", "wait": true}', b'{"target": null}'])
def test_nonsense(path: Path, commands: FakeCommands, body: bytes) -> None:
    for where in ("/v1/drain", "/v1/undrain"):
        status, answer = post(path, where, body)
        assert status == 400
        assert answer["error"]
    request = b"GET /v1/drain?proxy=web HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert raw(path, request) == (400, {"error": "target: missing", "problems": [], "kind": "UsageError"})
    assert commands.calls == []


class Falling(Client):
    """Each look finds a connection less."""

    def __init__(self, left: int, tmp_path: Path) -> None:
        super().__init__(run_dir=tmp_path)
        self.left, self.looks = left, 0

    def _change(self, *_: object, **__: object) -> answers.Draining:  # type: ignore[override]
        return state("draining" if self.left else "drained", self.left)

    def draining(self, *_: object, **__: object) -> answers.Draining:  # type: ignore[override]
        self.looks += 1
        self.left -= 1
        return state("draining" if self.left else "drained", self.left)


def test_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    seen: list[int] = []
    client = Falling(3, tmp_path)
    found = client.drain("10.0.0.1:80", wait=True, told=lambda each: seen.append(each.connections))
    assert found.done
    assert (seen, client.looks) == ([3, 2, 1, 0], 3)


def test_waiting_in_vain(tmp_path: Path) -> None:
    found = Falling(10**6, tmp_path).drain("10.0.0.1:80", wait=True, timeout_sec=0)
    assert not found.done
    assert found.connections == 10**6


def test_not_waiting(tmp_path: Path) -> None:
    client = Falling(3, tmp_path)
    assert not client.drain("10.0.0.1:80").done
    assert client.looks == 0
