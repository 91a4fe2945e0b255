"""Full NAT and targets on this host: source addresses, settings, guards, and when each comes and goes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from reconciler.state import operations as ops
from reconciler.state.carried import Carried
from reconciler.state.desired import desired, sysctl_names
from reconciler.state.diff import Change, diff
from reconciler.state.facts import HostFacts, Route, RouteKind, RuntimeFacts
from reconciler.state.objects import Attachment, DataPlaneSettings, Mode, XdpMode
from tests.unit.state.build import (
    FORWARDING,
    applied,
    config,
    endpoint,
    host,
    interface,
    plan,
    proxy,
    route,
    targets,
    want,
)

FULL = proxy(mode=Mode.FULLNAT)
TARGET = ("web", endpoint("10.0.0.1:8080"))
NAMES = sysctl_names(config(), ["lo", "eth0", "eth1"])
ROUTE_LOCALNET = "net/ipv4/conf/eth0/route_localnet"


def lab(source: str | None = "10.0.0.254", sysctls: dict[str, str] | None = None, **routes: Route) -> HostFacts:
    """A host with a way to 10.0.0.1 and 2001:db8:9::1, all its settings off, and the host's own ports as usual."""
    known = {
        ip_address("10.0.0.1"): Route(RouteKind.UNICAST, 3, source=ip_address(source) if source else None),
        ip_address("2001:db8:9::1"): Route(RouteKind.UNICAST, 3, source=ip_address("2001:db8:9::fe")),
        ip_address("127.0.0.1"): Route(RouteKind.LOCAL, 1, source=ip_address("127.0.0.1")),
        ip_address("::1"): Route(RouteKind.LOCAL, 1),
    }
    live = dict.fromkeys(NAMES, "0") | {
        "net/ipv4/ip_local_port_range": "32768\t60999",
        "net/ipv4/ip_local_reserved_ports": "",
    }
    return host(
        interface(1, "lo", "127.0.0.1/8", "::1/128", kind="loopback"),
        interface(2, "eth0", "192.0.2.1/24", "2001:db8::1/64"),
        interface(3, "eth1", "10.0.0.254/24"),
        ways={"10.0.0.1": 3, "2001:db8:9::1": 3, "127.0.0.1": None, "::1": None},
        routes=known | {ip_address(ip): route for ip, route in routes.items()},
        sysctls=live | (sysctls or {}),
    )


# -- source addresses


def test_targets_of_fullnat_proxies_have_this_hosts_address_towards_them() -> None:
    both = targets("10.0.0.1:8080", "[2001:db8:9::1]:8080", "127.0.0.1:80", "[::1]:80")
    found = want(proxy("plain", ports=[81]), proxy(to=both, mode=Mode.FULLNAT), on=lab())
    assert {(name, str(target)): str(source) for (name, target), source in found.state.sources.items()} == {
        ("web", "10.0.0.1:8080"): "10.0.0.254",
        ("web", "[2001:db8:9::1]:8080"): "2001:db8:9::fe",
        ("web", "127.0.0.1:80"): "127.0.0.1",
        ("web", "[::1]:80"): "::1",
    }
    assert found.warnings == ()


def test_targets_of_routes_have_a_source_too() -> None:
    routed = proxy(to=targets("127.0.0.1:80"), routes=(route("10.0.0.0/8", "10.0.0.1:1"),), mode=Mode.FULLNAT)
    assert want(routed, on=lab()).state.sources["web", endpoint("10.0.0.1:1")] == ip_address("10.0.0.254")


def test_a_target_without_a_source_is_warned_about_once() -> None:
    found = want(FULL, on=lab(source=None))
    assert found.state.sources == {}
    assert found.warnings == ("this host has no address towards target 10.0.0.1: it takes no fullnat connection",)
    unreachable = replace(lab(), routes={ip_address("10.0.0.1"): Route(RouteKind.UNREACHABLE)})
    assert want(FULL, on=unreachable).warnings == (
        "no route to target 10.0.0.1: `revproxyctl doctor` says what mends it",
    )
    assert want(proxy(), on=lab(source=None)).warnings == ()


def test_a_link_local_address_is_no_source() -> None:
    linked = {"2001:db8:9::1": Route(RouteKind.UNICAST, 3, source=ip_address("fe80::1"))}
    found = want(proxy(to=targets("[2001:db8:9::1]:1"), mode=Mode.FULLNAT), on=lab(**linked))
    assert found.state.sources == {}
    assert "no address towards target 2001:db8:9::1" in found.warnings[0]


def test_a_new_target_is_put_with_its_source() -> None:
    wanted = want(FULL, on=lab())
    (put,) = [each for each in plan(wanted, applied(want())).stage if isinstance(each, ops.PutTarget)]
    assert put == ops.PutTarget(1, 1, endpoint("10.0.0.1:8080"), ip_address("10.0.0.254"))


def test_another_source_is_set_in_place_and_nothing_is_switched() -> None:
    live, wanted = applied(want(FULL, on=lab())), want(FULL, on=lab("10.0.0.7"))
    (change,) = diff(wanted, live)
    assert (change.action, change.object, change.name) == ("update", "target", "web/10.0.0.1:8080")
    assert (change.before["source"], change.after["source"]) == ("10.0.0.254", "10.0.0.7")
    found = plan(wanted, live)
    assert found.operations == (ops.SetSource(1, ip_address("10.0.0.254"), ip_address("10.0.0.7")),)
    assert found.switch is None


def test_a_routes_target_with_another_source_is_a_change_of_its_own() -> None:
    routed = proxy(to=targets("127.0.0.1:80"), routes=(route("10.0.0.0/8", "10.0.0.1:1"),), mode=Mode.FULLNAT)
    (change,) = diff(want(routed, on=lab("10.0.0.7")), applied(want(routed, on=lab())))
    assert change == Change(
        "update", "target", "web/10.0.0.1:1", {"source": "10.0.0.254"}, {"source": "10.0.0.7"}, None
    )
    without = proxy(to=targets("127.0.0.1:80"), mode=Mode.FULLNAT)
    kinds = [each.object for each in diff(want(routed, on=lab()), applied(want(without, on=lab())))]
    assert kinds == ["interface", "route"], "with the route comes its target, without a line of its own"


def test_no_packet_is_without_a_source_when_the_mode_changes() -> None:
    plain, full = want(proxy(), on=lab()), want(FULL, on=lab())
    source = ip_address("10.0.0.254")
    assert ops.SetSource(1, None, source) in plan(full, applied(plain)).stage
    back = plan(plain, applied(full))
    assert ops.SetSource(1, source, None) in back.finish
    assert not [each for each in back.stage if isinstance(each, ops.SetSource)]


def test_a_retired_target_that_comes_back_gets_its_source() -> None:
    """Its entry says what held when it was left."""
    live = applied(want(proxy(to=targets("127.0.0.1:80"), mode=Mode.FULLNAT), on=lab()))
    live.allocation.targets[TARGET] = 9
    live.allocation.sources[TARGET] = ip_address("10.0.0.66")
    live = replace(live, allocation=replace(live.allocation, retired_targets=frozenset({9})))
    change = ops.SetSource(9, ip_address("10.0.0.66"), ip_address("10.0.0.254"))
    assert change in plan(want(FULL, on=lab()), live).stage
    assert ops.SetSource(9, ip_address("10.0.0.66"), None) in plan(want(proxy(), on=lab()), live).finish


# -- ports


def test_source_ports_are_settings_of_the_data_plane() -> None:
    found = want(FULL, on=lab(), ports=(20000, 20009)).state.settings
    assert found == DataPlaneSettings(source_port_first=20000, source_port_last=20009)


@pytest.mark.parametrize(
    ("ports", "reserved", "warned"),
    [
        ((10000, 32767), "", ""),
        ((61000, 65535), "", ""),
        ((10000, 32768), "", "32768-32768"),
        ((40000, 50000), "", "40000-50000"),
        ((60000, 65535), "", "60000-60999"),
        ((60000, 65535), "1500,60000-60999", ""),
        ((60000, 65535), "60001-60999", "60000-60999"),
    ],
)
def test_ports_that_are_the_hosts_own_are_warned_about(ports: tuple[int, int], reserved: str, warned: str) -> None:
    on = lab(sysctls={"net/ipv4/ip_local_reserved_ports": reserved})
    warnings = want(FULL, on=on, ports=ports).warnings
    assert bool(warnings) == bool(warned)
    if warned:
        assert f"reserve {warned} " in warnings[0]
    assert want(proxy(), on=on, ports=ports).warnings == ()


# -- settings and guards


def test_full_nat_serves_lo_and_has_it_accept_this_hosts_addresses() -> None:
    found = want(FULL, on=lab()).state
    assert found.attachments[1] == Attachment(1, "lo", XdpMode.OFF)
    assert found.sysctls == {"net/ipv4/conf/lo/forwarding": "1", "net/ipv4/conf/lo/accept_local": "1"}
    stack = want(FULL, on=lab(), fast_path=False).state.sysctls
    assert stack["net/ipv4/conf/lo/accept_local"] == stack["net/ipv4/conf/lo/forwarding"] == "1"
    six = want(proxy(to=targets("[2001:db8:9::1]:1"), mode=Mode.FULLNAT), on=lab()).state
    assert six.sysctls == {"net/ipv6/conf/lo/forwarding": "1", "net/ipv6/conf/lo/force_forwarding": "1"}
    old = lab()
    sysctls = {name: value for name, value in old.sysctls.items() if "force" not in name}
    found_old = want(proxy(to=targets("[2001:db8:9::1]:1"), mode=Mode.FULLNAT), on=replace(old, sysctls=sysctls))
    assert found_old.state.sysctls == {"net/ipv6/conf/lo/forwarding": "1"}
    assert found_old.warnings == ()


def test_what_connections_of_proxies_that_are_gone_go_through_stays_as_it_is() -> None:
    carried = Carried(frozenset({4, 6}), fullnat=frozenset({4}), lo_local=True)
    found = desired(config(), lab(), RuntimeFacts(carried=carried), tag="tag").state
    lo4, lo6 = "net/ipv4/conf/lo", "net/ipv6/conf/lo"
    assert found.sysctls == dict.fromkeys(
        (
            f"{lo4}/accept_local",
            f"{lo4}/forwarding",
            f"{lo4}/route_localnet",
            f"{lo6}/force_forwarding",
            f"{lo6}/forwarding",
        ),
        "1",
    )
    assert found.attachments == {1: Attachment(1, "lo", XdpMode.OFF)}


def test_without_a_listener_full_nat_needs_nothing() -> None:
    found = want(proxy(interfaces=["eth7"], mode=Mode.FULLNAT), on=lab()).state
    assert 1 not in found.attachments
    assert found.sysctls == {}


def test_destination_nat_touches_lo_only_for_forwarding() -> None:
    found = want(proxy(), on=lab()).state
    assert 1 not in found.attachments
    assert found.sysctls == {"net/ipv4/conf/lo/forwarding": "1"}
    assert found.guarded == frozenset()


@pytest.mark.parametrize(
    ("everywhere", "lo", "wanted"),
    [("0", "0", None), ("2", "0", None), ("1", "0", "2"), ("0", "1", "2"), ("1", "2", "2"), ("0", "2", "2")],
)
def test_lo_takes_packets_whose_source_is_reached_by_another_interface(
    everywhere: str, lo: str, wanted: str | None
) -> None:
    """Those that the stack must answer with an ICMP error come by it."""
    name = "net/ipv4/conf/lo/rp_filter"
    on = lab(sysctls={"net/ipv4/conf/all/rp_filter": everywhere, name: lo})
    assert want(proxy(), on=on).state.sysctls.get(name) == wanted
    assert name not in want(proxy(), on=on, fast_path=False).state.sysctls
    assert name not in want(proxy(to=targets("[2001:db8:9::1]:1")), on=on).state.sysctls


def test_targets_at_loopback_addresses_open_the_listening_interfaces_under_guard() -> None:
    local = proxy(interfaces=["eth0", "lo", "eth9"], to=targets("127.0.0.1:81"))
    found = want(local, on=lab()).state
    assert found.guarded == {2}, "lo itself is not guarded: these are its own"
    assert {name for name, value in found.sysctls.items() if "localnet" in name} == {ROUTE_LOCALNET}
    six = want(proxy(to=targets("[::1]:80")), on=lab()).state
    assert six.guarded == frozenset()
    assert six.sysctls == {"net/ipv6/conf/lo/forwarding": "1", "net/ipv6/conf/lo/force_forwarding": "1"}
    full = want(replace(local, mode=Mode.FULLNAT, listen=proxy().listen), on=lab()).state
    assert full.guarded == frozenset(), "they answer to lo"
    assert full.sysctls["net/ipv4/conf/lo/route_localnet"] == "1"
    assert ROUTE_LOCALNET not in full.sysctls


@pytest.mark.parametrize(("live", "wanted"), [("0", "1"), ("1", "1"), ("2", None)])
def test_nobody_is_asked_for_a_hardware_address_in_the_name_of_a_loopback_address(
    live: str, wanted: str | None
) -> None:
    name = "net/ipv4/conf/eth0/arp_announce"
    assert name in sysctl_names(config(proxy()), ["eth0"])
    on = lab(sysctls={name: live})
    assert want(proxy(to=targets("127.0.0.1:81")), on=on).state.sysctls.get(name) == wanted
    assert name not in want(proxy(), on=on).state.sysctls


def test_the_guard_stands_before_the_door_is_opened_and_until_it_is_closed() -> None:
    local = want(proxy(to=targets("127.0.0.1:80")), on=lab())
    opening = plan(local, applied(want(on=lab())))
    here = Attachment(2, "eth0", XdpMode.OFF)
    assert not [each for each in opening.stage if isinstance(each, ops.SetSysctl) and each.name == ROUTE_LOCALNET]
    assert opening.attach == (
        ops.Attach(None, here),
        ops.PutDevice(2, None, ops.DEVICE_DROP_LOOPBACK),
        ops.SetSysctl(ROUTE_LOCALNET, "0", "1"),
    )
    live = replace(applied(local), remembered={ROUTE_LOCALNET: ("0", "1")})
    closing = plan(want(on=lab()), live).finish
    wanted = [
        ops.RestoreSysctl(ROUTE_LOCALNET, "1", "0"),
        ops.Detach(here),
        ops.PutDevice(2, ops.DEVICE_DROP_LOOPBACK, None),
    ]
    assert [each for each in closing if each in wanted] == wanted


def test_a_lost_guard_is_drift() -> None:
    local = want(proxy(to=targets("127.0.0.1:80")), on=lab())
    live = applied(local)
    live = replace(live, state=replace(live.state, guarded=frozenset()))
    assert diff(local, live) == (
        Change("update", "interface", "eth0", {"drop_loopback": False}, {"drop_loopback": True}),
    )
    assert plan(local, live).operations == (ops.PutDevice(2, None, ops.DEVICE_DROP_LOOPBACK),)


def test_a_veth_loses_what_xdp_sends_back_and_is_known_for_it_while_xdp_may_be_there() -> None:
    on = lab()
    pair = replace(on, interfaces={**on.interfaces, "eth0": replace(on.interfaces["eth0"], kind="veth")})
    without, native = want(proxy(), on=pair), want(proxy(), on=pair, xdp_mode="native")
    assert [without.state.no_tx, native.state.no_tx] == [frozenset(), frozenset({2})]
    assert want(proxy(), on=on, xdp_mode="native").state.no_tx == frozenset()
    begin, end = plan(native, applied(without)), plan(without, applied(native))
    known, forgotten = ops.PutDevice(2, None, ops.DEVICE_NO_TX), ops.PutDevice(2, ops.DEVICE_NO_TX, None)
    assert known in begin.attach
    assert forgotten in end.finish
    assert not [each for each in end.stage if isinstance(each, ops.PutDevice) and each.ifindex == 2]
    lost = applied(native)
    lost = replace(lost, state=replace(lost.state, no_tx=frozenset()))
    assert diff(native, lost) == (Change("update", "interface", "eth0", {"xdp_tx_lost": False}, {"xdp_tx_lost": True}),)


def test_a_guard_and_a_redirect_share_an_entry() -> None:
    """Each comes and goes without the other."""
    on = lab()
    wide = replace(on, interfaces={**on.interfaces, "eth0": replace(on.interfaces["eth0"], xdp_transmit=True)})
    local = proxy(to=targets("127.0.0.1:80"))
    both = ops.DEVICE_DROP_LOOPBACK | ops.DEVICE_XDP_REDIRECT

    def devices(wanted: object, live: object) -> list[object]:
        found = plan(wanted, applied(live))  # type: ignore[arg-type]  # Desired both
        return [each for each in found.operations if isinstance(each, ops.PutDevice)]

    guarded, plain = want(local, on=on), want(proxy(), on=wide)
    assert devices(want(local, on=wide), plain) == [ops.PutDevice(2, ops.DEVICE_XDP_REDIRECT, both)]
    assert devices(plain, want(local, on=wide)) == [ops.PutDevice(2, both, ops.DEVICE_XDP_REDIRECT)]
    assert devices(want(local, on=wide), guarded) == [ops.PutDevice(2, ops.DEVICE_DROP_LOOPBACK, both)]
    assert devices(guarded, want(local, on=wide)) == [ops.PutDevice(2, both, ops.DEVICE_DROP_LOOPBACK)]
    assert devices(guarded, plain) == [
        ops.PutDevice(2, ops.DEVICE_XDP_REDIRECT, None),
        ops.PutDevice(2, None, ops.DEVICE_DROP_LOOPBACK),
    ]


def test_the_live_value_of_every_wanted_setting_is_asked_for() -> None:
    local = targets("127.0.0.1:80", "[::1]:80")
    for mode in Mode:
        found = want(proxy(to=local, mode=mode), on=lab())
        assert found.warnings == ()
        assert set(found.state.sysctls) <= set(NAMES)
    assert set(FORWARDING) <= set(NAMES)
