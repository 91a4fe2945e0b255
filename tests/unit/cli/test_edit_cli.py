"""Editing commands on the command line: what they ask for, what they print, what the shell completes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import BashComplete, FishComplete, ZshComplete
from click.testing import Result

import reconciler
from reconciler import answers
from reconciler.cli import app
from reconciler.cli.session import Session
from reconciler.config.edit import SetSetting
from reconciler.errors import EditError
from tests.clirunner import CliRunner
from tests.unit.cli.fakeclient import CHANGE, FakeClient

FILE = """\
apiVersion: revproxy/v1
proxies:
  - name: web   # mine
    listen: {interfaces: [eth0], port: [80, 81]}
    default_target: {ip: 10.0.0.1, port: 8080}
    source_routes:
      - {source: 192.0.2.0/24, target: {ip: 10.0.0.7}}
      - {source: 198.51.100.0/24, action: deny}
  - name: dns
    listen: {interfaces: [eth0], port: 53, protocol: udp}
    default_target: {ip: 10.0.0.9}
"""
DONE = answers.Edited("add x", ("/etc/a.yaml",), answers.Applied(4, (CHANGE,), 3))


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "config.d"
    directory.mkdir()
    (directory / "web.yaml").write_text(FILE)
    monkeypatch.setenv("REVPROXY_CONFIG_DIR", str(directory))
    monkeypatch.setenv("REVPROXY_RUN_DIR", str(tmp_path / "run"))
    return directory


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize(
    ("words", "name", "asked"),
    [
        ("proxy remove web --no-apply", "remove_proxy", {"name": "web", "apply": False}),
        (
            "proxy add x -i a -i b -p 1 -p 2 -t 10.0.0.1 --mode fullnat --address 192.0.2.1",
            "add_proxy",
            {
                "name": "x",
                "interfaces": ("a", "b"),
                "port": [1, 2],
                "targets": ("10.0.0.1",),
                "addresses": ("192.0.2.1",),
                "protocol": None,
                "mode": "fullnat",
                "balance": None,
                "apply": True,
            },
        ),
        (
            "route add web 10.0.0.0/8 10.0.0.1:1 10.0.0.2 --weight 3",
            "add_source_route",
            {
                "proxy": "web",
                "source": "10.0.0.0/8",
                "target": ("10.0.0.1:1", "10.0.0.2"),
                "deny": False,
                "weight": 3,
                "apply": True,
            },
        ),
        ("route remove web ::/0", "remove_source_route", {"proxy": "web", "source": "::/0", "apply": True}),
        (
            "target add web 10.0.0.1 --route 10.0.0.0/8",
            "add_target",
            {"proxy": "web", "target": "10.0.0.1", "weight": None, "route": "10.0.0.0/8", "apply": True},
        ),
        (
            "target remove web 10.0.0.1",
            "remove_target",
            {"proxy": "web", "target": "10.0.0.1", "route": None, "apply": True},
        ),
        (
            "target weight web 10.0.0.1 0",
            "set_weight",
            {"proxy": "web", "target": "10.0.0.1", "weight": 0, "route": None, "apply": True},
        ),
    ],
)
def test_what_is_asked_for(monkeypatch: pytest.MonkeyPatch, words: str, name: str, asked: dict[str, Any]) -> None:
    fake = FakeClient()
    fake.answer = DONE
    monkeypatch.setattr(Session, "client", lambda _: fake)
    result = run(*words.split())
    assert result.exit_code == 0, result.output
    assert fake.asked == [(name, asked)]
    assert result.stdout == "add x: /etc/a.yaml; applied as revision 4, 1 change\n"
    assert json.loads(run(*words.split(), "-o", "json").stdout)["applied"]["revision"] == 4


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("route add web 10.0.0.0/8", 2),
        ("route add web 10.0.0.0/8 10.0.0.1 --deny", 2),
        ("target weight web 10.0.0.1 70000", 2),
        ("proxy add x -i eth0 -p 80", 2),
        ("proxy show wbe", 1),
        ("target add web 10.0.0.300 --no-apply", 1),
        ("target add web 10.0.0.1:8080 --no-apply", 1),
        ("route add web 10.0.0.1/8 --deny --no-apply", 1),
    ],
)
def test_refusals_change_nothing(directory: Path, words: str, status: int) -> None:
    result = run(*words.split())
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    assert (directory / "web.yaml").read_text() == FILE


def test_the_files_alone_without_root_and_kernel(directory: Path) -> None:
    for words in ("target add web 10.0.0.2:80 --weight 2", "route remove web 192.0.2.0/24", "proxy remove dns"):
        result = run(*words.split(), "--no-apply")
        assert result.exit_code == 0, result.output
        assert "not applied" in result.stdout
    assert (
        (directory / "web.yaml").read_text()
        == """\
apiVersion: revproxy/v1
proxies:
  - name: web   # mine
    listen: {interfaces: [eth0], port: [80, 81]}
    default_target: [{ip: 10.0.0.1, port: 8080}, {ip: 10.0.0.2, port: 80, weight: 2}]
    source_routes:
      - {source: 198.51.100.0/24, action: deny}
"""
    )


def test_list_and_show(directory: Path) -> None:
    found = json.loads(run("proxy", "list", "-o", "json").stdout)
    assert [(each["name"], each["ports"], each["line"]) for each in found] == [("web", [80, 81], 3), ("dns", [53], 9)]
    one = json.loads(run("proxy", "show", "web", "-o", "json").stdout)
    assert one == found[0]
    assert one["default_target"] == [{"address": "10.0.0.1:8080", "weight": 1, "health_check": None}]
    assert [(route["source"], route["action"]) for route in one["source_routes"]] == [
        ("192.0.2.0/24", "forward"),
        ("198.51.100.0/24", "deny"),
    ]
    assert f"web  # {directory}/web.yaml:3:5" in run("proxy", "show", "web").stdout
    assert "dns" in run("proxy", "list").stdout


def test_show_tells_how_targets_are_checked(directory: Path) -> None:
    own = "health_check: {type: tcp, port: 9}"
    checked = FILE.replace("port: 8080}\n", "port: 8080}\n    health_check: {type: https, verify: /ca.pem}\n")
    (directory / "web.yaml").write_text(checked.replace("{ip: 10.0.0.7}", f"{{ip: 10.0.0.7, {own}}}"))
    found = json.loads(run("proxy", "show", "web", "-o", "json").stdout)
    assert found["default_target"][0]["health_check"] == {
        "type": "https",
        "port": 8080,
        "interval_ms": 2000,
        "timeout_ms": 1000,
        "healthy_threshold": 2,
        "unhealthy_threshold": 3,
        "on_unhealthy": "keep",
        "path": "/",
        "expected_codes": ["200-399"],
        "host": None,
        "verify": "/ca.pem",
    }
    other = found["source_routes"][0]["targets"][0]["health_check"]
    assert (other["type"], other["port"], other["path"], other["verify"]) == ("tcp", 9, None, None)
    text = run("proxy", "show", "web").stdout
    assert "https :8080/ every 2000 ms" in text
    assert "tcp :9 every 2000 ms" in text
    assert "HEALTH CHECK" not in run("proxy", "show", "dns").stdout


def test_the_python_api_edits_the_files(directory: Path, tmp_path: Path) -> None:
    client = reconciler.Client(run_dir=tmp_path / "run")
    done = client.set_setting("fast_path", False, apply=False)
    assert done == answers.Edited("set fast_path to false", (f"{directory}/00-settings.yaml",), None)
    client.add_proxy("api", "eth0", 82, {"ip": "10.0.0.1", "weight": 3}, apply=False)
    client.attach_interfaces("eth1", proxy="api", apply=False)
    client.set_weight("api", "10.0.0.1", 5, apply=False)
    assert client.proxy("api").interfaces == ("eth0", "eth1")
    assert client.proxy("api").default_target == (answers.ConfiguredTarget("10.0.0.1", 5),)
    client.detach_interfaces(["eth0"], proxy="api", apply=False)
    client.remove_proxy("api", apply=False)
    with pytest.raises(EditError, match="either a target or deny"):
        client.add_source_route("web", "10.0.0.0/8", apply=False)
    assert sorted(os.listdir(directory)) == ["00-settings.yaml", "web.yaml"]  # noqa: PTH208  # names


def test_statistics_are_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = reconciler.Client(run_dir=tmp_path)
    asked: list[Any] = []
    monkeypatch.setattr(client, "_edit", lambda wanted, *, apply: asked.append((wanted, apply)))
    client.enable_stats()
    client.disable_stats(apply=False)
    assert asked == [(SetSetting("stats_enabled", True), True), (SetSetting("stats_enabled", False), False)]


@pytest.mark.parametrize(
    ("words", "incomplete", "offered"),
    [
        ("proxy show", "", ["dns", "web"]),
        ("proxy remove", "w", ["web"]),
        ("connections --proxy", "d", ["dns"]),
        ("target remove web", "", ["10.0.0.1:8080", "10.0.0.7"]),
        ("target remove web --route 192.0.2.0/24", "", ["10.0.0.7"]),
        ("route remove web", "19", ["192.0.2.0/24", "198.51.100.0/24"]),
        ("connections --target", "10.0.0.9", ["10.0.0.9"]),
        ("target", "we", ["weight"]),
    ],
)
@pytest.mark.parametrize("shell", [BashComplete, ZshComplete, FishComplete])
def test_completion(directory: Path, shell: Any, words: str, incomplete: str, offered: list[str]) -> None:
    del directory
    complete = shell(app, {}, "revproxyctl", "_REVPROXYCTL_COMPLETE")
    found = [each.value for each in complete.get_completions(words.split(), incomplete)]
    assert found == offered


def test_completion_of_wrong_files_is_silent(directory: Path) -> None:
    (directory / "web.yaml").write_text("nonsense")
    complete = BashComplete(app, {}, "revproxyctl", "_REVPROXYCTL_COMPLETE")
    assert complete.get_completions(["proxy", "show"], "") == []
