"""What came of the tests in a machine: read from its report, kept in ``man/kernels.json`` for the manual."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
LIST: Final = HERE / "list.txt"
KEPT: Final = HERE.parents[1] / "man" / "kernels.json"


UNENDED: Final = "it did not end"
DIED: Final = "the machine died in it"
REFUSAL: Final = "too old: refused in words"


def features(too_old: bool = False, path: Path = LIST) -> dict[str, list[str]]:
    """Tests (as pytest's command line has them) by the feature they prove, in the list's order: those for a kernel that
    is too old, or the others."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in path.read_text().splitlines():
        text = line.partition("#")[0].strip()
        if heading := re.fullmatch(r"\[(.+)\]", text):
            name = heading[1]
            found[name] = []
        elif text:
            found[name].append(text)
    return {name: tests for name, tests in found.items() if (name == REFUSAL) == too_old}


def read_report(path: Path) -> dict[str, dict[str, Any]]:
    """The last that is known of each test by its id; one that started and did not end has failed."""
    found: dict[str, dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            found[entry["id"]] = entry
    for entry in found.values():
        if entry["outcome"] == "started":
            entry.update(outcome="failed", seconds=0.0, reason=UNENDED, properties={})
    return found


def summary(report: Mapping[str, Mapping[str, Any]], tests: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Counts and time by feature, what was skipped or failed and why, the verifier's effort, and above what size and
    effort the tests fail. A feature of which not every test came to its end is left out."""
    rows = {}
    for feature, selections in tests.items():
        entries = [report[each] for each in report if any(_belongs(each, selection) for selection in selections)]
        if not entries or any(entry["reason"] == UNENDED for entry in entries):
            continue
        rows[feature] = {
            outcome: sum(entry["outcome"] == outcome for entry in entries)
            for outcome in ("passed", "failed", "skipped")
        } | {"seconds": round(sum(entry["seconds"] for entry in entries))}
    effort, ceilings = {}, []
    for entry in report.values():
        for name, value in entry["properties"].items():
            if name.startswith("effort "):
                effort[name.removeprefix("effort ")] = [int(part) for part in value.split()]
            elif name == "ceilings":
                ceilings = [int(part) for part in value.split()]
    left = {each: entry["reason"] for each, entry in report.items() if entry["outcome"] != "passed"}
    return {"features": rows, "not passed": left, "effort": effort, "ceilings": ceilings}


def _belongs(test: str, selection: str) -> bool:
    return test == selection or test.startswith((f"{selection}::", f"{selection}["))


def keep(name: str, result: Mapping[str, Any], path: Path = KEPT, ran: Iterable[str] = ()) -> None:
    """Put a machine's result in the place of its last one; what that one says of other features of the very same
    kernel stays, but not of the tests that ``ran``."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    last = kept.get(name, {})
    merged = dict(result)
    if last.get("release") == result["release"]:
        merged["features"] = last["features"] | result["features"]
        merged["not passed"] = {test: why for test, why in last["not passed"].items() if test not in set(ran)} | result[
            "not passed"
        ]
        for each in ("effort", "ceilings"):
            merged[each] = result[each] or last.get(each, [])
    kept[name] = merged
    path.write_text(json.dumps(dict(sorted(kept.items(), key=lambda item: item[1]["order"])), indent=1) + "\n")
