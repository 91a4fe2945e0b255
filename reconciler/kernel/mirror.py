"""What this process knows of a large trie, so that it need not be read for every edit.

Reading a hundred thousand routes takes the kernel 80 ms, and there is no asking what has changed. A mirror holds what
was read last, with everything this process has written since. Whether that is enough is the reader's to say: what
somebody else writes is not in it, and is found by the next full reading. A write that failed half way, or one of
another size than an edit, makes the mirror forget everything.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_MOST_WRITES: Final = 1000
"""Beyond so many entries reading anew is cheaper than keeping step."""


class Mirror:
    """Of one map, which ``map_id`` names. ``generation`` grows with every difference."""

    def __init__(self) -> None:
        self.map_id = 0
        self.generation = 0
        self.changed: list[bytes] | None = None  # keys since :meth:`taken`; None: anything may have
        self._content: tuple[Array, Array] | None = None
        self._written = 0

    def forget(self) -> None:
        """Know nothing."""
        self._content, self.changed = None, None
        self.generation += 1

    def read(self, map_id: int) -> tuple[Array, Array] | None:
        """Keys and values; None if they are not known."""
        return self._content if map_id == self.map_id else None

    def fill(self, map_id: int, keys: Array, values: Array) -> None:
        """This is what was read just now."""
        known = self.read(map_id)
        same = known is not None and known[0].tobytes() == keys.tobytes() and known[1].tobytes() == values.tobytes()
        if not same:
            self.forget()
            self.map_id, self._content = map_id, (keys, values)
        self._written = 0

    def note_taken(self) -> None:
        """From now on ``changed`` counts from here."""
        self.changed = []

    def put(self, map_id: int, keys: Array, values: Array) -> None:
        """These entries were written."""
        content = self._may_follow(map_id, len(keys))
        if content is None:
            return
        known_keys, known_values = content
        known_values = known_values.copy()  # whoever has read it keeps what he has read
        new: list[int] = []
        for index in range(len(keys)):
            place = _find(known_keys, keys[index])
            if place is None:
                new.append(index)
            else:
                known_values[place] = values[index]
        if new:
            known_keys, known_values = _appended(known_keys, keys[new]), _appended(known_values, values[new])
        self._follow(known_keys, known_values, keys)

    def delete(self, map_id: int, keys: Array) -> None:
        """These entries were deleted, as far as there were any."""
        content = self._may_follow(map_id, len(keys))
        if content is None:
            return
        known_keys, known_values = content
        places = [place for key in keys if (place := _find(known_keys, key)) is not None]
        stay = np.ones(len(known_keys), np.bool_)
        stay[places] = False
        self._follow(known_keys[stay], known_values[stay], keys)

    def _may_follow(self, map_id: int, count: int) -> tuple[Array, Array] | None:
        content = self.read(map_id)
        self._written += count
        if content is None or self._written > _MOST_WRITES:
            self.forget()
            return None
        return content

    def _follow(self, known_keys: Array, known_values: Array, keys: Array) -> None:
        self._content = (known_keys, known_values)
        self.generation += 1
        if self.changed is not None:
            self.changed += [key.tobytes() for key in keys]


def _find(keys: Array, key: Any) -> int | None:
    """The place of a key."""
    size = keys.dtype.itemsize // 4
    words = np.ascontiguousarray(keys).view(np.uint32).reshape(-1, size)
    wanted = np.frombuffer(key.tobytes(), np.uint32)
    # The last word is the one that tells keys apart best: of the others only what it leaves is compared.
    places = np.flatnonzero(words[:, -1] == wanted[-1])
    places = places[(words[places] == wanted).all(axis=1)]
    return int(places[0]) if len(places) else None


def _appended(content: Array, more: Array) -> Array:
    """``np.concatenate`` would turn big-endian fields into little-endian ones."""
    joined = np.empty(len(content) + len(more), content.dtype)
    joined[: len(content)], joined[len(content) :] = content, more
    return joined
