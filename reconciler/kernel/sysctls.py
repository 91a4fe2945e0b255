"""Read and write sysctls of the network namespace of the calling thread."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from reconciler.errors import KernelError
from reconciler.kernel.gateway import Gateway

_ROOT: Final = Path("/proc/sys")
ALL_FORWARDING6: Final = "net/ipv6/conf/all/forwarding"


def read(name: str) -> str | None:
    """The live value of one like ``net/ipv4/conf/lo/forwarding``; None where the host has none of that name."""
    try:
        return _path("read sysctl", name).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise KernelError("read sysctl", name, error.errno or 0, error.strerror or "") from error


def read_all(names: Iterable[str]) -> dict[str, str]:
    """The live values of those that exist."""
    found = ((name, read(name)) for name in names)
    return {name: value for name, value in found if value is not None}


def write(name: str, value: str, gateway: Gateway) -> None:
    """Set it, and nothing else: where the kernel changes others along with it, those are put back.

    Raises :class:`KernelError` if the kernel does not have it or does not take the value.
    """
    before = read_all(_changed_along(name))
    _set(name, value, gateway)
    for other, was in before.items():
        if read(other) not in (was, None):  # None: its interface went meanwhile
            _set(other, was, gateway)


def _set(name: str, value: str, gateway: Gateway) -> None:
    path = _path("set sysctl", name)

    def store() -> None:
        # One write: the kernel takes each for a whole value.
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode() + b"\n")
        finally:
            os.close(descriptor)

    gateway.call("set sysctl", f"{name} to {value}", store)


def _changed_along(name: str) -> list[str]:
    """What the kernel changes when this one changes: IPv6 forwarding for all is every interface's and the default, and
    when it is taken away, forced forwarding goes as well (``addrconf_fixup_forwarding`` in net/ipv6/addrconf.c).
    That of all comes first: setting it sets the others. Then ``lo``, as from which the programs look up ways: until it
    has its own again, new connections are lost."""
    if name != ALL_FORWARDING6:
        return []
    every = (*_ROOT.glob("net/ipv6/conf/*/forwarding"), *_ROOT.glob("net/ipv6/conf/*/force_forwarding"))
    files = sorted(every, key=lambda file: (file.parent.name != "all", file.parent.name != "lo", file))
    return [found for file in files if (found := str(file.relative_to(_ROOT))) != name]


def _path(operation: str, name: str) -> Path:
    """Below /proc/sys/net only: that is what belongs to a network namespace."""
    parts = name.split("/")
    if parts[0] != "net" or len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        raise KernelError(operation, name, errno.EINVAL, "not a name like net/ipv4/conf/lo/forwarding")
    return _ROOT.joinpath(*parts)
