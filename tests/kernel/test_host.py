"""Host facts: interfaces, addresses, XDP features, ways out, as the calling thread's network namespace has them."""

from __future__ import annotations

import socket
import subprocess
import threading
from ipaddress import ip_address, ip_interface

import pytest

from reconciler.kernel import genetlink, host, xdp
from reconciler.kernel.xdp import XdpStatus
from reconciler.state.facts import HostFacts, Route, RouteKind
from reconciler.state.objects import IPAddress, XdpMode
from tests.kernel.network import GATEWAY, add_veth, command, enter_new_namespace, load_xdp

pytestmark = pytest.mark.own_namespace


def facts() -> HostFacts:
    return host.host_facts()


def test_loopback() -> None:
    loopback = facts().interfaces["lo"]
    assert (loopback.kind, loopback.up, loopback.ifindex) == ("loopback", True, socket.if_nametoindex("lo"))
    assert set(loopback.addresses) == {ip_interface("127.0.0.1/8"), ip_interface("::1/128")}
    assert not loopback.xdp_native


def test_veth() -> None:
    ifindex = add_veth(mtu=1400)
    command("ip link set vb down")
    found = facts()
    veth = found.interfaces["va"]
    assert (veth.ifindex, veth.kind, veth.driver, veth.mtu) == (ifindex, "veth", "veth", 1400)
    assert veth.xdp_native
    assert (veth.up, veth.carrier) == (True, False)
    assert found.by_index(ifindex) is veth
    assert not found.interfaces["vb"].up
    command("ip link set vb up")
    assert facts().interfaces["va"].carrier


def test_bridge_has_no_native_xdp() -> None:
    command("ip link add other type bridge")
    other = facts().interfaces["other"]
    assert (other.kind, other.driver, other.xdp_native) == ("bridge", "bridge", False)


def test_addresses() -> None:
    add_veth()
    command("ip addr add 192.0.2.1/24 dev va")
    command("ip addr add 192.0.2.9/24 dev va")
    command("ip addr add 10.0.0.1 peer 10.0.0.2/32 dev va")
    command("ip addr add 2001:db8::1/64 dev va nodad")
    found = facts()
    assert {str(each) for each in found.interfaces["va"].addresses if not each.ip.is_link_local} == {
        "192.0.2.1/24",
        "192.0.2.9/24",
        "10.0.0.1/32",
        "2001:db8::1/64",
    }


def test_forwarding_of_each_interface() -> None:
    add_veth()
    command("sysctl --write net/ipv4/conf/va/forwarding=1")
    command("sysctl --write net/ipv6/conf/vb/forwarding=1")
    found = facts().interfaces
    assert [(found[name].forwarding4, found[name].forwarding6) for name in ("va", "vb")] == [
        (True, False),
        (False, True),
    ]


def test_veth_takes_redirected_frames_once_its_peer_runs_xdp() -> None:
    add_veth()
    before = facts().interfaces["va"]
    if before.xdp_features is None:
        pytest.skip("no netdev family before Linux 6.3")
    assert "basic" in before.xdp_features
    assert before.xdp_transmit is False
    peer = socket.if_nametoindex("vb")
    xdp.attach(XdpStatus(peer, "vb", {}), XdpMode.NATIVE, load_xdp(), None, GATEWAY)
    assert facts().interfaces["va"].xdp_transmit is True


def test_features_of_more_interfaces_than_fit_into_one_message() -> None:
    if genetlink.xdp_features() is None:
        pytest.skip("no netdev family before Linux 6.3")
    lines = "".join(f"link add a{number} type veth peer name b{number}\n" for number in range(300))
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)
    features = genetlink.xdp_features()
    assert features
    assert features.keys() == {index for index, _ in socket.if_nameindex()}
    assert len(features) > 600


def test_without_the_netdev_family_the_driver_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    add_veth()
    monkeypatch.setattr(host, "xdp_features", lambda: None)
    found = facts().interfaces
    assert found["va"].xdp_native
    assert not found["lo"].xdp_native
    assert (found["va"].xdp_transmit, found["va"].xdp_features) == (None, None)


def test_foreign_xdp_program_is_told_and_ours_is_not() -> None:
    ifindex, program = add_veth(), load_xdp("somebody")
    xdp.attach(XdpStatus(ifindex, "va", {}), XdpMode.GENERIC, program, None, GATEWAY)
    (foreign,) = facts().foreign_xdp.values()
    assert (foreign.ifindex, foreign.mode, foreign.program) == (ifindex, "generic", program.info)
    assert host.host_facts(own_programs=frozenset({program.info.id})).foreign_xdp == {}


def make_routes() -> int:
    ifindex = add_veth()
    for line in (
        "addr add 192.0.2.1/24 dev va",
        "addr add 2001:db8::1/64 dev va nodad",
        "route add 198.51.100.0/24 via 192.0.2.254",
        "route add 203.0.113.0/24 via inet6 2001:db8::fe dev va",
        "route add 2001:db8:1::/48 via 2001:db8::fe",
        "route add unreachable 10.1.0.0/16",
        "route add blackhole 10.2.0.0/16",
        "route add prohibit 10.3.0.0/16",
        "route add unreachable 2001:db8:2::/48",
        "route add blackhole 2001:db8:3::/48",
    ):
        command(f"ip {line}")
    return ifindex


WAYS = {
    "192.0.2.7": (RouteKind.UNICAST, "va", None),
    "198.51.100.7": (RouteKind.UNICAST, "va", "192.0.2.254"),
    "203.0.113.7": (RouteKind.UNICAST, "va", "2001:db8::fe"),
    "2001:db8::7": (RouteKind.UNICAST, "va", None),
    "2001:db8:1::7": (RouteKind.UNICAST, "va", "2001:db8::fe"),
    "192.0.2.1": (RouteKind.LOCAL, "lo", None),
    "127.0.0.1": (RouteKind.LOCAL, "lo", None),
    "::1": (RouteKind.LOCAL, "lo", None),
    "2001:db8::1": (RouteKind.LOCAL, "lo", None),
    "192.0.2.255": (RouteKind.OTHER, "va", None),
}
NO_WAYS = ("10.1.0.1", "10.2.0.1", "10.3.0.1", "10.4.0.1", "2001:db8:2::1", "2001:db8:3::1", "2001:db9::1")


def test_ways_out() -> None:
    make_routes()
    for target, (kind, name, gateway) in WAYS.items():
        route = host.route_to(ip_address(target))
        assert route.kind is kind, target
        assert route.ifindex is not None
        assert socket.if_indextoname(route.ifindex) == name, target
        assert route.gateway == (ip_address(gateway) if gateway else None), target
    assert host.route_to(ip_address("192.0.2.7")).source == ip_address("192.0.2.1")


@pytest.mark.parametrize("target", NO_WAYS)
def test_no_way_out(target: str) -> None:
    make_routes()
    assert host.route_to(ip_address(target)) == Route(RouteKind.UNREACHABLE)


def test_many_ways_out_at_once() -> None:
    """More than one call asks for, those that there is no way to among them."""
    make_routes()
    targets = [ip_address(each) for number in range(60) for each in (f"192.0.2.{number + 2}", f"10.1.0.{number}")]
    assert host.host_facts(targets).routes == {target: host.route_to(target) for target in targets}


def test_every_next_hop_of_a_route_is_a_way_out() -> None:
    add_veth("va", "vb")
    add_veth("vc", "vd")
    for name, four, six in (("va", "10.7.1.1/24", "fd07:1::1/64"), ("vc", "10.7.2.1/24", "fd07:2::1/64")):
        command(f"ip address add {four} dev {name}")
        command(f"ip address add {six} dev {name} nodad")
    for name in ("va", "vb", "vc", "vd"):
        command(f"ip link set {name} up")
    command("ip route add 10.8.0.0/16 nexthop via 10.7.1.9 nexthop via 10.7.2.9")
    command("ip route add 10.9.0.0/16 via 10.7.2.9")
    command("ip route add fd08::/64 nexthop via fd07:1::9 nexthop via fd07:2::9")
    both = {socket.if_nametoindex(name) for name in ("va", "vc")}
    # Answers of many and of few bytes, and refusals, in one call.
    targets = [
        ip_address(f"{net}{host}") for host in range(2, 40) for net in ("10.8.0.", "10.9.0.", "fd08::", "10.6.0.")
    ]
    for target, route in host.host_facts(targets).routes.items():
        if str(target).startswith(("10.8.", "fd08:")):
            assert route.shared == both, target
            assert route.ways == both
        else:
            assert route.shared == frozenset(), target
            assert route.ways == (frozenset({route.ifindex}) if route.ifindex else frozenset())


def test_facts_about_targets_and_sysctls() -> None:
    ifindex = make_routes()
    targets: list[IPAddress] = [ip_address(each) for each in ("192.0.2.7", "127.0.0.1", "10.1.0.1")]
    found = host.host_facts(targets, ["net/ipv4/conf/lo/forwarding", "net/ipv4/conf/nosuch/forwarding"])
    assert found.route_to == dict(zip(targets, (ifindex, None, None), strict=True))
    assert [found.routes[target].kind for target in targets] == ["unicast", "local", "unreachable"]
    assert found.sysctls == {"net/ipv4/conf/lo/forwarding": "0"}


def test_each_thread_sees_its_own_namespace() -> None:
    add_veth()
    seen: list[set[str]] = []

    def elsewhere() -> None:
        enter_new_namespace()
        seen.append(set(facts().interfaces))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert {"va", "vb"} <= set(facts().interfaces)
    assert not {"va", "vb"} & seen[0]
