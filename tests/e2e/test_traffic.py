"""Real traffic through the proxy, every way that packets can go, to the last byte and without a bad checksum."""

from __future__ import annotations

import json
import os
import socket

import pytest

from netlab import HTTP_PORT, TCP_PORT, UDP_PORT, Lab
from netlab.clients import ask_udp, echo_tcp
from reconciler.kernel.genetlink import xdp_features
from tests.e2e.instance import Instance

MEGABYTES = int(os.environ.get("REVPROXY_TRAFFIC_MEGABYTES", "20"))
REQUESTS = 24


def config(lab: Lab, settings: str) -> str:
    """HTTP, TCP echo and UDP echo, each over both families."""

    def targets(port: int) -> str:
        return "\n".join(
            f'      - {{ip: "{backend.ip(version)}", port: {port}}}' for backend in lab.backends for version in (4, 6)
        )

    def proxy(name: str, port: int, protocol: str, target_port: int) -> str:
        return f"""\
  - name: {name}
    listen: {{interfaces: [eth0], port: {port}, protocol: {protocol}}}
    default_target:
{targets(target_port)}
"""

    return (
        f"apiVersion: revproxy/v1\nsettings: {settings}\nproxies:\n"
        + proxy("web", 80, "tcp", HTTP_PORT)
        + proxy("echo", 7, "tcp", TCP_PORT)
        + proxy("datagrams", 7, "udp", UDP_PORT)
    )


WAYS = {
    "native": ({"offload": False, "xdp_peers": True}, "{xdp_mode: native}", "redirect_xdp"),
    "native-with-offloads": ({"offload": True, "xdp_peers": True}, "{xdp_mode: native}", "redirect_tc"),
    "generic": ({"offload": False, "xdp_peers": True}, "{xdp_mode: generic}", "redirect_xdp"),
    "tc": ({"offload": False}, "{xdp_mode: off}", "redirect_tc"),
    "tc-with-offloads": ({"offload": True}, "{xdp_mode: off}", "redirect_tc"),
    "auto": ({"offload": True}, "{}", "redirect_tc"),
    "stack": ({"offload": False}, "{fast_path: false}", "stack"),
    "stack-native-with-offloads": ({"offload": True}, "{fast_path: false, xdp_mode: native}", "stack"),
}


@pytest.mark.parametrize("way", WAYS)
def test_bulk_and_requests_arrive_intact(way: str) -> None:
    options, settings, outcome = WAYS[way]
    if xdp_features() is None and outcome == "redirect_xdp":
        outcome = "redirect_tc"  # before Linux 6.3 nothing tells that a veth takes frames from XDP: TC does it
    with Lab(**options) as lab, Instance(lab) as instance:
        instance.apply(config(lab, settings))
        for listen in (lab.proxy4, lab.proxy6):
            assert echo_tcp(lab.client, (listen, 7), MEGABYTES << 20).intact
            host = f"[{listen}]" if listen.version == 6 else str(listen)
            # One curl for all, since to start one takes a second on an emulated machine; a connection for each.
            each_anew = ("--header", "Connection: close", "--fail-early")
            answers = lab.curl(f"http://{host}/?[1-{REQUESTS}]", *each_anew).splitlines()
            assert len(answers) == REQUESTS
            assert {answer.split()[0] for answer in answers} == {backend.name for backend in lab.backends}
            client = lab.client4 if listen.version == 4 else lab.client6
            answer = ask_udp(lab.client, (listen, 7), b"hello")
            assert str(client) in answer, "the backend sees the client's address"
            assert answer.endswith("hello")
        assert lab.checksum_errors() == {}
        stats = instance.json("stats", status=0)
        assert stats["packets_forward"] > 0
        assert stats["packets_reverse"] > 0
        assert sum(stats["drops"].values()) == 0, stats["drops"]
        assert stats["outcomes"][outcome] > 50 * MEGABYTES, (
            f"{json.dumps(stats['outcomes'])}: not the way this test is about"
        )


def test_other_services_and_transit_are_not_touched(lab: Lab, instance: Instance) -> None:
    instance.apply(config(lab, "{xdp_mode: native}"))
    # A service of the proxy host itself on another port, reached as before.
    server = lab.proxy.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((str(lab.proxy4), 2222))
    server.listen()
    client = lab.client.socket(socket.AF_INET, socket.SOCK_STREAM)
    client.settimeout(5)
    client.connect((str(lab.proxy4), 2222))
    server.accept()[0].sendall(b"mine")
    assert client.recv(10) == b"mine"
    for each in (client, server):
        each.close()
    # The proxied port at another address of the host.
    lab.add_proxy_address("10.90.99.1", "eth1")
    other = lab.proxy.socket(socket.AF_INET, socket.SOCK_DGRAM)
    other.bind(("10.90.99.1", 7))
    other.settimeout(5)
    ask = lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ask.sendto(b"not for the proxy", ("10.90.99.1", 7))
    assert other.recv(100) == b"not for the proxy"
    for each in (ask, other):
        each.close()
    # Transit to a backend, through the stack.
    lab.set_forwarding(True)
    assert echo_tcp(lab.client, (lab.backends[0].ip4, TCP_PORT), 100_000).intact
    lab.set_forwarding(False)


def test_backends_each_behind_an_interface_of_its_own() -> None:
    with Lab(offload=False, xdp_peers=True, separate=True) as lab, Instance(lab) as instance:
        instance.apply(config(lab, "{xdp_mode: native}"))
        names = {lab.curl(f"http://{lab.proxy4}/").split()[0] for _ in range(24)}
        assert names == {backend.name for backend in lab.backends}
        assert {each["name"] for each in instance.json("status")["interfaces"]} == set(lab.proxy_interfaces)
        assert lab.checksum_errors() == {}
