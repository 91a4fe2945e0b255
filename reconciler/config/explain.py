"""Why a value does not satisfy the JSON Schema, in words a person can act on.

jsonschema does the validating; its keywords are overridden where its own errors would name the wrong place (unknown
keys, duplicates), hide the cause (oneOf) or cost too much (a hundred thousand list items that are right). The words
come from the schema: each value's ``title`` completes the sentence "must be ...".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from reconciler.config.formats import FORMATS, Formats
from reconciler.config.messages import Path, hint, nearest, series, show
from reconciler.config.predicate import Compiler, Schema, is_integer, pattern


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong. ``path`` leads to it; ``of_key``: the key itself is wrong rather than its value."""

    path: Path
    of_key: bool
    message: str


class _ReadyError(ValidationError):
    """An error whose text is ready. ``path`` ends in the key if the error is about a key."""

    of_key = False


class _KeyError(_ReadyError):
    of_key = True


class Explainer:
    """Finds every fault of a value that a :class:`Compiler` said is not right."""

    def __init__(self, schema: Schema, compiler: Compiler, formats: Formats) -> None:
        self._compiler = compiler
        keywords = {
            "additionalProperties": self._additional_properties,
            "items": self._items,
            "oneOf": self._one_of,
            "pattern": self._pattern,
            "required": self._required,
            "uniqueItems": self._unique_items,
        }
        integer = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _checker, value: is_integer(value))
        format_checker = FormatChecker(formats=())
        for name in FORMATS:
            format_checker.checks(name)(
                lambda value, name=name: not isinstance(value, str) or formats.known(name, value)
            )
        validator_class: Any = extend(  # type: ignore[no-untyped-call]  # the stubs leave its type out
            Draft202012Validator, keywords, type_checker=integer
        )
        self._validator = validator_class(schema, format_checker=format_checker)

    def faults(self, root: Any) -> Iterator[Fault]:
        """All faults, one after the other."""
        for error in self._validator.iter_errors(root):
            path = tuple(error.absolute_path)
            if isinstance(error, _ReadyError):
                yield Fault(path, error.of_key, error.message)
            else:
                yield Fault(path, False, _sentence(path, error))

    # -- keywords: (validator, the keyword's value, instance, schema) -> errors

    def _items(self, validator: Any, items: Schema, instance: Any, _schema: Schema) -> Iterator[ValidationError]:
        if isinstance(instance, list):
            holds = self._compiler.predicate(items)
            for index, item in enumerate(instance):
                if not holds(item):
                    yield from validator.descend(item, items, path=index)

    def _one_of(self, validator: Any, branches: Any, instance: Any, schema: Schema) -> Iterator[ValidationError]:
        if all(branch.keys() == {"required"} for branch in branches):
            yield from _exclusive([branch["required"][0] for branch in branches], instance)
        elif not self._compiler.exactly_one(branches)(instance):
            # The branch meant is the one of the value's type; what is wrong within it is the cause.
            meant = [branch for branch in branches if validator.is_type(instance, self._type(branch))]
            if len(meant) == 1:
                yield from validator.descend(instance, meant[0])
            else:
                yield ValidationError("no branch is of its type", validator="type", schema=schema, instance=instance)

    def _type(self, schema: Schema) -> str:
        name: str = (self._compiler.resolve(schema["$ref"]) if "$ref" in schema else schema)["type"]
        return name

    def _additional_properties(
        self, _validator: Any, _closed: Any, instance: Any, schema: Schema
    ) -> Iterator[ValidationError]:
        known = schema["properties"]
        for key in instance if isinstance(instance, dict) else ():
            if key not in known:
                text = f"unknown key {show(key)}" + (hint(key, known) or f" (known: {', '.join(known)})")
                yield _KeyError(text, path=[key])

    def _required(self, _validator: Any, required: Any, instance: Any, schema: Schema) -> Iterator[ValidationError]:
        if not isinstance(instance, dict):
            return
        known = schema.get("properties", {})
        misspelt = {nearest(key, known) for key in instance if key not in known}
        for key in required:
            if key not in instance and key not in misspelt:
                text = f"the key '{key}' is missing"
                if key == "apiVersion":
                    text += f": write '{key}: {known[key]['enum'][0]}' at the top"
                yield _KeyError(text, path=[key])

    def _unique_items(self, _validator: Any, _wanted: Any, instance: Any, _schema: Schema) -> Iterator[ValidationError]:
        seen: set[Any] = set()
        for index, item in enumerate(instance if isinstance(instance, list) else ()):
            if isinstance(item, (str, int)) and (type(item), item) in seen:
                yield _ReadyError(f"{show(item)} stands twice in this list", path=[index])
            elif isinstance(item, (str, int)):
                seen.add((type(item), item))

    def _pattern(self, _validator: Any, text: str, instance: Any, _schema: Schema) -> Iterator[ValidationError]:
        if isinstance(instance, str) and not pattern(text).search(instance):
            yield ValidationError("does not match")


def _exclusive(keys: list[str], instance: Any) -> Iterator[ValidationError]:
    """Exactly one of some keys is needed."""
    if not isinstance(instance, dict):
        return
    present = [key for key in instance if key in keys]
    if not present:
        yield _ReadyError(f"one of the keys {series(keys, 'and')} is missing")
    elif len(present) > 1:
        excluding = [key for key in keys if key in present]
        yield _KeyError(f"{series(excluding, 'and')} exclude each other", path=[present[1]])


def _sentence(path: Path, error: ValidationError) -> str:
    """``'port' must be an integer from 1 to 65535, not 'http'``."""
    if not path:
        return f"the file must be a mapping that begins with 'apiVersion: revproxy/v1', not {show(error.instance)}"
    key = next((step for step in reversed(path) if isinstance(step, str)), None)
    subject = f"'{key}'" if path[-1] == key else f"an item of '{key}'"
    found = "an empty list" if error.instance == [] else show(error.instance)
    schema: Any = error.schema
    if error.validator != "enum":
        return f"{subject} must be {schema['title']}, not {found}"
    allowed: list[str] = schema["enum"]
    return f"{subject} must be {series(allowed, 'or')}, not {found}" + (
        hint(error.instance, allowed) if isinstance(error.instance, str) else ""
    )
