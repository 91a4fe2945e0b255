"""Carries edits of configuration files out: atomically, one editor at a time, and back again if they can't be applied.

The daemon never writes these files; the editing commands and the Python API do, in the process of whoever asked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from reconciler.config import files as config_files
from reconciler.config.edit import Edit, FileEdit, edit, sources
from reconciler.errors import EditError, RevproxyError
from reconciler.runtime.wholefile import sync_names

T = TypeVar("T")

_WAIT_SEC: Final = 30.0


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What an edit changed, and what applying it gave."""

    edits: tuple[FileEdit, ...]
    applied: T | None


def read(directory: Path) -> dict[str, bytes]:
    """The configuration files by path. Raises :class:`ConfigError` for one that can't be read."""
    return {file.path: file.content for file in config_files.read(directory)}


def carry_out(directory: Path, wanted: Edit, apply: Callable[[], T] | None) -> Done[T]:
    """Edit the files of ``directory`` and ``apply``. If that fails the files are put back and its error goes on.

    Nothing is written unless the result is a valid configuration (:class:`ConfigError`), and unless the files are
    still what was read (:class:`EditError`). ``apply`` None: the files only.
    """
    with _alone(directory):
        contents = read(directory)
        edits = edit(str(directory), contents, wanted)
        config_files.parse_sources(sources(contents, edits))
        written: list[FileEdit] = []
        try:
            for each in edits:
                write(each)
                written.append(each)
            return Done(edits, apply() if apply else None)
        except BaseException as error:
            _put_back(written, error)
            raise


def _put_back(written: list[FileEdit], cause: BaseException) -> None:
    left = []
    for each in reversed(written):
        try:
            write(FileEdit(each.path, each.after, each.before))
        except RevproxyError as error:
            left.append(str(error))
    if left:
        raise EditError(f"{cause}; the edit could not be taken back: {'; '.join(left)}") from cause


def write(wanted: FileEdit) -> None:
    """Bring one file from ``before`` to ``after``, whole at every moment; its mode and owner stay, and a symlink to it
    stays one. Raises :class:`EditError`."""
    path = Path(os.path.realpath(wanted.path))
    try:
        if _content(path) != wanted.before:
            raise EditError(f"{wanted.path} was changed by somebody else meanwhile: left as it is, try again")
        if wanted.after is None:
            path.unlink()
        else:
            _replace(path, wanted.before is None, wanted.after)
        sync_names(path.parent)
    except OSError as error:
        raise EditError(f"{wanted.path}: can't be written: {error.strerror or error}") from error


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _replace(path: Path, new: bool, content: bytes) -> None:
    """A new file beside it, on disk before it takes the name. Its name begins with a dot: no configuration file."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if not new:
                _like(path.stat(), file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if new:
            os.link(draft, path)  # unlike a rename, refused if somebody made such a file meanwhile
            draft.unlink()
        else:
            os.replace(draft, path)  # noqa: PTH105  # as Path.replace(), said plainly
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _like(there: os.stat_result, descriptor: int) -> None:
    own = os.fstat(descriptor)
    if (own.st_uid, own.st_gid) != (there.st_uid, there.st_gid):
        os.fchown(descriptor, there.st_uid, there.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(there.st_mode))


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep other edits away, by a lock on the directory itself that ends with the process."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        hint = ": make it first" if error.errno == errno.ENOENT else ""
        raise EditError(f"{directory}: {error.strerror}{hint}") from error
    try:
        deadline = time.monotonic() + _WAIT_SEC
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise EditError(f"{directory} is being edited by another command for {_WAIT_SEC:g} s") from None
                time.sleep(0.05)
            else:
                break
        yield
    finally:
        os.close(descriptor)
