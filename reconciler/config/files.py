"""Directory, paths or stored text -> Config: discovery, reading, and remembering by content."""

from __future__ import annotations

import gc
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from reconciler.config import build, check, packet_tests, patch
from reconciler.config.document import parse
from reconciler.config.model import Config, Fragment, SourceFile
from reconciler.errors import ConfigError, Problem

SUFFIXES: Final = (".yaml", ".yml", ".json")
MAX_FILE_BYTES: Final = 8 << 20
"""The largest file that is read: 8 MiB, room for some 100,000 source routes."""
_REMEMBERED_LOADS: Final = 4
_LARGE_BYTES: Final = 1 << 20
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PARSING: Final = 0.6  # the part that parsing a file has of what is done with it
_SETTLED_NS: Final = 50_000_000
"""The kernel's clock for files goes in steps of up to 10 ms: a file this old that changes gets another time."""


class Cache:
    """Remembers what files held, by path and content, so that an unchanged file costs no more than reading it.
    Entries that the last few loads had no use for are dropped, and of large files the former version with the next one
    that is right."""

    def __init__(self) -> None:
        self._fragments: dict[tuple[str, bytes], tuple[int, Fragment]] = {}
        self._newest: dict[str, tuple[SourceFile, Fragment]] = {}  # by path
        self._load = 0
        self.progress: Callable[[int, int], None] | None = None
        """Told how many bytes of how many have been parsed."""
        self._read: dict[str, tuple[tuple[int, ...], SourceFile]] = {}

    def read(self, path: str, *, own: bool) -> SourceFile:
        """The file, read now, or before if it is still the same one. ``own``: as :func:`_read` says. Raises
        :class:`OSError`, and :class:`ValueError` for what is not to be read."""
        found = os.stat(path)  # noqa: PTH116  # of each of a thousand files at each look
        identity = (own, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        known = self._read.pop(path, None)
        if known is None or known[0] != identity:
            file = _source_file(_display(path), _content(path))
            if own and anybody_may_write(os.stat(path)):  # noqa: PTH116
                raise ValueError(_open_to_all(path))
            if time.time_ns() - found.st_ctime_ns < _SETTLED_NS:
                return file  # it might change and still look the same
            known = (identity, file)
        self._read[path] = known
        return known[1]

    def begin(self) -> None:
        """A load begins."""
        self._load += 1
        oldest = self._load - _REMEMBERED_LOADS
        self._fragments = {key: entry for key, entry in self._fragments.items() if entry[0] >= oldest}
        kept = {key[0] for key in self._fragments}
        self._newest = {path: newest for path, newest in self._newest.items() if path in kept}
        self._read = {path: known for path, known in self._read.items() if known[1].path in kept}

    def fragments(self, files: Sequence[SourceFile]) -> list[Fragment]:
        """What each file holds, parsed now or before."""
        found, done, of = [], 0, sum(file.size for file in files)
        for file in files:
            found.append(self.fragment(file, done, of))
            done += file.size
        if self.progress:
            self.progress(of, of)
        return found

    def fragment(self, file: SourceFile, done: int = 0, of: int = 0) -> Fragment:
        """What one holds. ``done``, ``of``: bytes, for who wants to be told of it."""
        key = (file.path, file.digest)
        known = self._fragments.get(key)
        fragment = known[1] if known else self._parsed(file, done, of)
        former = self._newest.get(file.path)
        if former and former[0].digest != file.digest and file.size > _LARGE_BYTES and not fragment.problems:
            self._fragments.pop((file.path, former[0].digest), None)
        self._fragments[key] = (self._load, fragment)
        self._newest[file.path] = (file, fragment)
        return fragment

    def _parsed(self, file: SourceFile, done: int, of: int) -> Fragment:
        newest, progress = self._newest.get(file.path), self.progress
        found = patch.patched(*newest, file) if newest else None
        if found:
            return found
        told = None
        if progress and of:
            told = lambda part: progress(done + int(part * _PARSING * file.size), of)  # noqa: E731
        fragment = build.fragment(parse(file.path, file.content, told=told))
        if file.size > _LARGE_BYTES:
            gc.collect()  # the tree and what the schema's check remembers: ten times the text, and in circles
        return fragment


# Paths of files are texts below: of a thousand, each look would make a thousand Path objects.


def load(directory: Path, cache: Cache | None = None) -> Config:
    """The configuration in a directory's files. Raises :class:`ConfigError` with every error of every file, also if
    there is no such directory, or if anybody may write it or its files. A directory without files is an empty
    configuration."""
    problems: list[Problem] = []
    cache = cache or Cache()
    return _config(_read(_discover(directory, problems, own=True), problems, cache, own=True), problems, cache)


def parse_paths(paths: Iterable[Path], cache: Cache | None = None) -> Config:
    """The configuration in some files and directories together. A file that is named counts whatever its suffix,
    and once however often it is named. Raises :class:`ConfigError`."""
    problems: list[Problem] = []
    found: dict[Path, str] = {}  # by what it really is
    for path in paths:
        for file in _discover(path, problems) if path.is_dir() else [str(path)]:
            found.setdefault(Path(os.path.realpath(file)), file)  # unlike resolve() it takes links in a circle
    return _config(_read(found.values(), problems), problems, cache)


def read(directory: Path) -> tuple[SourceFile, ...]:
    """A directory's files, unparsed. Raises :class:`ConfigError` if one can't be read, or if there is no directory."""
    problems: list[Problem] = []
    found = _read(_discover(directory, problems), problems)
    if problems:
        raise ConfigError(problems)
    return tuple(found)


def parse_sources(sources: Mapping[str, bytes], cache: Cache | None = None) -> Config:
    """The configuration in texts, by path; the suffix of the path says whether it is JSON. Raises
    :class:`ConfigError`."""
    return _config([_source_file(path, content) for path, content in sources.items()], [], cache)


def _source_file(path: str, content: bytes) -> SourceFile:
    return SourceFile.of(path, content)


def _display(path: str | Path) -> str:
    """A path as text that can be printed, in one line, whatever bytes its name is made of."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], os.fsencode(path).decode("utf-8", "backslashreplace"))


def _in_file(path: str | Path, message: str) -> Problem:
    """About a file that was not read: at its beginning, so that all errors of files are of one shape."""
    return Problem(_display(path), 1, 1, "", message)


def _nowhere(path: str | Path, message: str) -> Problem:
    return Problem(_display(path), 0, 0, "", message)


def _discover(directory: Path, problems: list[Problem], *, own: bool = False) -> list[str]:
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208  # names, in their own order
        if own and anybody_may_write(directory.stat()):
            problems.append(_nowhere(directory, _open_to_all(directory)))
    except OSError as error:
        what = "there is no such directory" if isinstance(error, FileNotFoundError) else _words(error)
        problems.append(_nowhere(directory, what))
        return []
    before = str(directory / "-")[:-1]
    return [before + name for name in names if name.endswith(SUFFIXES) and not name.startswith(".")]


def _words(error: OSError) -> str:
    return f"can't be read: {error.strerror or error}"


def anybody_may_write(status: os.stat_result) -> bool:
    """Whether a file or directory is writable for others than its owner and group. (A symbolic link itself never says
    anything about that.)"""
    return bool(status.st_mode & stat.S_IWOTH)


def _open_to_all(path: str | Path) -> str:
    return f"can be written by anybody, so that it is not applied: `chmod o-w {_display(path)}`"


def _read(
    paths: Iterable[str], problems: list[Problem], cache: Cache | None = None, *, own: bool = False
) -> list[SourceFile]:
    """``own``: they are the instance's own, and nobody else's."""
    cache, files = cache or Cache(), []
    for path in paths:
        try:
            files.append(cache.read(path, own=own))
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                problems.append(_in_file(path, _words(error)))
            elif os.path.islink(path):  # noqa: PTH114
                problems.append(_in_file(path, "a symbolic link to nothing"))
            else:
                problems.append(_nowhere(path, _words(error)))
        except ValueError as error:
            problems.append(_in_file(path, str(error)))
    return files


def _content(path: str) -> bytes:
    """A regular file's bytes. Raises :class:`OSError`, and :class:`ValueError` for what is no regular file or too
    large. Does not block on a pipe that nobody writes to."""
    _regular(os.stat(path))  # noqa: PTH116
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        _regular(os.fstat(descriptor))
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(_too_large(len(content)))
    return content


def _regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("is a directory, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise ValueError(_too_large(status.st_size))


def _too_large(size: int) -> str:
    return f"too large: {size} bytes, the limit is {MAX_FILE_BYTES}"


def _config(files: list[SourceFile], problems: list[Problem], cache: Cache | None) -> Config:
    cache = cache or Cache()
    cache.begin()
    fragments = cache.fragments(files)
    problems, warnings = list(problems), []
    for fragment in fragments:
        problems += fragment.problems
        warnings += fragment.warnings
    found = check.across(fragments)
    problems += found[0]
    problems += packet_tests.across(fragments)
    warnings += found[1]
    if problems:
        raise ConfigError(problems)
    settings = next((fragment.settings for fragment in fragments if fragment.settings), None)
    return Config(
        settings=settings or build.default_settings(),
        proxies=tuple(proxy for fragment in fragments for proxy in fragment.proxies),
        files=tuple(files),
        warnings=tuple(sorted(warnings)),
        tests=tuple(test for fragment in fragments for test in fragment.tests),
    )
