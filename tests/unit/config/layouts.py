"""Hypothesis strategy: a document written as people write YAML and JSON, in all the styles that there are."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from reconciler.config import render

COMMENTS = ("", "", "", " # why: {not, yaml", "  # - name: old", " # 'x")
OWN_LINES = ("", "", "", "# a note: of [mine", "  # - off: true", "      #", " ")


@st.composite
def texts(draw: st.DrawFn, value: Any) -> tuple[str, str]:
    """``value`` as a file: its suffix and its text."""
    if draw(st.integers(0, 4)) == 0:
        indent = draw(st.sampled_from([None, 1, 2, 4, "\t"]))
        separators = (",", ":") if indent is None and draw(st.booleans()) else None
        return ".json", json.dumps(value, indent=indent, separators=separators) + draw(st.sampled_from(["", "\n"]))
    lines = _Writer(draw).block(value, 0)
    text = "\n".join(lines) + draw(st.sampled_from(["", "\n", "\n\n", "\n# the end\n", "\n...\n"]))
    text = draw(st.sampled_from(["", "# first\n", "---\n", "%YAML 1.2\n---\n", "\ufeff"])) + text
    return ".yaml", text.replace("\n", draw(st.sampled_from(["\n", "\n", "\r\n"])))


class _Writer:
    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def one_of(self, choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def notes(self) -> list[str]:
        """Lines between others."""
        line = self.one_of(OWN_LINES)
        return [line] if line else []

    def comment(self) -> str:
        return str(self.one_of(COMMENTS))

    def scalar(self, value: Any) -> str:
        if isinstance(value, str):
            return str(self.one_of([render.scalar(value), json.dumps(value), f"'{value}'"]))
        return json.dumps(value)

    def flow(self, value: Any) -> str:
        pad = self.one_of(["", "", " "])
        comma = self.one_of(["", "", ","])
        if isinstance(value, dict) and value:
            inner = ", ".join(f"{key}: {self.flow(each)}" for key, each in value.items())
            return f"{{{pad}{inner}{comma}{pad}}}"
        if isinstance(value, list) and value:
            return f"[{pad}{', '.join(self.flow(each) for each in value)}{comma}{pad}]"
        return self.scalar(value) if not isinstance(value, (dict, list)) else json.dumps(value)

    def flow_lines(self, value: Any, indent: int) -> list[str]:
        """A list over several lines, between brackets; the first line goes behind a key or a dash."""
        end = self.one_of(["", ","])
        pad = " " * (indent + 2)
        items = [f"{pad}{self.flow(each)}" for each in value]
        lines = [f"{line},{self.comment()}" for line in items[:-1]]
        if self.draw(st.booleans()):
            return ["[" + self.comment(), *lines, f"{items[-1]}]"]
        return ["[" + self.comment(), *lines, *self.notes(), f"{items[-1]}{end}{self.comment()}", " " * indent + " ]"]

    def value(self, value: Any, indent: int, *, deeper: int) -> tuple[str, list[str]]:
        """What goes behind a key, and the lines below it."""
        if not isinstance(value, (dict, list)) or not value or self.one_of([0, 0, 1]):
            return " " + self.flow(value) + self.comment(), []
        if isinstance(value, list) and self.one_of([0, 0, 1]):
            first, *rest = self.flow_lines(value, indent + 1)
            return " " + first, rest
        return self.comment(), [*self.notes(), *self.block(value, indent + deeper)]

    def block(self, value: Any, indent: int) -> list[str]:
        pad = " " * indent
        lines: list[str] = []
        if isinstance(value, dict):
            for key, each in value.items():
                deeper = self.one_of([0, 2, 2, 4]) if isinstance(each, list) else self.one_of([2, 2, 3])
                text, below = self.value(each, indent, deeper=deeper)
                lines += [f"{pad}{key}:{text}", *below, *self.notes()]
            return lines
        for each in value:
            if isinstance(each, dict) and self.one_of([0, 1, 1]):
                gap = self.one_of([1, 1, 3])
                first, *rest = self.block(each, indent + 1 + gap)
                if self.one_of([0, 0, 0, 0, 1]):
                    lines += [f"{pad}-{self.comment()}", first, *rest]
                else:
                    lines += [f"{pad}-{first[indent + 1 :]}", *rest]
            else:
                lines.append(f"{pad}- {self.flow(each)}{self.comment()}")
            lines += self.notes()
        return lines
