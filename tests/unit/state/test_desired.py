"""Config and host facts make the desired kernel state."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address

import pytest

from reconciler.errors import ConfigError, ForeignProgramError
from reconciler.state.desired import Memo, desired, sysctl_names, target_addresses
from reconciler.state.diff import listen_text
from reconciler.state.facts import HostFacts, Interface, ProgramInfo, Route, RouteKind, RuntimeFacts, XdpProgram
from reconciler.state.objects import (
    DENY,
    Attachment,
    DataPlaneSettings,
    Destination,
    ListenerKey,
    Mode,
    ProgramState,
    Protocol,
    RouteKey,
    TakenOver,
    XdpMode,
)
from tests.unit.state.build import config, endpoint, host, interface, proxy, route, targets, want

DUAL = interface(2, "eth0", "192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64", "fe80::1/64")
BOTH = targets("10.0.0.1:8080", "[2001:db8:9::1]:8080")


def listens(wanted_on: HostFacts, *proxies: object, **more: object) -> set[str]:
    state = want(*proxies, on=wanted_on, **more).state  # type: ignore[arg-type]  # proxies, loosely
    return {f"{key.ifindex} {listen_text(key)}" for key in state.listeners}


# -- listeners


def test_own_addresses_are_taken_except_link_local_ones() -> None:
    found = listens(host(DUAL), proxy(to=BOTH))
    assert found == {"2 192.0.2.1:80/tcp", "2 192.0.2.2:80/tcp", "2 [2001:db8::1]:80/tcp"}


def test_only_families_with_targets_are_listened_for() -> None:
    assert listens(host(DUAL), proxy(to=targets("10.0.0.1:1"))) == {"2 192.0.2.1:80/tcp", "2 192.0.2.2:80/tcp"}
    named = proxy(addresses=["192.0.2.9", "2001:db8::9"], to=targets("[2001:db8:9::1]:1"))
    assert listens(host(DUAL), named) == {"2 [2001:db8::9]:80/tcp"}


def test_a_route_with_targets_brings_its_family_and_a_deny_does_not() -> None:
    with_route = proxy(routes=(route("2001:db8:a::/48", "[2001:db8:9::1]:1"),))
    assert "2 [2001:db8::1]:80/tcp" in listens(host(DUAL), with_route)
    with_deny = proxy(routes=(route("2001:db8:a::/48"),))
    assert "2 [2001:db8::1]:80/tcp" not in listens(host(DUAL), with_deny)


def test_named_addresses_replace_own_ones_on_each_interface_and_port() -> None:
    both = host(DUAL, interface(3, "eth1"))
    found = listens(
        both, proxy(interfaces=["eth0", "eth1"], addresses=["198.51.100.1"], ports=[80, 443], protocol=Protocol.UDP)
    )
    assert found == {f"{ifindex} 198.51.100.1:{port}/udp" for ifindex in (2, 3) for port in (80, 443)}


def test_missing_interfaces_are_waited_for() -> None:
    found = want(proxy(interfaces=["eth7", "eth0", "eth5"]), on=host())
    assert found.waiting == ("eth5", "eth7")
    assert {key.ifindex for key in found.state.listeners} == {2}
    assert want(proxy(interfaces=["eth7"])).state.listeners == {}


def test_a_named_and_an_own_address_that_meet_are_an_error_with_both_places() -> None:
    named = proxy("named", addresses=["192.0.2.1"], line=4)
    own = proxy("own", ports=[443, 80], line=14)
    with pytest.raises(ConfigError) as caught:
        want(named, own)
    assert [str(problem) for problem in caught.value.problems] == [
        "web.yaml:14:5: proxy own would listen on eth0 192.0.2.1:80/tcp, which proxy named (web.yaml:4:5) has"
    ]


def test_proxies_apart_in_port_protocol_or_interface_do_not_meet() -> None:
    both = host(interface(2, "eth0", "192.0.2.1/24"), interface(3, "eth1", "192.0.2.1/24"))
    apart = [proxy("a"), proxy("b", ports=[81]), proxy("c", protocol=Protocol.UDP), proxy("d", interfaces=["eth1"])]
    assert len(want(*apart, on=both).state.listeners) == 4


@pytest.mark.parametrize(
    ("target", "error"), [("192.0.2.1:80", True), ("192.0.2.1", True), ("192.0.2.1:81", False), ("10.0.0.1:80", False)]
)
def test_a_target_that_is_its_own_listener_is_an_error(target: str, error: bool) -> None:
    for loop in (
        proxy(to=targets(target, line=7)),
        proxy(routes=(route("10.0.0.0/8", target, line=7),)),
    ):
        if not error:
            want(loop)
            continue
        with pytest.raises(ConfigError) as caught:
            want(loop)
        assert caught.value.problems[0].line == 7
        assert "is a listener of its own proxy web" in str(caught.value)


# -- proxies, routes, settings


def test_proxies_carry_destinations_per_family_and_their_timeout() -> None:
    mixed = proxy(to=targets(("10.0.0.2:1", 2), ("10.0.0.1:1", 0), "[2001:db8:9::1]:1"), timeout_sec=60)
    found = want(mixed).state.proxies["web"]
    assert found.default4 == Destination(((endpoint("10.0.0.1:1"), 0), (endpoint("10.0.0.2:1"), 2)))
    assert found.default6 == Destination(((endpoint("[2001:db8:9::1]:1"), 1),))
    assert found.idle_sec == 60
    assert want(proxy()).state.proxies["web"].idle_sec == 300
    assert want(proxy()).state.proxies["web"].default6 is None


def test_the_weight_of_a_lone_target_says_nothing_unless_it_is_zero() -> None:
    assert want(proxy(to=targets(("10.0.0.1:1", 7)))).state == want(proxy(to=targets("10.0.0.1:1"))).state
    lone = want(proxy(to=targets(("10.0.0.1:1", 0)))).state.proxies["web"].default4
    assert lone == Destination(((endpoint("10.0.0.1:1"), 0),))


def test_routes_lead_to_targets_or_nowhere() -> None:
    routed = proxy(routes=(route("10.0.0.0/8", "10.9.0.1:1", ("10.9.0.2:1", 3)), route("10.1.0.0/16")))
    assert want(routed).state.routes == {
        RouteKey("web", routed.source_routes[0].source): Destination(
            ((endpoint("10.9.0.1:1"), 1), (endpoint("10.9.0.2:1"), 3))
        ),
        RouteKey("web", routed.source_routes[1].source): DENY,
    }


def test_settings_and_programs_come_from_the_files() -> None:
    state = want(proxy(), fast_path=False, on=host(sysctls={"net/ipv4/conf/eth0/forwarding": "0"})).state
    assert state.settings == DataPlaneSettings(fast_path=False)
    assert state.program == ProgramState("tag", 1000)


def test_a_memo_changes_nothing_and_forgets_what_has_gone() -> None:
    memo = Memo()
    first = config(proxy("a", routes=(route("10.0.0.0/8"),)), proxy("b", ports=[81], routes=(route("11.0.0.0/8"),)))
    second = config(first.proxies[0], proxy("b", ports=[81], routes=(route("11.0.0.0/8", "10.0.0.5:1"),)))
    for each in (first, second, first, second):
        assert desired(each, host(), tag="tag", memo=memo) == desired(each, host(), tag="tag")
    assert len(memo.all_routes(second.proxies)) == 2
    assert not memo.all_routes(())
    own = config(proxy("a", timeout_sec=5), proxy("b", ports=[81], mode=Mode.FULLNAT, to=targets("10.0.0.9:1")))
    hasty = replace(own, settings=replace(own.settings, connection_timeout_sec=7))
    for each in (first, own, hasty, own, first):
        assert desired(each, host(), tag="tag", memo=memo) == desired(each, host(), tag="tag")


# -- interfaces


def ways_host(**more: object) -> HostFacts:
    return host(
        interface(1, "lo", "127.0.0.1/8", kind="loopback"),
        interface(2, "eth0", "192.0.2.1/24"),
        interface(3, "eth1", "10.0.0.254/24"),
        interface(4, "eth2"),
        ways={"10.0.0.1": 3, "10.0.0.2": None, "10.0.0.3": 1},
        **more,  # type: ignore[arg-type]  # what host() takes
    )


def test_listening_interfaces_and_those_towards_targets_are_attached_but_not_lo() -> None:
    to_all = proxy(to=targets("10.0.0.1:1", "10.0.0.2:1"), routes=(route("10.0.0.0/8", "10.0.0.3:1"),))
    assert want(to_all, on=ways_host()).state.attachments == {
        2: Attachment(2, "eth0", XdpMode.OFF),
        3: Attachment(3, "eth1", XdpMode.OFF),
    }


def test_a_way_used_by_a_route_only_is_attached() -> None:
    routed = proxy(to=targets("10.0.0.2:1"), routes=(route("10.0.0.0/8", "10.0.0.1:1"),))
    assert set(want(routed, on=ways_host()).state.attachments) == {2, 3}


def test_each_way_of_a_route_with_several_next_hops_is_attached() -> None:
    shared = Route(RouteKind.UNICAST, 3, shared=frozenset({3, 4}))
    assert set(want(proxy(), on=ways_host(routes={ip_address("10.0.0.1"): shared})).state.attachments) == {2, 3, 4}


def test_interfaces_with_connections_of_former_targets_stay_attached() -> None:
    facts = RuntimeFacts(busy_interfaces=frozenset({4, 99}))
    assert set(desired(config(), ways_host(), facts, tag="tag").state.attachments) == {4}


def test_lo_is_served_through_tc_only_when_it_listens() -> None:
    on_lo = proxy(interfaces=["lo"], ports=[81])
    for mode in ("auto", "native", "generic", "off"):
        found = want(on_lo, on=ways_host(), xdp_mode=mode).state.attachments
        assert found[1] == Attachment(1, "lo", XdpMode.OFF)


@pytest.mark.parametrize(
    ("mode", "kind", "native", "expected"),
    [
        ("auto", "physical", True, XdpMode.NATIVE),
        ("auto", "physical", False, XdpMode.OFF),
        ("auto", "veth", True, XdpMode.OFF),
        ("native", "veth", True, XdpMode.NATIVE),
        ("native", "physical", False, XdpMode.NATIVE),
        ("generic", "physical", True, XdpMode.GENERIC),
        ("off", "physical", True, XdpMode.OFF),
    ],
)
def test_xdp_mode_is_chosen_per_interface(mode: str, kind: str, native: bool, expected: XdpMode) -> None:
    on = host(interface(2, "eth0", "192.0.2.1/24", kind=kind, xdp_native=native))
    assert want(proxy(), on=on, xdp_mode=mode).state.attachments[2].xdp is expected


def test_a_foreign_program_sends_auto_to_tc_and_is_an_error_where_xdp_is_asked_for() -> None:
    foreign = XdpProgram(2, "native", ProgramInfo(17, "other", "00ff"))
    on = host(interface(2, "eth0", "192.0.2.1/24", xdp_native=True), foreign_xdp={2: foreign})
    found = want(proxy(), on=on)
    assert found.state.attachments[2].xdp is XdpMode.OFF
    assert any("eth0 carries native program 17 (other" in warning for warning in found.warnings)
    for mode in ("native", "generic"):
        with pytest.raises(ForeignProgramError, match="eth0 carries native program 17"):
            want(proxy(), on=on, xdp_mode=mode)
    assert want(proxy(), on=on, xdp_mode="off").warnings == ()


FOREIGN = XdpProgram(2, "native", ProgramInfo(17, "other", "00ff"), link=False)
TAKEN = TakenOver("native", 17, "other", "00ff")


@pytest.mark.parametrize(
    ("asked", "kind", "theirs", "expected"),
    [
        ("native", "physical", "native", XdpMode.NATIVE),
        ("native", "physical", "generic", XdpMode.NATIVE),
        ("generic", "physical", "native", XdpMode.GENERIC),
        ("auto", "physical", "generic", XdpMode.NATIVE),
        ("auto", "veth", "native", XdpMode.NATIVE),
        ("auto", "veth", "generic", XdpMode.GENERIC),
    ],
)
def test_takeover_takes_a_foreign_programs_place_and_keeps_it(
    asked: str, kind: str, theirs: str, expected: XdpMode
) -> None:
    eth0 = interface(2, "eth0", "192.0.2.1/24", kind=kind, xdp_native=True)
    wanted = Attachment(2, "eth0", expected, taken_over=replace(TAKEN, mode=theirs))
    for on in (
        host(eth0, foreign_xdp={2: replace(FOREIGN, mode=theirs)}),
        host(eth0, taken_over={2: replace(TAKEN, mode=theirs)}),
    ):
        found = want(proxy(), on=on, xdp_mode=asked, takeover=True)
        assert (found.state.attachments[2], found.warnings) == (wanted, ())


def test_takeover_prefers_the_program_that_is_there_to_the_one_that_was() -> None:
    on = host(foreign_xdp={2: FOREIGN}, taken_over={2: TakenOver("generic", 5)})
    assert want(proxy(), on=on, xdp_mode="native", takeover=True).state.attachments[2].taken_over == TAKEN


def test_without_takeover_it_gets_its_place_back() -> None:
    on = host(interface(2, "eth0", "192.0.2.1/24", xdp_native=True), taken_over={2: TAKEN})
    found = want(proxy(), on=on)
    assert found.state.attachments[2] == Attachment(2, "eth0", XdpMode.OFF)
    assert found.warnings == ("eth0 gets native program 17 (other, tag 00ff) back: served through TC",)
    with pytest.raises(ForeignProgramError, match=r"eth0 gets native program 17 .* back; xdp_mode native needs its"):
        want(proxy(), on=on, xdp_mode="native")
    for takeover in (True, False):
        off = want(proxy(), on=on, xdp_mode="off", takeover=takeover)
        assert off.state.attachments[2] == Attachment(2, "eth0", XdpMode.OFF)


@pytest.mark.parametrize(
    ("foreign", "why"),
    [
        (replace(FOREIGN, link=True), "held by a bpf_link, which can't be taken over: only its owner"),
        (replace(FOREIGN, mode="offload"), "offload program 17 .* can't be taken over"),
    ],
)
def test_what_cannot_be_taken_over_is_named(foreign: XdpProgram, why: str) -> None:
    on = host(interface(2, "eth0", "192.0.2.1/24", xdp_native=True), foreign_xdp={2: foreign})
    with pytest.raises(ForeignProgramError, match=why):
        want(proxy(), on=on, xdp_mode="native", takeover=True)
    found = want(proxy(), on=on, takeover=True)
    assert found.state.attachments[2] == Attachment(2, "eth0", XdpMode.OFF)
    assert re.search(why, found.warnings[0])


def test_auto_leaves_it_in_place_where_native_was_refused() -> None:
    on = host(interface(2, "eth0", "192.0.2.1/24", xdp_native=True), foreign_xdp={2: FOREIGN})
    refused = RuntimeFacts(refused_xdp=frozenset({2}))
    found = desired(config(proxy(), takeover=True), on, refused, tag="tag")
    assert found.state.attachments[2] == Attachment(2, "eth0", XdpMode.OFF)


def test_auto_does_not_insist_where_native_was_refused() -> None:
    on = host(interface(2, "eth0", "192.0.2.1/24", xdp_native=True))
    refused = RuntimeFacts(refused_xdp=frozenset({2}))
    found = desired(config(proxy()), on, refused, tag="tag")
    assert found.state.attachments[2].xdp is XdpMode.OFF
    assert found.warnings == ("eth0 refused a native XDP program: served through TC",)
    insisting = desired(config(proxy(), xdp_mode="native"), on, refused, tag="tag")
    assert insisting.state.attachments[2].xdp is XdpMode.NATIVE


@pytest.mark.parametrize(
    ("transmit", "kind", "mode", "expected"),
    [
        (True, "veth", "off", {2}),
        (False, "physical", "native", set()),
        (None, "physical", "native", {2}),
        (None, "physical", "generic", set()),
        (None, "veth", "native", set()),
    ],
)
def test_devices_are_those_that_take_redirected_frames(
    transmit: bool | None, kind: str, mode: str, expected: set[int]
) -> None:
    on = host(interface(2, "eth0", "192.0.2.1/24", kind=kind, xdp_transmit=transmit), interface(9, "eth9"))
    on = replace(on, interfaces={**on.interfaces, "eth9": Interface(9, "eth9", xdp_transmit=True)})
    assert want(proxy(), on=on, xdp_mode=mode).state.devices == expected


# -- sysctls


def test_the_fast_path_wants_forwarding_on_lo_for_the_families_listened_for() -> None:
    assert want(proxy()).state.sysctls == {"net/ipv4/conf/lo/forwarding": "1"}
    assert want(proxy(to=BOTH), on=host(DUAL)).state.sysctls == {
        "net/ipv4/conf/lo/forwarding": "1",
        "net/ipv6/conf/lo/forwarding": "1",
    }
    assert want().state.sysctls == {}


def test_the_stack_path_wants_forwarding_where_we_are_attached() -> None:
    live = {
        "net/ipv4/conf/eth0/forwarding": "0",
        "net/ipv4/conf/eth1/forwarding": "1",
        "net/ipv4/conf/eth2/forwarding": "0",
        "net/ipv6/conf/all/forwarding": "0",
        "net/ipv6/conf/default/forwarding": "0",
        "net/ipv6/conf/eth1/forwarding": "0",
        "net/ipv6/conf/eth0/accept_ra": "1",
        "net/ipv6/conf/eth1/accept_ra": "0",
        "net/ipv6/conf/eth2/accept_ra": "2",
    }
    on = ways_host(sysctls=live)
    found = want(proxy(), on=on, fast_path=False)
    assert found.state.sysctls == {"net/ipv4/conf/eth0/forwarding": "1", "net/ipv4/conf/eth1/forwarding": "1"}
    assert found.live_sysctls == {"net/ipv4/conf/eth0/forwarding": "0", "net/ipv4/conf/eth1/forwarding": "1"}
    six = proxy(addresses=["2001:db8::1"], to=targets("[2001:db8:9::1]:1"))
    assert want(six, on=on, fast_path=False).state.sysctls == {
        "net/ipv6/conf/all/forwarding": "1",
        "net/ipv6/conf/default/forwarding": "1",
        "net/ipv6/conf/eth1/forwarding": "1",
        "net/ipv6/conf/eth0/accept_ra": "2",
        "net/ipv6/conf/eth2/accept_ra": "2",
    }


def test_a_sysctl_the_host_lacks_is_left_out_with_a_warning() -> None:
    found = want(proxy(), on=host(sysctls={}))
    assert found.state.sysctls == {}
    assert found.warnings == ("sysctl net/ipv4/conf/lo/forwarding does not exist on this host",)


@pytest.mark.parametrize("fast_path", [True, False])
def test_the_sysctls_asked_for_are_those_that_can_be_wanted(fast_path: bool) -> None:
    live = dict.fromkeys(sysctl_names(config(fast_path=fast_path), ["lo", "eth0", "eth1"]), "1")
    both = host(DUAL, interface(3, "eth1"), sysctls=live)
    found = want(proxy(interfaces=["eth0", "eth1"], to=BOTH), on=both, fast_path=fast_path)
    assert found.warnings == ()
    assert set(found.state.sysctls) <= set(live)
    assert found.state.sysctls


# -- warnings and causes


def test_targets_without_a_way_are_warned_about() -> None:
    routes = {
        ip_address("10.0.0.1"): Route(RouteKind.UNREACHABLE),
        ip_address("10.0.0.2"): Route(RouteKind.UNICAST, 2),
        ip_address("224.0.0.1"): Route(RouteKind.OTHER, 2),
    }
    found = want(proxy(to=targets("10.0.0.1:1", "10.0.0.2:1", "224.0.0.1:1")), on=host(routes=routes))
    assert found.warnings == (
        "no route to target 10.0.0.1: `revproxyctl doctor` says what mends it",
        "target 224.0.0.1 is no unicast address here",
    )


def test_every_target_address_is_asked_about() -> None:
    each = config(proxy(to=BOTH, routes=(route("10.0.0.0/8", "10.0.0.5:1"),)))
    assert target_addresses(each) == {ip_address(text) for text in ("10.0.0.1", "2001:db8:9::1", "10.0.0.5")}


def test_causes_know_the_place_of_each_object() -> None:
    causes = want(proxy(routes=(route("10.0.0.0/8", line=12), route("2001:db8::/32", line=13)))).causes

    def line(kind: str, name: str) -> int | None:
        place = causes.place(kind, name)
        return place and place.line

    assert line("proxy", "web") == 4
    assert line("target", "web/10.0.0.1:8080") == 9
    assert line("route", "web/10.0.0.0/8") == 12
    assert line("route", "web/2001:db8::/32") == 13
    assert line("setting", "fast_path") == 2
    assert line("route", "web/11.0.0.0/8") is None
    assert line("target", "gone/10.0.0.1:8080") is None
    assert line("interface", "web") is None


def test_listeners_name_their_proxy() -> None:
    assert want(proxy()).state.listeners == {
        ListenerKey(2, ip_address("192.0.2.1"), Protocol.TCP, 80): "web",
    }
