"""Small parts of the daemon: systemd's protocol, git's commit, the one-line configuration, the state directory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
import structlog

from reconciler.config import oneline
from reconciler.config.files import parse_sources
from reconciler.daemon.systemd import Notifier
from reconciler.runtime import git, logs

# -- systemd -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(10)
        address = str(tmp_path / "notify") if request.param == "path" else f"@revproxy-test-{os.getpid()}"
        receiver.bind(address.replace("@", "\0", 1) if request.param == "abstract" else address)
        yield receiver, address


def test_systemd_is_told_in_its_own_words(manager: tuple[socket.socket, str]) -> None:
    receiver, address = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"})
    assert notifier.watchdog_sec == 3.0
    notifier.ready("fine")
    assert receiver.recv(1000).decode() == f"READY=1\nSTATUS=fine\nMAINPID={os.getpid()}"
    notifier.reloading()
    assert receiver.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    notifier.alive()
    assert receiver.recv(1000) == b"WATCHDOG=1"
    notifier.stopping()
    assert receiver.recv(1000) == b"STOPPING=1"


def test_without_systemd_nothing_happens(tmp_path: Path) -> None:
    Notifier.from_environment({}).ready("fine")
    Notifier(str(tmp_path / "gone")).ready("fine")
    assert Notifier.from_environment({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog_sec == 0


# -- git -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "tree" / "config.d"
    directory.mkdir(parents=True)
    (directory / "a.yaml").write_text("a")
    run_git(directory.parent, "init", "-q")
    commit(directory.parent, "first: with\ttabs")
    return directory


def run_git(tree: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=T. Ester", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *identity, *arguments], cwd=tree, check=True, capture_output=True, text=True).stdout


def commit(tree: Path, subject: str) -> str:
    run_git(tree, "add", ".")
    run_git(tree, "commit", "-q", "-m", subject)
    return run_git(tree, "rev-parse", "HEAD").strip()


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.yaml")}


def test_the_commit_is_named(tree: Path) -> None:
    head = run_git(tree, "rev-parse", "HEAD").strip()
    assert git.commit_of(tree, contents(tree)) == git.Commit(head, "T. Ester", "first: with\ttabs")


def test_files_that_are_not_the_commits_are_dirty(tree: Path) -> None:
    head = run_git(tree, "rev-parse", "HEAD").strip()
    dirty = f"{head}-dirty"
    for change in (
        lambda: (tree / "a.yaml").write_text("b"),
        lambda: (tree / "b.yaml").write_text("b"),
        lambda: (tree / "a.yaml").unlink(),
    ):
        change()
        found = git.commit_of(tree, contents(tree))
        assert found is not None
        assert found.id == dirty
        run_git(tree, "checkout", "-q", ".")
        (tree / "b.yaml").unlink(missing_ok=True)
    (tree / "notes.txt").write_text("not read, so not of interest")
    found = git.commit_of(tree, contents(tree))
    assert found is not None
    assert found.id == head


def test_outside_of_a_tree_or_without_a_commit_there_is_none(tmp_path: Path) -> None:
    assert git.commit_of(tmp_path, {}) is None
    run_git(tmp_path, "init", "-q")
    assert git.commit_of(tmp_path, {}) is None


def test_without_git_there_is_none(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert git.commit_of(tree, contents(tree)) is None


def test_nothing_that_the_tree_names_is_run_and_no_setting_is_touched(tree: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {ran}\ncat\n")
    hook.chmod(0o755)
    (tree / ".gitattributes").write_text("* filter=x diff=x\n")
    commit(tree.parent, "second")
    for key in ("core.fsmonitor", "filter.x.clean", "filter.x.process", "diff.x.textconv", "gpg.program", "core.pager"):
        run_git(tree, "config", key, str(hook))
    run_git(tree, "config", "log.showSignature", "true")
    (tree / "a.yaml").write_text("changed")
    before = (tree.parent / ".git" / "config").read_bytes()
    assert git.commit_of(tree, contents(tree)) is not None
    assert not ran.exists()
    assert (tree.parent / ".git" / "config").read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_a_tree_of_another_user_is_read_all_the_same(tree: Path) -> None:
    for path in (tree.parent, *tree.parent.rglob("*")):
        os.chown(path, 12345, 12345)
    assert git.commit_of(tree, contents(tree)) is not None


# -- the one-line configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("10.0.0.1:8080", {"ip": "10.0.0.1", "port": 8080}),
        ("10.0.0.1", {"ip": "10.0.0.1"}),
        ("[2001:db8::1]:80", {"ip": "2001:db8::1", "port": 80}),
        ("[2001:db8::1]", {"ip": "2001:db8::1"}),
        ("2001:db8::1", {"ip": "2001:db8::1"}),
    ],
)
def test_targets_are_parsed(text: str, target: dict[str, object]) -> None:
    assert oneline.parse_target(text) == target


@pytest.mark.parametrize(
    "text", ["", "host:80", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:x", "10.0.0.1:+1", "[::1", "[::1]80"]
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        oneline.parse_target(text)


def test_the_one_line_configuration_is_a_valid_file(tmp_path: Path) -> None:
    text = oneline.document(["eth0", "eth1"], 80, ["10.0.0.1:8080", "10.0.0.2"], "udp")
    (proxy,) = parse_sources({"x.json": text.encode()}).proxies
    assert proxy.listen.interfaces == ("eth0", "eth1")
    assert proxy.listen.ports == (80,)
    assert [str(target.endpoint) for target in proxy.default_target] == ["10.0.0.1:8080", "10.0.0.2"]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "old.yaml").write_text("x")
    oneline.write(tmp_path / "c", text)
    assert [path.name for path in (tmp_path / "c").iterdir()] == [f"{oneline.NAME}.json"]


# -- log -----------------------------------------------------------------------------------


def test_the_log_is_one_json_object_a_line_above_its_level() -> None:
    stream = StringIO()
    logs.set_up("json", "info", stream)
    try:
        log = structlog.get_logger("x")
        log.info("commit_applied", path=Path("/x"))
        log.debug("detail")
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            log.exception("look_failed")
    finally:
        structlog.reset_defaults()
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["event"], first["level"], first["path"]) == ("commit_applied", "info", "/x")
    assert "ZeroDivisionError" in second["exception"]


@pytest.mark.parametrize(
    ("more", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)]
)
def test_the_log_on_a_terminal(monkeypatch: pytest.MonkeyPatch, more: dict[str, str], coloured: bool) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in ({"TERM": "xterm"} | more).items():
        monkeypatch.setenv(name, value)
    stream = StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    logs.set_up("console", "info", stream)
    try:
        structlog.get_logger("x").info("commit_applied")
    finally:
        structlog.reset_defaults()
    assert ("\x1b[" in stream.getvalue()) == coloured
