"""The library that makes bpf() calls: libbpf itself, which bcc's library needs and Debian's package of it brings along.

Going through libbcc instead would load a whole compiler with it: 60 ms at each start, and 70 MiB of memory in a daemon
that compiles in children. Where libbpf is not a library of its own but built into libbcc, it is that one.
"""

from __future__ import annotations

import ctypes as ct
from typing import Any, Final

_NAME: Final = "libbpf.so.1"


def _library() -> Any:
    try:
        return ct.CDLL(_NAME, use_errno=True)
    except OSError:
        from bcc import lib

        return lib


_lib: Final = _library()


def function(name: str, *argtypes: Any, result: Any = ct.c_int) -> Any:
    """A function of libbpf by its name, returning ``result``. Raises AttributeError where it has none of that name."""
    return ct.CFUNCTYPE(result, *argtypes, use_errno=True)((name, _lib))
