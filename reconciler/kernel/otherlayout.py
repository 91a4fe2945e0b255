"""Maps of a version whose layout is another: read by the description that is pinned with them, copied into ours, and
their connections carried over while both versions' programs run.

Fields go by name: one that only the other version has is dropped, one that only ours has is zero. So a field that
changes its meaning has to change its name. What does not fit (a number too large for its new field, more entries than
there is room for) is an error, and nothing is taken over.
"""

from __future__ import annotations

import ast
import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from reconciler.errors import KernelError
from reconciler.kernel import bpf, groupscan, groupwrite, layout, layoutpin
from reconciler.kernel.arrays import Array, address
from reconciler.kernel.contable import ConnectionTable
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.layout import MapSpec, MapType
from reconciler.kernel.maps import Map, Maps

_OWN_ALONE: Final = frozenset(("scratch", "event_ring", "way", "fragment4", "fragment6"))
"""Not copied: what lasts for a packet, and what is made anew."""
_GROUPS_AT_ONCE: Final = 256


@dataclass(frozen=True)
class OtherLayout:
    """The maps and programs that another version has pinned at ``root``."""

    root: Path

    @property
    def is_whole(self) -> bool:
        """It has been in force: all its maps are there, as far as can be told without their description."""
        return all((self.root / "maps" / name).exists() for name in ("control", "connection4", "connection6"))

    @property
    def current(self) -> str:
        """The name of the set of programs in force; empty if there is none."""
        try:
            return (self.root / "progs" / "current").readlink().name
        except OSError:
            return ""

    def specs(self) -> Mapping[str, MapSpec]:
        """Its maps. Raises :class:`KernelError` where nothing says, or what says so is not what the pins are named
        after."""
        try:
            text = layoutpin.read(self.root)
        except (KernelError, ValueError, zlib.error) as error:
            raise self._unknown(str(error)) from error
        if hashlib.sha256(text.encode()).hexdigest()[: len(self.root.name)] != self.root.name:
            raise self._unknown("its description is that of another one")
        found = {}
        for line in text.splitlines():
            name, kind, key, value, entries, flags = ast.literal_eval(line)
            found[name] = MapSpec(name, 0, kind, _dtype(key), _dtype(value), entries, flags)
        return found

    def _unknown(self, why: str) -> KernelError:
        return KernelError(
            "take over",
            str(self.root),
            detail=f"another version's maps, of which it is not known how they are laid out ({why}): nothing is"
            " changed. Run that version, or take everything off with `revproxyctl down`, which ends its connections",
        )

    def open(self) -> dict[str, Map]:
        """Its maps by name, those that our layout has too; the caller closes them. Raises :class:`KernelError`."""
        opened: dict[str, Map] = {}
        try:
            for name, spec in self.specs().items():
                if name in layout.MAPS:
                    fd = bpf.obj_get(str(self.root / "maps" / name))
                    opened[name] = _map(spec, fd)
        except BaseException:
            _close(opened)
            raise
        return opened


def _dtype(description: Any) -> np.dtype[Any]:
    """What ``dtype.descr`` was made from."""
    if len(description) == 1 and description[0][0] == "":
        scalar: np.dtype[Any] = np.dtype(description[0][1])
        return scalar
    return np.dtype([(name, _nested(kind), *shape) for name, kind, *shape in description])


def _nested(kind: Any) -> Any:
    return kind if isinstance(kind, str) else _dtype(kind)


def _map(spec: MapSpec, fd: int) -> Map:
    """Connections lay in a hash at first."""
    if spec.name in layout.CONNECTIONS and spec.type == MapType.ARRAY:
        return ConnectionTable(spec, fd, Gateway())
    return Map(spec, fd, Gateway())


def _close(maps: Mapping[str, Map]) -> None:
    for each in maps.values():
        each.close()


# -- taking over -------------------------------------------------------------------------------------------------


def take_over(other: OtherLayout, maps: Maps) -> None:
    """Make our maps, and put into them what those of the other layout hold. Raises :class:`KernelError`; ours are then
    not there."""
    sources = other.open()
    try:
        maps.create(sources["connection4"].max_entries // 2)
        try:
            for name, source in sources.items():
                if name not in _OWN_ALONE:
                    _copy(source, maps[name])
        except BaseException:
            maps.remove()
            raise
    finally:
        _close(sources)


def carry_over(other: OtherLayout, maps: Maps) -> int:
    """Bring connections over that the other version's programs have opened since, or have had packets of later than
    ours; how many."""
    sources, number = other.open(), 0
    try:
        for name in layout.CONNECTIONS:
            if name in sources:
                number += _merge(sources[name], maps[name])
    finally:
        _close(sources)
    return number


def _merge(source: Map, destination: Map) -> int:
    keys, values = _converted(source, destination)
    known_keys, known = destination.items()
    places = {key.tobytes(): place for place, key in enumerate(known_keys)}
    found = np.asarray([places.get(key.tobytes(), -1) for key in keys], np.int64)
    newer = found < 0
    there = ~newer
    newer[there] = values["c"]["last_ns"][there] > known["c"]["last_ns"][found[there]]
    destination.put_many(keys[newer], values[newer])
    return int(newer.sum())


def _copy(source: Map, destination: Map) -> None:
    if isinstance(destination, ConnectionTable):
        destination.put_many(*_converted(source, destination))
        return
    if int(source.spec.type) != int(destination.spec.type):
        raise _misfit(destination, "it is of another type")
    if destination.spec.type == MapType.ARRAY_OF_MAPS:
        _copy_groups(source, destination)
        return
    keys, values = _converted(source, destination)
    if destination.spec.type in (MapType.ARRAY, MapType.PERCPU_ARRAY):
        beyond = keys >= destination.max_entries
        if np.ascontiguousarray(values[beyond]).view(np.uint8).any():
            raise _misfit(destination, "it has more entries than there is room for")
        keys, values = keys[~beyond], values[~beyond]
        if destination.spec.type == MapType.PERCPU_ARRAY:
            _put_per_cpu(destination, keys, values)
            return
    destination.put_many(keys, values)


def _put_per_cpu(destination: Map, keys: Array, values: Array) -> None:
    """Only what says something: most of it is zero, as the new map is."""
    rows = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1).any(axis=1)
    for key, value in zip(keys[rows], values[rows], strict=True):
        where, what = np.asarray([key]), np.ascontiguousarray(value)
        destination.gateway.call(
            "update",
            destination.subject,
            lambda at=where, to=what: bpf.map_update(destination.fd, address(at), address(to)),  # type: ignore[misc]
        )


def _copy_groups(source: Map, destination: Map) -> None:
    """The tables themselves are shared: nobody ever writes to one that hangs in an outer map."""
    ids, inner = groupscan.read(source)
    used = np.flatnonzero(inner)
    for start in range(0, len(used), _GROUPS_AT_ONCE):
        chosen = used[start : start + _GROUPS_AT_ONCE]
        descriptors: list[int] = []
        try:
            descriptors.extend(bpf.map_by_id(int(number)) for number in inner[chosen])
            groupwrite.put_many(destination, ids[chosen], np.asarray(descriptors, layout.u32))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


# -- from one layout to the other --------------------------------------------------------------------------------


def _converted(source: Map, destination: Map) -> tuple[Array, Array]:
    """Everything in ``source``, laid out as in ``destination``."""
    found_keys, found = source.items()
    keys = np.zeros(len(found_keys), destination.key_dtype)
    one = destination.value_dtype if found.ndim == 1 else destination.spec.value  # per CPU: a row for each key
    values = np.zeros(found.shape, one)
    try:
        convert(found_keys, keys)
        convert(found, values)
    except ValueError as error:
        raise _misfit(destination, str(error)) from error
    return keys, values


def convert(source: Array, destination: Array) -> None:
    """Fill ``destination`` field by field. Raises ValueError for a number that does not fit."""
    names, wanted = source.dtype.names, destination.dtype.names
    if names is not None and wanted is not None:
        for name in wanted:
            if name in names:
                convert(source[name], destination[name])
        if "in_ifindex" in wanted and "hint" in names:
            replies = source["c"]["flags"] & layout.CONSTANTS["CONNECTION_REPLY"] != 0
            destination["in_ifindex"] = np.where(replies, source["hint"], 0)
        if "created" in wanted and "created_ns" in names:
            destination["created"] = source["created_ns"] >> np.uint64(layout.CREATED_SHIFT)
    elif names is None and wanted is None and source.ndim == destination.ndim:
        common = tuple(slice(min(one, other)) for one, other in zip(source.shape, destination.shape, strict=True))
        with np.errstate(all="ignore"):
            destination[common] = source[common].astype(destination.dtype, casting="unsafe")
        if (destination[common] != source[common]).any():
            raise ValueError("a value does not fit into its field")


def _misfit(destination: Map, why: str) -> KernelError:
    return KernelError("take over", destination.subject, detail=f"another version's: {why}; nothing is changed")


def others(maps: Maps, kept: Path) -> Iterator[OtherLayout]:
    """What other versions have pinned for this instance. ``kept``: a directory that is none of that."""
    parent = maps.root.parent
    if not parent.is_dir():
        return
    for path in sorted(parent.iterdir()):
        if path not in (maps.root, kept) and path.is_dir():
            yield OtherLayout(path)
