"""What netlink says of the interfaces, as bytes: to be compared with what it said before, not to be understood.

pyroute2 takes ten times as long for the same, most of it for decoding and for making an event loop.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

from pyroute2.netlink import NETLINK_GENERIC, NETLINK_ROUTE

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct rtattr: length, type
_LINK_BYTES: Final = 16  # struct ifinfomsg
_REQUEST_AND_DUMP: Final = 0x301
_ERROR, _DONE, _GET_LINK = 2, 3, 18
_INTERRUPTED: Final = 0x10  # NLM_F_DUMP_INTR
_EXT_MASK, _SKIP_STATISTICS = 29, 8
_TOLD: Final = frozenset({3, 4, 43})
"""IFLA_IFNAME, IFLA_MTU, IFLA_XDP: what matters here and stays while nobody changes it; whether there is a carrier is
among the flags. A bridge's attributes have its timers among them."""
_TIMEOUT_SEC: Final = 5
_RECEIVE_BYTES: Final = 1 << 16


def links() -> bytes:
    """Number, flags (also of a carrier), name, MTU and XDP programs of every interface of the calling thread's network
    namespace. Raises :class:`OSError`."""
    body = bytes(_LINK_BYTES) + _ATTRIBUTE.pack(8, _EXT_MASK) + struct.pack("=I", _SKIP_STATISTICS)
    return b"".join(map(_link, _dump(NETLINK_ROUTE, _GET_LINK, body)))


def features(family: int) -> bytes:
    """What the generic netlink family "netdev", which has this number, says of every interface's driver. Raises
    :class:`OSError`."""
    return b"".join(_dump(NETLINK_GENERIC, family, struct.pack("=BBH", 1, 1, 0)))  # NETDEV_CMD_DEV_GET


def _link(body: bytes) -> bytes:
    """A message about an interface without what changes by itself."""
    found, start = [body[:_LINK_BYTES]], _LINK_BYTES
    while start + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, start)
        if length < _ATTRIBUTE.size:
            break
        if kind & 0x3FFF in _TOLD:
            found.append(body[start : start + length])
        start += -(-length // 4) * 4
    return b"".join(found)


def _dump(protocol: int, kind: int, body: bytes) -> Iterator[bytes]:
    """The bodies of all messages of an answer."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as link:
        link.settimeout(_TIMEOUT_SEC)
        link.sendto(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST_AND_DUMP, 1, 0) + body, (0, 0))
        while True:
            data = link.recv(_RECEIVE_BYTES)
            start = 0
            while start + _HEADER.size <= len(data):
                length, found, flags, _, _ = _HEADER.unpack_from(data, start)
                if found == _DONE:
                    return
                if found == _ERROR or length < _HEADER.size:
                    number = -int(struct.unpack_from("=i", data, start + _HEADER.size)[0])
                    raise OSError(number, os.strerror(number))
                if flags & _INTERRUPTED:
                    raise OSError(errno.EINTR, "the interfaces changed while they were listed")
                yield data[start + _HEADER.size : start + length]
                start += -(-length // 4) * 4
