"""Bytes of one file -> a tree of plain values in which everything knows its line and column.

YAML and JSON give the same tree: :class:`Mapping`, :class:`Sequence`, str, int, float, bool, None. What aliases and
nesting can blow up is bounded here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from reconciler.config import notation
from reconciler.config.messages import show
from reconciler.config.notation import ALIAS, END, LIST, MAP, MERGE, UNKNOWN_TAG, Event, SyntaxProblem, line_column
from reconciler.errors import Problem

_TELL: Final = 20_000  # events
MAX_DEPTH: Final = 32
"""How deep lists and mappings may nest; the format itself needs eight."""
MAX_VALUES: Final = 2_000_000
"""How many values a file may hold, keys included and lists and mappings counted twice."""
MAX_ALIAS_VALUES: Final = 100_000
"""How many values aliases may add to what is written out."""


class Mapping(dict[str, Any]):
    """A mapping. ``at``: its position; ``marks``: positions of key and value by turns, in order."""

    __slots__ = ("at", "marks")

    def __init__(self, at: int) -> None:
        self.at = at
        self.marks: list[int] = []

    def key_at(self, key: str) -> int:
        """The position of the key."""
        return self.marks[2 * list(self).index(key)]

    def value_at(self, key: str) -> int:
        """The position of the key's value."""
        return self.marks[2 * list(self).index(key) + 1]


class Sequence(list[Any]):
    """A list. ``at``: its position; ``marks``: its items' positions."""

    __slots__ = ("at", "marks")

    def __init__(self, at: int) -> None:
        self.at = at
        self.marks: list[int] = []


class Document:
    """What :func:`parse` found. ``root`` is None if the file says nothing or can't be read at all."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.root: Any = None
        self.root_at = 0
        self.problems: list[Problem] = []

    def problem(self, at: int, message: str, path: str = "") -> None:
        """Note that something is wrong at a position."""
        line, column = line_column(at)
        self.problems.append(Problem(self.file, line, column, path, message))


def parse(file: str, content: bytes, lines_before: int = 0, told: Callable[[float], None] | None = None) -> Document:
    """Read one file. A name ending in .json makes it JSON, any other YAML. Never raises: what is wrong is in
    ``problems``; the tree holds what could be read all the same. ``lines_before``: how many lines stand before
    ``content`` in the file. ``told``: now and then, of the part of its lines that is read."""
    try:
        text = notation.decode(content)
        if file.endswith(".json"):
            return _built(file, notation.json_events(text))
        try:
            events = notation.moved(notation.yaml_events(text), lines_before)
            return _built(file, _watched(events, text.count("\n") + 1, told) if told else events)
        except notation.FastParserProblem:
            return _built(file, notation.moved(notation.yaml_events(text, fast=False), lines_before))
    except SyntaxProblem as problem:
        document = Document(file)
        document.problem(problem.at, problem.message)
        return document


def _watched(events: Iterator[Event], lines: int, told: Callable[[float], None]) -> Iterator[Event]:
    for count, event in enumerate(events):
        if count % _TELL == 0:
            told(line_column(event[1])[0] / lines)
        yield event


def _built(file: str, events: Iterator[Event]) -> Document:
    document = Document(file)
    _Builder(document).build(events)
    return document


# -- the tree -------------------------------------------------------------------------------------------------

_NO_KEY: Final = object()  # a mapping waits for a key
_DROP: Final = object()  # the value that follows belongs to a key that was refused
_MERGE_KEY: Final = object()


@dataclass(slots=True)
class _Frame:
    """A container that is being filled. ``height``: how deep the values in it nest so far."""

    container: Mapping | Sequence
    key: Any
    key_at: int
    anchor: str | None
    first: int  # number of its first event
    alias_values: int = 0  # what aliases before it stood for
    height: int = 1
    merges: list[tuple[int, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Anchor:
    value: Any
    at: int
    size: int  # how many values it stands for
    height: int


class _Builder:
    """Builds the tree of one document from its events."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.anchors: dict[str, _Anchor | None] = {}  # None: its container is still open
        self.alias_values = 0
        self.stack: list[_Frame] = []

    def build(self, events: Iterator[Event]) -> None:
        """Consume all events; leaves the tree in ``document.root``. Raises :class:`SyntaxProblem`."""
        stack = self.stack
        frame: _Frame | None = None
        for count, (kind, at, value, anchor) in enumerate(events):
            if count > MAX_VALUES:
                raise SyntaxProblem(at, f"more than {MAX_VALUES} values in one file")
            if kind == END:
                frame = self._close(count)
                continue
            if kind == UNKNOWN_TAG:
                self.document.problem(at, f"the tag {value!r} has no meaning here")
                continue
            if kind == ALIAS:
                value = self._alias(at, value)  # an alias is its value from here on
            elif kind in (MAP, LIST):
                value = Mapping(at) if kind == MAP else Sequence(at)
            elif anchor is not None:
                self.anchors[anchor] = _Anchor(value, at, 1, 0)
            # -- put it where it belongs
            if frame is None:
                self.document.root, self.document.root_at = value, at
            elif type(frame.container) is Sequence:
                frame.container.append(value)
                frame.container.marks.append(at)
            elif frame.key is _NO_KEY:
                self._key(frame, kind, at, value)
            else:
                self._entry(frame, at, value)
            # -- and go into it
            if kind in (MAP, LIST):
                if len(stack) >= MAX_DEPTH:
                    raise SyntaxProblem(at, f"nested deeper than {MAX_DEPTH} levels")
                if anchor is not None:
                    self.anchors[anchor] = None
                frame = _Frame(value, _NO_KEY, at, anchor, count, self.alias_values)
                stack.append(frame)

    def _key(self, frame: _Frame, kind: int, at: int, value: Any) -> None:
        frame.key_at = at
        if kind == MERGE:
            frame.key = _MERGE_KEY
        elif type(value) is not str:
            frame.key = _DROP
            self.document.problem(at, f"a key must be a string, not {show(value)}")
        elif value in frame.container:
            frame.key = _DROP
            assert isinstance(frame.container, Mapping)
            line, _ = line_column(frame.container.key_at(value))
            self.document.problem(at, f"the key {show(value)} stands twice in this mapping: first in line {line}")
        else:
            frame.key = value

    def _entry(self, frame: _Frame, at: int, value: Any) -> None:
        mapping, key = frame.container, frame.key
        frame.key = _NO_KEY
        if key is _MERGE_KEY:
            frame.merges.append((at, value))
        elif key is not _DROP:
            assert isinstance(mapping, Mapping)
            mapping[key] = value
            mapping.marks.append(frame.key_at)
            mapping.marks.append(at)

    def _alias(self, at: int, name: str) -> Any:
        if name not in self.anchors:
            raise SyntaxProblem(at, f"the alias {show('*' + name)} has no anchor before it")
        anchor = self.anchors[name]
        if anchor is None:
            raise SyntaxProblem(at, f"the alias {show('*' + name)} stands within what it stands for")
        self.alias_values += anchor.size
        if self.alias_values > MAX_ALIAS_VALUES:
            raise SyntaxProblem(at, f"aliases stand for more than {MAX_ALIAS_VALUES} values")
        if len(self.stack) + anchor.height > MAX_DEPTH:
            raise SyntaxProblem(at, f"nested deeper than {MAX_DEPTH} levels")
        if self.stack:
            self.stack[-1].height = max(self.stack[-1].height, anchor.height + 1)
        return anchor.value

    def _close(self, count: int) -> _Frame | None:
        frame = self.stack.pop()
        for at, merged in frame.merges:
            self._merge(frame.container, at, merged)
        if frame.anchor is not None:
            # Every alias within is counted with all it stands for, so that a chain of aliases can't hide its size.
            size = count - frame.first + self.alias_values - frame.alias_values
            self.anchors[frame.anchor] = _Anchor(frame.container, frame.container.at, size, frame.height)
        if not self.stack:
            return None
        parent = self.stack[-1]
        parent.height = max(parent.height, frame.height + 1)
        return parent

    def _merge(self, mapping: Any, at: int, merged: Any) -> None:
        """YAML's merge key: the keys of other mappings, where the mapping has none of that name itself."""
        for other in merged if type(merged) is Sequence else (merged,):
            if type(other) is not Mapping:
                self.document.problem(at, f"'<<' takes a mapping or a list of mappings, not {show(other)}")
                continue
            for index, (key, value) in enumerate(other.items()):
                if key not in mapping:
                    mapping[key] = value
                    mapping.marks += other.marks[2 * index : 2 * index + 2]
