"""Memory of a process that stays: what large pieces are taken from, and giving back what is no longer needed.

glibc's malloc raises the size from which on it asks the kernel for a piece alone, whenever such a piece is freed, to 32
MiB in the end. Then what a hundred thousand routes take for a moment comes from heaps, with something small behind it
that stays; and each thread has a heap of its own. Here it is 512 KiB, and one heap for all.
"""

from __future__ import annotations

import ctypes as ct
import gc
from typing import Final

_LARGE_BYTES: Final = 512 << 10
_OBJECTS: Final = 10_000
"""So many more objects are made than freed until the collector looks at those that are young."""
_M_MMAP_THRESHOLD: Final = -3  # malloc.h
_M_ARENA_MAX: Final = -8


def settle() -> bool:
    """Have malloc behave so from now on, and the collector not look at a thousand proxies again for every 700 objects
    that an edit makes. Before there are threads. False with a C library that knows none of it."""
    gc.set_threshold(_OBJECTS)
    library = ct.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    return bool(library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES) and library.mallopt(_M_ARENA_MAX, 1))


def give_back() -> None:
    """Free what nothing refers to any more, and give the kernel the pages in which nothing is left.

    What stays is not looked at again by the collector until the next call: modules, and a configuration that may have
    a thousand proxies."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    library = ct.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(ct.c_size_t(0))
