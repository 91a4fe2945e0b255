"""Reading what this program has written into the state directory: whatever lies there by now, it is an error that says
so, and neither a mistake of ours nor something that never ends."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from reconciler.errors import RevproxyError
from reconciler.runtime.logger import Logger

T = TypeVar("T")

SUFFIX: Final = ".broken"
MAX_BYTES: Final = 64 << 20
"""More than a thousand revisions of a thousand files each."""


_log = Logger("state_dir")


class BrokenError(RevproxyError):
    """What lies there is not what was written."""


def load(path: Path, decode: Callable[[Any], T]) -> T | None:
    """What ``decode`` makes of the JSON in a file; None if there is no such file. Raises :class:`BrokenError`."""
    content = read(path)
    return None if content is None else decoded(path, content, decode)


def decoded(path: Path, content: str | bytes, decode: Callable[[Any], T]) -> T:
    """What ``decode`` makes of JSON. Raises :class:`BrokenError`."""
    try:
        return decode(json.loads(content))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise BrokenError(f"{path}: not as it was written ({error})") from error


def read(path: Path) -> bytes | None:
    """Its content; None if there is no such file. Raises :class:`BrokenError`: also for a pipe or a device, which could
    keep us waiting or go on for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BrokenError(f"{path}: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise BrokenError(f"{path}: no regular file")
        if found.st_size > MAX_BYTES:
            raise BrokenError(f"{path}: {found.st_size} bytes, which is too much")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise BrokenError(f"{path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def set_aside(path: Path, why: BrokenError, *, replaced: bool = False) -> None:
    """Give it another name, beside what was set aside before. ``replaced``: it is about to be written over, and keeps
    its own name until then as well, if it is no directory. Where it can't be set aside it stays, and that is logged."""
    names = (path.with_name(f"{path.name}{SUFFIX}{number or ''}") for number in range(1000))
    try:
        aside = next(each for each in names if not os.path.lexists(each))
        if replaced and not path.is_dir():
            os.link(path, aside, follow_symlinks=False)
        else:
            path.rename(aside)
    except (OSError, StopIteration) as error:
        _log.error("state_not_set_aside", path=str(path), why=str(why), error=str(error))
    else:
        _log.error("state_set_aside", path=str(path), aside=str(aside), why=str(why))
