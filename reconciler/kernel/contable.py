"""A connection table as what it is to user space: keys and values, as of any hash.

Reading is copying from the kernel's memory. Writing is done by a program of ours, which takes the same locks as those
that packets go through: many entries in a run.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from reconciler import resources
from reconciler.errors import KernelError
from reconciler.kernel import bpf, layout
from reconciler.kernel.arrays import Array
from reconciler.kernel.blocks import Blocks
from reconciler.kernel.bpfmap import CHUNK, Map
from reconciler.kernel.compiler import compile_programs
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.layout import MapSpec, MapType

_LICENSE: Final = "Dual BSD/GPL"
_MOST_WAITS, _WAIT_SEC = 100, 0.001
"""For locks that somebody holds: programs do so for some hundred nanoseconds, unless their CPU is taken away."""


class ConnectionTable(Map):
    """One family's connections, an entry for each direction. ``spec`` says what the array is; keys and values are
    those of the entries."""

    def __init__(self, spec: MapSpec, fd: int, gateway: Gateway) -> None:
        super().__init__(spec, fd, gateway)
        entry = spec.value["entry"].base
        self.key_dtype, self.value_dtype = entry["key"], entry["value"]
        self.key_size, self.value_size = self.key_dtype.itemsize, self.value_dtype.itemsize

    @cached_property
    def blocks(self) -> Blocks:
        """Where its entries are."""
        return Blocks.of(self.fd, self.spec.value)

    @property
    def max_entries(self) -> int:
        """How many entries it takes."""
        return self.blocks.entries

    @property
    def is_empty(self) -> bool:
        """There is no entry."""
        return not self.blocks.used

    # -- reading ---------------------------------------------------------------------------------------------

    def get(self, key: Any) -> Array | None:
        """The value as an array of one, None if there is none."""
        found, values = self.get_many(key)
        return values if found[0] else None

    def get_many(self, keys: Array) -> tuple[npt.NDArray[np.bool_], Array]:
        """Which keys exist, and their values (zero where not), in the keys' order."""
        return self.blocks.find(self.keys_array(keys))

    def keys(self) -> Array:
        """All keys."""
        return self.items()[0]

    def _items(self) -> tuple[Array, Array]:
        return self.blocks.read(0, self.blocks.count)

    # -- writing ---------------------------------------------------------------------------------------------

    def put(self, key: Any, value: Array) -> None:
        """Write one entry, whether it exists or not."""
        self.put_many(self.keys_array(key), np.asarray(value, self.value_dtype).reshape(-1))

    def delete(self, key: Any) -> bool:
        """Delete one entry. False if there was none."""
        there = self.get(key) is not None
        self.delete_many(self.keys_array(key))
        return there

    def put_many(self, keys: Array, values: Array) -> None:
        """Write many entries, in order. One gateway call for each :data:`~reconciler.kernel.bpfmap.CHUNK` of them; when
        it fails, some of that chunk may be written. Raises :class:`KernelError`: E2BIG if there is not room for all."""
        keys, values = self.keys_array(keys), np.asarray(values, self.value_dtype).reshape(-1)
        if len(keys) != len(values):
            raise ValueError(f"{self.subject}: {len(keys)} keys but {len(values)} values")
        self._edit("update batch", layout.CONSTANTS["EDIT_ENTER"], keys, values)

    def delete_many(self, keys: Array) -> None:
        """Delete many entries; those that do not exist are passed over. One gateway call for each chunk."""
        self._edit("delete batch", layout.CONSTANTS["EDIT_REMOVE"], self.keys_array(keys), None)

    def _edit(self, words: str, operation: int, keys: Array, values: Array | None) -> None:
        for start in range(0, len(keys), CHUNK):
            here = slice(start, start + CHUNK)
            part = None if values is None else values[here]
            self.gateway.call(
                words,
                self.subject,
                lambda k=keys[here], v=part: self._editor.run(operation, k, v),  # type: ignore[misc]
            )

    @cached_property
    def _editor(self) -> _Editor:
        return _Editor.of(self)

    def close(self) -> None:
        """Give the descriptors back."""
        editor = self.__dict__.pop("_editor", None)
        if editor is not None:
            editor.close()
        super().close()


@dataclass(frozen=True, slots=True)
class _Editor:
    """The program for one table, and what it reads the requests from."""

    subject: str
    program: int
    requests_fd: int
    requests: Array
    memory: mmap.mmap

    @classmethod
    def of(cls, table: ConnectionTable) -> _Editor:
        """Loaded, pinned nowhere. Raises :class:`KernelError` and :class:`CompileError`."""
        name = f"edit{table.spec.name[-1]}"
        code = compile_programs(resources.bpf_dir())
        entry = table.spec.value["entry"].base
        fd = bpf.map_create(MapType.ARRAY, name, 4, entry.itemsize, CHUNK, layout.F_MMAPABLE)
        try:
            memory = _mapped(fd, name, CHUNK * entry.itemsize)
            instructions = code.instructions(name, {table.spec.name: table.fd, name: fd})
            # With XDP the kernel would make a direct call of it first, which takes 10 ms.
            program = bpf.prog_load(bpf.PROG_TYPE_SCHED_CLS, name, _LICENSE, instructions)
        except BaseException:
            os.close(fd)
            raise
        return cls(table.subject, program, fd, np.ndarray((CHUNK,), entry, memory), memory)

    def run(self, operation: int, keys: Array, values: Array | None) -> None:
        """Do it for so many keys at most as there are requests."""
        self.requests["key"][: len(keys)] = keys
        if values is not None:
            self.requests["value"][: len(values)] = values
        done, at_once, waits = 0, len(keys), 0
        while done < len(keys):
            try:
                done, error = self._run(operation, done, min(at_once, len(keys) - done))
            except KernelError as interrupted:
                if interrupted.errno != errno.EINTR:  # a signal ends a run: what it has done is done once more
                    raise
                at_once = max(1, at_once // 2)
                continue
            if error == errno.EBUSY and waits < _MOST_WAITS:
                waits += 1
                time.sleep(_WAIT_SEC)
            elif error:
                raise KernelError("update", self.subject, error, f"after {done} of {len(keys)}")

    def _run(self, operation: int, done: int, count: int) -> tuple[int, int]:
        """So many times, if there is no error: how many requests are done then, and the error that the next one had."""
        frame = np.zeros(1, layout.edit_frame)
        frame["done"], frame["operation"] = done, operation
        run = bpf.prog_test_run(self.program, frame.tobytes(), repeat=count)
        after = np.frombuffer(run.data_out[: frame.nbytes], layout.edit_frame)[0]
        return int(after["done"]), int(after["error"])

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self.program)
        os.close(self.requests_fd)


def _mapped(fd: int, name: str, size: int) -> mmap.mmap:
    try:
        return mmap.mmap(fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
    except OSError as error:
        raise KernelError("map into memory", f"map {name}", error.errno or 0) from error
