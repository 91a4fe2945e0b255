"""ICMP errors on the wire: every hop answers a traceroute, long packets find their way, closed ports are refused; with
a backend behind a router, on a proxy host that is no router."""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from netlab import TCP_PORT, UDP_PORT, Lab, wait_for
from netlab.clients import connect, echo_tcp
from tests.e2e.instance import Instance
from tests.e2e.routed import IPAddress, Routed, routed

MODES = {"dnat": 7, "fullnat": 107}  # and the port each listens on; the one above leads to a closed port
IP_RECVERR, IPV6_RECVERR = 11, 25
IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 10, 0
NARROW, BYTES = 1400, 300_000


@pytest.fixture(scope="module")
def far() -> Iterator[Routed]:
    with routed() as built:
        yield built


@pytest.fixture
def instance(far: Routed, request: pytest.FixtureRequest) -> Iterator[Instance]:
    name = f"test{request.session.items.index(request.node)}"
    with Instance(far.lab, name) as made:
        yield made


def config(far: Routed, settings: str = "{xdp_mode: native}") -> str:
    """Both modes, TCP and UDP; the ports above each lead nowhere."""
    lines = ["apiVersion: revproxy/v1", f"settings: {settings}", "proxies:"]
    for mode, port in MODES.items():
        for protocol, target in (("tcp", TCP_PORT), ("udp", UDP_PORT)):
            for name, at, to in (("open", port, target), ("closed", port + 1, 9)):
                targets = ", ".join(f'{{ip: "{ip}", port: {to}}}' for ip in far.target.values())
                lines += [
                    f"  - name: {name}-{protocol}-{mode}",
                    f"    mode: {mode}",
                    f"    listen: {{interfaces: [eth0], port: {at}, protocol: {protocol}}}",
                    f"    default_target: [{targets}]",
                ]
    return "\n".join(lines) + "\n"


# -- traceroute


def probe(far: Routed, version: int, port: int, kind: int, hops: int) -> IPAddress:
    """Who answers a packet that may go so far."""
    level, recverr, limit = {
        4: (socket.IPPROTO_IP, IP_RECVERR, socket.IP_TTL),
        6: (socket.IPPROTO_IPV6, IPV6_RECVERR, socket.IPV6_UNICAST_HOPS),
    }[version]
    listen = far.listen(version)
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with far.lab.client.socket(family, kind) as asking:
        asking.setsockopt(level, recverr, 1)
        asking.setsockopt(level, limit, hops)
        asking.setblocking(False)
        asking.connect_ex((str(listen), port))
        if kind == socket.SOCK_DGRAM:
            asking.send(b"probe")
        waiting = select.poll()
        waiting.register(asking, select.POLLIN if kind == socket.SOCK_DGRAM else select.POLLOUT)
        events = waiting.poll(5000)
        assert events, f"nobody answers at hop {hops}"
        if not events[0][1] & select.POLLERR:
            return listen
        _, messages, _, _ = asking.recvmsg(512, 512, socket.MSG_ERRQUEUE)
        _, _, data = next(each for each in messages if each[:2] == (level, recverr))
    number, origin = struct.unpack_from("=IB", data)
    assert (number, origin) == (errno.EHOSTUNREACH, 2 if version == 4 else 3), "not an expired hop limit"
    return ip_address(data[20:24] if version == 4 else data[24:40])  # struct sock_extended_err, then the address


@pytest.mark.parametrize("settings", ["{xdp_mode: native}", "{xdp_mode: off}"])
def test_every_hop_answers_a_traceroute(far: Routed, instance: Instance, settings: str) -> None:
    instance.apply(config(far, settings))
    all_hops_answer(far)


def test_a_host_that_checks_where_sources_lead_answers_too(far: Routed, instance: Instance) -> None:
    """With the strict reverse path filter, what comes in by lo would be none that leads back there."""
    everywhere, at_lo = "net/ipv4/conf/all/rp_filter", "net/ipv4/conf/lo/rp_filter"
    far.lab.proxy.write_sysctls({everywhere: "1"})
    try:
        instance.apply(config(far))
        all_hops_answer(far)
        instance.ctl("down")
        assert far.lab.proxy.read_sysctl(at_lo) == "0"
    finally:
        far.lab.proxy.write_sysctls({everywhere: "0"})


def all_hops_answer(far: Routed) -> None:
    """The proxy host, the router behind it, and the backend, to UDP and TCP."""
    for mode, port in MODES.items():
        for version in (4, 6):
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                own = {far.listen(version), far.proxy_side[version]}
                what = f"{mode} IPv{version} {kind.name}"
                hops = [probe(far, version, port, kind, number) for number in (1, 2, 3)]
                assert hops[0] in own, what
                assert hops[1:] == [far.router_side[version], far.listen(version)], what
    assert far.checksum_errors() == {}


def test_a_closed_port_is_refused_at_the_client(far: Routed, instance: Instance) -> None:
    instance.apply(config(far))
    for port in MODES.values():
        for version in (4, 6):
            with connect(far.lab.client, (far.listen(version), port + 1), kind=socket.SOCK_DGRAM) as asking:
                asking.send(b"anybody there?")
                with pytest.raises(ConnectionRefusedError):
                    asking.recv(100)
            with pytest.raises(ConnectionRefusedError):
                connect(far.lab.client, (far.listen(version), port + 1))


# -- path MTU


def narrow_proxy_link(far: Routed) -> None:
    """What the proxy host itself can't send on."""
    far.lab.proxy.ip(f"link set eth9 mtu {NARROW}")
    for version, prefix in ((4, "10.91.1.0/24"), (6, "fd91:1::/64")):
        family = "-4" if version == 4 else "-6"
        far.router.run(
            "ip", family, "route", "change", "default", "via", str(far.proxy_side[version]), "mtu", str(NARROW)
        )
        metric = () if version == 4 else ("metric", "256")
        far.router.run("ip", family, "route", "replace", prefix, "dev", "eth0", *metric, "mtu", str(NARROW))


def narrow_far_link(far: Routed) -> None:
    """What the router can't send on."""
    far.router.ip(f"link set eth1 mtu {NARROW}")
    far.far.ip(f"link set eth0 mtu {NARROW}")


def narrow_client_link(far: Routed) -> None:
    """What the proxy host can't send back. The client keeps to it: a veth drops what is longer than its end takes."""
    far.lab.proxy.ip(f"link set eth0 mtu {NARROW}")
    for family, own, mss in (("-4", ("10.90.1.0/24",), "1460"), ("-6", ("fd90:1::/64", "metric", "256"), "1440")):
        words = (*own, "dev", "eth0", "mtu", str(NARROW), "advmss", mss)
        far.lab.client.run("ip", family, "route", "replace", *words)


def restore(far: Routed) -> None:
    """1500 everywhere. Every sender promises to take long segments, whatever its own link: else TCP would never try."""
    far.lab.proxy.ip("link set eth9 mtu 1500", "link set eth0 mtu 1500")
    far.router.ip("link set eth1 mtu 1500")
    far.far.ip("link set eth0 mtu 1500")
    for version, prefix in ((4, "10.91.1.0/24"), (6, "fd91:1::/64")):
        family, mss = ("-4", "1460") if version == 4 else ("-6", "1440")
        metric = () if version == 4 else ("metric", "256")
        far.router.run("ip", family, "route", "replace", prefix, "dev", "eth0", *metric)
        far.router.run("ip", family, "route", "change", "default", "via", str(far.proxy_side[version]))
        gateway = "10.91.2.1" if version == 4 else "fd91:2::1"
        far.far.run("ip", family, "route", "change", "default", "via", gateway, "advmss", mss)
        own = ("10.90.1.0/24",) if version == 4 else ("fd90:1::/64", "metric", "256")
        far.lab.client.run("ip", family, "route", "replace", *own, "dev", "eth0", "advmss", mss)


@pytest.mark.parametrize("narrow", [narrow_proxy_link, narrow_far_link, narrow_client_link])
@pytest.mark.parametrize("settings", ["{xdp_mode: native}", "{xdp_mode: off}"])
def test_long_packets_find_out_what_the_path_takes(
    far: Routed, instance: Instance, narrow: Callable[[Routed], None], settings: str
) -> None:
    restore(far)
    try:
        narrow(far)
        instance.apply(config(far, settings))
        for mode, port in MODES.items():
            for version in (4, 6):
                what = f"{mode} IPv{version}"
                far.forget_path_mtu()
                is_answered((far.lab, far.listen(version), port), bytes(range(256)) * 16)  # in fragments
                far.forget_path_mtu()
                try:
                    assert echo_tcp(far.lab.client, (far.listen(version), port), BYTES, timeout_sec=10).intact, what
                except OSError as error:
                    raise AssertionError(f"{what}: {error}") from error
        assert far.checksum_errors() == {}
    finally:
        restore(far)


def is_answered(where: tuple[Lab, object, int], payload: bytes) -> None:
    """The datagram and its answer arrive whole, once both senders have learned what the path takes."""
    lab, listen, port = where
    with connect(lab.client, (listen, port), kind=socket.SOCK_DGRAM, timeout_sec=0.3) as asking:

        def answered() -> bool:
            try:
                asking.send(payload)
                return asking.recv(65535).endswith(payload)
            except OSError:  # too long for what is known by now of the path, or no answer
                return False

        wait_for(answered, "the answer, whole", timeout_sec=5)


def test_datagrams_that_may_be_cut_are_cut(far: Routed, instance: Instance) -> None:
    """Without the "don't fragment" bit the proxy host's stack cuts what is too long for the next link."""
    restore(far)
    try:
        narrow_proxy_link(far)
        instance.apply(config(far))
        payload = bytes(range(256)) * 5 + b"x" * 150
        for port in MODES.values():
            with connect(far.lab.client, (far.listen(4), port), kind=socket.SOCK_DGRAM) as asking:
                asking.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)

                def answered(asking: socket.socket = asking) -> bool:
                    asking.settimeout(1)
                    asking.send(payload)
                    return asking.recv(65535).endswith(payload)

                wait_for(answered, "the answer, whole")
        assert far.checksum_errors() == {}
    finally:
        restore(far)
