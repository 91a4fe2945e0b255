"""Values as YAML or JSON text, in the style that people write these files in."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from reconciler.config.notation import resolve

# Plain where every reader of YAML, 1.1 included, takes it for the same text.
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*\Z|[0-9]{1,3}(\.[0-9]{1,3}){3}(/[0-9]{1,2})?\Z")
_WORDS: Final = frozenset({"y", "n", "yes", "no", "on", "off"})


def scalar(value: Any) -> str:
    """One value; strings without quotes where that is safe everywhere, between braces too."""
    if isinstance(value, str) and _PLAIN.match(value) and isinstance(resolve(value), str):
        return value if value.lower() not in _WORDS else json.dumps(value)
    return json.dumps(value, ensure_ascii=False)


def flow(value: Any) -> str:
    """Any value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(each) for each in value) + "]"
    return scalar(value)


def _short(value: Any) -> bool:
    """Written on one line: a scalar, or a list or mapping of nothing but scalars."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not any(isinstance(each, (dict, list)) for each in inner)


def block(value: Any) -> list[str]:
    """A mapping or list as lines of YAML without indentation; what is short stands on one line."""
    lines: list[str] = []
    if isinstance(value, dict):
        for key, each in value.items():
            if _short(each):
                lines.append(f"{key}: {flow(each)}")
            else:
                lines += [f"{key}:", *(f"  {line}" for line in block(each))]
        return lines
    for each in value:
        lines += item(each)
    return lines


def item(value: Any, *, spread: bool | None = None) -> list[str]:
    """A list's item as lines, its dash included. ``spread``: over lines (True) or on one (False), as far as it can be;
    None: on one if it is short."""
    if not isinstance(value, dict) or spread is False or (spread is None and _short(value)):
        return [f"- {flow(value)}"]
    first, *rest = block(value)
    return [f"- {first}", *(f"  {line}" for line in rest)]


def in_json(value: Any, unit: str) -> str:
    """JSON: on one line without ``unit``, else indented by it (not its first line)."""
    return json.dumps(value, ensure_ascii=False, indent=unit or None)
