"""Segments of more than 64 KB, whose headers tell no length (BIG TCP), on the wire."""

from __future__ import annotations

import os
import socket
import struct

from netlab import TCP_PORT, Lab, Namespace
from netlab.clients import echo_tcp
from tests.e2e.instance import Instance, web

LARGEST = 180_000
STREAM = 5_000_000
# linux/rtnetlink.h, linux/if_link.h; pyroute2 knows them by name only from 0.7.3 on, iproute2 from 6.3 on.
RTM_NEWLINK, NLM_F_REQUEST, NLM_F_ACK = 16, 1, 4
GSO_MAX_SIZE, GRO_MAX_SIZE, GSO_IPV4_MAX_SIZE, GRO_IPV4_MAX_SIZE = 41, 58, 63, 64


def let_grow(namespace: Namespace, interface: str) -> None:
    """Let segments grow beyond 64 KB, on their way out and when they are put together on their way in."""

    def ask() -> None:
        sizes = (GSO_MAX_SIZE, GRO_MAX_SIZE, GSO_IPV4_MAX_SIZE, GRO_IPV4_MAX_SIZE)
        head = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(interface), 0, 0)
        body = head + b"".join(struct.pack("=HHI", 8, kind, LARGEST) for kind in sizes)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            netlink.send(struct.pack("=IHHII", 16 + len(body), RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0) + body)
            (error,) = struct.unpack_from("=i", netlink.recv(65536), 16)
        assert not error, os.strerror(-error)

    namespace.call(ask)


def test_segments_of_more_than_64_kilobytes_are_forwarded_whole() -> None:
    with Lab(backends=1) as lab, Instance(lab) as instance:
        backend = lab.backends[0]
        ends = ((lab.client, "eth0"), (lab.proxy, "eth0"), (lab.proxy, "eth1"), (backend.namespace, "eth0"))
        for namespace, interface in ends:
            let_grow(namespace, interface)
        for mode in ("dnat", "fullnat"):
            targets = (f"{backend.ip4}:{TCP_PORT}", f"[{backend.ip6}]:{TCP_PORT}")
            instance.apply(web(*targets, port=7, extra=f"mode: {mode}"))
            for listen in (lab.proxy4, lab.proxy6):
                assert echo_tcp(lab.client, (listen, 7), STREAM, timeout_sec=10).intact
        stats = instance.json("stats", status=0)
        assert sum(stats["drops"].values()) == 0
        assert stats["outcomes"]["stack"] == 0, "as long as the way out takes"
        assert lab.checksum_errors() == {}
