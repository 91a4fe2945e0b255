"""A file's text as a tree in which every value knows where it begins and ends: what edits in place are made from.

:mod:`reconciler.config.document` says what a file means and where things begin; here is also where they end, and
whether an alias or an anchor stands there. YAML and JSON give the same tree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

SCALAR, MAP, LIST, ALIAS = "scalar", "map", "list", "alias"


@dataclass(slots=True)
class Node:
    """One value. ``start`` and ``end`` are indexes into the text; ``start`` is where an anchor or a tag stands, if it
    has one (``marked``). ``flow``: written with braces or brackets. ``entries``: key and value of a mapping's, None and
    item of a list's. ``value`` is a scalar's text as YAML's escapes leave it."""

    kind: str
    start: int
    end: int
    flow: bool = False
    marked: bool = False
    value: str = ""
    entries: list[tuple[Node | None, Node]] = field(default_factory=list)

    @property
    def items(self) -> list[Node]:
        """A list's items, or a mapping's values."""
        return [value for _, value in self.entries]

    def index(self, key: str) -> int | None:
        """Which of a mapping's entries has the key; None: none of those written there (it may be merged in)."""
        keys = ((number, each) for number, (each, _) in enumerate(self.entries))
        return next((n for n, each in keys if each is not None and each.kind == SCALAR and each.value == key), None)

    def get(self, key: str) -> Node | None:
        """The value of a mapping's key."""
        number = self.index(key) if self.kind == MAP else None
        return None if number is None else self.entries[number][1]


def tree(text: str, *, is_json: bool) -> Node | None:
    """The tree of a text; None if it says nothing. Raises :class:`ValueError` if it can't be read."""
    return _build(_json_events(text) if is_json else _yaml_events(text), text)


_OPEN, _CLOSE, _VALUE = range(3)
_Event = tuple[int, Node]


def _build(events: Iterator[_Event], text: str) -> Node | None:
    root: Node | None = None
    stack: list[Node] = []
    keys: list[Node | None] = []  # of each open mapping: the key that waits for its value
    for kind, node in events:
        if kind == _CLOSE:
            done = stack.pop()
            keys.pop()
            done.end = node.end if done.flow else _last_end(done)
            continue
        if not stack:
            root = node
        elif stack[-1].kind == LIST:
            stack[-1].entries.append((None, node))
        elif keys[-1] is None:
            keys[-1] = node
        else:
            if node.kind == SCALAR and node.start == node.end:  # nothing written: it ends where its key does
                node.start = node.end = text.index(":", keys[-1].end) + 1
            stack[-1].entries.append((keys[-1], node))
            keys[-1] = None
        if kind == _OPEN:
            stack.append(node)
            keys.append(None)
    return root


def _last_end(block: Node) -> int:
    """Where a block ends: the parsers say where what follows it begins."""
    return max((value.end for value in block.items), default=block.end)


def _yaml_events(text: str) -> Iterator[_Event]:
    for fast in (True, False):
        try:
            found = list(_parsed(text, fast))
        except (YAMLError, RecursionError) as error:
            if not fast:
                raise ValueError(str(error)) from None
        else:
            yield from found
            return


_KINDS: Final = (
    ScalarEvent,
    AliasEvent,
    MappingStartEvent,
    SequenceStartEvent,
    MappingEndEvent,
    SequenceEndEvent,
)


def _parsed(text: str, fast: bool) -> Iterator[_Event]:
    for event in YAML(typ="safe", pure=not fast, plug_ins=[]).parse(text):
        kind = type(event)
        if kind not in _KINDS:
            continue
        start, end = event.start_mark.index, event.end_mark.index
        if kind is MappingEndEvent or kind is SequenceEndEvent:
            yield _CLOSE, Node(SCALAR, start, end)
            continue
        if kind is AliasEvent:
            yield _VALUE, Node(ALIAS, start, end)
            continue
        marked = event.anchor is not None or getattr(event, "tag", None) not in (None, "")
        if kind is ScalarEvent:
            while event.style in ("|", ">") and end > start and text[end - 1] in "\r\n":
                end -= 1
            yield _VALUE, Node(SCALAR, start, end, marked=marked, value=event.value)
        else:
            which = MAP if kind is MappingStartEvent else LIST
            yield _OPEN, Node(which, start, end, bool(event.flow_style), marked)


_JSON_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[-+.0-9eE]+|[{}\[\]]|true|false|null')


def _json_events(text: str) -> Iterator[_Event]:
    json.loads(text)  # from here on the tokens can be told apart by their looks; ValueError otherwise
    for token in _JSON_TOKEN.finditer(text):
        word, (start, end) = token[0], token.span()
        if word in "{[":
            yield _OPEN, Node(MAP if word == "{" else LIST, start, end, flow=True)
        elif word in "}]":
            yield _CLOSE, Node(SCALAR, start, end)
        else:
            value: Any = json.loads(word)
            yield _VALUE, Node(SCALAR, start, end, value=value if isinstance(value, str) else word)
