"""Runs a command on a kernel that lacks something, in a network and a mount namespace of its own.

    lacking.py WHAT -- COMMAND

``WHAT``: ``bpf=ERRNO``, what the kernel answers to bpf() (ENOSYS: built without it; EPERM: locked down or confined;
EINVAL: too old for what is asked); ``btf``: no type information.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

_CLONE_NEWNS, _CLONE_NEWNET, _MS_REC, _MS_PRIVATE = 0x20000, 0x40000000, 16384, 1 << 18
_SCMP_ACT_ALLOW, _SCMP_ACT_ERRNO = 0x7FFF0000, 0x00050000

_libc = ctypes.CDLL(None, use_errno=True)


def _must(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), what)


def refuse(call: str, number: int) -> None:
    """Have a system call answered with this error."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(_SCMP_ACT_ALLOW))
    resolved = library.seccomp_syscall_resolve_name(call.encode())
    _must(library.seccomp_rule_add(context, _SCMP_ACT_ERRNO | number, resolved, 0), call)
    _must(library.seccomp_load(context), "seccomp_load")


def main() -> None:
    """Take it away, and run the command."""
    what, command = sys.argv[1], sys.argv[3:]
    _must(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET), "unshare")
    _must(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "mount /")
    if what.startswith("bpf="):
        refuse("bpf", getattr(errno, what.removeprefix("bpf=")))
    elif what == "btf":
        _must(_libc.mount(b"none", b"/sys/kernel/btf", b"tmpfs", 0, None), "mount /sys/kernel/btf")
    else:
        raise SystemExit(f"nothing is called {what!r}")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
