"""The test bed itself: plain routing works in it, what it counts it sees, and nothing of it stays behind."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

import bcc
import pytest

from netlab import (
    CommandError,
    Lab,
    Namespace,
    ask_udp,
    connect,
    echo_tcp,
    http_connection,
    namespace_names,
    remove_lab,
    wait_for,
)
from netlab.lab import HTTP_PORT, TCP_PORT, UDP_PORT, remove_dead_labs

XDP_NATIVE = 4  # XDP_FLAGS_DRV_MODE
XDP_PROGRAM = 6  # BPF_PROG_TYPE_XDP
ETH_P_ALL = 3
ETH_P_TEST = 0x88B5  # for local experiments (IEEE 802)


@contextmanager
def redirecting(namespace: Namespace, interface: str, to: str) -> Iterator[None]:
    """An XDP program on ``interface`` that sends every frame out of ``to``."""
    indexes = {link["ifname"]: link["ifindex"] for link in namespace.ip_json("link", "show")}
    code = (
        struct.pack("<BBhi", 0xB7, 1, 0, indexes[to])  # r1 = ifindex
        + struct.pack("<BBhi", 0xB7, 2, 0, 0)  # r2 = flags
        + struct.pack("<BBhi", 0x85, 0, 0, 23)  # bpf_redirect
        + struct.pack("<BBhi", 0x95, 0, 0, 0)  # exit
    )
    program = bcc.lib.bcc_prog_load(XDP_PROGRAM, b"redirect", code, len(code), b"GPL", 0, 0, None, 0)
    assert program >= 0
    try:
        assert namespace.call(bcc.lib.bpf_attach_xdp, interface.encode(), program, XDP_NATIVE) == 0
        yield
        assert namespace.call(bcc.lib.bpf_attach_xdp, interface.encode(), ctypes.c_int(-1), XDP_NATIVE) == 0
    finally:
        os.close(program)


def packet_socket(namespace: Namespace) -> socket.socket:
    """Sends and receives frames of the experimental type on eth0."""
    opened = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_TEST))
    opened.bind(("eth0", ETH_P_TEST))
    opened.settimeout(0.5)
    return opened


@pytest.mark.parametrize("separate", [False, True])
def test_every_backend_is_reached_by_plain_routing(separate: bool) -> None:
    with Lab(backends=2, separate=separate) as lab:
        lab.set_forwarding()
        for backend in lab.backends:
            for host in (str(backend.ip4), f"[{backend.ip6}]"):
                answer = lab.curl(f"http://{host}:{HTTP_PORT}/some/path")
                assert answer.startswith(f"{backend.name} {host}:{HTTP_PORT} /some/path from ")
            for version, client in ((4, str(lab.client4)), (6, f"[{lab.client6}]")):
                answer = ask_udp(lab.client, (backend.ip(version), UDP_PORT), b"hello")
                assert answer.startswith(f"{backend.name} {client}:")
                assert answer.endswith(" hello")


def test_the_proxy_host_forwards_nothing_by_itself(lab: Lab) -> None:
    for version in (4, 6):
        with pytest.raises(OSError, match=r"timed out|unreachable|No route"):
            ask_udp(lab.client, (lab.backends[0].ip(version), UDP_PORT), timeout_sec=0.3)


@pytest.mark.parametrize("version", [4, 6])
def test_bulk_comes_back_unchanged_with_every_checksum_computed_in_software(lab: Lab, version: int) -> None:
    lab.set_forwarding()
    result = echo_tcp(lab.client, (lab.backends[1].ip(version), TCP_PORT), 20_000_000)
    assert result.received_bytes == 20_000_000
    assert result.intact
    assert lab.checksum_errors() == {}


@pytest.mark.parametrize(("version", "counter"), [(4, "backends Udp"), (6, "backends Udp6")])
def test_a_bad_checksum_is_counted_where_it_arrives(lab: Lab, version: int, counter: str) -> None:
    lab.set_forwarding()
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    wrong_by_itself = struct.pack("!HHHH", 4000, UDP_PORT, 16, 1) + bytes(8)
    with lab.client.socket(family, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
        raw.sendto(wrong_by_itself, (str(lab.backends[0].ip(version)), 0))
    assert wait_for(lab.checksum_errors, "the datagram counted") == {counter: 1}


def test_without_offload_segments_on_the_wire_fit_the_mtu(lab: Lab) -> None:
    lab.set_forwarding()
    capture = lab.proxy.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    with capture:
        capture.bind(("eth0", ETH_P_ALL))
        capture.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        capture.setblocking(False)
        echo_tcp(lab.client, (lab.backends[0].ip4, TCP_PORT), 500_000)
        lengths = []
        while True:
            try:
                lengths.append(len(capture.recv(1 << 17)))
            except BlockingIOError:
                break
    assert len(lengths) > 300
    assert max(lengths) <= 1514


@pytest.mark.parametrize("ready", [True, False])
def test_far_ends_take_redirected_frames_only_when_asked_to(ready: bool) -> None:
    frame = b"\xff" * 6 + b"\x02" * 6 + ETH_P_TEST.to_bytes(2, "big") + bytes(50)
    with Lab(backends=1, servers=False, xdp_peers=ready) as lab, redirecting(lab.proxy, "eth0", "eth1"):
        sender, receiver = packet_socket(lab.client), packet_socket(lab.backends[0].namespace)
        with sender, receiver:
            before = lab.proxy.counters("eth0")["rx_packets"]
            for _ in range(200):
                sender.send(frame)
            wait_for(lambda: lab.proxy.counters("eth0")["rx_packets"] > before + 150, "the program ran on most of them")
            if ready:
                assert receiver.recv(2000) == frame
            else:
                with pytest.raises(TimeoutError):
                    receiver.recv(2000)


def test_a_slow_download_takes_its_time_and_is_whole(lab: Lab) -> None:
    lab.set_forwarding()
    connection = http_connection(lab.client, (lab.backends[2].ip4, HTTP_PORT))
    started = time.monotonic()
    connection.request("GET", "/slow/100000/0.5")
    response = connection.getresponse()
    body = response.read()
    assert response.headers["X-Backend"] == "backend3"
    assert len(body) == 100_000
    assert set(body.split(b"\n")[:-1]) == {b"backend3"}
    assert time.monotonic() - started >= 0.4
    connection.request("GET", "/again")  # the connection is kept
    assert connection.getresponse().read().startswith(b"backend3 ")
    connection.close()


def test_more_client_and_proxy_addresses(lab: Lab) -> None:
    lab.set_forwarding()
    lab.add_client_address("192.168.3.4")
    lab.add_client_address("2001:db8:3::4")
    assert " 192.168.3.4:" in ask_udp(lab.client, (lab.backends[0].ip4, UDP_PORT), source=("192.168.3.4", 0))
    assert " [2001:db8:3::4]:" in ask_udp(lab.client, (lab.backends[0].ip6, UDP_PORT), source=("2001:db8:3::4", 0))
    lab.add_proxy_address("203.0.113.10")
    lab.add_proxy_address("2001:db8::10")
    for address in ("203.0.113.10", "2001:db8::10"):
        with pytest.raises(ConnectionRefusedError):  # by the proxy host itself, where nothing listens
            connect(lab.client, (address, 80))


def test_commands_run_inside_and_see_the_bpf_file_system(lab: Lab) -> None:
    assert "eth0" in lab.client.run("ip", "-brief", "link").stdout
    assert lab.proxy.run("stat", "-f", "-c", "%T", "/sys/fs/bpf").stdout.strip() == "bpf_fs"
    with pytest.raises(CommandError, match=r"ls /no/such.*status 2.*No such file"):
        lab.client.run("ls", "/no/such")


def test_residue_is_named(lab: Lab, tmp_path: Path) -> None:
    lab.assert_clean(tmp_path, tmp_path / "absent")
    lab.set_forwarding()
    lab.proxy.run("tc", "qdisc", "add", "dev", "eth1", "clsact")
    (tmp_path / "pin").touch()
    with redirecting(lab.proxy, "eth0", "eth1"):
        found = "\n".join(lab.residue(tmp_path))
    for what in ("eth0: XDP program", "clsact", "net/ipv4/conf/eth0/forwarding=1", str(tmp_path / "pin")):
        assert what in found
    with pytest.raises(AssertionError, match="clsact"):
        lab.assert_clean()
    lab.set_forwarding(False)
    lab.proxy.run("tc", "qdisc", "del", "dev", "eth1", "clsact")
    lab.assert_clean()


def test_nothing_is_left_after_a_lab() -> None:
    with Lab() as lab:
        process = lab.spawn(lab.client, "sleep", "1000")
        pids = [process.pid, *(running.pid for running in lab.processes)]
        directory = lab.directory
        assert len(namespace_names(f"{lab.name}-")) == 3
    assert namespace_names(f"{lab.name}-") == []
    assert [pid for pid in pids if Path("/proc", str(pid)).exists()] == []
    assert not directory.exists()


def test_a_lab_that_fails_in_the_middle_is_taken_down() -> None:
    lab = Lab()
    lab.backends = (lab.backends[0], replace(lab.backends[0], ip6=IPv6Address("ff02::1")))
    with pytest.raises(CommandError, match="ff02::1"), lab:
        pass
    assert namespace_names(f"{lab.name}-") == []


def test_the_lab_of_a_killed_process_is_removed_by_the_next_one() -> None:
    script = """
        import time
        from netlab import Lab
        lab = Lab().open()
        print(lab.name, *(process.pid for process in lab.processes), flush=True)
        time.sleep(1000)
    """
    path = str(Path(sys.modules["netlab"].__file__ or "").parents[1])
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert owner.stdout is not None
    name, *pids = owner.stdout.readline().split()
    remove_dead_labs()
    assert len(namespace_names(f"{name}-")) == 3  # its owner lives
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    remove_dead_labs()
    assert namespace_names(f"{name}-") == []
    wait_for(lambda: not any(running(int(pid)) for pid in pids), "its servers ended")
    assert remove_lab(name) == []


def running(pid: int) -> bool:
    """Whether a process lives; one that has ended and was not yet waited for doesn't."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
