"""The words of error messages: how values are quoted, which known key a misspelt one is nearest to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

Path = tuple[str | int, ...]
"""From a document's root to a value in it."""


def path_text(path: Path) -> str:
    """A path in the document as text: ``proxies[0].listen.port``."""
    parts = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(parts).removeprefix(".")


def show(value: Any) -> str:
    """A value as a message quotes it: one line, at most some 60 characters."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case str() if len(value) > 60:
            return repr(value[:57] + "...")
        case _:
            return repr(value)[:60]


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that ``word`` probably stands for, if one is near. Case does not count."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def hint(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'port'?)``, or nothing."""
    found = nearest(word, known)
    return f" (did you mean {found!r}?)" if found else ""


def series(words: Sequence[str], last: str) -> str:
    """``'a', 'b' or 'c'``; ``last``: the word before the last one."""
    quoted = [f"'{word}'" for word in words]
    return f"{', '.join(quoted[:-1])} {last} {quoted[-1]}" if len(quoted) > 1 else "".join(quoted)
