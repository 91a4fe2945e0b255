"""Gather what the host is like (``state/facts.py``), for the network namespace of the calling thread."""

from __future__ import annotations

import ctypes as ct
import errno
import fcntl
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from typing import Final

from pyroute2.netlink.rtnl import RTM_GETADDR, RTM_GETROUTE
from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_DADFAILED, ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from reconciler.errors import KernelError
from reconciler.kernel import ethtool, links, sysctls
from reconciler.kernel.genetlink import xdp_features
from reconciler.kernel.links import Link
from reconciler.kernel.netlink import Answer, Request, asking
from reconciler.kernel.nexthops import next_hop_interfaces
from reconciler.kernel.xdp import XdpStatus
from reconciler.state.facts import HostFacts, Interface, InterfaceAddress, Route, RouteKind
from reconciler.state.objects import IPAddress

_ROUTE_KINDS: Final = {
    1: RouteKind.UNICAST,
    2: RouteKind.LOCAL,
    6: RouteKind.UNREACHABLE,
    7: RouteKind.UNREACHABLE,
    8: RouteKind.UNREACHABLE,
}
# What the kernel answers for: no route, unreachable, prohibit, blackhole, and an address it never routes.
_NO_WAY: Final = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT)

_AT_ONCE: Final = 32  # requests in one call: their answers have to fit into the socket's buffer
_SIOCGIFHWADDR: Final = 0x8927

# Drivers with native XDP, for kernels before 6.3, which don't tell.
_NATIVE_DRIVER_NAMES: Final = """
    atlantic bnxt_en bonding cpsw dpaa2-eth ena fec fsl_dpa fsl_dpaa2_eth fsl_enetc gve hv_netvsc i40e ice igb igc
    ixgbe ixgbevf lan966x-switch mana mlx4_en mlx5_core mtk_soc_eth mvneta mvpp2 netdevsim netsec nfp nicvf qede
    rvu-nicpf rvu-nicvf sfc st_gmac stmmac tap ti_cpsw tsnep tun veth vif virtio_net vmxnet3
"""
_NATIVE_DRIVERS: Final = frozenset(_NATIVE_DRIVER_NAMES.split())


def host_facts(
    targets: Iterable[IPAddress] = (),
    sysctl_names: Iterable[str] = (),
    own_programs: frozenset[int] = frozenset(),
    listed: Mapping[int, Link] | None = None,
) -> HostFacts:
    """One look at everything. ``targets``: addresses whose way out is wanted; ``own_programs``: ids of XDP programs
    that are not foreign; ``listed``: the interfaces as just listed. Raises :class:`KernelError` if the kernel can't be
    asked."""
    found = links.list_links() if listed is None else listed
    addresses = _addresses()
    features = xdp_features()
    routes = _routes(targets)
    foreign = {index: XdpStatus(index, link.name, link.xdp).foreign(own_programs) for index, link in found.items()}
    return HostFacts(
        interfaces={
            link.name: _interface(link, addresses.get(index, ()), None if features is None else features.get(index))
            for index, link in found.items()
        },
        route_to={
            target: route.ifindex if route.kind is RouteKind.UNICAST else None for target, route in routes.items()
        },
        sysctls=sysctls.read_all(sysctl_names),
        foreign_xdp={index: program for index, program in foreign.items() if program},
        routes=routes,
    )


def route_to(target: IPAddress) -> Route:
    """The way this host would send a packet to ``target``."""
    return _routes((target,))[target]


def _routes(targets: Iterable[IPAddress]) -> dict[IPAddress, Route]:
    wanted, found = list(targets), list[tuple[Answer, ...] | OSError]()
    with asking("find", "routes") as netlink:
        for start in range(0, len(wanted), _AT_ONCE):
            found += netlink.batch([_route_request(target) for target in wanted[start : start + _AT_ONCE]])
    routes = {target: _route(target, outcome) for target, outcome in zip(wanted, found, strict=True)}
    unicast = (target for target, route in routes.items() if route.kind is RouteKind.UNICAST)
    shared = next_hop_interfaces(unicast)
    return routes | {target: replace(routes[target], shared=ways) for target, ways in shared.items()}


def _route_request(target: IPAddress) -> Request:
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    fields = {"family": family, "dst_len": target.max_prefixlen}
    return Request(RTM_GETROUTE, rtmsg, fields, (("RTA_DST", str(target)),))


def _route(target: IPAddress, outcome: tuple[Answer, ...] | OSError) -> Route:
    if not isinstance(outcome, OSError) and not outcome:
        outcome = OSError(errno.ENODATA, os.strerror(errno.ENODATA))
    if isinstance(outcome, OSError):
        if outcome.errno in _NO_WAY:
            return Route(RouteKind.UNREACHABLE)
        raise KernelError("find route", f"to {target}", outcome.errno or 0, outcome.strerror or "") from outcome
    (answer, *_) = outcome
    gateway = answer.text("RTA_GATEWAY") or answer.part("RTA_VIA", "addr")
    source = answer.text("RTA_PREFSRC")
    return Route(
        kind=_ROUTE_KINDS.get(answer.field("type"), RouteKind.OTHER),
        ifindex=answer.number("RTA_OIF") or None,
        gateway=ip_address(gateway) if gateway else None,
        source=ip_address(source) if source else None,
    )


def _interface(link: Link, addresses: tuple[InterfaceAddress, ...], features: frozenset[str] | None) -> Interface:
    driver = ethtool.driver_name(link.name)
    native = driver in _NATIVE_DRIVERS if features is None else "basic" in features
    return Interface(
        ifindex=link.ifindex,
        name=link.name,
        kind="loopback" if link.loopback else link.kind or "physical",
        up=link.up,
        addresses=addresses,
        xdp_native=native,
        forwarding4=sysctls.read(f"net/ipv4/conf/{link.name}/forwarding") == "1",
        forwarding6=sysctls.read(f"net/ipv6/conf/{link.name}/forwarding") == "1",
        driver=driver,
        mtu=link.mtu,
        carrier=link.carrier,
        xdp_transmit=None if features is None else "ndo-xmit" in features,
        xdp_features=features,
    )


def _addresses() -> dict[int, tuple[InterfaceAddress, ...]]:
    """By interface number, in the kernel's order. An IPv6 address that another host has too is left out."""
    with asking("list", "addresses") as netlink:
        answers = netlink.dump(Request(RTM_GETADDR, ifaddrmsg))
    found: dict[int, tuple[InterfaceAddress, ...]] = {}
    for answer in answers:
        flags = answer.field("flags") | answer.number("IFA_FLAGS")
        own = answer.text("IFA_LOCAL") or answer.text("IFA_ADDRESS")  # of a point-to-point link, this is the peer's
        if not flags & IFA_F_DADFAILED:
            ifindex = answer.field("index")
            found[ifindex] = (*found.get(ifindex, ()), ip_interface(f"{own}/{answer.field('prefixlen')}"))
    return found


def hardware_address(interface: str) -> bytes:
    """The interface's Ethernet address; zero where it has none. Raises :class:`KernelError` if there is no such
    interface."""
    request = (ct.c_uint8 * 40)(*interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            fcntl.ioctl(any_socket, _SIOCGIFHWADDR, request)
        except OSError as error:
            raise KernelError("ask for the address of", interface, error.errno or 0, error.strerror or "") from error
    return bytes(request[18:24])
