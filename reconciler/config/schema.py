"""A file's tree against the JSON Schema: what is right at once, what is wrong with its place."""

from __future__ import annotations

import json
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from reconciler import resources
from reconciler.config.document import Document, Mapping, Sequence
from reconciler.config.formats import Formats
from reconciler.config.messages import path_text, show
from reconciler.config.predicate import Compiler, Schema
from reconciler.errors import RevproxyError

if TYPE_CHECKING:
    from reconciler.config.explain import Fault

MAX_PROBLEMS: Final = 1000
"""How many errors of one file are told."""

API_VERSION: Final = "revproxy/v1"


@cache
def load() -> Schema:
    """The JSON Schema of the configuration files. Raises :class:`RevproxyError` if the installed one is broken."""
    file = resources.schema_file()
    try:
        schema: Schema = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise RevproxyError(f"{file}: is no JSON: {error}: the installation is broken, install it anew") from error
    return schema


@cache
def default(definition: str, key: str) -> Any:
    """The schema's default of a key, for example ``default("settings", "fast_path")``. None: left out."""
    return load()["$defs"][definition]["properties"][key]["default"]


class Checker:
    """Validates one file's tree. ``formats`` remembers the addresses it parses."""

    def __init__(self, formats: Formats) -> None:
        self._schema = load()
        self._formats = formats
        self._compiler = Compiler(self._schema, formats.known)

    def holds(self, definition: str, value: Any) -> bool:
        """Whether a value satisfies a definition of the schema."""
        return self._compiler.predicate(self._schema["$defs"][definition])(value)

    def check(self, document: Document) -> bool:
        """Whether the document's tree satisfies the schema; if not, ``document.problems`` says why. A document of
        another version is told so and nothing else."""
        root = document.root
        if root is None:
            return True
        if isinstance(root, Mapping) and root.get("apiVersion", API_VERSION) != API_VERSION:
            version = show(root["apiVersion"])
            message = f"'apiVersion' must be {API_VERSION!r}, not {version}: this version reads no other"
            document.problem(root.value_at("apiVersion"), message, "apiVersion")
            return False
        if self._compiler.predicate(self._schema)(root):
            return True
        from reconciler.config.explain import Explainer  # jsonschema takes 0.1 s to load

        told: set[tuple[int, str]] = set()
        faults = Explainer(self._schema, self._compiler, self._formats).faults(root)
        for fault in islice(faults, MAX_PROBLEMS):
            at = _position(document, fault)
            if (at, fault.message) not in told:
                told.add((at, fault.message))
                document.problem(at, fault.message, path_text(fault.path))
        if next(faults, None) is not None:
            document.problem(document.root_at, f"more than {MAX_PROBLEMS} errors: the rest is not shown")
        if not document.problems:  # or what is wrong would count as left out, and be taken from the kernel
            text = f"does not satisfy the JSON Schema of {API_VERSION}, and why could not be found out"
            document.problem(document.root_at, text)
        return False


def _position(document: Document, fault: Fault) -> int:
    """Where a fault is: the key, the value, or, for a key that is not there, the mapping it is missing from."""
    at, value = document.root_at, document.root
    for step in fault.path:
        if isinstance(value, Mapping) and isinstance(step, str) and step in value:
            at = value.key_at(step) if fault.of_key and step == fault.path[-1] else value.value_at(step)
        elif isinstance(value, Sequence) and isinstance(step, int):
            at = value.marks[step]
        else:
            break
        value = value[step]
    return at
