"""Routes with several next hops (ECMP): by which interfaces each of them leads.

Asking for a route gives the one next hop that its hash fell on; connections go by all of them, and so do their answers.
As bytes, since pyroute2 takes twenty times as long and every target is asked about at every look.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from pyroute2.netlink import NETLINK_ROUTE

from reconciler.errors import KernelError
from reconciler.state.objects import IPAddress

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct rtattr: length, type
_NEXT_HOP: Final = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, weight, interface
_REQUEST: Final = 1
_GET_ROUTE, _NEW_ROUTE = 26, 24
_FIB_MATCH: Final = 0x2000  # RTM_F_FIB_MATCH: the route itself, not the way of one packet
_DESTINATION, _MULTIPATH = 1, 9
_AT_ONCE: Final = 32  # answers have to fit into the socket's buffer
_TIMEOUT_SEC: Final = 5
_RECEIVE_BYTES: Final = 1 << 16


def next_hop_interfaces(targets: Iterable[IPAddress]) -> dict[IPAddress, frozenset[int]]:
    """Of those whose route has several next hops, the interfaces that these lead by. Raises :class:`KernelError` if the
    kernel can't be asked."""
    wanted, found = list(targets), dict[IPAddress, frozenset[int]]()
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE) as link:
            link.settimeout(_TIMEOUT_SEC)
            for start in range(0, len(wanted), _AT_ONCE):
                some = wanted[start : start + _AT_ONCE]
                link.sendto(b"".join(map(_request, range(len(some)), some)), (0, 0))
                for number, body in _answers(link, len(some)):
                    if interfaces := _several(body):
                        found[some[number]] = interfaces
    except OSError as error:
        raise KernelError("find next hops", "of targets", error.errno or 0, error.strerror or str(error)) from error
    return found


def _request(number: int, target: IPAddress) -> bytes:
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    packed = target.packed
    body = _ROUTE.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, _FIB_MATCH)
    body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _DESTINATION) + packed
    return _HEADER.pack(_HEADER.size + len(body), _GET_ROUTE, _REQUEST, number, 0) + body


def _answers(link: socket.socket, number: int) -> Iterator[tuple[int, bytes]]:
    """Each answer is one message, with its request's number; an error counts as an empty one."""
    left = number
    while left > 0:
        data, start = link.recv(_RECEIVE_BYTES), 0
        while start + _HEADER.size <= len(data):
            length, kind, _, sequence, _ = _HEADER.unpack_from(data, start)
            left -= 1
            yield sequence, data[start + _HEADER.size : start + length] if kind == _NEW_ROUTE else b""
            start += -(-max(length, _HEADER.size) // 4) * 4


def _several(body: bytes) -> frozenset[int]:
    start = _ROUTE.size
    while start + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, start)
        if kind == _MULTIPATH:
            return frozenset(_interfaces(body[start + _ATTRIBUTE.size : start + length]))
        start += -(-max(length, _ATTRIBUTE.size) // 4) * 4
    return frozenset()


def _interfaces(value: bytes) -> Iterator[int]:
    start = 0
    while start + _NEXT_HOP.size <= len(value):
        length, _, _, ifindex = _NEXT_HOP.unpack_from(value, start)
        yield ifindex
        start += -(-max(length, _NEXT_HOP.size) // 4) * 4
