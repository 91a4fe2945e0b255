"""What ethtool knows of an interface and netlink does not tell in Linux 5.11: driver, offloads and queues."""

from __future__ import annotations

import ctypes as ct
import fcntl
import socket
from dataclasses import dataclass
from typing import Final

_SIOCETHTOOL: Final = 0x8946
_GDRVINFO, _GFLAGS, _GCHANNELS = 0x3, 0x25, 0x3C
_FLAG_LRO: Final = 1 << 15


class _Request(ct.Structure):
    """``struct ifreq`` with a pointer in its union."""

    _fields_ = [("name", ct.c_char * 16), ("data", ct.c_void_p), ("rest", ct.c_uint8 * 16)]


class _DriverInfo(ct.Structure):
    """``struct ethtool_drvinfo``."""

    _fields_ = [("cmd", ct.c_uint32), ("driver", ct.c_char * 32), ("rest", ct.c_uint8 * 160)]


class _Value(ct.Structure):
    """``struct ethtool_value``."""

    _fields_ = [("cmd", ct.c_uint32), ("data", ct.c_uint32)]


class _Channels(ct.Structure):
    """``struct ethtool_channels``."""

    _fields_ = [
        (name, ct.c_uint32)
        for name in ("cmd", "max_rx", "max_tx", "max_other", "max_combined", "rx", "tx", "other", "combined")
    ]


@dataclass(frozen=True, slots=True)
class Queues:
    """Receive queues in use, and how many there can be."""

    now: int
    most: int


def driver_name(interface: str) -> str:
    """What it calls the interface's driver; empty if it has no name for it."""
    info = _DriverInfo(cmd=_GDRVINFO)
    return bytes(info.driver).decode(errors="replace") if _ask(interface, info) else ""


def large_receive_offload(interface: str) -> bool | None:
    """Whether LRO is on; None where the driver doesn't say."""
    value = _Value(cmd=_GFLAGS)
    return bool(value.data & _FLAG_LRO) if _ask(interface, value) else None


def queues(interface: str) -> Queues | None:
    """Its receive queues; None where the driver doesn't say."""
    value = _Channels(cmd=_GCHANNELS)
    if not _ask(interface, value):
        return None
    return Queues(value.rx + value.combined, value.max_rx + value.max_combined)


def _ask(interface: str, value: ct.Structure) -> bool:
    request = _Request(name=interface.encode()[:15], data=ct.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
        except OSError:
            return False
    return True
