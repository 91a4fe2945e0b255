"""Maps that `down` has given up, by which a program of ours is known again that it could not take off: one on an
interface that was in another network namespace then, where the program has gone along."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from reconciler.runtime import statefile, wholefile
from reconciler.runtime.control import boot_id
from reconciler.runtime.logger import Logger
from reconciler.runtime.statefile import BrokenError

FILE: Final = "left.json"
_KEPT: Final = 4000
"""Ids that are remembered, of some 40 maps each time. The kernel gives none out twice before it has given out all."""

_log = Logger("left_behind")


def decode(stored: Any) -> tuple[str, list[int]]:
    """Of which start of the machine, and ids. Raises what :func:`statefile.load` takes for a broken file."""
    return str(stored["boot"]), [int(each) for each in stored["maps"]]


class LeftBehind:
    """A small file in the state directory; it is of one start of the machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def maps(self) -> frozenset[int]:
        """Ids of maps that were ours; no other instance's programs work with one of them."""
        return frozenset(self._read())

    def _read(self) -> list[int]:
        try:
            boot, found = statefile.load(self._path, decode) or ("", [])
        except BrokenError as error:
            _log.warning("left_behind_not_read", path=str(self._path), error=str(error))
            return []
        return found if boot == boot_id() else []

    def add(self, maps: Collection[int]) -> None:
        """These are about to be given up."""
        known = self._read()
        fresh = sorted(frozenset(maps).difference(known))
        if not fresh:
            return
        try:
            wholefile.replace(self._path, json.dumps({"boot": boot_id(), "maps": (known + fresh)[-_KEPT:]}))
        except OSError as error:
            _log.warning("state_dir_not_written", path=str(self._path), error=str(error))
