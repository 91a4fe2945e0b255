"""What tests of the programs start from: a data plane with one proxy, and flows to it."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import (
    IPv6,
)
from scapy.layers.l2 import Ether

from reconciler.kernel import layout
from tests.kernel.dataplane import (
    TC_REDIRECT,
    TC_SHOT,
    TC_UNSPEC,
    XDP_DROP,
    XDP_PASS,
    XDP_REDIRECT,
    DataPlane,
    dest,
    pack,
)
from tests.kernel.packets import Flow

LISTEN = {4: "10.0.1.1", 6: "fd00:1::1"}
CLIENT = {4: "192.168.7.7", 6: "fd77::7"}
TARGET = {4: "10.9.0.1", 6: "fd09::1"}
OTHER_TARGET = {4: "10.9.0.2", 6: "fd09::2"}
families = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])
protocols = pytest.mark.parametrize("protocol", [6, 17], ids=["tcp", "udp"])
hooks = pytest.mark.parametrize("hook", ["xdp", "tc"])


unused_ports = iter(range(1024, 65000))


def new_flow(version: int, protocol: int, src: str | None = None) -> Flow:
    """A client's connection to the listener that no test has used yet."""
    return Flow(src or CLIENT[version], LISTEN[version], next(unused_ports), 80, protocol)


def translated(flow: Flow, target: str | None = None, port: int = 8080) -> Flow:
    return Flow(flow.src, target or TARGET[flow.version], flow.sport, port, flow.protocol)


def send(plane: DataPlane, hook: str, data: bytes, ifname: str = "cli") -> tuple[int, bytes]:
    return plane.xdp(data, ifname) if hook == "xdp" else plane.tc(data, ifname)


REDIRECT = {"xdp": XDP_REDIRECT, "tc": TC_REDIRECT}
PASS = {"xdp": XDP_PASS, "tc": TC_UNSPEC}
DROP = {"xdp": XDP_DROP, "tc": TC_SHOT}


SOURCE = {4: "10.0.2.1", 6: "fd00:2::1"}


def connection(plane: DataPlane, flow: Flow) -> tuple[bytes, np.ndarray]:
    key = pack(
        layout.connection_key4 if flow.version == 4 else layout.connection_key6,
        saddr_be=ip_address(flow.src).packed,
        daddr_be=ip_address(flow.dst).packed,
        sport_be=flow.sport,
        dport_be=flow.dport,
        protocol=flow.protocol,
    )
    value = plane.get(f"connection{flow.version}", key)
    assert value is not None, f"no entry for {flow}"
    return key, value.copy()


def age(plane: DataPlane, flow: Flow, seconds: int) -> None:
    """Make one direction's entry look as if nothing had come for that long."""
    key, value = connection(plane, flow)
    value["c"]["last_ns"] -= seconds * 1_000_000_000
    plane.put(f"connection{flow.version}", key, value.tobytes())


def use_fullnat(plane: DataPlane, version: int, ports: tuple[int, int] = (10000, 32767)) -> None:
    plane.settings(ports=ports)
    number = 1 if version == 4 else 2
    plane.target(number, TARGET[version], 8080, source=SOURCE[version])
    plane.proxy(1, mode=layout.CONSTANTS["MODE_FULLNAT"], **{f"dest{version}": dest("TARGET", number)})


def sent(data: bytes, protocol: int) -> Flow:
    """The flow a frame belongs to."""
    packet = Ether(data)
    network = packet[IP] if IP in packet else packet[IPv6]
    transport = packet[TCP] if protocol == 6 else packet[UDP]
    return Flow(network.src, network.dst, transport.sport, transport.dport, protocol)


def by_lo(data: bytes) -> bytes:
    """With the hardware addresses of lo, without which the stack would not take it from there."""
    return bytes(12) + data[12:]
