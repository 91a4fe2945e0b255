"""Whether the running kernel does what everything here needs, told before anything is tried: :func:`check`."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Final

from reconciler.errors import HostError, KernelError
from reconciler.kernel import bpf

_NOTHING: Final = "/proc/self/no-pin"  # not on a bpffs, which may not be there or refuse the name
_DOCTOR: Final = "`revproxyctl doctor` says more"

_REASONS: Final[Mapping[int, tuple[str, str]]] = {
    errno.ENOSYS: (
        "this kernel has no bpf() (ENOSYS)",
        "boot one that was built with CONFIG_BPF_SYSCALL, or let a container's system call filter allow bpf",
    ),
    errno.EPERM: (
        "this kernel refuses bpf() to this process, although it has the capabilities (EPERM)",
        "let the container's system call filter, the service unit or the security module allow bpf",
    ),
    errno.EACCES: (
        "this kernel refuses bpf() to this process, although it has the capabilities (EACCES)",
        "let the security module allow bpf",
    ),
    errno.EINVAL: (
        "this kernel knows no pinned BPF objects (EINVAL)",
        "boot a newer one",
    ),
}


def check() -> None:
    """Raise :class:`HostError` with a remedy if bpf() is not to be had. To be called by who has the privileges."""
    try:
        os.close(bpf.obj_get(_NOTHING))
    except KernelError as error:
        if error.errno in _REASONS:
            text, remedy = _REASONS[error.errno]
            raise HostError("", error.errno, text, f"{remedy}; {_DOCTOR}") from error
