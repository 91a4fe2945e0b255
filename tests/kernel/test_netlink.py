"""The adapter to pyroute2: which request was refused and why, whole dumps, and who may use it."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from pathlib import Path

import pytest
from pyroute2.netlink.rtnl import RTM_GETLINK, RTM_SETLINK

from reconciler.errors import KernelError
from reconciler.kernel.messages import LinkMessage
from reconciler.kernel.netlink import Answer, Netlink, Request, asking
from tests.kernel.network import add_veth

pytestmark = pytest.mark.own_namespace
LINKS = Request(RTM_GETLINK, LinkMessage)
DUMP_INTERRUPTED, MULTI, DONE = 0x10, 0x2, 3


def set_mtu(ifindex: int, mtu: int) -> Request:
    return Request(RTM_SETLINK, LinkMessage, {"index": ifindex}, (("IFLA_MTU", mtu),))


def link(ifindex: int) -> Request:
    return Request(RTM_GETLINK, LinkMessage, {"index": ifindex})


def test_refused_one_of_several_is_told_and_stops_none() -> None:
    ifindex = add_veth()
    with Netlink() as netlink:
        first, refused, unknown, last = netlink.batch(
            (set_mtu(ifindex, 1300), set_mtu(ifindex, 1), link(ifindex + 1000), link(ifindex))
        )
    assert first == ()
    assert isinstance(refused, OSError)
    assert (refused.errno, refused.strerror) == (errno.EINVAL, "mtu less than device minimum")
    assert isinstance(unknown, OSError)
    assert unknown.errno == errno.ENODEV
    assert isinstance(last, tuple)
    assert last[0].number("IFLA_MTU") == 1300


def test_refusal_is_an_error_of_what_was_asked() -> None:
    with pytest.raises(KernelError) as refused, asking("list", "interface 77") as netlink:
        netlink.get(link(77))
    assert (refused.value.operation, refused.value.subject) == ("list", "interface 77")
    assert refused.value.errno == errno.ENODEV


def test_attributes_that_are_not_there() -> None:
    with Netlink() as netlink:
        loopback = netlink.get(link(socket.if_nametoindex("lo")))
    assert loopback.text("IFLA_IFNAME") == "lo"
    xdp = loopback.nested("IFLA_XDP")
    assert "IFLA_XDP_PROG_ID" not in xdp
    assert (xdp.number("IFLA_XDP_PROG_ID", 7), xdp.text("x"), xdp.data("x"), xdp.part("x", "y")) == (7, "", b"", "")
    assert "IFLA_INFO_KIND" not in loopback.nested("IFLA_LINKINFO")


def message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body


def test_dump_that_changed_meanwhile_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    add_veth()
    asked = []
    exchange = Netlink._exchange

    def interrupted(self: Netlink, requests: list[object]) -> list[tuple[Answer, ...] | OSError]:
        asked.append(requests)
        answers = exchange(self, requests)
        if len(asked) < 3:  # as the kernel marks what follows the change; it may be nothing but the end
            list(self._socket.marshal.parse(message(DONE, MULTI | DUMP_INTERRUPTED, struct.pack("=i", 0))))
        return answers

    monkeypatch.setattr(Netlink, "_exchange", interrupted)
    with Netlink() as netlink:
        assert {answer.text("IFLA_IFNAME") for answer in netlink.dump(LINKS)} >= {"lo", "va", "vb"}
    assert len(asked) == 3


def test_dump_that_fails_on_the_way_is_an_error() -> None:
    with Netlink() as netlink:
        list(netlink._socket.marshal.parse(message(DONE, MULTI, struct.pack("=i", -errno.ENOMEM))))
        assert [error.errno for error in netlink._errors.values()] == [errno.ENOMEM]


def test_thread_that_runs_an_event_loop_is_refused_clearly() -> None:
    async def ask() -> None:
        with pytest.raises(RuntimeError, match="from a thread that runs no event loop"):
            Netlink()

    asyncio.run(ask())


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_nothing_stays_open() -> None:
    with Netlink() as netlink:
        netlink.dump(LINKS)
    before = open_descriptors()
    for _ in range(20):
        with Netlink() as netlink:
            netlink.dump(LINKS)
    assert open_descriptors() == before
