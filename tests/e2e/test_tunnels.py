"""Clients and targets behind interfaces without hardware headers (tun, WireGuard, ipip), on the wire."""

from __future__ import annotations

import socket
import sys
from itertools import product
from pathlib import Path

import pytest

import netlab
from netlab import TCP_PORT, UDP_PORT, Lab, Namespace
from netlab.clients import ask_udp, connect, echo_tcp
from tests.e2e.instance import Instance
from tests.e2e.tunnels import tunnel

OURS, THEIRS = {4: "10.77.0.1", 6: "fd77::1"}, {4: "10.77.0.2", 6: "fd77::2"}
LENGTH = {4: 24, 6: 64}
PORTS = {"dnat": 7, "fullnat": 107}
CLOSED = 9
BYTES = 300_000
# An address that looks like the beginning of an IPv4 header, and one like that of an IPv6 one.
LOOKALIKES = {"eth0": "46:00:00:00:00:01", "eth1": "62:00:00:00:00:02"}


def config(interface: str, targets: dict[int, str], settings: str) -> str:
    lines = ["apiVersion: revproxy/v1", f"settings: {settings}", "proxies:"]
    for (mode, port), (protocol, target) in product(PORTS.items(), (("tcp", TCP_PORT), ("udp", UDP_PORT))):
        at = ", ".join(f'{{ip: "{ip}", port: {target}}}' for ip in targets.values())
        lines += [
            f"  - name: {mode}-{protocol}",
            f"    mode: {mode}",
            f"    listen: {{interfaces: [{interface}], port: {port}, protocol: {protocol}}}",
            f"    default_target: [{at}]",
        ]
    lines += [
        "  - name: closed",
        f"    listen: {{interfaces: [{interface}], port: {CLOSED}, protocol: udp}}",
        f'    default_target: [{", ".join(f"""{{ip: "{ip}", port: {CLOSED}}}""" for ip in targets.values())}]',
    ]
    return "\n".join(lines) + "\n"


def exchange(client: Namespace, listen: str, mode: str) -> None:
    """A stream and datagrams, one of them in fragments."""
    assert echo_tcp(client, (listen, PORTS[mode]), BYTES, timeout_sec=10).intact
    for size in (5, 4000):
        assert ask_udp(client, (listen, PORTS[mode]), b"x" * size).endswith("x" * size)


def is_refused(client: Namespace, listen: str) -> None:
    """The target's ICMP error reaches who has sent the datagram."""
    with connect(client, (listen, CLOSED), kind=socket.SOCK_DGRAM, timeout_sec=5) as asking:
        asking.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            asking.recv(100)


def serve(lab: Lab, namespace: Namespace, at: dict[int, str]) -> None:
    """Echo servers at these addresses."""
    servers = Path(netlab.__file__).with_name("servers.py")
    ports = ("--tcp", str(TCP_PORT), "--udp", str(UDP_PORT))
    lab.spawn(namespace, sys.executable, servers, "--at", f"far={','.join(at.values())}", *ports).wait_output("ready")


@pytest.mark.parametrize("beyond", ["targets", "clients"])
def test_through_interfaces_without_hardware_headers(beyond: str) -> None:
    with Lab(backends=1, offload=False, xdp_peers=True, servers=False) as lab:
        for interface, address in LOOKALIKES.items():
            lab.proxy.ip(f"link set {interface} address {address}")
        far = Namespace(f"{lab.name}-far")
        far.create()
        try:
            ends = [[f"{ips[version]}/{LENGTH[version]}" for version in (4, 6)] for ips in (OURS, THEIRS)]
            with tunnel("tun0", (lab.proxy, ends[0]), (far, ends[1])), Instance(lab) as instance:
                far.ip(*(f"route add default via {OURS[version]}" for version in (4, 6)))
                backend = lab.backends[0]
                if beyond == "targets":
                    client, server, targets = lab.client, far, THEIRS
                    interface, listen = "eth0", {4: str(lab.proxy4), 6: str(lab.proxy6)}
                else:
                    client, server, targets = far, backend.namespace, {v: str(backend.ip(v)) for v in (4, 6)}
                    interface, listen = "tun0", OURS
                serve(lab, server, targets)
                for settings in ("{}", "{fast_path: false}") if beyond == "targets" else ("{}",):
                    instance.apply(config(interface, targets, settings))
                    for version, mode in product((4, 6), PORTS):
                        exchange(client, listen[version], mode)
                        is_refused(client, listen[version])
                assert sum(instance.json("stats")["drops"].values()) == 0
                assert lab.checksum_errors() == {}
        finally:
            for process in lab.processes:
                process.kill()
            far.delete()
