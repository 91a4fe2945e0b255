"""Files to Config: the directory read while nobody was writing in it, and only what has to be signed if it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from reconciler.config import files as config_files
from reconciler.config.model import Config
from reconciler.errors import ConfigError, Problem
from reconciler.runtime import clock
from reconciler.runtime.git import commit_of
from reconciler.runtime.signed import Signatures
from reconciler.runtime.snapshot import Fingerprints, Standing, index_lock, settle, standing
from reconciler.runtime.view import HeldError

if TYPE_CHECKING:
    from reconciler.places import Places

_READ_TRIES: Final = 20
_MIXED: Final = (
    "git is at work there, or was killed, and the files may be of two commits: held. `git status` shows what they are;"
    " if no git is at work: `rm {lock}`"
)


class ConfigDirectory:
    """The configuration directory of one instance. What was parsed is remembered by content.

    ``sleep`` is used for waiting while files are written; it may raise to end the waiting.
    """

    def __init__(self, places: Places, sleep: Callable[[float], None]) -> None:
        self._path, self._sleep = places.config_dir, sleep
        self._cache = config_files.Cache()
        self.fingerprints = Fingerprints(places.config_dir)
        self.signatures = Signatures(places.require_signed, places.config_dir)
        self.read_fingerprint = ""  # of the files that were read last

    @property
    def exists(self) -> bool:
        """There is such a directory."""
        return self._path.is_dir()

    def load(self) -> Config:
        """The configuration in the files, read while nobody was writing them. Raises :class:`ConfigError`, also if they
        have to be signed and are not."""
        found: list[Config | ConfigError] = []

        def read() -> None:
            if len(found) == _READ_TRIES:
                raise ConfigError([Problem(str(self._path), 0, 0, "", "the files never stop changing")])
            found.append(self._read())

        def whole() -> bool:
            return self._is_commit(found[-1], standing(self._path))

        self.read_fingerprint = settle(self.fingerprints, sleep=self._sleep, read=read, whole=whole).hex()
        if self.fingerprints.outlasted:
            self._hold_mixed(found[-1], self.fingerprints.outlasted[0])
        if isinstance(found[-1], ConfigError):
            raise found[-1]
        return found[-1]

    def _hold_mixed(self, found: Config | ConfigError, locks: Standing) -> None:
        """Raise :class:`HeldError` for files that a git may have left half way, unless they are those of the commit
        that is checked out, all of them."""
        if self._is_commit(found, locks):
            return
        problems = [
            Problem(str(lock), 0, 0, "", f"stands since {clock.of_ns(identity[3])}: {_MIXED.format(lock=lock)}")
            for lock, identity in locks
        ]
        raise HeldError([*problems, *(found.problems if isinstance(found, ConfigError) else ())])

    def _is_commit(self, found: Config | ConfigError, locks: Standing) -> bool:
        """The files are all of the commit that is checked out, and nobody else's lock stands than that of its tree."""
        if not isinstance(found, Config) or not {lock for lock, _ in locks} <= {index_lock(self._path)}:
            return False
        commit = commit_of(self._path, {os.path.basename(file.path): file.content for file in found.files})  # noqa: PTH119
        return commit is not None and not commit.dirty

    def _read(self) -> Config | ConfigError:
        """The files as they are now."""
        try:
            config = config_files.load(self._path, self._cache)
            self.signatures.check(config.files)
        except ConfigError as error:
            return error
        return config

    def fingerprint(self) -> str:
        """A digest of the files in the directory, of names and contents, also of those that are no configuration."""
        return self.fingerprints.take().hex()

    def show_progress(self, told: Callable[[int, int], None] | None) -> None:
        """Have this told how many bytes of the files' how many are read, while they are."""
        self._cache.progress = told
