"""A file that is being edited: each change is made in its text and in its meaning, and the two have to agree.

Anchors, aliases, merge keys and whatever else YAML allows can make a place mean more than it shows. So nothing here
relies on knowing all of it: a changed text counts only if it reads as what was meant.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from reconciler.config import document
from reconciler.config.messages import path_text
from reconciler.config.notation import SyntaxProblem, line_column
from reconciler.config.spans import ALIAS, MAP, Node
from reconciler.config.splice import Source, Splice, UneditableError, spliced
from reconciler.errors import ConfigError, Problem

Path = tuple[str | int, ...]

_BOM = "\ufeff"


def plain(value: Any) -> Any:
    """A tree without positions, in which nothing is shared."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value


class Draft:
    """One file. ``root``: what it says now, as plain values. The methods change it; each raises :class:`ConfigError`,
    and leaves the file as it was, if that can't be done without changing anything else. Paths lead to a list or a
    mapping that is there."""

    def __init__(self, file: str, content: bytes) -> None:
        self.file = file
        found = document.parse(file, content)
        if found.root is None and found.problems:
            raise ConfigError(found.problems)
        self._document = found
        self.root = plain(found.root)
        text = content.decode("utf-8")
        self._bom = text.startswith(_BOM)
        self._text = text.removeprefix(_BOM)

    @property
    def content(self) -> bytes:
        """The file as it is now."""
        return ((_BOM if self._bom else "") + self._text).encode()

    def append(self, path: Path, value: Any) -> None:
        """Add an item to a list."""
        self._change(path, lambda there: there.append(value), lambda source, _, node: source.append(node, value))

    def listed(self, path: Path, value: Any) -> None:
        """Make a list of a mapping, with the mapping as its first item and ``value`` as its second."""
        *above, last = path

        def make(there: Any) -> None:
            there[last] = [there[last], value]

        def change(source: Source, _key: Node, node: Node) -> list[Splice]:
            number = node.index(str(last))
            if number is None:
                raise UneditableError("it comes from elsewhere")
            key, inner = node.entries[number]
            assert key is not None
            return source.listed(key, inner, value)

        self._change(tuple(above), make, change)

    def set(self, path: Path, key: str, value: Any) -> None:
        """Give a mapping's key a value: another scalar, or any value where the key is new."""

        def change(source: Source, _key: Node, node: Node) -> list[Splice]:
            present = node.get(key) if node.kind == MAP else None
            return source.insert_key(node, key, value) if present is None else source.replace(present, value)

        self._change(path, lambda there: there.__setitem__(key, value), change)

    def remove(self, path: Path, index: int) -> None:
        """Take an item out of a list."""
        self._change(path, lambda there: there.pop(index), lambda source, key, node: source.remove(key, node, index))

    def remove_key(self, path: Path, key: str) -> None:
        """Take a key out of a mapping."""

        def change(source: Source, _key: Node, node: Node) -> list[Splice]:
            number = node.index(key) if node.kind == MAP else None
            if number is None:
                raise UneditableError("it comes from elsewhere")
            return source.remove_key(node, number)

        self._change(path, lambda there: there.pop(key), change)

    def _change(
        self,
        path: Path,
        meaning: Callable[[Any], object],
        change: Callable[[Source, Node, Node], list[Splice]],
    ) -> None:
        meant = copy.deepcopy(self.root)
        there = meant
        for step in path:
            there = there[step]
        meaning(there)
        try:
            source = Source(self._text, is_json=self.file.endswith(".json"))
            text = spliced(self._text, change(source, *_node(source, path)))
            found = _read(self.file, text)
            if found != meant:
                raise UneditableError("an anchor or an alias makes it stand for something else as well")
        except (UneditableError, SyntaxProblem) as error:
            raise ConfigError([self._problem(path, str(error))]) from None
        self.root, self._text = meant, text
        self._document = document.parse(self.file, self.content)

    def _problem(self, path: Path, reason: str) -> Problem:
        line, column = line_column(self._position(path))
        text = f"this can't be edited in place: {reason}; edit the file by hand"
        return Problem(self.file, line, column, path_text(path), text)

    def _position(self, path: Path) -> int:
        value, at = self._document.root, self._document.root_at
        for step in path:
            at = value.value_at(step) if isinstance(step, str) else value.marks[step]
            value = value[step]
        return at


def _node(source: Source, path: Path) -> tuple[Node, Node]:
    """The node at a path, after its key (itself for a list's item)."""
    key = node = source.root
    for step in path:
        inner: Node | None = None
        if node is not None and isinstance(step, str) and (number := node.index(step)) is not None:
            key, inner = node.entries[number]
        elif node is not None and isinstance(step, int) and step < len(node.entries):
            inner = node.items[step]
            key = inner
        node = inner
    if node is None or key is None:
        raise UneditableError("it comes from elsewhere, by an alias or a merge")
    if node.kind == ALIAS:
        raise UneditableError("it is an alias")
    return key, node


def _read(file: str, text: str) -> Any:
    """What a text means. Raises :class:`UneditableError` if it can't be read."""
    found = document.parse(file, text.encode())
    if found.problems:
        raise UneditableError(f"it would not read any more ({found.problems[0].message})")
    return found.root
