"""The parts of README.md that are to be typed or saved (fenced blocks below a comment with their name), and tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

TEXT = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def block(name: str) -> str:
    """What stands in the block of that name."""
    found = re.search(rf"<!-- {re.escape(name)} -->\n```(?:sh|yaml|ini)\n(.*?)```", TEXT, re.DOTALL)
    assert found, name
    return found[1]


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\w)\|(?!\w)|\|$", line)[1:-1]] for line in lines[2:]]


@dataclass(frozen=True)
class Command:
    """A command of the table: its words, the options it is told to have, and the exit statuses."""

    name: str
    options: frozenset[str]
    statuses: frozenset[int]


def commands() -> list[Command]:
    """Every command of the table, in its order."""
    found = []
    for signatures, _, statuses in rows("Commands"):
        for text in signatures.split(" · "):
            name = re.split(r" (?:[\[A-Z]|--)", text.strip("`"))[0]
            numbers = frozenset(int(number) for number in re.findall(r"\b\d+\b", statuses))
            found.append(Command(name, frozenset(re.findall(r"--[a-z-]+", text)), numbers))
    return found
