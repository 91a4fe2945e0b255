"""Who imports whom in the package: no more than the table in reconciler/README.md allows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "reconciler"
ROWS = dict(re.findall(r"^\| `(\w+)/` \|[^|]*\| (.*) \|$", (PACKAGE / "README.md").read_text(), re.MULTILINE))


def imported(path: Path) -> Iterator[str]:
    """Parts of the package that a module imports, but for types."""
    tree = ast.parse(path.read_text())
    guards = [each for each in ast.walk(tree) if isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING"]
    for_types = {id(inner) for guard in guards for inner in ast.walk(guard)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in for_types and node.module:
            package, *names = node.module.split(".")
            if package == PACKAGE.name:
                yield from names[:1] or (alias.name for alias in node.names)


@pytest.mark.parametrize("folder", ROWS)
def test_a_folder_imports_what_the_table_allows(folder: str) -> None:
    found = {name for path in (PACKAGE / folder).rglob("*.py") for name in imported(path)}
    assert found & {*ROWS, "answers", "engine", "client"} - {folder} <= set(re.findall(r"`(\w+)`", ROWS[folder]))


def test_the_table_has_every_folder() -> None:
    assert {*ROWS, "answers"} == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
