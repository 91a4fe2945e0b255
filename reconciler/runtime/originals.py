"""A second copy of what stood in sysctls before us, for when somebody has removed the map that remembers it, or some of
its entries, or has changed them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from reconciler.runtime import statefile, wholefile
from reconciler.runtime.control import boot_id
from reconciler.runtime.logger import Logger
from reconciler.runtime.statefile import BrokenError
from reconciler.state.objects import Observed

_log = Logger("originals")

Pair = tuple[str, str]
"""What stood there before, what we set."""


def decode(stored: Any) -> tuple[str, dict[str, Pair]]:
    """Of which start of the machine, and by name. Raises what :func:`statefile.load` takes for a broken file."""
    pairs = {str(name): (str(before), str(after)) for name, (before, after) in stored["sysctls"].items()}
    return str(stored["boot"]), pairs


class Originals:
    """A small file in the state directory; it is of one start of the machine. What this process has written counts
    also if the file is gone since, or could not be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: tuple[str, dict[str, Pair]] | None = None

    def read(self) -> dict[str, Pair]:
        """By name; nothing of an earlier start of the machine."""
        if self._kept and self._kept[0] == boot_id():
            return self._kept[1]
        return self._stored()

    def _stored(self) -> dict[str, Pair]:
        try:
            boot, sysctls = statefile.load(self._path, decode) or ("", {})
        except BrokenError as error:
            _log.warning("originals_not_read", path=str(self._path), error=str(error))
            return {}
        return sysctls if boot == boot_id() else {}

    def supplement(self, observed: Observed, read: Callable[[str], str | None]) -> Observed:
        """With what the kernel's map has lost of settings that still are as we set them, and in place of what it says
        otherwise; ``read`` gives live values."""
        lost = {
            name: pair
            for name, pair in self.read().items()
            if (observed.remembered[name] != pair if name in observed.remembered else read(name) == pair[1])
        }
        if not lost:
            return observed
        live = {name: now for name, (_, now) in lost.items() if name not in observed.remembered}
        state = replace(observed.state, sysctls=observed.state.sysctls | live)
        remembered = observed.remembered | lost
        return replace(observed, state=state, remembered=remembered, forgotten=frozenset(lost))

    def keep(self, remembered: Mapping[str, Pair], restored: Collection[str] = ()) -> None:
        """What the kernel's map says now counts; what it has lost stays, but for what was put back on purpose."""
        kept = {name: pair for name, pair in self.read().items() if name not in restored}
        kept |= {name: pair for name, pair in remembered.items() if all(pair)}
        self._kept = boot_id(), kept
        if kept == self._stored():
            return
        try:
            wholefile.replace(self._path, json.dumps({"boot": boot_id(), "sysctls": kept}, sort_keys=True))
        except OSError as error:
            _log.warning("state_dir_not_written", path=str(self._path), error=str(error))
