"""A pytest plugin for tests in a machine: one line of JSON for each test as soon as it ends, so that what a machine did
before it died is known.

``REVPROXY_VM_REPORT`` names the file. Each line: ``id``, ``outcome`` (passed, failed, skipped), ``seconds``, ``reason``
(of a skip, or the last line of a failure), ``properties``. ``REVPROXY_VM_DONE`` names a file with ids of tests, one a
line, that are left out.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

REPORT = os.environ.get("REVPROXY_VM_REPORT", "")
DONE = os.environ.get("REVPROXY_VM_DONE", "")
_seconds: dict[str, float] = {}
_bad: dict[str, tuple[str, str]] = {}


def _write(line: dict[str, Any]) -> None:
    if REPORT:
        with Path(REPORT).open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what another machine has done."""
    done = set(Path(DONE).read_text().splitlines()) if DONE else set()
    items[:] = [item for item in items if item.nodeid not in done]


def pytest_runtest_logstart(nodeid: str) -> None:
    """What runs when a machine dies is the last that started."""
    _write({"id": nodeid, "outcome": "started"})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Set-up, call and teardown come one by one; the worst of them counts."""
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration
    if report.failed:
        _bad[report.nodeid] = ("failed", _last_line(str(report.longreprtext)))
    elif report.skipped and report.nodeid not in _bad:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _bad[report.nodeid] = ("skipped", reason.removeprefix("Skipped: "))
    if report.when == "teardown":
        outcome, reason = _bad.pop(report.nodeid, ("passed", ""))
        seconds = round(_seconds.pop(report.nodeid), 1)
        properties = dict(report.user_properties)
        _write(
            {"id": report.nodeid, "outcome": outcome, "seconds": seconds, "reason": reason, "properties": properties}
        )


def _last_line(text: str) -> str:
    marked = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return (marked or text.strip().splitlines() or [""])[0][:300]
