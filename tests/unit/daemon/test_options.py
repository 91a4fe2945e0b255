"""``revproxyd``'s command line: what it refuses before it touches anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reconciler.daemon import options
from reconciler.places import Places
from reconciler.runtime import live, logs
from tests.clirunner import CliRunner


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Places, dict[str, Any]]]:
    """What a daemon was made of, instead of running it."""
    seen: list[tuple[Places, dict[str, Any]]] = []

    class FakeDaemon:
        def __init__(self, places: Places, **given: Any) -> None:
            seen.append((places, given))

        def run(self) -> None:
            pass

    monkeypatch.setattr(options, "Daemon", FakeDaemon)
    monkeypatch.setattr(logs, "set_up", lambda *_: None)
    monkeypatch.setattr(live, "check_privileges", lambda: None)
    return seen


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["-i", "eth0"], "-p, -t missing"),
        (["-i", "eth0", "-p", "80"], "-t missing"),
        (["-p", "80", "-t", "10.0.0.1"], "-i missing"),
        (["--bpffs-dir", ""], "it is empty"),
        (["--protocol", "udp"], "missing"),
        (["-i", "eth0", "-p", "0", "-t", "10.0.0.1"], "-p"),
        (["-i", "eth0", "-p", "65536", "-t", "10.0.0.1"], "-p"),
        (["-i", "eth0", "-p", "80", "-t", "backend:80"], "-t"),
        (["-i", "eth0", "-p", "80", "-t", "10.0.0.1", "--protocol", "icmp"], "--protocol"),
        (["-i", "eth0", "-p", "80", "-t", "10.0.0.1", "--config-dir", "/x"], "exclude"),
        (["-i", "eth0", "-p", "80", "-t", "10.0.0.1", "--require-signed", "/k"], "--require-signed"),
        (["--stats"], "stats_enabled"),
        (["-i", "a/b", "-p", "80", "-t", "10.0.0.1"], "'interfaces' must be an interface name"),
        (["-i", "eth0", "-i", "eth0", "-p", "80", "-t", "10.0.0.1"], "'eth0' stands twice"),
        (["-i", "eth0", "-p", "80", "-t", "224.0.0.1"], "multicast"),
        (["--log-format", "xml"], "--log-format"),
        (["extra"], "extra"),
    ],
)
def test_what_it_refuses(started: list[Any], arguments: list[str], word: str) -> None:
    result = CliRunner().invoke(options.command, arguments)
    assert result.exit_code == 2
    assert word in result.stderr
    assert started == []


def test_one_line_makes_a_configuration_in_the_run_directory(started: list[Any], tmp_path: Path) -> None:
    arguments = [
        "--run-dir",
        str(tmp_path),
        "-i",
        "eth0",
        "-i",
        "eth1",
        "-p",
        "80",
        "-t",
        "10.0.0.1:8080",
        "-t",
        "10.0.0.2",
    ]
    assert CliRunner().invoke(options.command, arguments).exit_code == 0
    ((places, given),) = started
    assert places.config_dir == tmp_path / "command-line.d"
    assert given == {
        "command_line": True,
        "detach_on_exit": False,
        "resync_sec": 30.0,
        "access_log": None,
        "read_group": None,
    }
    assert [path.name for path in places.config_dir.iterdir()] == ["command-line.json"]


def test_places_come_from_options(started: list[Any], tmp_path: Path) -> None:
    arguments = ["--run-dir", str(tmp_path), "--config-dir", "/c", "--bpffs-dir", "/b", "--state-dir", "/s"]
    assert (
        CliRunner()
        .invoke(options.command, [*arguments, "--detach-on-exit", "--resync", "5", "--access-log", "-"])
        .exit_code
        == 0
    )
    ((places, given),) = started
    assert places == Places(Path("/c"), tmp_path, Path("/s"), Path("/b"))
    assert given == {
        "command_line": False,
        "detach_on_exit": True,
        "resync_sec": 5.0,
        "access_log": "-",
        "read_group": None,
    }


def test_keyrings_come_from_options_or_else_the_environment(started: list[Any], tmp_path: Path) -> None:
    for arguments, expected in (
        (["--require-signed", "/one", "--require-signed", "/two"], ("/one", "/two")),
        ([], ("/three", "/four")),
    ):
        command = ["--run-dir", str(tmp_path), *arguments]
        env = {"REVPROXY_REQUIRE_SIGNED": "/three:/four"}
        assert CliRunner().invoke(options.command, command, env=env).exit_code == 0
        assert started.pop()[0].require_signed == tuple(map(Path, expected))
