"""Whether the kernel holds what it held before, for a fifth of what a whole look takes: :class:`Glance`.

Read are the configuration maps, the pins, the interfaces with their XDP programs, what their drivers can do, and
sysctls: all that can change without netlink telling, as bytes that are compared with what they were. What netlink does
tell (addresses, routes, queueing disciplines and filters, interfaces that come and go) somebody else listens for.

The kernel takes 40 to 80 ms to hand out a hundred thousand routes, so those of a large trie are not read but looked up,
by a program (:mod:`.routecheck`). How many entries there are, newer kernels tell without reading any: since Linux 6.4 a
trie takes so much memory for each, and so does a hash whose entries are not made beforehand. Where either can't be had,
all are read. Not looked at are targets and groups beyond those in use: nothing leads to them.
"""

from __future__ import annotations

import ctypes as ct
import errno
import hashlib
import mmap
import os
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from reconciler.errors import KernelError
from reconciler.kernel import bpf, groups, rawlinks, sysctls
from reconciler.kernel.arrays import Array, address
from reconciler.kernel.genetlink import family_number
from reconciler.kernel.maps import Map, Maps
from reconciler.kernel.routecheck import RouteCheck
from reconciler.kernel.snapshot import LISTENERS, ROUTES

LARGE: Final = 4096
"""Of a trie with more entries they are looked up; so many are read in 3 ms."""
FEW_CHUNKS: Final = 64
"""Of files that take no more than that (256 KiB packed) the contents are read."""
_BEYOND: Final = 1024  # so many targets are looked at behind the last one in use

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
        self._check = RouteCheck()
        self.routes_sec = 0.0
        """What the last :meth:`take` took of a CPU's time for large tries."""
        self._targets: int | None = None  # so many are in use
        self._empty: dict[str, bytes] = {}  # hash -> what it takes while it has no entry
        self._blobs = (b"", b"", 0)  # what the map takes, and its keys then, and how many

    def take(self) -> bytes:
        """A digest of everything; empty where there is nothing to be read, or where it does not stand still, or where a
        trie does not hold what this process knows of it."""
        maps = self._maps()
        self.routes_sec = 0.0
        try:
            maps.open()
            digest = hashlib.sha256()
            for piece in self._pieces(maps):
                digest.update(len(piece).to_bytes(8, "little") + piece)
            return digest.digest() if all(self._as_known(maps[name]) for name in ROUTES.values()) else b""
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
            found = maps[name].prefix(self._most(name))
            yield found.tobytes()
            if name == "target":
                self._targets = len(found)
        for name in _HASHES:
            yield self._entries(maps[name])
        yield repr(groups.read_recipes(maps)).encode() if self._has_entries(maps["group_member"]) else b""
        yield self._blob_entries(maps["blob"])
        for name in ROUTES.values():
            yield _counted(maps[name])
        yield "\n".join(sorted(_pins(maps.root.parent))).encode()
        yield rawlinks.links()
        if self._family is None:
            self._family = family_number() or 0
        yield rawlinks.features(self._family) if self._family else b""
        yield repr(sorted(sysctls.read_all(self._sysctls).items())).encode()

    def _most(self, name: str) -> int | None:
        """So many entries of an array are read; None: all."""
        return self._targets + _BEYOND if name == "target" and self._targets is not None else None

    def _has_entries(self, table: Map) -> bool:
        """False only where the kernel says so without looking through all of its buckets."""
        taken = _counted(table)
        return not taken or self._empty.get(table.spec.name) != taken

    def _entries(self, table: Map) -> bytes:
        """Keys and values of a hash."""
        taken = _counted(table)
        if not self._has_entries(table):
            return b""
        keys, values = table.items()
        self._empty[table.spec.name] = b"" if len(keys) else taken
        return keys.tobytes() + values.tobytes()

    def _blob_entries(self, table: Map) -> bytes:
        """The same for files. Where they are many only the keys are read, and only if there are not as many as before:
        what has become of their contents a whole look finds."""
        taken = _counted(table)
        if not taken or self._blobs[0] != taken:
            keys = table.keys()
            self._blobs = taken, keys.tobytes(), len(keys)
        _, known, count = self._blobs
        if count > FEW_CHUNKS:
            return known
        keys, values = table.items()
        return keys.tobytes() + values.tobytes()

    def _as_known(self, trie: Map) -> bool:
        """It holds what this process knows of it. (That there are as many entries as before was looked at.)"""
        keys, values = trie.known()
        if len(keys) <= LARGE:
            return _holds_only(trie, keys, values)
        began = time.thread_time()
        same = self._check.holds(trie, keys, values) if _counted(trie) else None
        same = _holds_only(trie, keys, values) if same is None else same
        self.routes_sec += time.thread_time() - began
        return same


def _holds_only(trie: Map, keys: Array, values: Array) -> bool:
    return _read(trie, len(keys) + 1) == (keys.tobytes(), values.tobytes())


def _read(table: Map, count: int) -> tuple[bytes, bytes]:
    """The first ``count`` keys and values."""
    keys, values = np.zeros(count, table.spec.key), table.values_array(count)
    position = ct.create_string_buffer(table.key_size)
    found, failed = bpf.map_lookup_batch(table.fd, None, ct.addressof(position), address(keys), address(values), count)
    if failed not in (0, errno.ENOENT):
        raise KernelError("read", table.subject, failed)
    return keys[:found].tobytes(), values[:found].tobytes()


def _counted(table: Map) -> bytes:
    """How much memory a map takes, if that grows with every entry; empty if it does not."""
    taken = _taken_bytes(table)
    entry = (table.key_size + table.value_size + 7) // 8 * 8  # before 6.4: of all entries there may be
    all_there_may_be = -(-table.spec.max_entries * entry // mmap.PAGESIZE) * mmap.PAGESIZE
    return b"" if taken in (0, all_there_may_be) else b"%d" % taken


def _taken_bytes(table: Map) -> int:
    """What the kernel says of that; 0 if nothing."""
    lines = Path(f"/proc/thread-self/fdinfo/{table.fd}").read_bytes().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(b"memlock:")), 0)


def _pins(directory: Path) -> Iterator[str]:
    """Every pin with the number of its file: another one in its place has another number."""
    for entry in os.scandir(directory):
        yield f"{entry.path} {entry.inode()}"
        if entry.is_dir(follow_symlinks=False):
            yield from _pins(Path(entry.path))
