"""The words for a packet that is none of ours."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from reconciler.kernel.frames import Packet
from reconciler.runtime.probing import why_passed
from reconciler.state.facts import Interface
from reconciler.state.objects import Endpoint, Protocol
from tests.unit.state.build import host, interface, proxy, targets, want

ETH0 = interface(2, "eth0", "192.0.2.1/24", "2001:db8::1/64")
ETH1 = interface(3, "eth1", "198.51.100.1/24")
HOST = host(ETH0, ETH1, ways={"10.0.0.1": 3, "2001:db8:1::1": 3})


@pytest.mark.parametrize(
    ("by", "to", "port", "why"),
    [
        (ETH0, "192.0.2.1", 81, "192.0.2.1:81/tcp of eth0 (but on 192.0.2.1:80)"),
        (ETH1, "192.0.2.1", 80, "192.0.2.1:80/tcp of eth1 (but on 192.0.2.1:80 of eth0)"),
        (ETH0, "2001:db8::1", 81, "[2001:db8::1]:81/tcp of eth0 (but on [2001:db8::1]:80)"),
        (ETH0, "192.0.2.9", 80, "192.0.2.9:80/tcp of eth0"),
    ],
)
def test_it_names_what_listens_nearby(by: Interface, to: str, port: int, why: str) -> None:
    state = want(proxy(to=targets("10.0.0.1:8080", "[2001:db8:1::1]:8080")), on=HOST).state
    source = Endpoint(ip_address("203.0.113.5" if "." in to else "2001:db8:9::5"), 40000)
    packet = Packet(by.ifindex, b"\2" * 6, source, Endpoint(ip_address(to), port), Protocol.TCP)
    assert why_passed(state, by, packet) == f"no proxy listens on {why}"
