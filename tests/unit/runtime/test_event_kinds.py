"""Every kind of event that is published is one that can be asked for."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import reconciler
from reconciler import answers
from reconciler.api.streams import LOST
from reconciler.daemon import connlog
from reconciler.errors import UsageError
from reconciler.selection import event_kinds

PACKAGE = Path(reconciler.__file__).parent


def published() -> set[str]:
    """The first arguments of all calls of ``publish`` and of the helper ``_tell``, as far as they are texts."""
    found = {LOST, connlog.OPENED, connlog.CLOSED}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                first = node.args[0]
                if node.func.attr in ("publish", "_tell") and isinstance(first, ast.Constant):
                    found.add(str(first.value))
    return found


def test_the_kinds_are_those_that_are_published() -> None:
    assert published() == set(answers.KINDS)


def test_others_are_refused_by_name() -> None:
    assert event_kinds(["config_applied"]) == {"config_applied"}
    assert event_kinds([]) == set()
    with pytest.raises(UsageError, match=r"'BOGUS' is none of connection_opened, .*events_lost"):
        event_kinds(["config_applied", "BOGUS"])
