"""What a request says, as its route allows it: everything else is refused before anybody is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from aiohttp import web

from reconciler.api.routes import Route, Value
from reconciler.errors import UsageError

_DIGITS: Final = 18
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
}


def query(route: Route, request: web.Request) -> dict[str, Any]:
    """The parameters of the query. Raises :class:`UsageError`."""
    found: dict[str, Any] = {}
    for name in request.query:
        _known(name, route.query, "parameter")
        value, texts = route.query[name], request.query.getall(name)
        if value.repeated:
            found[name] = [_choice(name, value, text) for text in texts]
        elif len(texts) > 1:
            raise UsageError(f"{name}: given {len(texts)} times")
        else:
            found[name] = _parsed(name, value, texts[0])
    _complete(found, route.query)
    return found


async def body(route: Route, request: web.Request) -> dict[str, Any]:
    """The keys of the JSON object in the body; no body counts as {}. Raises :class:`UsageError`, and 413 for one that
    is too large."""
    if request.query:
        raise UsageError(f"{next(iter(request.query))}: unknown parameter")
    if request.content_length is None and request.body_exists:
        raise UsageError("the length of the body is missing")
    if (request.content_length or 0) > route.max_bytes:
        raise web.HTTPRequestEntityTooLarge(route.max_bytes, request.content_length or 0)
    content = await request.read()
    try:
        found = json.loads(content, parse_constant=_constant) if content else {}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the body is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError("the body must be a JSON object")
    for name, each in found.items():
        _known(name, route.body, "key")
        _check(name, route.body[name], each)
    _complete(found, route.body)
    return found


def _known(name: str, values: Mapping[str, Value], what: str) -> None:
    if name not in values:
        raise UsageError(f"{name}: unknown {what}" + (f", known: {', '.join(values)}" if values else ""))


def _complete(found: Mapping[str, Any], values: Mapping[str, Value]) -> None:
    for name, value in values.items():
        if value.required and name not in found:
            raise UsageError(f"{name}: missing")


def _parsed(name: str, value: Value, text: str) -> Any:
    """A parameter of the query as what it stands for."""
    if value.kind == "boolean":
        if text not in ("0", "1"):
            raise UsageError(f"{name}: must be 0 or 1")
        return text == "1"
    if value.kind == "integer":
        if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
            raise UsageError(f"{name}: must be a number")
        return _bounded(name, value, int(text))
    return _choice(name, value, text)


def _choice(name: str, value: Value, text: str) -> str:
    if value.choices and text not in value.choices:
        raise UsageError(f"{name}: {text!r} is none of {', '.join(value.choices)}")
    return text


def _check(name: str, value: Value, given: Any) -> None:
    """What a key of the body says."""
    if given is None and value.nullable:
        return
    if type(given) not in _TYPES[value.kind]:
        raise UsageError(f"{name}: must be {value.kind}" + (" or null" if value.nullable else ""))
    if isinstance(given, str):
        _choice(name, value, given)
    elif isinstance(given, (int, float)):
        _bounded(name, value, given)


def _bounded(name: str, value: Value, number: float) -> float:
    least, most = value.minimum, value.maximum
    if (least is not None and number < least) or (most is not None and number > most):
        bounds = f"from {least} to {most}" if most is not None else f"{least} or more"
        raise UsageError(f"{name}: must be {bounds}")
    return number


def _constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")
