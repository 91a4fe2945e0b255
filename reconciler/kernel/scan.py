"""A connection table read piece by piece: what it takes does not grow with the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from reconciler.kernel.arrays import Array
from reconciler.kernel.blocks import AT_ONCE
from reconciler.kernel.contable import ConnectionTable

Indexes = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(slots=True)
class Position:
    """How far a table has been read: the next block; at first, and after its end, None."""

    at: int | None = None


def pieces(table: ConnectionTable, position: Position | None = None) -> Iterator[tuple[Array, Array]]:
    """Keys and values, piece by piece, up to the table's end. What is entered or removed meanwhile may or may not be
    among them.

    ``position``: begin there, and note there how far it is; so reading may be ended and taken up again later. Raises
    :class:`KernelError`."""
    position = position or Position()
    blocks = table.blocks
    for start in range(position.at or 0, blocks.count, AT_ONCE):
        keys, values = blocks.read(start, AT_ONCE)
        position.at = start + AT_ONCE if start + AT_ONCE < blocks.count else None
        if len(keys):
            yield keys, values


def step(table: ConnectionTable, position: Position, at_once: int) -> Iterator[tuple[Array, Array]]:
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
