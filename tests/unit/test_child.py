"""Processes that run a module of this package: with what the parent finds, and nothing from where that one stands."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from reconciler import child, waiter
from reconciler.errors import CompileError
from reconciler.kernel import compiler
from reconciler.places import Places
from reconciler.runtime import list_child

Started = tuple[list[str], Mapping[str, str]]


class _Caught(Exception):
    """Instead of a process."""


def caught(monkeypatch: pytest.MonkeyPatch, what: Callable[[], object]) -> Started:
    """What this would start, and with which environment."""
    found: list[Started] = []

    def start(command: list[str], *, env: Mapping[str, str], **_more: Any) -> None:
        found.append((command, env))
        raise _Caught

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", start)
        patched.setattr(subprocess, "Popen", start)
        with pytest.raises(_Caught):
            what()
    return found[0]


@pytest.mark.parametrize("what", ["compiler", "lists", "waiter"])
def test_what_stands_in_the_working_directory_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/else/where")
    if what == "compiler":
        command, environment = caught(monkeypatch, lambda: compiler._compile_in_child(tmp_path, (), []))
    elif what == "waiter":
        command, environment = caught(monkeypatch, lambda: waiter.start(Places(*4 * [tmp_path])))
    else:
        command, environment = list_child.command(tmp_path, {}), child.environment()
    (tmp_path / "json.py").write_text("import os; os._exit(42)")
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode != 42
    assert environment["PYTHONPATH"] == os.pathsep.join((str(Path(__file__).parents[2]), "/else/where"))


def test_a_compiler_that_was_ended_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For lack of memory, say: nothing is wrong with what it was to compile."""
    monkeypatch.setattr(child, "command", lambda *_: ["sh", "-c", "kill -KILL $$"])
    with pytest.raises(CompileError, match="was ended by SIGKILL") as raised:
        compiler._compile_in_child(tmp_path, (), [])
    assert raised.value.transient
    monkeypatch.setattr(child, "command", lambda *_: ["sh", "-c", "echo 'line 3' >&2; exit 1"])
    with pytest.raises(CompileError, match=r"does not compile:\nline 3") as raised:
        compiler._compile_in_child(tmp_path, (), [])
    assert not raised.value.transient
