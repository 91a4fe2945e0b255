"""Targets on the proxy host itself, on the wire: its own addresses, 127.0.0.1 and ::1; and nothing let in by that."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from itertools import product
from pathlib import Path

import pytest

import netlab
from netlab import HTTP_PORT, TCP_PORT, UDP_PORT, Lab, wait_for
from netlab.clients import ask_udp, echo_tcp
from tests.e2e.instance import Instance

# Name -> addresses on the proxy host, by IP version, and the mode's ports that lead there: HTTP, echo of both kinds.
PLACES = {
    "own": ({4: "10.90.1.1", 6: "fd90:1::1"}, {"dnat": (80, 7), "fullnat": (180, 107)}),
    "loopback": ({4: "127.0.0.1", 6: "::1"}, {"dnat": (81, 8), "fullnat": (181, 108)}),
}
ROUTE_LOCALNET = "net/ipv4/conf/eth0/route_localnet"


@contextmanager
def local(offload: bool = False) -> Iterator[Lab]:
    """A lab whose proxy host has the services."""
    with Lab(offload=offload, xdp_peers=True, servers=False) as lab:
        at = [word for name, (ips, _) in PLACES.items() for word in ("--at", f"{name}={ips[4]},{ips[6]}")]
        ports = [str(word) for word in ("--http", HTTP_PORT, "--tcp", TCP_PORT, "--udp", UDP_PORT)]
        servers = Path(netlab.__file__).with_name("servers.py")
        lab.spawn(lab.proxy, sys.executable, servers, *at, *ports).wait_output("ready")
        yield lab


def config(settings: str = "{}", modes: tuple[str, ...] = ("dnat", "fullnat")) -> str:
    lines = ["apiVersion: revproxy/v1", f"settings: {settings}", "proxies:"]
    for (name, (ips, ports)), mode in product(PLACES.items(), modes):
        web, echo = ports[mode]
        for kind, port, protocol, target in (
            ("web", web, "tcp", HTTP_PORT),
            ("echo", echo, "tcp", TCP_PORT),
            ("datagrams", echo, "udp", UDP_PORT),
        ):
            lines += [
                f"  - name: {name}-{kind}-{mode}",
                f"    mode: {mode}",
                f"    listen: {{interfaces: [eth0], port: {port}, protocol: {protocol}}}",
                f'    default_target: [{{ip: "{ips[4]}", port: {target}}}, {{ip: "{ips[6]}", port: {target}}}]',
            ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("offload", [False, True], ids=["without-offloads", "with-offloads"])
def test_services_of_the_proxy_host_are_served(offload: bool) -> None:
    with local(offload) as lab, Instance(lab) as instance:
        for settings in ("{xdp_mode: native}", "{fast_path: false}"):
            instance.apply(config(settings))
            for (name, (ips, ports)), mode, version in product(PLACES.items(), ("dnat", "fullnat"), (4, 6)):
                web, echo = ports[mode]
                listen, client = (lab.proxy4, lab.client4) if version == 4 else (lab.proxy6, lab.client6)
                host = f"[{listen}]" if version == 6 else str(listen)
                seen = str(client) if mode == "dnat" else ips[version]
                seen = f" [{seen}]:" if version == 6 else f" {seen}:"
                page = lab.curl(f"http://{host}:{web}/").partition("from")[0::2]
                # What waits until the client's hardware address is known goes by the right interface, too; and it is
                # found in the name of an address that the client answers.
                lab.proxy.ip("neigh flush dev eth0")
                for answer in (page, ask_udp(lab.client, (listen, echo), b"hello").partition(" ")[0::2]):
                    assert answer[0].startswith(name)
                    assert f" {answer[1].strip()}".startswith(seen), f"{settings} {mode} {name}: {answer}, not {seen}"
                assert echo_tcp(lab.client, (listen, echo), 1_000_000).intact
        assert lab.checksum_errors() == {}
        assert sum(instance.json("stats")["drops"].values()) == 0


def test_wire_packets_to_loopback_addresses_are_dropped() -> None:
    with local() as lab, Instance(lab) as instance:
        listening = lab.proxy.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listening.bind(("127.0.0.1", 9999))
        listening.setblocking(False)
        at_any = lab.proxy.socket(socket.AF_INET, socket.SOCK_DGRAM)
        at_any.bind((str(lab.proxy4), 9999))
        at_any.setblocking(False)
        forge = Forger(lab)
        # These frames are such that a host which lets them in does take them.
        lab.proxy.write_sysctls({ROUTE_LOCALNET: "1"})
        for receiver, frames in ((listening, forge.to_loopback), (at_any, forge.from_loopback)):
            for frame in frames:
                forge.send(frame)
                wait_for(partial(receives, receiver), "the host takes the frame")
        lab.proxy.write_sysctls({ROUTE_LOCALNET: "0"})

        instance.apply(config(modes=("dnat",)))
        assert lab.proxy.read_sysctl(ROUTE_LOCALNET) == "1"
        frames = (*forge.to_loopback, *forge.from_loopback)
        for frame in frames:
            forge.send(frame)
        wait_for(lambda: instance.json("stats")["drops"]["loopback"] >= len(frames), "all of them counted as dropped")
        assert not receives(listening)
        assert not receives(at_any)
        assert instance.json("stats")["drops"]["loopback"] == len(frames)
        # What needs no such address any more needs no such setting.
        instance.apply(config(modes=("fullnat",)))
        assert lab.proxy.read_sysctl(ROUTE_LOCALNET) == "0"
        assert instance.json("diff", status=0)["changes"] == []
        for each in (listening, at_any, forge.socket):
            each.close()


def receives(receiver: socket.socket) -> bool:
    """Whether something has come."""
    try:
        return bool(receiver.recv(100))
    except BlockingIOError:
        return False


class Forger:
    """Sends frames from the lab's client that no honest host would."""

    def __init__(self, lab: Lab) -> None:
        self.socket = lab.client.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self.socket.bind(("eth0", 0))
        own, near = (
            bytes.fromhex(namespace.ip_json("link", "show", "dev", "eth0")[0]["address"].replace(":", ""))
            for namespace in (lab.client, lab.proxy)
        )
        everybody = b"\xff" * 6
        self.to_loopback = [datagram(mac, own, lab.client4, "127.0.0.1") for mac in (near, everybody)]
        self.from_loopback = [datagram(near, own, "127.0.0.2", lab.proxy4)]

    def send(self, frame: bytes) -> None:
        """Once."""
        self.socket.send(frame)


def datagram(to: bytes, sender: bytes, src: object, dst: object) -> bytes:
    """A frame with a UDP datagram to port 9999, which has no checksum."""
    transport = struct.pack("!HHHH", 5555, 9999, 8 + 4, 0) + b"hey!"
    addresses = ip_address(str(src)).packed + ip_address(str(dst)).packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(transport), 1, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return to + sender + b"\x08\0" + head[:10] + struct.pack("!H", 0xFFFF - total) + head[12:] + transport
