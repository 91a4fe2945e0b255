"""``revproxyctl``: exit statuses, what goes to which stream, options before and after the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from ruamel.yaml import YAML

from reconciler import answers
from reconciler.answers import Sync
from reconciler.cli import app, output
from reconciler.cli.session import Session
from reconciler.errors import (
    ConfigError,
    DaemonError,
    KernelError,
    NothingToConfirmError,
    Problem,
    RevproxyError,
    StaleError,
)
from tests.clirunner import CliRunner

GOOD = """\
apiVersion: revproxy/v1
proxies:
  - name: web
    listen: {interfaces: [eth0], port: 80, protocol: tcp}
    default_target: {ip: 10.0.0.1, port: 8080}
"""
CHANGE = answers.Change("update", "proxy", "web", {"balance": "maglev"}, {"balance": "source"}, "a.yaml:3:5")
PROBLEMS = (Problem("a.yaml", 3, 5, "proxies[0].listen", "wrong"), Problem("b.yaml", 0, 0, "", "unreadable"))
UNCONFIRMED = answers.Unconfirmed(3, 2, "2026-01-02T03:04:35+00:00", 29.5)
ENTRY = answers.HistoryEntry(
    3,
    "2026-01-02T03:04:05+00:00",
    "applied",
    "rollback",
    "a" * 40,
    "A. U. Thor",
    "why",
    ("a.yaml",),
    of=1,
    current=True,
)
CONNECTION = answers.Connection(
    "web", "tcp", "198.51.100.1:1", "192.0.2.1:80", "10.0.0.1:8080", "established", 1, 2, 3, 4096, 5.5, 0.5
)
LINE = json.dumps(answers.to_json(CONNECTION))


class FakeClient:
    """Answers as told; remembers what it was asked."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def method(*_words: Any, **arguments: Any) -> Any:
            self.asked.append((name, arguments))
            answer = self.answer[name] if isinstance(self.answer, dict) else self.answer
            if isinstance(answer, Exception):
                raise answer
            return answer

        return method


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    fake = FakeClient()
    monkeypatch.setattr(Session, "client", lambda _: fake)
    return fake


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


# -- exit statuses -------------------------------------------------------------------------------------------


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


# -- streams and formats -------------------------------------------------------------------------------------


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


def test_diff_shows_both_sides_of_an_object(client: FakeClient) -> None:
    client.answer = answers.Difference((CHANGE,), 3)
    assert run("diff").stdout.splitlines() == [
        "# update proxy web",
        "--- live/proxy/web",
        "+++ files/proxy/web",
        "-balance: maglev",
        "+balance: source",
    ]


def test_plan_lists_steps_counts_and_connections(client: FakeClient) -> None:
    client.answer = answers.PlanAnswer(
        (CHANGE,),
        2,
        ("StageProxy a", "Switch 0 -> 1"),
        {"proxy": 1, "control": 1},
        (answers.Touched("web", "10.0.0.1:80", 4, "stay"),),
    )
    output = run("plan").stdout
    assert "~ update proxy web  # a.yaml:3:5" in output
    assert output.index("StageProxy a") < output.index("Switch 0 -> 1")
    assert "1 changes, 2 operations: proxy 1, control 1" in output
    assert "4 live connections of web to 10.0.0.1:80 stay" in output


def test_status_shows_every_error_and_target(client: FakeClient) -> None:
    target = answers.TargetStatus("10.0.0.1:8080", 1, "unchecked", "active", 3)
    client.answer = answers.Status(
        Sync.DEGRADED,
        revision=7,
        interfaces=(
            answers.InterfaceStatus("eth0", "native", True),
            answers.InterfaceStatus("eth9", "off", False, "waiting"),
        ),
        proxies=(answers.ProxyStatus("web", ("192.0.2.1:80/tcp", "192.0.2.1:443/tcp"), ("eth0",), (target,)),),
        errors=PROBLEMS,
    )
    output = run("status").stdout
    for words in (
        "Degraded",
        "a.yaml:3:5: wrong",
        "b.yaml: unreadable",
        "native",
        "waiting",
        "192.0.2.1:443/tcp",
        "10.0.0.1:8080",
    ):
        assert words in output


def test_status_says_what_keeps_the_files_from_being_applied(client: FakeClient) -> None:
    client.answer = answers.Status(
        Sync.OUT_OF_SYNC,
        3,
        differences=2,
        waiting="rolled back to revision 1",
        suspended="2026-01-02",
        unconfirmed=UNCONFIRMED,
        drift_repaired=4,
    )
    text = run("status").stdout
    assert "suspended: since 2026-01-02; `revproxyctl resume`" in text
    assert "confirm:   revision 3 goes back to revision 2 in 29s" in text
    assert "waiting:   rolled back to revision 1" in text
    assert "drift:     4 objects" in text


def test_history_marks_what_is_applied_and_says_why_what_was_refused(client: FakeClient) -> None:
    refused = answers.HistoryEntry(4, "2026-01-03T03:04:05+00:00", "refused", "files", error="a.yaml:1:2: wrong\nmore")
    client.answer = (ENTRY, refused)
    lines = run("history").stdout.splitlines()
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "3* 2026-01-02T03:04:05+00:00 applied rollback to 1 aaaaaaaaaaaa A. U. Thor why a.yaml",
        "4 2026-01-03T03:04:05+00:00 refused files a.yaml:1:2: wrong",
    ]
    assert len(run("history", "-n", "1").stdout.splitlines()) == 2
    assert [each["number"] for each in json.loads(run("history", "-o", "json").stdout)] == [3, 4]


def test_an_apply_to_be_confirmed_says_when_it_goes_back(client: FakeClient) -> None:
    client.answer = answers.Applied(3, (CHANGE,), 2, unconfirmed=UNCONFIRMED)
    result = run("apply", "--confirm-within", "1h30m")
    assert client.asked == [("apply", {"plan": None, "allow_empty": False, "confirm_within_sec": 5400.0})]
    assert "revision 3 goes back to revision 2 at 2026-01-02T03:04:35+00:00" in result.stderr
    assert "goes back" not in result.stdout


def test_a_plan_is_saved_where_it_is_told(client: FakeClient, tmp_path: Path) -> None:
    client.answer = answers.PlanAnswer((CHANGE,), 3)
    out = tmp_path / "plan"
    result = run("plan", "--out", str(out))
    assert client.asked == [("save_plan", {"path": out})]
    assert str(out) in result.stderr
    assert "balance: maglev -> source" in result.stdout


def test_a_plan_that_is_no_file_is_told(client: FakeClient, tmp_path: Path) -> None:
    for path, word in ((tmp_path, "is no regular file"), (tmp_path / "none", "there is no such file")):
        done = run("apply", str(path))
        assert (done.exit_code, done.stderr) == (1, f"revproxyctl: {path}: {word}\n")
    assert client.asked == []


def test_connections_are_filtered_and_counted(client: FakeClient) -> None:
    client.answer = {"connection_lines": iter([LINE]), "connection_count": 12}
    listed = run("connections", "--proxy", "web", "--target", "10.0.0.1:8080")
    assert client.asked == [("connection_lines", {"proxy": "web", "target": "10.0.0.1:8080"})]
    assert "198.51.100.1:1" in listed.stdout
    assert "4.0 KiB" in listed.stdout
    assert run("connections", "--count").stdout == "12\n"
    assert json.loads(run("connections", "--count", "-o", "json").stdout) == {"count": 12}
    client.answer["connection_lines"] = iter([LINE])
    rows = json.loads(run("connections", "-o", "json").stdout)
    assert list(rows[0]) == [
        *("proxy", "protocol", "client", "listen", "target", "state"),
        *("packets_forward", "bytes_forward", "packets_reverse", "bytes_reverse", "age_sec", "idle_sec"),
    ]


def test_many_connections_are_printed_as_they_come(client: FakeClient) -> None:
    """More than are taken at once, in each format; a later cell may be wider than the column."""
    lines = [LINE.replace(':1"', f':{number}"', 1) for number in range(1, 2502)]
    lines[-1] = lines[-1].replace("web", "a-much-longer-name")
    client.answer = {"connection_lines": iter(())}

    def printed(*words: str, count: int) -> str:
        client.answer["connection_lines"] = iter(lines[:count])
        return run("connections", *words).stdout

    for count in (0, 1, 999, 1000, 1001, 2501):
        expected = list(map(json.loads, lines[:count]))
        assert json.loads(printed("-o", "json", count=count)) == expected
    for count in (0, 1, 1001):
        assert YAML(typ="safe").load(printed("-o", "yaml", count=count)) == list(map(json.loads, lines[:count]))
    rows = [each.split() for each in printed(count=2501).splitlines()]
    assert rows[0][0] == "PROXY"
    assert [row[2] for row in rows[1:]] == [f"198.51.100.1:{number}" for number in range(1, 2502)]
    assert rows[-1][0] == "a-much-longer-name"
    assert rows[1] == [*rows[1500][:2], "198.51.100.1:1", *rows[1500][3:]]


def test_no_connections_of_a_proxy_that_there_is_not(client: FakeClient) -> None:
    client.answer = {
        "connection_lines": iter(()),
        "connection_count": 0,
        "flush_connections": 0,
        "stats": answers.Stats(proxies={"web": answers.ProxyStats(), "dns": answers.ProxyStats()}),
    }
    for words in (["connections"], ["connections", "--count"], ["connections", "flush"]):
        result = run(*words, "--proxy", "wbe", "-o", "json")
        assert result.exit_code == 0
        assert "no live proxy is called 'wbe' (did you mean 'web'?); there are dns, web" in result.stderr
        assert "no live proxy" not in run(*words, "--proxy", "dns").stderr
    assert json.loads(run("connections", "--proxy", "wbe", "-o", "json").stdout) == []


@pytest.mark.parametrize(
    "words",
    [
        ["connections", "--client", "nobody"],
        ["connections", "--client", "10.0.0.0/33"],
        ["connections", "--client", "10.0.0.1:"],
        ["connections", "--target", "nowhere"],
        ["connections", "--count", "--target", "10.0.0.1:0"],
        ["connections", "--sort", "luck"],
        ["connections", "--limit", "-1"],
        ["connections", "--state", "liquid"],
        ["connections", "flush", "--client", "nobody"],
        ["connections", "flush", "--target", ""],
        ["events", "--kind", "BOGUS"],
        ["drain", "nowhere"],
        ["undrain", "10.0.0.1:x"],
    ],
    ids=" ".join,
)
def test_what_can_not_be_meant_is_a_wrong_command_line_with_a_daemon_or_without(
    words: list[str], tmp_path: Path
) -> None:
    result = run("--run-dir", str(tmp_path), *words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    if "BOGUS" in words:
        assert all(kind in result.stderr for kind in answers.KINDS)


def test_in_a_script_apply_does_not_ask(client: FakeClient) -> None:
    client.answer = answers.Applied(3, (CHANGE,), 2)
    assert run("apply", stdin="").exit_code == 0
    assert client.asked == [("apply", {"plan": None, "allow_empty": False, "confirm_within_sec": None})]
    run("apply", "--allow-empty")
    assert client.asked[-1] == ("apply", {"plan": None, "allow_empty": True, "confirm_within_sec": None})


def test_colour_is_for_terminals(client: FakeClient) -> None:
    client.answer = answers.Status(Sync.SYNCED)
    assert "\x1b" not in run("status").stdout


# -- validate, in processes of its own -----------------------------------------------------------------------


def ctl(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from reconciler.cli import main; main()", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False, timeout=60
    )


def test_validate_says_valid_or_every_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    good = ctl("validate", tmp_path)
    assert (good.returncode, good.stdout) == (0, "")
    assert "1 proxy" in good.stderr
    (tmp_path / "b.yaml").write_text(GOOD.replace("listen", "lisen"))
    (tmp_path / "c.yaml").write_text("apiVersion: revproxy/v1\nproxies: [\n")
    bad = ctl("validate", REVPROXY_CONFIG_DIR=str(tmp_path))
    assert (bad.returncode, bad.stdout) == (1, "")
    assert f"{tmp_path}/b.yaml:4:5: " in bad.stderr
    assert f"{tmp_path}/c.yaml:" in bad.stderr
    as_json = ctl("--output", "json", "validate", tmp_path / "b.yaml")
    assert as_json.returncode == 1
    assert [each["line"] for each in json.loads(as_json.stdout) if "lisen" in each["message"]] == [4]
    assert json.loads(ctl("validate", tmp_path / "a.yaml", "-o", "json").stdout) == []


def test_validate_loads_nothing_of_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    program = (
        "import sys\n"
        "for name in ('bcc', 'pyroute2', 'watchdog', 'aiohttp', 'rich'): sys.modules[name] = None\n"
        "from reconciler.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "validate", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_help_is_quick_to_load() -> None:
    program = (
        "import sys\nsys.argv = ['revproxyctl', '--help']\nfrom reconciler.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'rich', 'aiohttp', 'structlog', 'jsonschema', 'ruamel.yaml', 'bcc', 'watchdog'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_engine_loads_no_compiler() -> None:
    """Nor what only says what went wrong: each is a part of every command's time, and of the daemon's memory."""
    program = (
        "import sys\nimport reconciler.engine, reconciler.runtime.live\n"
        "heavy = {'bcc', 'rich', 'aiohttp', 'structlog', 'jsonschema', 'watchdog'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from reconciler.cli import main; main()", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr == ""


# -- packets put to the programs -----------------------------------------------------------------------------

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


def test_history_fits_a_terminal_of_eighty_columns(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(ENTRY, author="A. U. Thor", message="Move the shop to the new servers", files=("10-shop.yaml",) * 3)
    client.answer = (replace(entry, number=1234, commit="0123456789abcdef" * 2 + "01234567"),)
    monkeypatch.setattr(output, "width", lambda: 80)
    lines = run("history").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 6
    text = " ".join(" ".join(lines).split())
    for word in ("1234", "applied", "git 0123456789ab", "A. U. Thor:", "new servers"):
        assert word in text


def test_events_say_why_they_end(client: FakeClient) -> None:
    client.answer = iter([answers.Event(1, "2026-01-02T03:04:05", "config_applied")])
    result = run("events", "--follow")
    assert result.exit_code == 0
    assert result.stdout == "2026-01-02T03:04:05 config_applied\n"
    assert result.stderr == "revproxyctl: revproxyd has ended, and its events with it\n"
