"""What callers from Python give the editing methods, made into values that files can hold; refused if they can't.

What the values mean is for the schema to judge. Everything here raises :class:`EditError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reconciler.config.oneline import parse_target
from reconciler.errors import EditError

Target = str | Mapping[str, Any]
"""``IP:PORT``, ``[IPv6]:PORT``, ``IP``; or a target as in the files: ``{"ip": ..., "port": ..., "weight": ...}``."""

_SEVERAL = (list, tuple, set, frozenset)
_DEEPEST = 16


def text(what: str, given: object) -> str:
    """A text that can be written down."""
    if not isinstance(given, str):
        raise EditError(f"{what}: {_shown(given)} is no text")
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise EditError(f"{what}: {_shown(given)} can't be written as UTF-8") from error
    return given


def optional(what: str, given: object) -> str | None:
    """The same, or None."""
    return None if given is None else text(what, given)


def texts(what: str, given: str | Sequence[str]) -> list[str]:
    """One text or several, and not none."""
    several = given if isinstance(given, _SEVERAL) else (given,)
    if not several:
        raise EditError(f"{what}: none is named")
    return [text(what, each) for each in several]


def value(what: str, given: object, depth: int = 0) -> Any:
    """What JSON can say: texts, finite numbers, true, false, null, lists and mappings of them."""
    if isinstance(given, str):
        return text(what, given)
    if given is None or isinstance(given, (bool, int)):
        return given
    if isinstance(given, float) and math.isfinite(given):
        return given
    if depth < _DEEPEST:
        if isinstance(given, (list, tuple)):
            return [value(what, each, depth + 1) for each in given]
        if isinstance(given, Mapping):
            return {text(what, key): value(what, each, depth + 1) for key, each in given.items()}
    raise EditError(f"{what}: {_shown(given)} is nothing that a file could say")


def target(given: Target, weight: int | None = None) -> dict[str, Any]:
    """A target as the files have it."""
    if isinstance(given, str):
        try:
            found = parse_target(given)
        except ValueError as error:
            raise EditError(f"target {error}") from error
    elif isinstance(given, Mapping):
        found = value("target", given)
    else:
        raise EditError(f"target {_shown(given)}: neither IP:PORT nor a mapping with ip, port, weight")
    return found if weight is None else found | {"weight": value("weight", weight)}


def targets(given: Target | Sequence[Target], weight: int | None = None) -> list[dict[str, Any]]:
    """One target or several."""
    several = given if isinstance(given, _SEVERAL) else (given,)
    return [target(each, weight) for each in several]


def _shown(given: object) -> str:
    return ascii(given)[:60]
