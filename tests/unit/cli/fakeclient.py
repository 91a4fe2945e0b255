"""A client that answers as it is told, commands run against it, and answers to print."""

from __future__ import annotations

import json
from typing import Any

from click.testing import Result

from reconciler import answers
from reconciler.cli import app
from reconciler.errors import (
    Problem,
)
from tests.clirunner import CliRunner

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


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)
