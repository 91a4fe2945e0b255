"""Contents of files by any key, without having all of them at once: :class:`Contents`."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import TypeVar

from reconciler.config.model import SourceFile

K = TypeVar("K", bound=Hashable)


class Contents(Mapping[K, bytes]):
    """Reads like a dictionary of the files' contents; each is unpacked when it is asked for. ``others``: what is there
    besides the files."""

    def __init__(self, files: Mapping[K, SourceFile], others: Mapping[K, bytes] | None = None) -> None:
        self._files, self._others = files, others or {}

    def __getitem__(self, key: K) -> bytes:
        return self._files[key].content if key in self._files else self._others[key]

    def __iter__(self) -> Iterator[K]:
        yield from self._files
        yield from (key for key in self._others if key not in self._files)

    def __len__(self) -> int:
        return len(self._files.keys() | self._others.keys())
