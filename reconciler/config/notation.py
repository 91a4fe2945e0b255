"""The two notations, YAML 1.2 and JSON: text -> one stream of events with positions.

YAML comes from ruamel.yaml's event stream: it has the positions that its loaders drop, and building our own values
from it takes a tenth of the time of loading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

_LINE: Final = 24  # a position is one integer: line << 24 | column, both from 0


def line_column(at: int) -> tuple[int, int]:
    """A position as line and column, both from 1."""
    return (at >> _LINE) + 1, (at & ((1 << _LINE) - 1)) + 1


class SyntaxProblem(Exception):  # it becomes a Problem; nobody outside this package sees it raised
    """The text can't be read on from the position ``at``."""

    def __init__(self, at: int, message: str) -> None:
        super().__init__(message)
        self.at, self.message = at, message


class FastParserProblem(SyntaxProblem):
    """libyaml refused a text that YAML 1.2 may allow, such as an IPv6 address without quotes in ``{ip: fd00::1}``:
    the slow parser, which knows YAML 1.2, has the last word."""


def decode(content: bytes) -> str:
    """The text of a file, which has to be UTF-8; a byte order mark is dropped. Raises :class:`SyntaxProblem`."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        line, column = before.count("\n"), len(before) - (before.rfind("\n") + 1)
        found = content[error.start]
        raise SyntaxProblem(line << _LINE | column, f"not UTF-8: byte 0x{found:02x}") from None


def _position(text: str, index: int) -> int:
    return text.count("\n", 0, index) << _LINE | (index - text.rfind("\n", 0, index) - 1)


# -- events: what both notations are reduced to ---------------------------------------------------------------
#
# (kind, position, value, anchor). A key is a scalar before its value, as in YAML.

SCALAR, MAP, LIST, END, ALIAS, MERGE, UNKNOWN_TAG = range(7)
Event = tuple[int, int, Any, str | None]

# YAML 1.2.2, 10.3.2: how plain scalars are resolved in the core schema. (ruamel.yaml's own resolver adds YAML 1.1's
# timestamps and underscores in numbers, and differs between its versions.)
_INT: Final = re.compile(r"[-+]?[0-9]{1,100}\Z|0o[0-7]{1,100}\Z|0x[0-9a-fA-F]{1,100}\Z")
_FLOAT: Final = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z|[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z"
)
_CONSTANTS: Final[dict[str, Any]] = (
    dict.fromkeys(("null", "Null", "NULL", "~", ""))
    | dict.fromkeys(("true", "True", "TRUE"), True)
    | dict.fromkeys(("false", "False", "FALSE"), False)
)
_SMALL: Final = 1 << 18  # characters: a text of this size takes the slow parser less than a second
_TAG: Final = "tag:yaml.org,2002:"


def resolve(text: str) -> Any:
    """The value of a plain YAML scalar under the YAML 1.2 core schema."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.match(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.match(text):
        return float(text.replace(".inf", "inf").replace(".Inf", "inf").replace(".INF", "inf").replace(".n", "n"))
    return text


def _tagged(tag: str, text: str) -> tuple[bool, Any]:
    """Whether an explicit tag fits a scalar, and the scalar's value under it."""
    value = resolve(text)
    kinds: dict[str, type | tuple[type, ...]] = {
        "str": str,
        "int": int,
        "float": (float, int),
        "bool": bool,
        "null": type(None),
    }
    name = tag.removeprefix(_TAG)
    if name == tag or name not in kinds:
        return False, text
    if name == "str":
        return True, text
    if not isinstance(value, kinds[name]) or (isinstance(value, bool) and name != "bool"):
        return False, text
    return True, float(resolve(text)) if name == "float" else value


def yaml_events(text: str, *, fast: bool = True) -> Iterator[Event]:
    """The events of a YAML document. ``fast``: from libyaml, where ruamel.yaml has it, ten times as fast. Raises
    :class:`SyntaxProblem`, with ``fast`` also :class:`FastParserProblem`."""
    memo: dict[str, Any] = {}
    documents = 0
    try:
        for event in YAML(typ="safe", pure=not fast, plug_ins=[]).parse(text):
            kind = type(event)
            mark = event.start_mark
            at = mark.line << _LINE | mark.column
            if kind is ScalarEvent:
                value, implicit = event.value, event.implicit
                if implicit[0]:  # plain
                    if value == "<<":
                        yield MERGE, at, value, event.anchor
                        continue
                    if value not in memo:
                        memo[value] = resolve(value)
                    value = memo[value]
                elif not implicit[1]:  # with a tag; else quoted
                    fits, value = _tagged(str(event.tag), value)
                    if not fits:
                        yield UNKNOWN_TAG, at, str(event.tag).replace(_TAG, "!!"), None
                yield SCALAR, at, value, event.anchor
            elif kind is MappingEndEvent or kind is SequenceEndEvent:
                yield END, at, None, None
            elif kind is MappingStartEvent or kind is SequenceStartEvent:
                own = "map" if kind is MappingStartEvent else "seq"
                if event.tag is not None and str(event.tag) not in ("!", _TAG + own):
                    yield UNKNOWN_TAG, at, str(event.tag).replace(_TAG, "!!"), None
                yield MAP if own == "map" else LIST, at, None, event.anchor
            elif kind is AliasEvent:
                yield ALIAS, at, event.anchor, None
            elif kind is DocumentStartEvent:
                documents += 1
                _document_start(event, text, at, documents)
    except YAMLError as error:
        _yaml_problem(text, error, fast)
    except (ValueError, RecursionError) as error:  # ruamel.yaml on directives and escapes that no document should hold
        raise SyntaxProblem(0, f"not YAML: {error}") from None


def moved(events: Iterator[Event], lines: int) -> Iterator[Event]:
    """The same, so many lines further down."""
    if not lines:
        return events
    return ((kind, at + (lines << _LINE), value, anchor) for kind, at, value, anchor in events)


def _document_start(event: DocumentStartEvent, text: str, at: int, count: int) -> None:
    if count > 1:
        raise SyntaxProblem(at, "a second document begins: a file holds one")
    version = event.version
    if version is not None and str(version) not in ("(1, 2)", "1.2", "Version(1, 2)"):
        raise SyntaxProblem(_position(text, text.find("%YAML")), "the directive asks for another YAML than 1.2")


def _yaml_problem(text: str, error: YAMLError, fast: bool) -> NoReturn:
    if isinstance(error, ReaderError):
        # A position is not given reliably (bytes in one parser, characters in the other): look for the character.
        found = re.search("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
        at = _position(text, found.start()) if found else 0
        what = f"the character U+{ord(found[0]):04X} is not allowed" if found else str(error.reason)
        raise SyntaxProblem(at, f"not YAML: {what}") from None
    if not isinstance(error, MarkedYAMLError):
        raise SyntaxProblem(0, f"not YAML: {error}") from None
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "no reason given"
    if fast and (len(text) <= _SMALL or "unexpected ':'" in problem or "expected node content" in problem):
        raise FastParserProblem(0, problem)
    _check_for_conflict(text)
    message = f"not YAML: {problem}"
    if mark is not None and text[mark.index : mark.index + 1] == "\t":
        message += " (a tab can't indent)"
    if error.problem and error.context:
        message += f", {error.context}"
        if error.context_mark is not None and error.context_mark.line != mark.line:
            message += f" that begins in line {error.context_mark.line + 1}"
    raise SyntaxProblem(mark.line << _LINE | mark.column if mark else 0, " ".join(message.split())) from None


def _check_for_conflict(text: str) -> None:
    """A better reason for what can't be read, if git is in the middle of a merge."""
    if found := re.search("^<{7} ", text, re.MULTILINE):
        message = "a merge left both sides here: keep one, and take out the marks <<<<<<<, ======= and >>>>>>>"
        raise SyntaxProblem(_position(text, found.start()), message) from None


_JSON_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[-+.0-9eE]+|[{}\[\]]|true|false|null|\n')
_JSON_KINDS: Final = {"{": MAP, "[": LIST, "}": END, "]": END}


def json_events(text: str) -> Iterator[Event]:
    """The events of a JSON document. Raises :class:`SyntaxProblem`."""

    def constant(name: str) -> NoReturn:
        raise SyntaxProblem(_position(text, text.find(name)), f"not JSON: {name}")

    if not text.strip():
        return
    try:
        json.loads(text, parse_constant=constant)
    except json.JSONDecodeError as error:
        _check_for_conflict(text)
        raise SyntaxProblem(_position(text, error.pos), f"not JSON: {error.msg[:1].lower()}{error.msg[1:]}") from None
    except RecursionError:
        pass  # it is JSON for more levels than a document may have: who builds one stops there
    except ValueError:  # Python's limit for numbers
        long = re.search(r"[0-9]{4301,}", text)
        raise SyntaxProblem(_position(text, long.start()) if long else 0, "a number of thousands of digits") from None
    # From here on the text is known to be JSON, so that tokens can be told apart by their looks.
    line = start = 0
    for token in _JSON_TOKEN.finditer(text):
        word = token[0]
        if word == "\n":
            line, start = line + 1, token.end()
            continue
        at = line << _LINE | (token.start() - start)
        kind = _JSON_KINDS.get(word, SCALAR)
        yield kind, at, json.loads(word) if kind == SCALAR else None, None
