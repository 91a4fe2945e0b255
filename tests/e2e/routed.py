"""A backend that lies behind a router of its own, beyond the lab's proxy host.

client ---- eth0 proxy eth9 ---- eth0 router eth1 ---- eth0 far
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import netlab
from netlab import HTTP_PORT, TCP_PORT, UDP_PORT, Lab, Namespace

IPAddress = IPv4Address | IPv6Address


@dataclass(frozen=True)
class Routed:
    """The lab, and what is beyond. Addresses by IP version."""

    lab: Lab
    router: Namespace
    far: Namespace
    proxy_side: dict[int, IPAddress]
    router_side: dict[int, IPAddress]
    target: dict[int, IPAddress]

    def listen(self, version: int) -> IPAddress:
        """The proxy host's address towards the client."""
        return self.lab.proxy4 if version == 4 else self.lab.proxy6

    def checksum_errors(self) -> dict[str, int]:
        """Like the lab's, the far end and the router included."""
        found = self.lab.checksum_errors()
        for namespace in (self.router, self.far):
            found |= {f"{namespace.name} {name}": count for name, count in namespace.checksum_errors().items() if count}
        return found

    def forget_path_mtu(self) -> None:
        """Of both ends and all in between."""
        for namespace in (self.lab.client, self.lab.proxy, self.router, self.far):
            for version in ("-4", "-6"):
                namespace.run("ip", version, "route", "flush", "cache")


def addresses(network: int, host: int) -> dict[int, IPAddress]:
    """10.91.NETWORK.HOST and fd91:NETWORK::HOST."""
    return {4: ip_address(f"10.91.{network}.{host}"), 6: ip_address(f"fd91:{network}::{host}")}


@contextmanager
def routed(*, offload: bool = False) -> Iterator[Routed]:
    """The lab with the far end, its servers running."""
    with Lab(backends=1, offload=offload, xdp_peers=True, servers=False) as lab:
        router, far = Namespace(f"{lab.name}-router"), Namespace(f"{lab.name}-far")
        try:
            for namespace in (router, far):
                namespace.create()
            built = Routed(lab, router, far, addresses(1, 1), addresses(1, 2), addresses(2, 2))
            _connect(built)
            at = ",".join(str(ip) for ip in built.target.values())
            ports = [str(word) for word in ("--http", HTTP_PORT, "--tcp", TCP_PORT, "--udp", UDP_PORT)]
            servers = Path(netlab.__file__).with_name("servers.py")
            lab.spawn(far, sys.executable, servers, "--at", f"far={at}", *ports).wait_output("ready")
            yield built
        finally:
            for process in lab.processes:
                process.kill()
            for namespace in (router, far):
                namespace.delete()


def _connect(built: Routed) -> None:
    near, proxy, router, far = built.lab, built.lab.proxy, built.router, built.far
    gateway = addresses(2, 1)
    proxy.ip(f"link add eth9 type veth peer name eth0 netns {router.name}")
    router.ip(f"link add eth1 type veth peer name eth0 netns {far.name}")
    ends = (
        (proxy, "eth9", built.proxy_side),
        (router, "eth0", built.router_side),
        (router, "eth1", gateway),
        (far, "eth0", built.target),
    )
    for namespace, interface, own in ends:
        off = [] if near.offload else ["tx", "off", "rx", "off", "tso", "off", "gso", "off"]
        if namespace is not proxy:
            namespace.run("ethtool", "-K", interface, *off, "gro", "on")
        namespace.ip(
            f"address add {own[4]}/24 dev {interface}",
            f"address add {own[6]}/64 dev {interface} nodad",
            f"link set {interface} up",
        )
    router.write_sysctls({"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"})
    for version in (4, 6):
        proxy.ip(f"route add {net(built.target[version])} via {built.router_side[version]}")
        router.ip(f"route add default via {built.proxy_side[version]}")
        far.ip(f"route add default via {gateway[version]}")


def net(ip: IPAddress) -> str:
    """The network that one of :func:`addresses` is in."""
    return str(ip_network(f"{ip}/{24 if ip.version == 4 else 64}", strict=False))
