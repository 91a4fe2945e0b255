"""The lock file fits pyproject.toml and says nothing of the machine it was written on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "packaging/requirements.lock").read_text()
PINNED = {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+) \\$", LOCK, re.M)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("line", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])
def test_what_the_project_asks_for_is_pinned(line: str) -> None:
    wanted = Requirement(line)
    assert PINNED.get(canonicalize_name(wanted.name), "0") in wanted.specifier, "run make lock"


def test_every_line_is_a_pin_a_hash_or_a_comment() -> None:
    allowed = re.compile(r"#.*|[a-z0-9.-]+==[\w.]+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?|    #.*|")
    assert [line for line in LOCK.splitlines() if not allowed.fullmatch(line)] == []


def test_no_address_of_a_machine_is_in_it() -> None:
    assert re.findall(r"\w+://\S+|find-links|(?<!\w)/\S+", LOCK) == []
