"""`make lab` and `make lab-down`: the lab stands, and what it says to type in two shells works."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab import lab_namespaces, wait_for
from netlab.process import Process

ROOT = Path(__file__).resolve().parents[2]
NAME = f"rplab{os.getpid()}x0"


def lab(action: str) -> str:
    """What that prints."""
    command = [sys.executable, ROOT / "packaging" / "lab" / "lab.py", action]
    env = {**os.environ, "REVPROXY_LAB": NAME}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def shells() -> Iterator[list[str]]:
    """What is to be typed in each shell."""
    text = lab("up")
    yield [part.split("\n\n")[1] for part in text.split("\nIn a ")[1:]]
    lab("down")


def test_what_it_says_to_type_works(shells: list[str], tmp_path: Path) -> None:
    assert len(shells) == 2, shells
    first, second = shells
    log = tmp_path / "log"
    daemon = Process(["bash", "-ec", first], log)
    try:
        wait_for(lambda: "commit_applied" in daemon.output() or daemon.status is not None, "live", timeout_sec=60)
        done = subprocess.run(
            ["bash", "-exc", second],
            env={**os.environ, "EDITOR": "cat"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Synced" in done.stdout
        assert done.stdout.count("/hello from") == 2
        assert "apiVersion: revproxy/v1" in done.stdout, "the file to edit"
    finally:
        daemon.stop(timeout_sec=20)


def test_afterwards_nothing_is_left(shells: list[str]) -> None:
    assert shells
    assert NAME in lab("up"), "it stands already, and is told of again"
    assert "removed" in lab("down")
    assert lab("down") == "there was no lab\n"
    assert lab_namespaces(NAME) == []
    assert [each for each in (Path("/run"), Path("/sys/fs/bpf")) for _ in each.glob(f"{NAME}*")] == []


def test_make_runs_it() -> None:
    text = (ROOT / "Makefile").read_text()
    for target, action in (("lab", "up"), ("lab-down", "down")):
        rule = text.partition(f"\n{target}: ")[2].splitlines()
        assert rule[1].strip() == f"@$(PYTHON) packaging/lab/lab.py {action}"
