"""``test`` and ``explain``: packets put to the programs."""

from __future__ import annotations

import json

from reconciler import answers
from reconciler.answers import Sync
from tests.unit.cli.fakeclient import FakeClient, run

HOLDS = answers.TestResult("a.yaml", 9, 5, "192.0.2.1:40000", "192.0.2.9:80", "tcp", None, "deny", "deny", holds=True)
FAILS = answers.TestResult(
    "a.yaml", 10, 5, "192.0.2.2:40000", "192.0.2.9:80", "tcp", "eth0", "deny", "pass", holds=False
)


def test_tests_that_hold(client: FakeClient) -> None:
    client.answer = answers.Tested(Sync.SYNCED, 3, tests=(HOLDS,))
    result = run("test")
    assert result.exit_code == 0
    assert "1 of 1 tests hold" in result.stdout
    assert not result.stderr


def test_tests_that_do_not_hold(client: FakeClient) -> None:
    client.answer = answers.Tested(Sync.OUT_OF_SYNC, 3, 2, (HOLDS, FAILS), 1)
    result = run("test")
    assert result.exit_code == 1
    assert "a.yaml:10:5: got pass" in result.stdout
    assert "2 objects differ" in result.stderr
    assert "revision 3" in result.stderr


def test_tests_as_json(client: FakeClient) -> None:
    client.answer = answers.Tested(Sync.SYNCED, 3, 0, (HOLDS, FAILS), 1)
    result = run("test", "--output", "json")
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert (data["sync"], data["failed"]) == ("Synced", 1)
    assert data["tests"][1]["from"] == "192.0.2.2:40000"
    assert [each["holds"] for each in data["tests"]] == [True, False]


def test_an_explanation(client: FakeClient) -> None:
    client.answer = answers.Explanation(
        "redirect", "web", "10.0.0.0/8", "10.0.0.1:80", "so it is", "eth0", place="a.yaml:7:9"
    )
    arguments = ["--from", "10.2.3.4:5", "--to", "192.0.2.9:80", "--protocol", "udp", "--interface", "eth0"]
    result = run("explain", *arguments)
    assert result.exit_code == 0
    assert client.asked == [("explain", {"protocol": "udp", "interface": "eth0"})]
    for text in ("redirect", "web", "10.0.0.0/8  # a.yaml:7:9", "10.0.0.1:80", "so it is"):
        assert text in result.stdout
    data = json.loads(run("explain", *arguments, "--output", "json").stdout)
    assert (
        data.items() >= {"verdict": "redirect", "proxy": "web", "rule": "10.0.0.0/8", "target": "10.0.0.1:80"}.items()
    )
    assert run("explain", "--from", "10.2.3.4").exit_code == 2
