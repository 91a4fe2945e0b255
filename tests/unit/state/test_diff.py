"""Differences in the files' words."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from ipaddress import ip_address

import pytest

from reconciler.state import operations as ops
from reconciler.state.desired import Desired
from reconciler.state.diff import Change, compare, diff, difference
from reconciler.state.facts import ProgramInfo, XdpProgram
from reconciler.state.objects import (
    Allocation,
    Attachment,
    KernelState,
    ListenerKey,
    Observed,
    ProgramState,
    Protocol,
    XdpMode,
)
from tests.unit.state.build import applied, host, interface, nothing, plan, proxy, route, targets, want


def short(changes: tuple[Change, ...]) -> list[tuple[str, str, str]]:
    return [(change.action, change.object, change.name) for change in changes]


def with_state(observed: Observed, **fields: object) -> Observed:
    return replace(observed, state=replace(observed.state, **fields))  # type: ignore[arg-type]  # fields of the state


WEB = proxy(
    to=targets("10.0.0.1:8080", "10.0.0.2:8080", line=9),
    routes=(route("192.168.66.0/24", line=13), route("192.168.0.0/16", "10.0.0.9:1", line=12)),
)


def test_nothing_differs_from_what_was_applied() -> None:
    wanted = want(WEB)
    assert diff(wanted, applied(wanted)) == ()


def test_everything_is_created_in_a_fixed_order_at_its_place() -> None:
    changes = diff(want(WEB), nothing())
    assert short(changes) == [
        ("create", "program", "revproxy"),
        ("create", "setting", "closing_sec"),
        ("create", "setting", "fast_path"),
        ("create", "setting", "source_port_first"),
        ("create", "setting", "source_port_last"),
        ("create", "setting", "stats_enabled"),
        ("create", "setting", "unanswered_sec"),
        ("attach", "interface", "eth0"),
        ("create", "proxy", "web"),
        ("create", "target", "web/10.0.0.1:8080"),
        ("create", "target", "web/10.0.0.2:8080"),
        ("create", "route", "web/192.168.0.0/16"),
        ("create", "route", "web/192.168.66.0/24"),
    ]
    assert all(change.before is None for change in changes)
    places = {change.name: f"{change.place.file}:{change.place.line}" for change in changes if change.place}
    assert places["web"] == "web.yaml:4"
    assert places["web/10.0.0.2:8080"] == "web.yaml:9"
    assert places["web/192.168.0.0/16"] == "web.yaml:12"
    assert places["fast_path"] == "settings.yaml:2"


def test_objects_are_what_scripts_rely_on() -> None:
    found = {change.name: change.after for change in diff(want(WEB), nothing())}
    assert json.loads(json.dumps(found)) == found
    assert found["web"] == {
        "listen": ["eth0 192.0.2.1:80/tcp"],
        "mode": "dnat",
        "balance": "maglev",
        "connection_timeout_sec": 300,
    }
    assert found["web/10.0.0.1:8080"] == {"weight": 1}
    assert found["web/192.168.66.0/24"] == {"action": "deny"}
    assert found["web/192.168.0.0/16"] == {"target": [{"address": "10.0.0.9:1", "weight": 1}]}
    assert found["eth0"] == {"xdp": "off", "tc": True}
    assert found["revproxy"] == {"tag": "tag", "max_connections": 1000}


def test_edits_show_only_what_they_change() -> None:
    live = applied(want(WEB))
    edited = proxy(
        to=targets(("10.0.0.1:8080", 3), "10.0.0.3:8080"),
        routes=(route("192.168.66.0/24", "10.0.0.9:1"), route("10.0.0.0/8")),
        timeout_sec=60,
    )
    changes = diff(want(edited), live)
    assert short(changes) == [
        ("update", "proxy", "web"),
        ("update", "target", "web/10.0.0.1:8080"),
        ("delete", "target", "web/10.0.0.2:8080"),
        ("create", "target", "web/10.0.0.3:8080"),
        ("create", "route", "web/10.0.0.0/8"),
        ("delete", "route", "web/192.168.0.0/16"),
        ("update", "route", "web/192.168.66.0/24"),
    ]
    assert (changes[1].before, changes[1].after) == ({"weight": 1}, {"weight": 3})
    assert (changes[0].before["connection_timeout_sec"], changes[0].after["connection_timeout_sec"]) == (300, 60)


def test_a_removed_proxy_takes_its_targets_and_routes_along() -> None:
    assert (
        short(diff(want(), applied(want(WEB))))
        == [
            ("delete", "setting", "net/ipv4/conf/lo/forwarding"),
            ("detach", "interface", "eth0"),
            ("delete", "proxy", "web"),
            ("delete", "target", "web/10.0.0.1:8080"),
            ("delete", "target", "web/10.0.0.2:8080"),
            ("delete", "route", "web/192.168.0.0/16"),
            ("delete", "route", "web/192.168.66.0/24"),
        ][1:]
    )


def test_a_lost_listener_belongs_to_its_proxy() -> None:
    wanted = want(WEB)
    (change,) = diff(wanted, with_state(applied(wanted), listeners={}))
    assert (change.action, change.object, change.name) == ("update", "proxy", "web")
    assert (change.before["listen"], change.after["listen"]) == ([], ["eth0 192.0.2.1:80/tcp"])


def test_a_listener_that_moves_shows_at_both_proxies() -> None:
    live = applied(want(proxy("a", ports=[80]), proxy("b", ports=[81])))
    changes = diff(want(proxy("a", ports=[81]), proxy("b", ports=[80])), live)
    assert [(each.name, each.before["listen"], each.after["listen"]) for each in changes] == [
        ("a", ["eth0 192.0.2.1:80/tcp"], ["eth0 192.0.2.1:81/tcp"]),
        ("b", ["eth0 192.0.2.1:81/tcp"], ["eth0 192.0.2.1:80/tcp"]),
    ]


def test_a_listener_on_an_interface_that_has_gone_is_named_by_number() -> None:
    wanted = want(WEB)
    live = applied(wanted)
    stale = ListenerKey(77, ip_address("192.0.2.1"), Protocol.TCP, 80)
    (change,) = diff(wanted, with_state(live, listeners={**live.state.listeners, stale: "web"}))
    assert "if77 192.0.2.1:80/tcp" in change.before["listen"]


@pytest.mark.parametrize(
    ("live", "action"),
    [
        (None, "attach"),
        (Attachment(2, "eth0", XdpMode.OFF, tc=False), "replace"),
        (Attachment(2, "eth0", XdpMode.NATIVE), "replace"),
    ],
)
def test_interfaces_show_what_is_wrong_with_them(live: Attachment | None, action: str) -> None:
    wanted = want(WEB)
    (change,) = diff(wanted, with_state(applied(wanted), attachments={2: live} if live else {}))
    assert (change.action, change.object, change.name) == (action, "interface", "eth0")
    assert change.after == {"xdp": "off", "tc": True}


def test_an_interface_shows_whose_place_is_taken() -> None:
    foreign = XdpProgram(2, "native", ProgramInfo(17, "other", "00ff"))
    wanted = want(WEB, on=host(foreign_xdp={2: foreign}), xdp_mode="native", takeover=True)
    (change,) = diff(wanted, with_state(applied(wanted), attachments={2: Attachment(2, "eth0", XdpMode.OFF)}))
    assert change.before == {"xdp": "off", "tc": True}
    assert change.after == {"xdp": "native", "tc": True, "taken_over": "native program 17 (other, tag 00ff)"}


def test_a_way_out_that_takes_redirects_counts_as_its_interface() -> None:
    on = host(interface(2, "eth0", "192.0.2.1/24", xdp_transmit=True))
    wanted = want(WEB, on=on)
    (change,) = diff(wanted, with_state(applied(wanted), devices=frozenset()))
    assert change == Change("update", "interface", "eth0", {"xdp_redirect": False}, {"xdp_redirect": True})
    (gone,) = diff(wanted, with_state(applied(wanted), devices=frozenset({2, 55})))
    assert gone == Change("update", "interface", "if55", {"xdp_redirect": True}, {"xdp_redirect": False})
    (attach,) = diff(wanted, with_state(applied(wanted), devices=frozenset(), attachments={}))
    assert (attach.action, attach.before) == ("attach", None)
    assert attach.after == {"xdp": "off", "tc": True, "xdp_redirect": True}


def test_programs_are_replaced() -> None:
    wanted = want(WEB)
    (change,) = diff(wanted, with_state(applied(wanted), program=ProgramState("old", 1000)))
    assert (change.action, change.object) == ("replace", "program")


def test_sysctls_are_settings() -> None:
    name = "net/ipv4/conf/lo/forwarding"
    wanted = want(WEB)
    live = with_state(applied(wanted), sysctls={name: "0"})
    assert diff(wanted, live) == (Change("create", "setting", name, "0", "1", wanted.causes.place("setting", name)),)
    (drift,) = diff(wanted, replace(live, remembered={name: ("0", "1")}))
    assert drift.action == "update"
    off = want(WEB, fast_path=False, on=host(sysctls={"net/ipv4/conf/eth0/forwarding": "1"}))
    ours = replace(with_state(live, sysctls={name: "1"}), remembered={name: ("0", "1")})
    changes = {change.name: change for change in diff(off, ours)}
    assert (changes[name].action, changes[name].before, changes[name].after) == ("delete", "1", "0")
    others = replace(with_state(live, sysctls={name: "2"}), remembered={name: ("0", "1")})
    changes = {change.name: change for change in diff(off, others)}
    assert (changes[name].before, changes[name].after) == ("2", "2")


def test_what_is_known_from_the_second_copy_alone_is_written_down_again_while_it_is_wanted() -> None:
    name = "net/ipv4/conf/lo/forwarding"
    lost = replace(with_state(applied(want(WEB)), sysctls={name: "1"}), remembered={name: ("0", "1")})
    lost = replace(lost, forgotten=frozenset({name}))
    wanted = want(WEB)
    assert name in wanted.state.sysctls
    found = plan(wanted, lost)
    assert ops.SetSysctl(name, "1", "1", "0") in found.stage
    given_back = plan(Desired(replace(wanted.state, sysctls={})), lost)
    assert [each for each in given_back.operations if isinstance(each, ops.SetSysctl)] == []
    assert ops.RestoreSysctl(name, "1", "0") in given_back.finish


def test_forwarding_for_all_is_set_last_and_given_back_first() -> None:
    """It sets every other one: what stood there must have been remembered before, and is given back after."""
    names = ["eth0/accept_ra", "aa0/forwarding", "eth0/forwarding", "all/forwarding"]
    first_to_last = [f"net/ipv6/conf/{name}" for name in names]
    wanted = Desired(KernelState(sysctls=dict.fromkeys(sorted(first_to_last), "1")))
    assert list(compare(wanted, Observed(KernelState(), Allocation())).sysctls) == first_to_last
    ours = Observed(KernelState(), Allocation(), remembered=dict.fromkeys(sorted(first_to_last), ("0", "1")))
    assert list(compare(Desired(KernelState()), ours).forgotten_sysctls) == first_to_last[::-1]


def test_a_lost_port_is_a_difference_of_its_own() -> None:
    wanted = want(WEB)
    live = applied(wanted)
    (change,) = diff(wanted, replace(live, ports={**live.ports, 8080: ops.PORT_LISTEN}))
    assert (change.object, change.name, change.before, change.after) == (
        "setting",
        "port/8080",
        ["listen"],
        ["listen", "target"],
    )


def test_difference_finds_additions_removals_and_changes() -> None:
    assert difference({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": 4}) == {
        "b": (2, 5),
        "c": (3, None),
        "d": (None, 4),
    }
    assert difference({"a": 1}, {}) == {"a": (1, None)}
    assert difference({}, {}) == {}


def test_the_states_are_compared_as_they_are_read() -> None:
    """An observed state has objects of its own; equality counts, not identity."""
    wanted = want(WEB)
    observed = applied(wanted)
    copied = copy.deepcopy(observed)
    assert copied.state.routes is not observed.state.routes
    assert diff(wanted, copied) == ()
    assert pickle.loads(pickle.dumps(list(observed.state.routes))) == list(copied.state.routes)
