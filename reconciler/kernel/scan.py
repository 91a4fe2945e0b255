"""A large hash read piece by piece, each into the memory of the one before: what it takes does not grow with the table.

Measured on Linux 6.18: two million entries of 112 bytes in 1.1 s, nearly all of it the kernel's, with pieces of 1,024
as with pieces of 65,536.
"""

from __future__ import annotations

import ctypes as ct
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from reconciler.errors import KernelError
from reconciler.kernel import bpf
from reconciler.kernel.arrays import Array, address
from reconciler.kernel.maps import CHUNK, UNSUPPORTED, Map

Indexes = np.ndarray[Any, np.dtype[np.int64]]

_POSITION_BYTES: Final = 64


@dataclass(slots=True)
class Position:
    """How far a table has been read; at first, and after its end, before its first entry."""

    at: bytes | None = None


def pieces(table: Map, position: Position | None = None) -> Iterator[tuple[Array, Array]]:
    """Keys and values, piece by piece, up to the table's end; each is overwritten by the next. What is written or
    deleted meanwhile may or may not be among them, and an entry may come twice.

    ``position``: begin there, and note there how far it is; so reading may be ended and taken up again later. Raises
    :class:`KernelError`."""
    position = position or Position()
    chunk = CHUNK
    keys, values = np.zeros(chunk, table.spec.key), table.values_array(chunk)
    here, there = (ct.create_string_buffer(_POSITION_BYTES) for _ in range(2))
    while True:
        if position.at is not None:
            here.raw = position.at
        start = None if position.at is None else ct.addressof(here)
        found, failed = bpf.map_lookup_batch(
            table.fd, start, ct.addressof(there), address(keys), address(values), chunk
        )
        if failed == errno.ENOSPC:  # one bucket holds more
            chunk *= 2
            keys, values = np.zeros(chunk, table.spec.key), table.values_array(chunk)
            continue
        if failed in UNSUPPORTED and position.at is None:
            yield table.items()
            return
        if failed not in (0, errno.ENOENT):
            raise KernelError("read", table.subject, failed)
        position.at = None if failed == errno.ENOENT else there.raw
        if found:
            yield keys[:found], values[:found]
        if failed == errno.ENOENT:
            return


def step(table: Map, position: Position, at_once: int) -> Iterator[tuple[Array, Array]]:
    """The next of :func:`pieces`, until so many entries have been read or the table's end is reached."""
    seen = 0
    for keys, values in pieces(table, position):
        yield keys, values
        seen += len(keys)
        if seen >= at_once:
            return


class Column:
    """An array that things are added to. Memory that nothing was added to is not used."""

    def __init__(self, kind: Any, room: int) -> None:
        self._array: Array = np.empty(room, kind)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, more: Array) -> None:
        """Put these behind what is there."""
        upto = self._count + len(more)
        if upto > len(self._array):
            larger: Array = np.empty(2 * upto, self._array.dtype)
            larger[: self._count] = self.all
            self._array = larger
        self._array[self._count : upto] = more
        self._count = upto

    @property
    def all(self) -> Array:
        """What was added: no copy."""
        return self._array[: self._count]
