"""Changes of a text at places of its tree: what is not meant stays byte for byte, comments and layout included.

Each method of :class:`Source` gives the splices of one change. They know YAML's block and flow styles and JSON, and
write what is new as what stands beside it is written. A style they don't know raises :class:`UneditableError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from reconciler.config import render
from reconciler.config.spans import ALIAS, LIST, MAP, Node, tree

_BLANK: Final = " \t"


class UneditableError(ValueError):
    """The place is written in a way that can't be edited without touching something else; the text says which."""


@dataclass(frozen=True, slots=True)
class Splice:
    """``text`` instead of what stands from ``start`` to before ``end``."""

    start: int
    end: int
    text: str = ""


def spliced(text: str, splices: Iterable[Splice]) -> str:
    """The text with all the splices done; those at one place in the order given."""
    parts, at = [], 0
    for each in sorted(splices, key=lambda splice: splice.start):
        parts += [text[at : each.start], each.text]
        at = each.end
    return "".join((*parts, text[at:]))


class Source:
    """One file's text, with its tree in ``root`` (None: it says nothing). Raises ValueError if it can't be read."""

    def __init__(self, text: str, *, is_json: bool) -> None:
        self.text, self.is_json = text, is_json
        self.root = tree(text, is_json=is_json)
        first = text.find("\n")
        self.newline = "\r\n" if first > 0 and text[first - 1] == "\r" else "\n"

    # -- adding ----------------------------------------------------------------------------------------------

    def append(self, found: Node, value: Any) -> list[Splice]:
        """``value`` as the last item of a list."""
        if found.kind != LIST:
            raise UneditableError("it is not written as a list here")
        if found.flow:
            return self._insert_in_flow(found, lambda unit: self._flow_text(value, unit))
        last = found.items[-1]
        column = self._column(self._dash(found, len(found.entries) - 1))
        spread = None if last.kind != MAP else not last.flow
        return [self._lines_after(last.end, column, render.item(value, spread=spread))]

    def insert_key(self, found: Node, key: str, value: Any) -> list[Splice]:
        """``key`` with ``value`` as the last of a mapping."""
        if found.kind != MAP:
            raise UneditableError("it is not written as a mapping here")
        if found.flow:
            name = f'"{key}"' if self.is_json else key
            return self._insert_in_flow(found, lambda unit: f"{name}: {self._flow_text(value, unit)}")
        first, last = found.entries[0][0], found.items[-1]
        assert first is not None
        return [self._lines_after(last.end, self._column(first.start), render.block({key: value}))]

    def replace(self, found: Node, value: Any) -> list[Splice]:
        """Another scalar in the place of one."""
        if found.kind in (MAP, LIST, ALIAS) or found.marked:
            raise UneditableError("it is not written as a plain value here")
        return [Splice(found.start, found.end, self._flow_text(value, ""))]

    def listed(self, key: Node, found: Node, value: Any) -> list[Splice]:
        """A mapping made the first item of a list whose second is ``value``."""
        if found.kind != MAP or (found.marked and not found.flow):
            raise UneditableError("it is not written as a mapping here")
        inner = self.text[found.start : found.end]
        if not found.flow:
            column = self._column(found.start)
            spread = [Splice(found.start, found.start, "- "), *self._deeper(found.start, found.end, "  ")]
            return [*spread, self._lines_after(found.end, column, render.item(value, spread=True))]
        if "\n" not in inner:
            return [
                Splice(found.start, found.start, "["),
                Splice(found.end, found.end, f", {self._flow_text(value, '')}]"),
            ]
        outer = self._indent(key.start)
        unit = self._indent(found.entries[-1][1].start).removeprefix(outer) or "  "
        step = self.newline + outer + unit
        new = self._flow_text(value, unit).replace("\n", step)
        return [
            Splice(found.start, found.start, "[" + step),
            *self._deeper(found.start, found.end, unit),
            Splice(found.end, found.end, f",{step}{new}{self.newline}{outer}]"),
        ]

    def _deeper(self, start: int, end: int, by: str) -> list[Splice]:
        """Every line but the first, down to the one of ``end``, indented further."""
        found, at = [], self.text.find("\n", start, end)
        while at >= 0:
            if self.text[at + 1 : at + 2] not in ("\r", "\n"):
                found.append(Splice(at + 1, at + 1, by))
            at = self.text.find("\n", at + 1, end)
        return found

    def _lines_after(self, at: int, column: int, lines: list[str]) -> Splice:
        end = self._line_end(at)
        return Splice(end, end, "".join(f"{self.newline}{' ' * column}{line}" for line in lines))

    def _flow_text(self, value: Any, unit: str) -> str:
        return render.in_json(value, unit) if self.is_json else render.flow(value)

    def _insert_in_flow(self, found: Node, make: Callable[[str], str]) -> list[Splice]:
        start, close = self._open(found) + 1, found.end - 1
        if not found.entries:
            return [Splice(start, close if not self.text[start:close].strip() else start, make(""))]
        key, last = found.entries[-1]
        begin = (key or last).start
        comma = self._comma(last.end, close)
        indent = self._indent(begin)
        if self.text[self._line_start(begin) : begin].strip():  # beside others
            return [Splice(last.end, last.end, ", " + make(""))]
        pretty = "\n" in self.text[last.start : last.end]
        unit = indent.removeprefix(self._indent(found.start)) or "  "
        new = make(unit if pretty else "").replace("\n", self.newline + indent)
        end = self._line_end(last.end if comma is None else comma)
        if end >= close:
            return [Splice(last.end, last.end, f",{self.newline}{indent}{new}")]
        if comma is not None:
            return [Splice(end, end, f"{self.newline}{indent}{new},")]
        return [Splice(last.end, last.end, ","), Splice(end, end, f"{self.newline}{indent}{new}")]

    # -- removing --------------------------------------------------------------------------------------------

    def remove(self, key: Node, found: Node, index: int) -> list[Splice]:
        """A list without one of its items. ``key``: the list's own; without items the list is written ``[]``."""
        if found.kind != LIST:
            raise UneditableError("it is not written as a list here")
        if found.flow:
            return self._remove_from_flow(found, index)
        lines = self._remove_lines(self._dash(found, index), found.items[index].end)
        if len(found.entries) > 1:
            return [lines]
        colon = self.text.index(":", key.end) + 1
        if self.text[colon : found.start].strip(" \t\r\n").startswith(("&", "!")) or found.marked:
            raise UneditableError("the list has an anchor or a tag")
        return [Splice(colon, colon, " []"), lines]

    def remove_key(self, found: Node, index: int) -> list[Splice]:
        """A mapping without one of its keys. Comments between the key's line and those of a list below it stay."""
        if found.flow:
            return self._remove_from_flow(found, index)
        key, value = found.entries[index]
        assert key is not None
        if len(found.entries) == 1:
            raise UneditableError("the mapping would be empty")
        parts = [(key.start, value.end)]
        if value.kind == LIST and not value.flow and len(value.entries) == 1:
            parts = [(key.start, key.end), (self._dash(value, 0), value.end)]
        before = self.text[self._line_start(key.start) : key.start]
        if index == 0 and "-" in before and not before.strip("- "):
            return self._remove_behind_dash(parts, found.entries[1][0])
        return [self._remove_lines(*each) for each in parts]

    def _remove_behind_dash(self, parts: list[tuple[int, int]], follows: Node | None) -> list[Splice]:
        """The first key of a list's item, which stands on the dash's line: what comes next does instead, a comment or
        the key that ``follows``."""
        assert follows is not None
        (start, end), *rest = parts
        stop = self._after_blank(self._line_end(end), follows.start)
        if rest and self.text[stop] != "#":  # nothing stands between the key and its list
            stop, rest = self._after_blank(self._line_end(rest[0][1]), follows.start), []
        return [Splice(start, stop), *(self._remove_lines(*each) for each in rest)]

    def _remove_lines(self, start: int, end: int) -> Splice:
        """The lines from that of ``start`` to that of ``end``, with the line break before them."""
        begin, stop = self._line_start(start), self._line_end(end)
        if self.text[begin:start].strip():
            raise UneditableError("it shares its first line with something else")
        if begin:
            begin -= 2 if self.text[begin - 2 : begin] == "\r\n" else 1
        elif stop < len(self.text):
            stop += len(self.newline)
        return Splice(begin, stop)

    def _remove_from_flow(self, found: Node, index: int) -> list[Splice]:
        spans = [((key or value).start, value.end) for key, value in found.entries]
        open_, close = self._open(found), found.end - 1
        (start, end), last = spans[index], index == len(spans) - 1
        follows = close if last else spans[index + 1][0]
        comma = self._comma(end, follows)
        stop = end if comma is None else comma + 1
        own_lines = not self.text[self._line_start(start) : start].strip() and self._line_end(stop) < follows
        if len(spans) == 1 and not (own_lines and "#" in self.text[open_ + 1 : start] + self.text[stop:close]):
            return [Splice(open_ + 1, close)]
        before = self._comma(spans[index - 1][1], start) if index else None
        if own_lines:
            lines = self._remove_lines(start, stop)
            if last and comma is None and before is not None:
                return [Splice(before, before + 1), lines]
            return [lines]
        gap = self.text[spans[index - 1][1] : start] if index else ""
        if index and ("\n" not in gap or (last and "#" not in gap)):
            return [Splice(spans[index - 1][1], end)]
        if not last:
            return [Splice(start, follows)]
        return [*([] if before is None else [Splice(before, before + 1)]), Splice(start, stop)]

    # -- places ----------------------------------------------------------------------------------------------

    def _line_start(self, at: int) -> int:
        return self.text.rfind("\n", 0, at) + 1

    def _line_end(self, at: int) -> int:
        """Where the line's characters end, before its line break."""
        found = self.text.find("\n", at)
        if found < 0:
            return len(self.text)
        return found - 1 if found > at and self.text[found - 1] == "\r" else found

    def _column(self, at: int) -> int:
        return at - self._line_start(at)

    def _indent(self, at: int) -> str:
        """The white space at the beginning of the line."""
        line = self.text[self._line_start(at) : at]
        return line[: len(line) - len(line.lstrip(_BLANK))]

    def _open(self, found: Node) -> int:
        """Where the bracket or brace is: an anchor or a tag may stand before it."""
        return self.text.index("[" if found.kind == LIST else "{", found.start)

    def _skip(self, at: int, end: int) -> int:
        """The next character from ``at`` on that is neither white space nor in a comment; ``end`` without one."""
        while at < end:
            if self.text[at] == "#" and not self.is_json:
                at = self._line_end(at)
            elif self.text[at] not in " \t\r\n\ufeff":
                return at
            else:
                at += 1
        return end

    def _after_blank(self, at: int, end: int) -> int:
        """The next character from ``at`` on that is no white space; ``end`` without one."""
        return at + len(self.text[at:end]) - len(self.text[at:end].lstrip())

    def _comma(self, at: int, end: int) -> int | None:
        found = self._skip(at, end)
        return found if found < end and self.text[found] == "," else None

    def _dash(self, found: Node, index: int) -> int:
        """Where the dash of a block list's item is."""
        item = found.items[index]
        at = self._skip(found.items[index - 1].end if index else found.start, item.start)
        if index == 0 and found.marked:
            while at < item.start and self.text[at] in "&!":
                while self.text[at] not in " \t\r\n":
                    at += 1
                at = self._skip(at, item.start)
        if at >= item.start or self.text[at] != "-":
            raise UneditableError("its dash is not to be found")
        return at
