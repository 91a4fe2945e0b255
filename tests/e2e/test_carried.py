"""Connections go on although the files ask no more for the settings and interfaces that they go through."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import netlab
from netlab import TCP_PORT, UDP_PORT, Lab, wait_for
from netlab.clients import connect
from reconciler.kernel.maps import Maps
from tests.e2e.instance import Instance

# Listener's port -> mode, protocol, and whether the targets are 127.0.0.1 and ::1.
KINDS = {
    1000: ("dnat", "tcp", False),
    1001: ("fullnat", "tcp", False),
    1002: ("fullnat", "udp", False),
    1003: ("dnat", "tcp", True),
    1004: ("fullnat", "tcp", True),
}


@pytest.fixture
def lab() -> Iterator[Lab]:
    """One with a service at the proxy host's loopback addresses."""
    with Lab(offload=False, xdp_peers=True) as built:
        servers = str(Path(netlab.__file__).with_name("servers.py"))
        ports = ("--tcp", str(TCP_PORT), "--udp", str(UDP_PORT))
        built.spawn(built.proxy, sys.executable, servers, "--at", "own=127.0.0.1,::1", *ports).wait_output("ready")
        yield built


def config(lab: Lab, fast_path: bool, ports: tuple[int, ...]) -> str:
    lines = [
        "apiVersion: revproxy/v1",
        f"settings: {{xdp_mode: native, fast_path: {str(fast_path).lower()}}}",
        "proxies:",
    ]
    backend = lab.backends[0]
    for port in ports:
        mode, protocol, own = KINDS[port]
        ips = ("127.0.0.1", "::1") if own else (backend.ip4, backend.ip6)
        target = TCP_PORT if protocol == "tcp" else UDP_PORT
        targets = ", ".join(f'{{ip: "{ip}", port: {target}}}' for ip in ips)
        lines += [
            f"  - name: p{port}",
            f"    mode: {mode}",
            f"    listen: {{interfaces: [eth0], port: {port}, protocol: {protocol}}}",
            f"    default_target: [{targets}]",
        ]
    return "\n".join(lines if ports else lines[:2]) + "\n"


@dataclass(frozen=True)
class Open:
    """An open connection."""

    name: str
    connection: socket.socket

    def say(self, word: bytes) -> str:
        """What became of asking something; empty if it was answered."""
        try:
            self.connection.send(word)
            answer = self.connection.recv(100)
        except OSError as error:
            return f"{self.name}: {error}"
        return "" if word in answer else f"{self.name}: {answer!r}"


def open_all(lab: Lab) -> list[Open]:
    found = []
    for number, (port, (mode, protocol, own)) in enumerate(KINDS.items()):
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        for listen, client in ((lab.proxy4, lab.client4), (lab.proxy6, lab.client6)):
            where = "own" if own else "backend"
            # Source ports of their own: two connections to one target must not look alike.
            source = (client, 40000 + number)
            connection = connect(lab.client, (listen, port), source=source, kind=kind, timeout_sec=3)
            found.append(Open(f"{mode} {protocol} IPv{listen.version} {where}", connection))
    assert [each.say(b"first") for each in found] == [""] * len(found)
    return found


def forget_ways(instance: Instance) -> None:
    """Have each connection's way out asked for anew, as after a change of routes."""
    maps = Maps(instance.bpffs_dir)
    maps.open()
    control = maps["control"].items()[1]
    control["generation"] += 1
    maps["control"].put(0, control)
    maps.close()


@pytest.mark.parametrize("fast_path", [True, False], ids=["fast", "stack"])
def test_connections_keep_the_settings_they_go_through(lab: Lab, instance: Instance, fast_path: bool) -> None:
    before = lab.proxy.forwarding() | lab.proxy.leniency()
    instance.apply(config(lab, fast_path, tuple(KINDS)))
    connections = open_all(lab)
    for left in ((1000,), ()):
        instance.write(config(lab, fast_path, left))
        instance.ctl("apply", "--yes", "--allow-empty")
        forget_ways(instance)
        lost = [said for each in connections if (said := each.say(b"later"))]
        assert not lost, f"with the proxies {left}: {lost}"
        assert instance.run("diff").returncode == 0, "what connections need is no difference"
    for port, (mode, _, _) in KINDS.items():
        if mode == "fullnat":
            instance.ctl("connections", "flush", "--proxy", f"p{port}")
            for command in ("diff", "status"):
                assert instance.run(command).returncode == 0, "what has lapsed with connections is no difference"
    assert "drift" not in instance.run("apply", "--yes", "--allow-empty").stderr, "what was needed is given back"
    names = [each["name"] for each in instance.json("status")["interfaces"]]
    assert names == ["eth0", "eth1"], "only full NAT goes through lo"
    dnat = [each for each in connections if each.name.startswith("dnat")]
    assert [each.say(b"last") for each in dnat] == [""] * len(dnat)
    for each in connections:
        each.connection.close()
    instance.ctl("connections", "flush", "--all")  # which gives back what they needed
    wait_for(lambda: lab.proxy.forwarding() | lab.proxy.leniency() == before, "the settings as they were")
    assert not instance.json("status")["interfaces"], "nothing is served any more"
