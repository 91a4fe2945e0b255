"""Map writes that can be taken back byte for byte.

:class:`Journal` remembers what stood at each place before it is written. :meth:`Journal.revert` puts it back in
reverse order and then reads everything again: what is not as it was is residue, and so is what could not be put back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from reconciler.errors import RevproxyError
from reconciler.kernel import groups
from reconciler.kernel.arrays import Array
from reconciler.kernel.layout import MapType
from reconciler.kernel.maps import Map, Maps
from reconciler.trouble import explained

BATCH: Final = 64
"""More writes than this to one map go in batch calls; fewer go one by one."""


def write(target: Map, keys: Array, values: Array) -> None:
    """Write entries in order, in one gateway call each or, when they are many, in batches."""
    if len(keys) > BATCH:
        target.put_many(keys, values)
        return
    for index in range(len(keys)):
        target.put(keys[index : index + 1], values[index : index + 1])


def erase(target: Map, keys: Array) -> None:
    """Delete entries in order, likewise. Those of an array are made zero."""
    if target.spec.type in (MapType.ARRAY, MapType.PERCPU_ARRAY):
        write(target, keys, target.values_array(len(keys)))
    elif len(keys) > BATCH:
        target.delete_many(keys)
    else:
        for index in range(len(keys)):
            target.delete(keys[index : index + 1])


@dataclass(frozen=True)
class _Step:
    """One thing done. ``check`` tells whether it is as it was before, ``revert`` makes it so."""

    subject: str
    revert: Callable[[], None]
    check: Callable[[], bool]


@dataclass(frozen=True)
class _Written:
    """What stood in a map at ``keys``."""

    map: Map
    keys: Array
    found: Array
    values: Array

    def revert(self) -> None:
        write(self.map, self.keys[self.found], self.values[self.found])
        erase(self.map, self.keys[~self.found])

    def check(self, first: Array) -> bool:
        """Whether the keys chosen by the mask ``first`` are as they were. So they are in a map that is closed: the
        undo has removed the whole set, which the commit had made."""
        if self.map.fd < 0:
            return True
        exactly = self.map.spec.type is MapType.LPM_TRIE
        found, values = (self.map.get_exactly if exactly else self.map.get_many)(self.keys[first])
        before = np.ascontiguousarray(self.values[first])
        before[~self.found[first]] = np.zeros(1, before.dtype)
        return bool((found == self.found[first]).all() and values.tobytes() == before.tobytes())


class Journal:
    """Everything done so far in one commit, with the way back."""

    def __init__(self) -> None:
        self._steps: list[_Step | _Written] = []

    def note(self, subject: str, revert: Callable[[], None], check: Callable[[], bool]) -> None:
        """Remember something that is about to be done outside the maps. ``revert`` must work however much of it was
        done, and ``check`` tell whether it is as it was before."""
        self._steps.append(_Step(subject, revert, check))

    def put(self, target: Map, keys: Array, values: Array, found: Array | None = None) -> None:
        """Write entries, remembering what stood there. ``found``: which keys there are, for a trie: a look-up in it
        does not tell an entry from the one that covers it."""
        keys = target.keys_array(keys)
        self._remember(target, keys, found)
        write(target, keys, values)

    def erase(self, target: Map, keys: Array) -> None:
        """Delete entries, remembering what stood there."""
        keys = target.keys_array(keys)
        self._remember(target, keys)
        erase(target, keys)

    def put_groups(self, maps: Maps, ids: list[int], tables: list[groups.Table], recipes: list[int]) -> None:
        """Give groups that are free their tables."""
        self.note(
            "map group",
            lambda: groups.free_groups(maps, ids),
            lambda: not maps.is_open or groups.all_free(maps, ids),
        )
        groups.put_groups(maps, ids, tables, recipes)

    def _remember(self, target: Map, keys: Array, exact: Array | None = None) -> None:
        if exact is None and target.spec.type is MapType.LPM_TRIE:
            raise ValueError(f"{target.subject}: which keys there are must be given")
        found, values = target.get_many(keys)
        self._steps.append(_Written(target, keys, found if exact is None else exact, values))

    def revert(self) -> list[str]:
        """Take everything back, last first. Returns what is not as it was before, in words; nothing when all is."""
        residue: list[str] = []
        for step in reversed(self._steps):
            try:
                step.revert()
            except (RevproxyError, OSError) as error:
                residue.append(f"undo: {explained(error)}")
        seen: set[tuple[str, bytes]] = set()
        for step in self._steps:
            subject = step.subject if isinstance(step, _Step) else step.map.subject
            try:
                same = step.check() if isinstance(step, _Step) else step.check(_first(step, seen))
            except (RevproxyError, OSError) as error:
                residue.append(f"looking at it after the undo: {explained(error)}")
            else:
                if not same:
                    residue.append(f"{subject} is not what it was")
        return residue


def _first(step: _Written, seen: set[tuple[str, bytes]]) -> Array:
    """Which keys of a step no earlier step wrote: only there does it know what stood before the commit."""
    name, first = step.map.spec.name, np.zeros(len(step.keys), np.bool_)
    for index in range(len(step.keys)):
        place = (name, step.keys[index : index + 1].tobytes())
        first[index] = place not in seen
        seen.add(place)
    return first
