"""Capabilities of a process that is not root: one of them is used for single calls only.

The kernel opens maps, programs and links by their ids for CAP_SYS_ADMIN alone, and that allows far more. So a daemon
that was given it by a service manager keeps it permitted but not effective, and makes it effective in the calling
thread for such a call (capabilities are each thread's own). What it starts (git, the compiler) gets no
capability, but what reads maps: :func:`bequeathing`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from reconciler.errors import KernelError

_NEEDED: Final = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_BPF": 39, "CAP_PERFMON": 38}
_SYS_ADMIN: Final = 1 << 21
_BPF: Final = 1 << (39 - 32)  # in the second half
_IMPLIED: Final = 1 << 39 | 1 << 38
"""What the kernel takes an effective CAP_SYS_ADMIN for, too."""

_VERSION_3: Final = 0x20080522  # of struct __user_cap_header_struct
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 2, 4


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    """``struct __user_cap_data_struct``; two of them hold 64 capabilities."""

    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


_libc = ctypes.CDLL(None, use_errno=True)
_lowered = False


def missing() -> list[str]:
    """The capabilities that everything here needs and the calling thread does not have."""
    held = _held()
    has = held[0].effective | (held[1].effective << 32)
    has |= _IMPLIED if has & _SYS_ADMIN else held[0].permitted & _SYS_ADMIN
    return [name for name, number in _NEEDED.items() if not has >> number & 1]


def lower() -> None:
    """Before there are threads: give CAP_SYS_ADMIN up but for :func:`opening_by_id`, where it came from a service
    manager (as an ambient capability) rather than with root. Raises :class:`KernelError`."""
    global _lowered
    if not _ambient():
        return
    if _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0):
        raise KernelError("clear", "ambient capabilities", ctypes.get_errno())
    held = _held()
    for each in held:
        each.inheritable = 0
    _set(held, raised=False)
    _lowered = True


@contextmanager
def opening_by_id() -> Iterator[None]:
    """CAP_SYS_ADMIN is effective in the calling thread, if the process has it at all."""
    if not _lowered:
        yield
        return
    held = _held()
    _set(held, raised=True)
    try:
        yield
    finally:
        _set(held, raised=False)


@contextmanager
def bequeathing() -> Iterator[None]:
    """What the calling thread starts meanwhile gets CAP_BPF, if the process has it: enough to read maps."""
    if not _lowered:
        yield
        return
    _bequeath(True)
    try:
        yield
    finally:
        _bequeath(False)


def _bequeath(wanted: bool) -> None:
    held = _held()
    held[1].inheritable = held[1].permitted & _BPF if wanted else 0
    if _libc.capset(_header(), held):  # takes ambient ones away with the inheritable
        raise KernelError("set", "capabilities", ctypes.get_errno())
    if held[1].inheritable and _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _NEEDED["CAP_BPF"], 0, 0):
        raise KernelError("raise", "ambient capabilities", ctypes.get_errno())


def _ambient() -> bool:
    status = Path("/proc/self/status").read_bytes()
    return any(line.startswith(b"CapAmb:") and int(line[7:], 16) for line in status.split(b"\n"))


def _header() -> Any:
    return ctypes.byref(_Header(_VERSION_3, 0))  # 0: the calling thread


def _held() -> ctypes.Array[_Data]:
    held = (_Data * 2)()
    if _libc.capget(_header(), held):
        raise KernelError("read", "capabilities", ctypes.get_errno())
    return held


def _set(held: ctypes.Array[_Data], *, raised: bool) -> None:
    others = held[0].effective & ~_SYS_ADMIN
    held[0].effective = others | (held[0].permitted & _SYS_ADMIN if raised else 0)
    if _libc.capset(_header(), held):
        raise KernelError("set", "capabilities", ctypes.get_errno())
