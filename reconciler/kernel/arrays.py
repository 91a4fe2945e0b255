"""Numpy arrays as the kernel's maps need them: where their memory lies, and how much of it is used."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_STEP: Final = 1024

Array = npt.NDArray[Any]


def address(array: Array) -> int:
    """Where the array's memory starts. Keep the array: the memory goes with it, and another thread may get it."""
    return array.ctypes.data  # the array interface would describe the fields as well, in five times the time


def untouched(count: int, dtype: np.dtype[Any]) -> Array:
    """Zeros, of which only what is written to takes memory. ``np.zeros`` asks malloc, which after a while gives memory
    that was in use before, and clears all of it. A huge page would come whole, and with what lies beside it."""
    memory = mmap.mmap(-1, count * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # EINVAL: a kernel without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.ndarray((count,), dtype, memory)


def join(parts: Sequence[Array], like: Array) -> Array:
    """The parts one after the other, laid out as ``like``. (``np.concatenate`` turns big-endian fields into
    little-endian ones: the values are the same, the bytes are not.)"""
    joined = np.empty((sum(map(len, parts)), *like.shape[1:]), like.dtype)
    start = 0
    for part in parts:
        joined[start : start + len(part)] = part
        start += len(part)
    return joined


def prefix(values: Array) -> Array:
    """A copy of all before the zeros at the end, which most of a large array is."""
    stride = values.strides[0]
    words = np.ndarray((len(values) * stride // 8,), np.uint64, values.base)
    # In large steps first: looking for every word that is not zero takes three times as long.
    whole = len(words) // _STEP * _STEP
    steps = np.flatnonzero(np.bitwise_or.reduce(words[:whole].reshape(-1, _STEP), axis=1))
    first = int(steps[-1]) * _STEP if len(steps) else 0
    if words[whole:].any():
        first = whole
    used = np.flatnonzero(words[first : first + _STEP])
    return values[: (first + int(used[-1])) * 8 // stride + 1 if len(used) else 1].copy()
