"""Beside docker: a bridge as docker makes it, containers behind it as targets, and docker's own rules, which go on
working and are not touched."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

import netlab
from netlab import HTTP_PORT, TCP_PORT, UDP_PORT, Lab, wait_for
from netlab.clients import ask_udp, connect, echo_tcp
from netlab.namespace import Namespace
from tests.e2e.instance import Instance
from tests.signing import need

PUBLISHED = 8080
CONTAINERS = ("172.17.0.2", "172.17.0.3")
# What dockerd 20.10 sets up with iptables-nft for `docker run -p 8080:8080`, as `nft list ruleset` shows it.
RULES = f"""\
table ip nat {{
    chain DOCKER {{
        iifname "docker0" return
        iifname != "docker0" tcp dport {PUBLISHED} dnat to {CONTAINERS[0]}:{HTTP_PORT}
    }}
    chain PREROUTING {{
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local jump DOCKER
    }}
    chain POSTROUTING {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname != "docker0" ip saddr 172.17.0.0/16 masquerade
        ip saddr {CONTAINERS[0]} ip daddr {CONTAINERS[0]} tcp dport {HTTP_PORT} masquerade
    }}
}}
table ip filter {{
    chain DOCKER-USER {{
        return
    }}
    chain DOCKER {{
        iifname != "docker0" oifname "docker0" ip daddr {CONTAINERS[0]} tcp dport {HTTP_PORT} accept
    }}
    chain DOCKER-ISOLATION-STAGE-2 {{
        oifname "docker0" drop
        return
    }}
    chain DOCKER-ISOLATION-STAGE-1 {{
        iifname "docker0" oifname != "docker0" jump DOCKER-ISOLATION-STAGE-2
        return
    }}
    chain FORWARD {{
        type filter hook forward priority filter; policy drop;
        jump DOCKER-USER
        jump DOCKER-ISOLATION-STAGE-1
        oifname "docker0" ct state related,established accept
        oifname "docker0" jump DOCKER
        iifname "docker0" oifname != "docker0" accept
        iifname "docker0" oifname "docker0" accept
    }}
}}
"""


@dataclass
class Docker:
    """A lab whose proxy host has docker's bridge, rules, and two containers."""

    lab: Lab
    containers: tuple[Namespace, ...]

    def rules(self) -> str:
        return self.lab.proxy.run("nft", "list", "ruleset").stdout

    def serves(self) -> None:
        """What docker does for its containers."""
        lab, (one, _) = self.lab, self.containers
        assert lab.curl(f"http://{lab.proxy4}:{PUBLISHED}/").startswith("container1"), "a published port"
        with connect(one, (lab.backends[0].ip4, TCP_PORT)) as out:
            out.sendall(b"out")
            assert out.recv(10) == b"out", "a container's own connection, masqueraded"
        with connect(one, (CONTAINERS[1], TCP_PORT)) as across:
            across.sendall(b"across")
            assert across.recv(10) == b"across", "between containers"


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    need("nft")
    with Lab(offload=False, xdp_peers=True) as lab:
        containers = tuple(Namespace(f"{lab.name}-backend{number}") for number in (8, 9))
        try:
            for each in containers:
                each.create()
            bridge(lab, containers)
            # Its settings are the host's from here on.
            lab._settings = lab._settings_now()
            lab.proxy.run("nft", "-f", "-", stdin=RULES)
            yield Docker(lab, containers)
        finally:
            for process in reversed(lab.processes):
                process.kill()
            for each in containers:
                each.delete()


def bridge(lab: Lab, containers: tuple[Namespace, ...]) -> None:
    """As libnetwork does: the bridge has the gateway's address, each container the other end of one of its ports."""
    lab.proxy.ip("link add docker0 type bridge", "address add 172.17.0.1/16 dev docker0", "link set docker0 up")
    lab.proxy.write_sysctls({"net/ipv4/ip_forward": "1"})
    servers = str(Path(netlab.__file__).with_name("servers.py"))
    ports = ("--http", str(HTTP_PORT), "--tcp", str(TCP_PORT), "--udp", str(UDP_PORT))
    for number, (container, address) in enumerate(zip(containers, CONTAINERS, strict=True), 1):
        lab.proxy.ip(
            f"link add veth{number} type veth peer name eth0 netns {container.name}",
            f"link set veth{number} master docker0",
            f"link set veth{number} up",
        )
        container.ip(f"address add {address}/16 dev eth0", "link set eth0 up", "route add default via 172.17.0.1")
        lab.spawn(container, sys.executable, servers, "--at", f"container{number}={address}", *ports).wait_output(
            "ready"
        )
    wait_for(lambda: lab.proxy.ip_json("link", "show", "dev", "docker0")[0]["operstate"] == "UP", "docker0 up")


def config(mode: str, settings: str) -> str:
    lines = ["apiVersion: revproxy/v1", f"settings: {settings}", "proxies:"]
    for name, port, protocol, target in (
        ("web", 80, "tcp", HTTP_PORT),
        ("echo", 7, "tcp", TCP_PORT),
        ("datagrams", 7, "udp", UDP_PORT),
    ):
        targets = ", ".join(f"{{ip: {address}, port: {target}}}" for address in CONTAINERS)
        lines += [
            f"  - name: {name}",
            f"    mode: {mode}",
            f"    listen: {{interfaces: [eth0], port: {port}, protocol: {protocol}}}",
            f"    default_target: [{targets}]",
        ]
    return "\n".join(lines) + "\n"


def test_containers_behind_dockers_bridge_are_targets(docker: Docker) -> None:
    lab = docker.lab
    docker.serves()
    with Instance(lab) as instance:
        before = docker.rules()
        for mode, settings in (
            ("dnat", "{xdp_mode: auto}"),
            ("fullnat", "{xdp_mode: auto}"),
            ("dnat", "{xdp_mode: off}"),
        ):
            instance.apply(config(mode, settings))
            where = f"{mode} {settings}"
            seen = {lab.curl(f"http://{lab.proxy4}/").split()[0] for _ in range(16)}
            assert seen == {"container1", "container2"}, where
            (line,) = {lab.curl(f"http://{lab.proxy4}/").split()[-1].rpartition(":")[0]}
            assert line == (str(lab.client4) if mode == "dnat" else "172.17.0.1"), f"{where}: who the container sees"
            assert echo_tcp(lab.client, (lab.proxy4, 7), 2_000_000).intact, where
            assert ask_udp(lab.client, (lab.proxy4, 7), b"hello").startswith("container"), where
            docker.serves()
        status = {each["name"]: each for each in instance.json("status")["interfaces"]}
        assert status["docker0"]["attached"], "the bridge is the way to the containers"
        assert status.keys() <= {"eth0", "docker0", "lo"}, "its ports are left alone"
        assert lab.checksum_errors() == {}
        assert docker.rules() == before
    docker.serves()


def answer(flow: socket.socket) -> str:
    """To one more datagram; empty if there is none."""
    try:
        flow.send(b"?")
        return flow.recv(100).decode()
    except OSError:
        return ""


def test_a_container_that_is_started_anew_is_served_again(docker: Docker) -> None:
    """Another veth, another hardware address, the same place in the files. A flow of datagrams does not end with the
    container, so the way that it went by has to be forgotten."""
    lab, (one, _) = docker.lab, docker.containers
    with Instance(lab, "again") as instance, ExitStack() as flows:
        instance.write(config("dnat", "{xdp_mode: auto}"))
        instance.start_daemon()
        opened = (
            flows.enter_context(connect(lab.client, (lab.proxy4, 7), kind=socket.SOCK_DGRAM, timeout_sec=0.5))
            for _ in range(64)
        )
        flow = next(each for each in opened if answer(each).startswith("container1"))
        for _ in range(3):  # the first one may have gone through the stack, since the neighbour was not known
            assert answer(flow).startswith("container1")
        lab.proxy.ip("link del veth1")
        lab.proxy.ip(
            f"link add veth9 type veth peer name eth0 netns {one.name}",
            "link set veth9 master docker0",
            "link set veth9 up",
        )
        one.ip("link set eth0 up", f"address add {CONTAINERS[0]}/16 dev eth0", "route add default via 172.17.0.1")
        # Docker announces where an address is now. So does whoever asks for his gateway, once the bridge lets him.

        def heard() -> bool:
            one.run("bash", "-c", "echo >/dev/udp/172.17.0.1/9")
            return any("lladdr" in each for each in one.ip_json("neigh", "show", "172.17.0.1"))

        wait_for(heard, "the gateway knows of it")

        def both() -> bool:
            try:
                return {lab.curl(f"http://{lab.proxy4}/", timeout_sec=2).split()[0] for _ in range(16)} == {
                    "container1",
                    "container2",
                }
            except (netlab.CommandError, subprocess.TimeoutExpired):
                return False

        wait_for(both, "both containers answer", timeout_sec=60)
        wait_for(lambda: answer(flow).startswith("container1"), "the flow goes on", timeout_sec=10)
        instance.wait_synced()
        docker.serves()
