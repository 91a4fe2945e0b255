"""Whether the kernel holds what it held before, for a fifth of what a whole look takes: :class:`Glance`.

Read are the configuration maps, the pins, the interfaces with their XDP programs, what their drivers can do, and
sysctls: all that can change without netlink telling, as bytes that are compared with what they were. What netlink does
tell (addresses, routes, queueing disciplines and filters, interfaces that come and go) somebody else listens for.

The kernel takes 80 ms to hand out a hundred thousand routes, so of a large trie a glance reads a part, the next one
the next. How many entries there are, newer kernels tell without reading any.
"""

from __future__ import annotations

import ctypes as ct
import errno
import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from reconciler.errors import KernelError
from reconciler.kernel import bpf, groups, rawlinks, sysctls
from reconciler.kernel.arrays import Array, address
from reconciler.kernel.genetlink import family_number
from reconciler.kernel.maps import Map, Maps
from reconciler.kernel.snapshot import LISTENERS, ROUTES

PART: Final = 8192
"""So many entries of a trie are read at a glance, in 7 ms, and a quarter of that where there are more: a whole look
finds the rest sooner in any case."""

_ARRAYS: Final = ("settings", "revision")
_SPARSE_ARRAYS: Final = ("proxy", "target", "port")
_HASHES: Final = (*LISTENERS.values(), "group_member", "device", "proxy_name", "sysctl")


class Glance:
    """Of the maps that ``maps`` gives, in the network namespace of the calling thread.

    :meth:`take` before a whole look, and :meth:`remember` what it gave if that look has found nothing to do. From then
    on, :meth:`take` giving the same again means that another look would find nothing either.
    """

    def __init__(self, maps: Callable[[], Maps]) -> None:
        self._maps = maps
        self._known = b""
        self._sysctls: tuple[str, ...] = ()
        self._family: int | None = None
        self._places: dict[str, int] = {}

    def take(self) -> bytes:
        """A digest of everything; empty where there is nothing to be read, or where it does not stand still. Reads one
        part of large tries, and finds there what this process knows of them, or gives nothing."""
        maps = self._maps()
        try:
            maps.open()
            digest = hashlib.sha256()
            for piece in self._pieces(maps):
                digest.update(len(piece).to_bytes(8, "little") + piece)
            as_known = all(self._as_known(maps, name) for name in ROUTES.values())
            return digest.digest() if as_known else b""
        except (KernelError, OSError):  # the look behind it says what is the matter
            return b""
        finally:
            maps.close()

    def same(self, taken: bytes) -> bool:
        """What was taken is what is remembered."""
        return bool(taken) and taken == self._known

    def remember(self, taken: bytes, names: Collection[str]) -> None:
        """This is how things are while nothing is to be done. ``names``: sysctls that matter from now on."""
        self._known, self._sysctls = taken, tuple(sorted(names))

    def _pieces(self, maps: Maps) -> Iterator[bytes]:
        control = maps["control"].items()[1]
        control["generation"] = 0  # grows whenever a neighbour does anything
        yield control.tobytes()
        for name in _ARRAYS:
            yield maps[name].items()[1].tobytes()
        for name in _SPARSE_ARRAYS:
            yield maps[name].prefix().tobytes()
        for name in _HASHES:
            keys, values = maps[name].items()
            yield keys.tobytes() + values.tobytes()
        yield repr(groups.read_recipes(maps)).encode()
        yield maps["blob"].keys().tobytes()
        for name in ROUTES.values():
            yield _memory(maps[name])
        yield "\n".join(sorted(_pins(maps.root.parent))).encode()
        yield rawlinks.links()
        if self._family is None:
            self._family = family_number() or 0
        yield rawlinks.features(self._family) if self._family else b""
        yield repr(sorted(sysctls.read_all(self._sysctls).items())).encode()

    def _as_known(self, maps: Maps, name: str) -> bool:
        """The next part of a trie is as this process knows it."""
        table = maps[name]
        keys, values = table.known()
        start = self._places.get(name, 0)
        start = start if start < len(keys) else 0
        stop = min(start + (PART if len(keys) <= PART else PART // 4), len(keys))
        self._places[name] = stop
        found = _read(table, keys[start - 1 : start] if start else None, stop - start + (stop == len(keys)))
        return found == (keys[start:stop].tobytes(), values[start:stop].tobytes())


def _read(table: Map, behind: Array | None, count: int) -> tuple[bytes, bytes]:
    """Up to ``count`` keys and values behind a key, or from the first one on."""
    keys, values = np.zeros(count, table.spec.key), table.values_array(count)
    position = ct.create_string_buffer(table.key_size)
    found, failed = bpf.map_lookup_batch(
        table.fd,
        None if behind is None else address(behind),
        ct.addressof(position),
        address(keys),
        address(values),
        count,
    )
    if failed not in (0, errno.ENOENT):
        raise KernelError("read", table.subject, failed)
    return keys[:found].tobytes(), values[:found].tobytes()


def _memory(table: Map) -> bytes:
    """What the kernel says that a map takes: of a trie, since Linux 6.4, so much for each entry."""
    lines = Path(f"/proc/thread-self/fdinfo/{table.fd}").read_bytes().splitlines()
    return next((line for line in lines if line.startswith(b"memlock:")), b"")


def _pins(directory: Path) -> Iterator[str]:
    """Every pin with the number of its file: another one in its place has another number."""
    for entry in os.scandir(directory):
        yield f"{entry.path} {entry.inode()}"
        if entry.is_dir(follow_symlinks=False):
            yield from _pins(Path(entry.path))
