"""Full NAT on the wire: backends that know no way back to the clients, and see the proxy's address."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

import netlab
from netlab import HTTP_PORT, TCP_PORT, UDP_PORT, Lab, wait_for
from netlab.clients import ask_udp, connect, echo_tcp
from reconciler.kernel.genetlink import xdp_features
from tests.e2e.instance import Instance

MEGABYTES = 20
IPAddress = IPv4Address | IPv6Address
# The proxy host's addresses towards the backends.
SOURCES = {4: "10.90.2.1", 6: "fd90:2::1"}


def config(lab: Lab, settings: str = "{}", backends: int = 3) -> str:
    """HTTP, TCP echo and UDP echo, each over both families."""

    def proxy(name: str, port: int, protocol: str, target_port: int) -> str:
        targets = "\n".join(
            f'      - {{ip: "{backend.ip(version)}", port: {target_port}}}'
            for backend in lab.backends[:backends]
            for version in (4, 6)
        )
        return f"""\
  - name: {name}
    mode: fullnat
    listen: {{interfaces: [eth0], port: {port}, protocol: {protocol}}}
    default_target:
{targets}
"""

    return (
        f"apiVersion: revproxy/v1\nsettings: {settings}\nproxies:\n"
        + proxy("web", 80, "tcp", HTTP_PORT)
        + proxy("echo", 7, "tcp", TCP_PORT)
        + proxy("datagrams", 7, "udp", UDP_PORT)
    )


def without_way_back(lab: Lab) -> Lab:
    """The backends lose their default route: they reach the proxy host and nobody else."""
    lab.backends[0].namespace.ip(*(f"route del default via {source}" for source in SOURCES.values()))
    return lab


@pytest.fixture
def lone(lab: Lab) -> Lab:
    """Backends without a way back."""
    return without_way_back(lab)


def seen_peer(answer: str) -> tuple[str, int]:
    """Who a backend says it talked to, from its HTTP or UDP answer."""
    words = answer.split()
    text = words[words.index("from") + 1] if "from" in words else words[1]
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def url(listen: IPAddress) -> str:
    return f"http://[{listen}]/" if listen.version == 6 else f"http://{listen}/"


# The lab's ends -> settings and the way that bulk then takes.
WAYS = {
    "without-offloads": (
        {"offload": False, "xdp_peers": True},
        {
            "{xdp_mode: native}": "redirect_xdp",
            "{xdp_mode: off}": "redirect_tc",
            "{fast_path: false, xdp_mode: native}": "stack",
        },
    ),
    "with-offloads": (
        {"offload": True, "xdp_peers": True},
        {"{}": "redirect_tc", "{xdp_mode: native}": "redirect_tc", "{fast_path: false, xdp_mode: off}": "stack"},
    ),
}


@pytest.mark.parametrize("ends", WAYS)
def test_backends_without_a_way_back_are_served(ends: str) -> None:
    options, ways = WAYS[ends]
    with Lab(**options) as lab, Instance(lab) as instance:
        without_way_back(lab)
        before: dict[str, int] = {}
        for settings, way in ways.items():
            # Before Linux 6.3 nothing tells that a veth takes frames from XDP: TC does it.
            outcome = "redirect_tc" if way == "redirect_xdp" and xdp_features() is None else way
            instance.apply(config(lab, settings))
            assert echo_tcp(lab.client, (lab.proxy4, 7), MEGABYTES << 20).intact
            assert echo_tcp(lab.client, (lab.proxy6, 7), 2 << 20).intact
            for listen in (lab.proxy4, lab.proxy6):
                answers = [lab.curl(url(listen)) for _ in range(16)]
                assert len({answer.split()[0] for answer in answers}) > 1
                answers.append(ask_udp(lab.client, (listen, 7), b"hello"))
                assert answers[-1].endswith("hello")
                for host, port in map(seen_peer, answers):
                    assert host == SOURCES[listen.version], "the backend sees the proxy's address"
                    assert 10000 <= port <= 32767
            stats = instance.json("stats", status=0)
            assert sum(stats["drops"].values()) == 0, stats["drops"]
            outcomes = stats["outcomes"]
            moved = outcomes[outcome] - before.get(outcome, 0)
            assert moved > 500, f"{settings} {before} {outcomes}: not the way this is about"
            before = outcomes
        assert lab.checksum_errors() == {}


@pytest.mark.parametrize("gro", ["on", "off"])
def test_a_target_behind_the_interface_that_clients_come_in_by(gro: str) -> None:
    """What XDP sends back by a veth reaches nobody whose end has no XDP program."""
    with Lab(backends=1, offload=False, servers=False) as lab, Instance(lab) as instance:
        lab.client.run("ethtool", "-K", "eth0", "gro", gro)
        at = f"here={lab.client4},{lab.client6}"
        ports = [str(word) for word in ("--http", HTTP_PORT, "--tcp", TCP_PORT, "--udp", UDP_PORT)]
        servers = Path(netlab.__file__).with_name("servers.py")
        lab.spawn(lab.client, sys.executable, servers, "--at", at, *ports).wait_output("ready")
        text = config(lab, "{xdp_mode: native}", backends=1)
        for version, ip in ((4, lab.client4), (6, lab.client6)):
            text = text.replace(f'"{lab.backends[0].ip(version)}"', f'"{ip}"')
        instance.apply(text)
        for listen in (lab.proxy4, lab.proxy6):
            assert echo_tcp(lab.client, (listen, 7), 100_000, timeout_sec=10).intact
            assert ask_udp(lab.client, (listen, 7), b"hello").endswith("hello")
        outcomes = instance.json("stats", status=0)["outcomes"]
        if xdp_features() is not None:
            assert (outcomes["redirect_xdp"] > 50) == (gro == "on"), outcomes


CLIENTS = {4: ("10.90.1.2", "10.90.1.3"), 6: ("fd90:1::2", "fd90:1::3")}


def test_two_clients_with_one_port_reach_one_target(lone: Lab, instance: Instance) -> None:
    instance.apply(config(lone, "{xdp_mode: native}", backends=1))
    lone.client.ip("address add 10.90.1.3/24 dev eth0", "address add fd90:1::3/64 dev eth0 nodad")
    for listen in (lone.proxy4, lone.proxy6):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            peers = []
            both = [connect(lone.client, (listen, 7), source=(ip, 4444), kind=kind) for ip in CLIENTS[listen.version]]
            for each, text in zip(both, (b"one", b"two"), strict=True):
                each.send(text)
            for each, text in zip(both, (b"one", b"two"), strict=True):
                answer = each.recv(100)
                assert answer.endswith(text)
                if kind is socket.SOCK_DGRAM:
                    peers.append(seen_peer(answer.decode()))
            assert len(peers) == len(set(peers))
            for each in both:
                each.close()
    assert lone.checksum_errors() == {}


def test_ports_that_run_out_are_refused_and_counted(lone: Lab, instance: Instance) -> None:
    instance.apply(config(lone, "{source_ports: {first: 20000, last: 20003}}", backends=1))
    asking = [connect(lone.client, (lone.proxy4, 7), kind=socket.SOCK_DGRAM) for _ in range(40)]
    for each in asking:
        each.setblocking(False)
        each.send(b"x")
    answers: list[str] = []

    def all_settled() -> bool:
        for each in asking:
            with contextlib.suppress(BlockingIOError):
                answers.append(each.recv(100).decode())
        return len(answers) + instance.json("stats")["drops"]["no_port"] >= len(asking)

    wait_for(all_settled, "an answer or a refusal for each", timeout_sec=20)
    for each in asking:
        each.close()
    ports = [seen_peer(answer)[1] for answer in answers]
    assert len(ports) == len(set(ports)), "no two connections have one port"
    assert 2 <= len(ports) <= 4
    assert set(ports) <= set(range(20000, 20004))
    assert instance.json("stats")["drops"]["no_port"] == len(asking) - len(ports)
    # What is configured anew holds for what comes.
    instance.apply(config(lone, "{source_ports: {first: 30000, last: 30100}}", backends=1))
    assert 30000 <= seen_peer(ask_udp(lone.client, (lone.proxy4, 7)))[1] <= 30100


@pytest.mark.parametrize("mode", ["native", "off"])
def test_targets_that_remember_a_port_take_new_connections_from_there(mode: str, lone: Lab, instance: Instance) -> None:
    """A server that ended a connection remembers its port for a minute (TIME-WAIT), and takes another one from there if
    its timestamps go on, which those of another client don't by themselves."""
    ports, rounds = 5, 6
    last = 20000 + ports - 1
    instance.apply(config(lone, f"{{source_ports: {{first: 20000, last: {last}}}, xdp_mode: {mode}}}", backends=1))
    lone.client.ip("address add 10.90.1.3/24 dev eth0", "address add fd90:1::3/64 dev eth0 nodad")
    backend = lone.backends[0].namespace
    for listen in (lone.proxy4, lone.proxy6):
        for number in range(ports * rounds):
            source = (CLIENTS[listen.version][number % 2], 0)
            with connect(lone.client, (listen, 80), source=source) as asking:
                asking.sendall(b"GET / HTTP/1.0\r\n\r\n")
                while asking.recv(4096):
                    pass
        command = ("ss", "-4" if listen.version == 4 else "-6", "-Htn", "state", "time-wait")
        wait_for(lambda what=command: len(backend.run(*what).stdout.splitlines()) == ports, "memories of all ports")
    refused = backend.run("nstat", "-asz", "TcpExtPAWSTimewait").stdout.split()[-2]
    assert int(refused) == 0
    # The way to the targets is known now, so that the probe of a change goes it to the end.
    for listen in (lone.proxy4, lone.proxy6):
        ask_udp(lone.client, (listen, 7))
    instance.apply(config(lone, f"{{source_ports: {{first: 20000, last: {last}}}, xdp_mode: {mode}}}", backends=2))
    assert lone.checksum_errors() == {}


def test_errors_of_the_proxys_own_stack_reach_the_client(lone: Lab, instance: Instance) -> None:
    """A link of another MTU in between is found out by the client, and so is where its packets expire."""
    lone.proxy.ip("link set eth1 mtu 1400")
    # The backend keeps to it, and does not tell: a veth drops what is longer than its end takes.
    lone.backends[0].namespace.ip(
        "route change 10.90.2.0/24 dev eth0 mtu 1400 advmss 1460",
        "route replace fd90:2::/64 dev eth0 metric 256 mtu 1400 advmss 1440",
    )
    for number, fast_path in enumerate(("true", "false")):
        instance.apply(config(lone, f"{{fast_path: {fast_path}, xdp_mode: native}}", backends=1))
        for listen, version in ((lone.proxy4, "-4"), (lone.proxy6, "-6")):
            lone.client.run("ip", version, "route", "flush", "cache")
            assert echo_tcp(lone.client, (listen, 7), 300_000, timeout_sec=10).intact
            assert expires_on_the_way(lone, listen)
        assert instance.json("stats")["outcomes"]["icmp"] >= 4 * (number + 1)
    assert lone.checksum_errors() == {}


def expires_on_the_way(lab: Lab, listen: IPAddress) -> bool:
    """Whether the client is told that a datagram of hop limit 1 came no further than the proxy host."""
    level, receive_errors, limit = {
        4: (socket.IPPROTO_IP, 11, socket.IP_TTL),  # IP_RECVERR
        6: (socket.IPPROTO_IPV6, 25, socket.IPV6_UNICAST_HOPS),  # IPV6_RECVERR
    }[listen.version]
    with connect(lab.client, (listen, 7), kind=socket.SOCK_DGRAM) as asking:
        asking.setsockopt(level, receive_errors, 1)
        asking.setsockopt(level, limit, 1)
        asking.send(b"expires")
        try:
            asking.recv(100)
        except OSError as error:
            return error.errno == errno.EHOSTUNREACH
    return False


def test_the_source_follows_the_host_and_connections_keep_theirs(lone: Lab, instance: Instance) -> None:
    instance.apply(config(lone, backends=1))
    with connect(lone.client, (lone.proxy4, 7)) as kept:
        kept.sendall(b"before")
        assert kept.recv(100) == b"before"
        lone.proxy.ip("address add 10.90.2.7/24 dev eth1", "route change 10.90.2.0/24 dev eth1 src 10.90.2.7")
        changes = instance.json("diff", status=1)["changes"]
        expected = [f"{name}/{lone.backends[0].ip4}" for name in ("datagrams", "echo", "web")]
        assert [change["name"].rpartition(":")[0] for change in changes] == expected
        assert {(each["before"]["source"], each["after"]["source"]) for each in changes} == {("10.90.2.1", "10.90.2.7")}
        revision = instance.json("status")["revision"]
        instance.apply()
        assert instance.json("diff", status=0)["changes"] == []
        assert instance.json("status")["revision"] == revision, "nothing that the files say has changed"
        assert seen_peer(ask_udp(lone.client, (lone.proxy4, 7)))[0] == "10.90.2.7"
        kept.sendall(b"after")
        assert kept.recv(100) == b"after"
