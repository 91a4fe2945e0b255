"""``revproxyctl``: exit statuses, what goes to which stream, options before and after the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reconciler import answers
from reconciler.answers import Sync
from reconciler.cli.session import Session
from reconciler.errors import (
    ConfigError,
    DaemonError,
    KernelError,
    NothingToConfirmError,
    RevproxyError,
    StaleError,
)
from tests.unit.cli.fakeclient import CHANGE, ENTRY, PROBLEMS, UNCONFIRMED, FakeClient, run


@pytest.mark.parametrize(
    ("command", "answer", "status"),
    [
        (["diff"], answers.Difference(), 0),
        (["diff"], answers.Difference((CHANGE,), 3), 1),
        (["diff"], KernelError("list", "interfaces", 1), 2),
        (["diff"], ConfigError(PROBLEMS), 2),
        (["diff"], ZeroDivisionError(), 2),
        (["diff", "--frob"], answers.Difference(), 2),
        (["plan"], answers.PlanAnswer(), 0),
        (["plan"], answers.PlanAnswer((CHANGE,), 3), 0),
        (["plan"], ConfigError(PROBLEMS), 2),
        (["plan", "--detailed-exitcode"], answers.PlanAnswer(), 0),
        (["plan", "--detailed-exitcode"], answers.PlanAnswer((CHANGE,), 3), 2),
        (["plan", "--detailed-exitcode"], ConfigError(PROBLEMS), 1),
        (["plan", "--detailed-exitcode"], ZeroDivisionError(), 1),
        (["plan", "--detailed-exitcode", "--frob"], answers.PlanAnswer(), 1),
        (["apply"], answers.Applied(3), 0),
        (["apply"], answers.Applied(3, (CHANGE,), 2), 0),
        (["apply"], KernelError("attach", "eth0", 22), 1),
        (["apply"], ConfigError(PROBLEMS), 1),
        (["apply", "--confirm-within", "30s"], answers.Applied(3, unconfirmed=UNCONFIRMED), 0),
        (["apply", "--confirm-within", "soon"], answers.Applied(3), 2),
        (["apply", "no-such-plan"], answers.Applied(3), 1),
        (["apply"], StaleError("stale"), 1),
        (["confirm"], answers.Confirmed(3), 0),
        (["confirm"], NothingToConfirmError("there is nothing to confirm"), 1),
        (["rollback"], answers.Applied(4), 0),
        (["rollback", "2"], RevproxyError("no applied revision 2 is kept"), 1),
        (["rollback", "0"], answers.Applied(4), 2),
        (["history"], (ENTRY,), 0),
        (["suspend"], answers.Suspension(True, "2026-01-02"), 0),
        (["resume"], answers.Suspension(False), 0),
        (["status"], answers.Status(Sync.SYNCED), 0),
        (["status"], answers.Status(Sync.OUT_OF_SYNC), 1),
        (["status"], answers.Status(Sync.DEGRADED), 1),
        (["status"], DaemonError("gone"), 1),
        (["connections"], iter(()), 0),
        (["connections", "flush"], 0, 2),
        (["connections", "flush", "--all"], 3, 0),
        (["connections", "--proxy", "web", "flush", "--all"], 3, 2),
        (["stats"], answers.Stats(), 0),
        (["down"], answers.TakenDown(), 0),
        (["down"], KernelError("detach", "eth0", 1), 1),
        (["frob"], None, 2),
    ],
)
def test_exit_status(client: FakeClient, command: list[str], answer: Any, status: int) -> None:
    client.answer = answer
    result = run(*command)
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output


def test_problems_go_to_stderr_one_a_line(client: FakeClient) -> None:
    client.answer = ConfigError(PROBLEMS)
    result = run("apply")
    assert result.stdout == ""
    assert result.stderr == "a.yaml:3:5: wrong\nb.yaml: unreadable\n"


def test_errors_are_data_too_where_data_is_json(client: FakeClient) -> None:
    client.answer = ConfigError(PROBLEMS)
    result = run("diff", "--output", "json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["problems"][0] == {
        "file": "a.yaml",
        "line": 3,
        "column": 5,
        "path": "proxies[0].listen",
        "message": "wrong",
    }


def test_an_unexpected_error_is_one_line_with_a_reference(client: FakeClient) -> None:
    client.answer = ZeroDivisionError("oops")
    assert "internal error" in run("status").stderr
    assert "Traceback" in run("status", "-v").stderr


@pytest.mark.parametrize(
    "arguments", [["--output", "json", "diff"], ["diff", "--output", "json"], ["diff", "-o", "json"]]
)
def test_options_stand_before_or_after_the_command(client: FakeClient, arguments: list[str]) -> None:
    client.answer = answers.Difference((CHANGE,), 3)
    assert json.loads(run(*arguments).stdout) == {
        "changes": [
            {
                "action": "update",
                "object": "proxy",
                "name": "web",
                "before": {"balance": "maglev"},
                "after": {"balance": "source"},
                "place": "a.yaml:3:5",
            }
        ],
        "operations": 3,
        "warnings": [],
    }


def test_the_option_nearest_to_the_command_counts(client: FakeClient) -> None:
    client.answer = answers.Stats(connections=2)
    assert "connections: 2\n" in run("--output", "json", "stats", "--output", "yaml").stdout


def test_places_are_passed_on_from_either_side(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def client(session: Session) -> FakeClient:
        seen.update(session.places)
        fake = FakeClient()
        fake.answer = answers.Stats()
        return fake

    monkeypatch.setattr(Session, "client", client)
    assert run("--run-dir", "/r", "stats", "--config-dir", "/c", "--bpffs-dir", "/b").exit_code == 0
    assert seen == {"run_dir": Path("/r"), "config_dir": Path("/c"), "bpffs_dir": Path("/b")}


@pytest.mark.parametrize("option", ["--config-dir", "--run-dir", "--state-dir", "--bpffs-dir"])
def test_no_place_is_the_current_directory_for_lack_of_a_name(client: FakeClient, option: str) -> None:
    for arguments in ([option, "", "down"], ["down", option, ""]):
        done = run(*arguments)
        assert (done.exit_code, client.asked) == (2, [])
        assert f"Invalid value for '{option}': it is empty" in done.stderr


def test_a_plan_that_is_no_file_is_told(client: FakeClient, tmp_path: Path) -> None:
    for path, word in ((tmp_path, "is no regular file"), (tmp_path / "none", "there is no such file")):
        done = run("apply", str(path))
        assert (done.exit_code, done.stderr) == (1, f"revproxyctl: {path}: {word}\n")
    assert client.asked == []


def test_in_a_script_apply_does_not_ask(client: FakeClient) -> None:
    client.answer = answers.Applied(3, (CHANGE,), 2)
    assert run("apply", stdin="").exit_code == 0
    assert client.asked == [("apply", {"plan": None, "allow_empty": False, "confirm_within_sec": None})]
    run("apply", "--allow-empty")
    assert client.asked[-1] == ("apply", {"plan": None, "allow_empty": True, "confirm_within_sec": None})


def test_colour_is_for_terminals(client: FakeClient) -> None:
    client.answer = answers.Status(Sync.SYNCED)
    assert "\x1b" not in run("status").stdout


@pytest.mark.parametrize("group", ["", "proxy", "route", "target", "connections"])
def test_the_list_of_commands_says_whole_what_each_does(group: str) -> None:
    result = run(*group.split(), "--help")
    assert "Commands:" in result.stdout
    assert "..." not in result.stdout.partition("Commands:")[2]
