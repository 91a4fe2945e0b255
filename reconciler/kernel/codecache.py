"""Compiled programs kept on disk, so that a start need not compile what an earlier one has.

One file per set of sources, compiler and machine, named after a digest of them all; what is in it is checked against a
digest of its own. Anything wrong with it means it is not there. Only a folder that nobody but this user and root can
write to is trusted: what is read here goes into the kernel.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

DIRECTORY: Final = Path("/var/cache/revproxy")
KEPT: Final = 8
"""So many sets stay; the oldest go."""


def directory(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where sets are kept: ``REVPROXY_CACHE_DIR``, else what systemd made for the service, else /var/cache/revproxy.
    None for a ``REVPROXY_CACHE_DIR`` that is set and empty: keep nothing."""
    if (chosen := environ.get("REVPROXY_CACHE_DIR")) is not None:
        return Path(chosen) if chosen else None
    return Path(environ.get("CACHE_DIRECTORY") or DIRECTORY)


def read(place: Path | None, name: str) -> dict[str, bytes] | None:
    """The functions kept under ``name``, None if they are not there, damaged, or may be somebody else's."""
    if place is None or not _trusted(place):
        return None
    try:
        content = json.loads((place / f"{name}.json").read_bytes())
        functions: dict[str, str] = content["functions"]
        if content["digest"] != _digest(functions):
            return None
        return {function: base64.b64decode(code) for function, code in functions.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write(place: Path | None, name: str, functions: Mapping[str, bytes]) -> None:
    """Keep them. What can't be kept is compiled again next time."""
    if place is None:
        return
    texts = {function: base64.b64encode(code).decode() for function, code in functions.items()}
    with contextlib.suppress(OSError):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _trusted(place):
            return
        with tempfile.NamedTemporaryFile("w", dir=place, suffix=".new", delete=False) as draft:
            try:
                json.dump({"digest": _digest(texts), "functions": texts}, draft)
                draft.flush()
                Path(draft.name).rename(place / f"{name}.json")
            except OSError:
                Path(draft.name).unlink(missing_ok=True)
                raise
        kept = sorted(place.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in kept[KEPT:]:
            old.unlink(missing_ok=True)


def _trusted(place: Path) -> bool:
    try:
        found = place.stat()
    except OSError:
        return False
    others = stat.S_IWGRP | stat.S_IWOTH
    return stat.S_ISDIR(found.st_mode) and found.st_uid in (0, os.geteuid()) and not found.st_mode & others


def _digest(functions: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(functions, sort_keys=True).encode()).hexdigest()
