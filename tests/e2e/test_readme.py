"""What README.md says to type works as written, but for the addresses of the servers and the places."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from netlab import Lab, wait_for
from tests.e2e.instance import PROGRAMS, Instance
from tests.readme import block

ROOT = Path(__file__).resolve().parents[2]


def in_the_lab(commands: str, lab: Lab, instance: Instance) -> str:
    """With the lab's servers for those of the README, and this instance's directory for /etc."""
    for number, backend in enumerate(lab.backends[:2], 11):
        commands = commands.replace(f"10.0.0.{number}", str(backend.ip4))
    return commands.replace("/etc/revproxy/config.d", str(instance.config_dir)).replace("make setup\n", "")


def shell(commands: str, lab: Lab, instance: Instance) -> str:
    """Every command on the proxy host, in this checkout; each has to succeed. What they print."""
    result = subprocess.run(
        lab.proxy.command("bash", "-e", "-c", commands),
        env=instance.env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, f"{commands}\n{result.stdout}{result.stderr}"
    return result.stdout + result.stderr


def servers(lab: Lab) -> set[str]:
    """Which backends answer on port 80."""
    return {lab.curl(f"http://{lab.proxy4}/").split()[0] for _ in range(20)}


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this environment's programs: the README says how to have them found."""
    kept = [each for each in os.environ["PATH"].split(":") if Path(each) != PROGRAMS]
    monkeypatch.setenv("PATH", ":".join(kept))


@pytest.mark.usefixtures("path")
def test_quick_start(lab: Lab, instance: Instance) -> None:
    printed = shell(in_the_lab(block("quick start: before"), lab, instance), lab, instance)
    assert "valid: 1 proxy in 1 file" in printed
    assert block("quick start: daemon") == "revproxyd\n"
    daemon = instance.start_daemon()
    one, two, _ = (backend.name for backend in lab.backends)
    assert servers(lab) == {one, two}

    # The commands up to `diff` first, as a person waits a moment before the next one.
    after = in_the_lab(block("quick start: after"), lab, instance)
    until_edit, diff, rest = after.partition("revproxyctl diff\n")
    piped, followed = block("events").splitlines()
    program, *words = shlex.split(followed, comments=True)
    events = lab.spawn(lab.proxy, PROGRAMS / program, *words, env=instance.env)
    printed = shell(until_edit, lab, instance)
    assert "Synced" in printed
    assert f"{lab.backends[1].ip4}:8080" in printed
    wait_for(lambda: servers(lab) == {one}, "the edit is live")
    instance.wait_synced()
    export = after.splitlines()[0] + "\n"
    assert shell(export + diff, lab, instance) == ""
    events.wait_output("config_applied")
    events.send(signal.SIGINT)
    assert events.wait(timeout_sec=20) == 130
    assert shell(f"{export}{piped}\n", lab, instance) == ""
    assert "detached from eth0" in shell(export + rest, lab, instance)
    assert daemon.wait(timeout_sec=20) == 0
    lab.assert_clean(instance.bpffs_dir)


@pytest.mark.usefixtures("path")
def test_editing(lab: Lab, instance: Instance) -> None:
    instance.config_dir.mkdir(exist_ok=True)
    export = block("quick start: after").splitlines()[0] + "\n"
    printed = shell(export + in_the_lab(block("editing"), lab, instance), lab, instance)
    assert printed.count("applied as revision") == 6
    assert "192.0.2.0/24  deny" in printed
    assert list(instance.config_dir.iterdir()) == []


def test_first_try_without_a_file(lab: Lab, instance: Instance) -> None:
    program, *words = in_the_lab(block("start"), lab, instance).removeprefix(".venv/bin/").split()
    assert program == "revproxyd"
    env = {name: value for name, value in instance.env.items() if name != "REVPROXY_CONFIG_DIR"}
    daemon = lab.spawn(lab.proxy, PROGRAMS / program, *words, env=env)
    daemon.wait_output("commit_applied", timeout_sec=60)
    assert servers(lab) == {backend.name for backend in lab.backends[:2]}
    daemon.send(signal.SIGINT)
    assert daemon.wait(timeout_sec=20) == 0
    lab.assert_clean(instance.bpffs_dir)
