"""The OpenAPI document of the unix socket, made of the routes and of the types of their answers.

``python -m reconciler.api.openapi FILE`` writes it; the copy in ``schema/`` is for those who have no daemon.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from reconciler import __version__, answers
from reconciler.api.routes import ROUTES, Route, Value
from reconciler.errors import Problem

_PLAIN: Final = {str: "string", int: "integer", float: "number", bool: "boolean"}
_INTRODUCTION: Final = """\
HTTP and JSON on the unix socket revproxyd.sock in the run directory, for its owner and group; on revproxyd-read.sock
beside it, for members of --read-group, everything that is asked for with GET. Unknown parameters and keys are refused,
unknown keys of answers are to be ignored. Paths begin with the version."""


@dataclasses.dataclass(frozen=True, slots=True)
class Error:
    """What went wrong. ``error``: in words; ``problems``: the places in the files, if they are what is wrong;
    ``kind``: the name of the Python exception, of reconciler.errors, or RequestError (there is no such request) or
    InternalError."""

    error: str
    problems: tuple[Problem, ...]
    kind: str


def document() -> dict[str, Any]:
    """The document, as JSON values."""
    schemas: dict[str, Any] = {}
    error = _schema(Error, schemas)
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas, error)
    return {
        "openapi": "3.1.0",
        "info": {"title": "revproxyd", "version": __version__, "description": " ".join(_INTRODUCTION.split())},
        "servers": [{"url": "http://localhost", "description": "Any name will do: it is the socket that counts."}],
        "paths": paths,
        "components": {"schemas": {name: schemas[name] for name in sorted(schemas)}},
    }


def text() -> str:
    """The document as it is written."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def _operation(route: Route, schemas: dict[str, Any], error: dict[str, Any]) -> dict[str, Any]:
    answer = {"type": "object"} if route.answer is None else _schema(route.answer, schemas)
    media = "application/x-ndjson" if route.lines else "application/json"
    failed = {"content": {"application/json": {"schema": error}}}
    found: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "responses": {
            "200": {"description": "Done.", "content": {media: {"schema": answer}}},
            "4XX": {"description": "Not as it is asked for; 422: the files are wrong.", **failed},
            "5XX": {"description": "It did not work.", **failed},
        },
    }
    if route.query:
        found["parameters"] = [
            {
                "name": name,
                "in": "query",
                "required": value.required,
                "description": value.description,
                "schema": _parameter(value),
            }
            for name, value in route.query.items()
        ]
    if route.method == "POST":
        needed = [name for name, value in route.body.items() if value.required]
        body = {
            "type": "object",
            "properties": {name: _key(value) for name, value in route.body.items()},
            "additionalProperties": False,
        }
        if needed:
            body["required"] = needed
        found["requestBody"] = {"required": bool(needed), "content": {"application/json": {"schema": body}}}
    return found


def _parameter(value: Value) -> dict[str, Any]:
    if value.kind == "boolean":
        return {"enum": ["0", "1"]}
    one = _limits(value)
    return {"type": "array", "items": one} if value.repeated else one


def _key(value: Value) -> dict[str, Any]:
    one = _limits(value)
    if value.nullable:
        one["type"] = [one["type"], "null"]
        if "enum" in one:
            one["enum"] = [*one["enum"], None]
    return {**one, "description": value.description}


def _limits(value: Value) -> dict[str, Any]:
    found: dict[str, Any] = {"type": value.kind}
    if value.choices:
        found["enum"] = list(value.choices)
    found |= {name: each for name, each in (("minimum", value.minimum), ("maximum", value.maximum)) if each is not None}
    return found


def _schema(kind: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type of answers; of a class by reference."""
    if isinstance(kind, type) and kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return {"type": "string", "enum": [each.value for each in kind]}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if kind.__name__ not in schemas:
            schemas[kind.__name__] = {}  # now, for one that holds itself
            schemas[kind.__name__] = _object(kind, schemas)
        return {"$ref": f"#/components/schemas/{kind.__name__}"}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], schemas)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], schemas)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [{"type": "null"} if each is type(None) else _schema(each, schemas) for each in arguments]}
    return {}  # any JSON value


def _object(kind: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    names = [each.name for each in dataclasses.fields(kind)]
    if kind is answers.Event:
        names.remove("fields")  # they stand beside the others
    return {
        "type": "object",
        "description": " ".join((kind.__doc__ or "").split()).replace("``", ""),
        "properties": {name: _schema(hints[name], schemas) for name in names},
        "required": names,
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
