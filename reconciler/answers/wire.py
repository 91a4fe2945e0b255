"""Answers as plain JSON values, and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

T = TypeVar("T")
Json = Any  # what json.loads gives: any tighter recursive type only moves the casts elsewhere


def to_json(value: object) -> Json:
    """A dataclass (or tuples, mappings of them) as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: to_json(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(each) for each in value]
    if isinstance(value, StrEnum):
        return value.value
    return value


def from_json(kind: type[T], data: Json) -> T:
    """The value of dataclass ``kind`` that :func:`to_json` made ``data`` of. Unknown keys are ignored, so that a
    newer daemon may say more. Raises :class:`ValueError` if it does not fit."""
    try:
        result: T = _decode(kind, data)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error
    return result


def _decode(kind: Any, data: Json) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        _check(data, dict, kind.__name__)
        hints = typing.get_type_hints(kind)
        names = [each.name for each in dataclasses.fields(kind) if each.name in data]
        return kind(**{name: _decode(hints[name], data[name]) for name in names})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        _check(data, (list, tuple), "list")
        return tuple(_decode(arguments[0], each) for each in data)
    if origin is dict:
        return {key: _decode(arguments[1], each) for key, each in data.items()}
    if origin in (typing.Union, types.UnionType):
        inner = [each for each in arguments if each is not type(None)]
        return None if data is None else _decode(inner[0], data)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(data)
    if kind in _PLAIN:
        _check(data, _PLAIN[kind], kind.__name__)
    return data


_PLAIN: Mapping[type, tuple[type, ...]] = {str: (str,), bool: (bool,), int: (int,), float: (float, int)}


def _check(data: Json, kinds: type | tuple[type, ...], name: str) -> None:
    if not isinstance(data, kinds):
        raise TypeError(f"{data!r:.40} is no {name}")
