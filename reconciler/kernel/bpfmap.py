"""Typed, batched access to one map of ``layout.py``.

Keys and values are numpy arrays of the layout's dtypes. Every write goes through the :class:`Gateway`; reads do not.

Measured on Linux 6.18, two CPUs: a batch reads 100,000 trie entries in 70 to 85 ms (key by key, 220 ms for the keys
and 270 ms for the values), 100,000 entries of an LRU hash in 45 ms, an array of 65,536 in 15 ms, and writes 100,000
trie entries in 95 ms. A hash's batch read gives ENOSPC when one bucket holds more than was asked for: ask for more.
Large arrays are read through mmap instead, 4 MiB in 2 ms.
Arrays of maps take batch updates but no batch deletes (ENOTSUPP), and before Linux 6.15 their batch read stops at the
first hole (EINTR): then entries are read one by one.
"""

from __future__ import annotations

import ctypes as ct
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from reconciler.errors import KernelError
from reconciler.kernel import bpf, layout
from reconciler.kernel.arrays import Array, address, prefix, untouched
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.layout import MapSpec, MapType
from reconciler.kernel.mirror import Mirror

CHUNK: Final = 4096
"""Entries in one batch call: the kernel allocates memory for all of them at once."""

UNSUPPORTED: Final = (524, errno.EOPNOTSUPP, errno.EINVAL)  # 524 is the kernel's own ENOTSUPP
_PER_CPU: Final = (MapType.PERCPU_ARRAY,)


class Map:
    """One open map."""

    def __init__(self, spec: MapSpec, fd: int, gateway: Gateway, mirror: Mirror | None = None) -> None:
        self.spec, self.fd, self.gateway = spec, fd, gateway
        self._mirror, self._id = mirror, bpf.map_info(fd).id if mirror else 0
        self.subject = f"map {spec.name}"
        cpus = bpf.possible_cpus() if spec.type in _PER_CPU else 0
        self.key_dtype = spec.key
        self.value_dtype: np.dtype[Any] = np.dtype((spec.value, (cpus,))) if cpus else spec.value
        self.key_size, self.value_size = self.key_dtype.itemsize, self.value_dtype.itemsize
        self._batches = True

    @property
    def max_entries(self) -> int:
        """How many entries it was made for."""
        return bpf.map_info(self.fd).max_entries

    # -- arrays ----------------------------------------------------------------------------------------------

    def keys_array(self, keys: Any) -> Array:
        """``keys`` (one or many: ints, structured scalars, an array) as a contiguous one-dimensional key array."""
        return np.ascontiguousarray(np.asarray(keys, self.key_dtype).reshape(-1))

    def values_array(self, count: int) -> Array:
        """Zeroed values; of a per-CPU map ``count`` times one for each possible CPU."""
        return np.zeros(count, self.value_dtype)

    # -- reading ---------------------------------------------------------------------------------------------

    def get(self, key: Any) -> Array | None:
        """The value as an array of one (of a per-CPU map: 1 x CPUs), None if there is none."""
        keys, value = self.keys_array(key), self.values_array(1)
        return value if bpf.map_lookup(self.fd, address(keys), address(value)) else None

    def get_many(self, keys: Array) -> tuple[npt.NDArray[np.bool_], Array]:
        """Which keys exist, and their values (zero where not), in the keys' order. One call for each key.

        A trie answers with the longest prefix that covers the key, as packets see it: :meth:`get_exactly`."""
        keys = self.keys_array(keys)
        values, found = self.values_array(len(keys)), np.zeros(len(keys), np.bool_)
        key, value = address(keys), address(values)
        for index in range(len(keys)):
            found[index] = bpf.map_lookup(self.fd, key + index * self.key_size, value + index * self.value_size)
        return found, values

    def get_exactly(self, keys: Array) -> tuple[npt.NDArray[np.bool_], Array]:
        """:meth:`get_many` for a trie, by reading all of it: no kernel call asks for one entry of a trie. (The next
        key of one that is not there is the first, but before Linux 6.13 also that of one that resembles it.)"""
        keys = self.keys_array(keys)
        all_keys, all_values = self.items()
        places = {key.tobytes(): place for place, key in enumerate(all_keys)}
        values, found = self.values_array(len(keys)), np.zeros(len(keys), np.bool_)
        for index, key in enumerate(keys):
            place = places.get(key.tobytes())
            if place is not None:
                found[index], values[index] = True, all_values[place]
        return found, values

    def items(self) -> tuple[Array, Array]:
        """All keys and values. What is written or deleted meanwhile may or may not be among them; in a hash that
        others write to, an entry may come twice."""
        found = self._items()
        if self._mirror:
            self._mirror.fill(self._id, *found)
        return found

    def _items(self) -> tuple[Array, Array]:
        if self.spec.flags & layout.F_MMAPABLE:
            values = self.mapped(lambda content: content.copy())
            return np.arange(len(values), dtype=self.key_dtype), values
        if self._batches:
            try:
                return self._items_in_batches()
            except KernelError as error:
                if error.errno not in (*UNSUPPORTED, errno.EINTR):
                    raise
                self._batches = False
        keys = self.keys()
        found, values = self.get_many(keys)
        return keys[found], values[found]

    def mapped(self, read: Callable[[Array], Array], most: int | None = None) -> Array:
        """What ``read`` makes of the values of an array with F_MMAPABLE, which it sees as they stand in the kernel's
        memory, or of the first ``most`` of them: what it returns must be a copy."""
        count, stride = self.max_entries, -(-self.value_size // 8) * 8
        count = count if most is None else min(most, count)
        size = -(-count * stride // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            memory = mmap.mmap(self.fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        except OSError as error:
            raise KernelError("map into memory", self.subject, error.errno or 0) from error
        return read(np.ndarray((count,), self.value_dtype, memory, strides=(stride,)))  # unmapped with the array

    def prefix(self, most: int | None = None) -> Array:
        """The values of an array with F_MMAPABLE up to the last one that is not zero, and always the first; of the
        first ``most`` ones, if that is given."""
        return self.mapped(prefix, most)

    def _items_in_batches(self) -> tuple[Array, Array]:
        """The kernel writes each chunk to where it stays: memory that is not written to is never there."""
        chunk, count, turn = CHUNK, 0, 0
        positions = [ct.create_string_buffer(max(self.key_size, 8)) for _ in range(2)]
        keys, values = self._room(self.max_entries + chunk)
        position: int | None = None
        while True:
            if count + chunk > len(keys):  # an entry may come twice
                more = self._room(2 * len(keys) + chunk)
                more[0][:count], more[1][:count] = keys[:count], values[:count]
                keys, values = more
            upcoming = ct.addressof(positions[turn % 2])
            found, failed = bpf.map_lookup_batch(
                self.fd, position, upcoming, address(keys[count:]), address(values[count:]), chunk
            )
            if failed == errno.ENOSPC:
                chunk *= 2
                continue
            if failed not in (0, errno.ENOENT):
                raise KernelError("read", self.subject, failed)
            count += found
            if failed == errno.ENOENT:
                whole = count > len(keys) // 2  # else what is not used would be kept along
                return (keys[:count], values[:count]) if whole else (keys[:count].copy(), values[:count].copy())
            position, turn = upcoming, turn + 1

    def _room(self, count: int) -> tuple[Array, Array]:
        return untouched(count, self.key_dtype), untouched(count, self.value_dtype)

    def keys(self) -> Array:
        """All keys, without reading the values."""
        most = self.max_entries  # a hash that others write to may go round in circles
        found = bytearray()
        turns = [ct.create_string_buffer(self.key_size) for _ in range(2)]
        places = [ct.addressof(each) for each in turns]
        current: int | None = None
        for count in range(most + 1):
            if not bpf.map_next_key(self.fd, current, places[count % 2]):
                break
            current = places[count % 2]
            found += turns[count % 2]
        return np.frombuffer(bytes(found), self.key_dtype)

    @property
    def is_empty(self) -> bool:
        """There is no entry. (An array is never empty.)"""
        key = np.zeros(1, self.key_dtype)  # the kernel writes to it
        return not bpf.map_next_key(self.fd, None, address(key))

    def sums(self) -> Array:
        """Of a per-CPU map with values of unsigned 64-bit counters: the sums over CPUs, indexed by key."""
        _, values = self.items()
        fields = self.spec.value.names
        if not fields:
            return np.asarray(values.sum(axis=1))
        sums = np.zeros(len(values), self.spec.value)
        for field in fields:
            sums[field] = values[field].sum(axis=1)
        return sums

    def known(self) -> tuple[Array, Array]:
        """:meth:`items` as far as this process knows them: what was read last, and what it has written since."""
        found = self._mirror.read(self._id) if self._mirror else None
        return self.items() if found is None else found

    # -- writing ---------------------------------------------------------------------------------------------

    def put(self, key: Any, value: Array) -> None:
        """Write one entry, whether it exists or not. One gateway call."""
        keys = self.keys_array(key)
        values = np.ascontiguousarray(np.asarray(value, self.spec.value))
        if values.nbytes != self.value_size:
            raise ValueError(f"{self.subject}: a value of {values.nbytes} bytes instead of {self.value_size}")
        with self._followed():
            self.gateway.call("update", self.subject, lambda: bpf.map_update(self.fd, address(keys), address(values)))
            if self._mirror:
                self._mirror.put(self._id, keys, values.reshape(-1))

    def delete(self, key: Any) -> bool:
        """Delete one entry. False if there was none. One gateway call."""
        keys = self.keys_array(key)
        with self._followed():
            deleted = self.gateway.call("delete", self.subject, lambda: bpf.map_delete(self.fd, address(keys)))
            if self._mirror:
                self._mirror.delete(self._id, keys)
        return deleted

    def put_many(self, keys: Array, values: Array) -> None:
        """Write many entries, in order. One gateway call for each :data:`CHUNK` of them; when it fails, some of that
        chunk may be written."""
        keys = self.keys_array(keys)
        values = np.ascontiguousarray(np.asarray(values, self.spec.value))
        if values.nbytes != len(keys) * self.value_size:
            raise ValueError(f"{self.subject}: {len(keys)} keys but {values.nbytes} bytes of values")
        with self._followed():
            for start in range(0, len(keys), CHUNK):
                self.gateway.call(
                    "update batch",
                    self.subject,
                    lambda at=start: self._put_chunk(keys[at : at + CHUNK], values[at : at + CHUNK]),  # type: ignore[misc]
                )
            if self._mirror:
                self._mirror.put(self._id, keys, values)

    def delete_many(self, keys: Array) -> None:
        """Delete many entries; those that do not exist are passed over. One gateway call for each chunk."""
        keys = self.keys_array(keys)
        with self._followed():
            for start in range(0, len(keys), CHUNK):
                self.gateway.call(
                    "delete batch",
                    self.subject,
                    lambda at=start: self._delete_chunk(keys[at : at + CHUNK]),  # type: ignore[misc]
                )
            if self._mirror:
                self._mirror.delete(self._id, keys)

    @contextmanager
    def _followed(self) -> Iterator[None]:
        """What fails within may have been done in part: then nothing is known any more."""
        try:
            yield
        except BaseException:
            if self._mirror:
                self._mirror.forget()
            raise

    def _put_chunk(self, keys: Array, values: Array) -> None:
        done, failed = bpf.map_update_batch(self.fd, address(keys), address(values), len(keys))
        if failed not in (0, *UNSUPPORTED):
            raise KernelError("update", self.subject, failed, f"after {done} of {len(keys)}")
        if failed:
            for index in range(len(keys)):
                bpf.map_update(
                    self.fd, address(keys) + index * self.key_size, address(values) + index * self.value_size
                )

    def _delete_chunk(self, keys: Array) -> None:
        """A batch stops at a key that is not there: pass over it and go on."""
        start = 0
        while start < len(keys):
            count = len(keys) - start
            done, failed = bpf.map_delete_batch(self.fd, address(keys) + start * self.key_size, count)
            if failed == errno.ENOENT:
                start += min(done, count) + 1
            elif failed in UNSUPPORTED:
                for index in range(start, len(keys)):
                    bpf.map_delete(self.fd, address(keys) + index * self.key_size)
                return
            elif failed:
                raise KernelError("delete", self.subject, failed)
            else:
                return

    def close(self) -> None:
        """Give the descriptor back. The map lives on where it is pinned or used."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
