"""What changes in the network namespace, as it happens: interfaces, addresses, routes, neighbours, filters, sysctls.

An event only says where to look again. It belongs to the network namespace of the thread that made the
:class:`Monitor`; reading may be done by another one.
"""

from __future__ import annotations

import errno
import itertools
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

from pyroute2.netlink import NETLINK_ROUTE, rtnl
from pyroute2.netlink.nlsocket import Marshal
from pyroute2.netlink.rtnl import ndmsg

from reconciler.kernel.messages import EventMessage

_GROUPS: Final = (
    rtnl.RTNLGRP_LINK,
    rtnl.RTNLGRP_NEIGH,
    rtnl.RTNLGRP_TC,
    rtnl.RTNLGRP_IPV4_IFADDR,
    rtnl.RTNLGRP_IPV6_IFADDR,
    rtnl.RTNLGRP_IPV4_ROUTE,
    rtnl.RTNLGRP_IPV6_ROUTE,
    rtnl.RTNLGRP_IPV4_RULE,
    rtnl.RTNLGRP_IPV6_RULE,
    rtnl.RTNLGRP_IPV4_NETCONF,
    rtnl.RTNLGRP_IPV6_NETCONF,
    32,  # RTNLGRP_NEXTHOP, which pyroute2 has no name for
)
_BUFFER_BYTES: Final = 4 << 20
_SO_RCVBUFFORCE: Final = 33  # beyond net.core.rmem_max; the socket module has no name for it
_RECEIVE_BYTES: Final = 1 << 18
_READ_MESSAGES: Final = 10_000  # at most at once
_NEIGHBOURS: Final = 16_384  # remembered at most
_USABLE: Final = (
    ndmsg.NUD_REACHABLE | ndmsg.NUD_STALE | ndmsg.NUD_DELAY | ndmsg.NUD_PROBE | ndmsg.NUD_NOARP | ndmsg.NUD_PERMANENT
)


class Subject(StrEnum):
    """What changed. ``everything``: messages were lost, so that anything may have."""

    LINK = "link"
    ADDRESS = "address"
    ROUTE = "route"
    NEIGHBOUR = "neighbour"
    TC = "tc"
    SYSCTL = "sysctl"
    EVERYTHING = "everything"


_SUBJECTS: Final = {
    **dict.fromkeys((rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK), Subject.LINK),
    **dict.fromkeys((rtnl.RTM_NEWADDR, rtnl.RTM_DELADDR), Subject.ADDRESS),
    **dict.fromkeys((rtnl.RTM_NEWROUTE, rtnl.RTM_DELROUTE, rtnl.RTM_NEWRULE, rtnl.RTM_DELRULE), Subject.ROUTE),
    **dict.fromkeys((104, 105), Subject.ROUTE),  # nexthops, which pyroute2 has no names for
    **dict.fromkeys((rtnl.RTM_NEWNEIGH, rtnl.RTM_DELNEIGH), Subject.NEIGHBOUR),
    **dict.fromkeys((rtnl.RTM_NEWQDISC, rtnl.RTM_DELQDISC), Subject.TC),
    **dict.fromkeys((rtnl.RTM_NEWTFILTER, rtnl.RTM_DELTFILTER), Subject.TC),
    **dict.fromkeys((100, 101), Subject.TC),  # chains, the same
    **dict.fromkeys((rtnl.RTM_NEWNETCONF, rtnl.RTM_DELNETCONF), Subject.SYSCTL),
}
_WITH_IFINDEX: Final = frozenset((Subject.LINK, Subject.ADDRESS, Subject.NEIGHBOUR, Subject.TC))


@dataclass(frozen=True, slots=True)
class Event:
    """One change. ``ifindex``: on which interface, where it is of one."""

    subject: Subject
    ifindex: int | None = None


class Monitor:
    """An open subscription. A context manager. :meth:`close` may be called from any thread, at any time."""

    def __init__(self) -> None:
        # Not one of pyroute2's: those that may be polled, and read by another thread, load a great deal more of it.
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        try:
            self._socket.bind((0, sum(1 << (group - 1) for group in _GROUPS)))
            self.set_receive_buffer(_BUFFER_BYTES)
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except BaseException:
            self._socket.close()
            raise
        # Only what an Event tells is decoded: a thousand routes that change at once are not worth more.
        self._marshal = Marshal()
        self._marshal.msg_map = {kind: EventMessage for kind, subject in _SUBJECTS.items() if subject in _WITH_IFINDEX}
        self._marshal.msg_map[rtnl.RTM_NEWNEIGH] = ndmsg.ndmsg
        self._neighbours: dict[tuple[int, str], str] = {}
        self._closing = False
        self._lock = threading.Lock()  # between close and release

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.release()

    def fileno(self) -> int:
        """Readable when there are events, for a caller with a selector of its own."""
        return self._socket.fileno()

    def set_receive_buffer(self, size_bytes: int) -> None:
        """How much may wait unread before the kernel drops messages."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size_bytes)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)

    def read(self, timeout_sec: float | None = None) -> tuple[Event, ...] | None:
        """Wait for changes and return all there are, each once. Empty after the timeout; None when closed."""
        poller = select.poll()
        poller.register(self.fileno(), select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        ready = [descriptor for descriptor, _ in poller.poll(None if timeout_sec is None else timeout_sec * 1000)]
        if self._closing:
            return None
        if self.fileno() not in ready:
            return ()
        return tuple(dict.fromkeys(itertools.islice(self._pending(), _READ_MESSAGES)))

    def _pending(self) -> Iterator[Event]:
        """What waits in the socket."""
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._neighbours.clear()
                yield Event(Subject.EVERYTHING)
                continue
            for message in self._marshal.parse(data):
                kind = message["header"].get("type")
                subject = _SUBJECTS.get(kind)
                if subject is None or (kind == rtnl.RTM_NEWNEIGH and self._is_known(message)):
                    continue
                if kind == rtnl.RTM_DELNEIGH:
                    self._neighbours.clear()  # which one it was is not decoded
                yield Event(
                    subject,
                    message["ifindex" if kind == rtnl.RTM_NEWNEIGH else "index"] if subject in _WITH_IFINDEX else None,
                )

    def _is_known(self, message: Any) -> bool:
        """Whether a neighbour's hardware address is what was told last: each that is in use is asked every half minute
        or so whether it is still there, and that is told too."""
        address = str(message.get_attr("NDA_LLADDR")) if message["state"] & _USABLE else ""
        key = message["ifindex"], str(message.get_attr("NDA_DST"))
        if self._neighbours.get(key) == address:
            return True
        if len(self._neighbours) >= _NEIGHBOURS:
            self._neighbours.clear()
        self._neighbours[key] = address
        return False

    def run(self, changed: Callable[[tuple[Event, ...]], None]) -> None:
        """Hand all changes to ``changed``, in the calling thread, until closed; then free what was open."""
        try:
            while (events := self.read()) is not None:
                if events:
                    changed(events)
        finally:
            self.release()

    def close(self) -> None:
        """Make :meth:`read` and :meth:`run` return, whichever thread is in them."""
        with self._lock:
            self._closing = True
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def release(self) -> None:
        """Free what is open. Only once no thread is in :meth:`read` any more; may be repeated."""
        with self._lock:
            self._closing = True
            self._socket.close()
            if self._wake >= 0:
                os.close(self._wake)
                self._wake = -1
