"""Files to Config: the directory read while nobody was writing in it, and only what has to be signed if it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from reconciler.config import files as config_files
from reconciler.errors import ConfigError, Problem
from reconciler.runtime.signed import Signatures
from reconciler.runtime.snapshot import Fingerprints, settle

if TYPE_CHECKING:
    from reconciler.config.model import Config
    from reconciler.places import Places

_READ_TRIES: Final = 20


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

        self.read_fingerprint = settle(self.fingerprints, sleep=self._sleep, read=read).hex()
        if isinstance(found[-1], ConfigError):
            raise found[-1]
        return found[-1]

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
