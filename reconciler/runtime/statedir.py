"""What lies in the state directory in place of what was written there: set aside, so that it is in nobody's way, and
told of until somebody has looked at it. Nothing of it is ever deleted."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from reconciler.errors import Problem
from reconciler.places import Places
from reconciler.runtime import conditions, control, drains, leftbehind, originals, statefile
from reconciler.runtime.statefile import BrokenError

_Files = Mapping[str, Callable[[Any], object]]
_JSON: Final[_Files] = {
    "control.json": control.decode,
    "conditions.json": conditions.decode,
    "sysctls.json": originals.decode,
    leftbehind.FILE: leftbehind.decode,
}


def tend(places: Places) -> None:
    """Set aside what is not as it was written, but for drains, of which the kernel knows. By whoever holds the instance
    lock."""
    for path, error in _broken(places):
        statefile.set_aside(path, error)


def warnings(places: Places) -> Iterator[Problem]:
    """For ``status``: what is set aside, and what stands in the way."""
    for path, error in (*_broken(places), *_broken_json(places, {drains.FILE: drains.decode})):
        yield Problem("", 0, 0, "", f"{error}; to be set aside: {_LOST[path.name]}")
    try:
        aside = sorted(
            path for path in places.state_dir.iterdir() if path.name.rpartition(statefile.SUFFIX)[0] in _LOST
        )
    except OSError:
        return
    for path in aside:
        name = path.name.rpartition(statefile.SUFFIX)[0]
        text = f"{path.with_name(name)} was not as it was written, and is set aside: {_LOST[name]}; then remove {path}"
        yield Problem("", 0, 0, "", text)


_LOST: Final = {
    "control.json": "look whether reconciling was suspended, or a commit was to be confirmed",
    "conditions.json": "the times in `status` are those since then",
    "drains.json": "what the kernel had drained still is; look whether there was more",
    "sysctls.json": "look whether `down` puts sysctls back as they were",
    leftbehind.FILE: "look for our programs on interfaces that were in another namespace at `down`",
    "history.jsonl": "`history` begins anew",
    "last-good": "it is made anew by the next revision",
    "revisions": "`rollback` knows later revisions only",
}


def _broken(places: Places) -> Iterator[tuple[Path, BrokenError]]:
    yield from _broken_json(places, _JSON)
    for path, kind, named in (
        (places.history, stat.S_ISREG, "regular file"),
        (places.last_good, stat.S_ISLNK, "symbolic link"),
        (places.revisions, stat.S_ISDIR, "directory"),
    ):
        mode = _mode(path)
        if mode and not kind(mode):
            yield path, BrokenError(f"{path}: no {named}")


def _broken_json(places: Places, files: _Files) -> Iterator[tuple[Path, BrokenError]]:
    for name, decode in files.items():
        path = places.state_dir / name
        try:
            statefile.load(path, decode)
        except BrokenError as error:
            yield path, error


def _mode(path: Path) -> int:
    """0: there is nothing."""
    try:
        return path.lstat().st_mode
    except OSError:
        return 0
