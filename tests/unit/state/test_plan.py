"""Plans: which operations, in which order, under which numbers."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from ipaddress import ip_network

import pytest

from reconciler.errors import CapacityError
from reconciler.kernel import layout
from reconciler.state import operations as ops
from reconciler.state.allocate import Limits
from reconciler.state.desired import Desired
from reconciler.state.facts import RuntimeFacts
from reconciler.state.objects import (
    Allocation,
    Attachment,
    Destination,
    Observed,
    ProgramState,
    Revision,
    RouteKey,
    XdpMode,
)
from reconciler.state.plan import Plan, Touched
from reconciler.state.render import plan_text
from tests.unit.state.build import applied, endpoint, host, interface, nothing, plan, proxy, route, targets, want

LIMITS = Limits({spec.name: spec.max_entries for spec in layout.MAPS.values()})
WEB = proxy(to=targets("10.0.0.1:8080", "10.0.0.2:8080", line=9))


def of(found: Plan, *kinds: type) -> list[object]:
    return [operation for operation in found.operations if isinstance(operation, kinds)]


def with_state(observed: Observed, **fields: object) -> Observed:
    return replace(observed, state=replace(observed.state, **fields))  # type: ignore[arg-type]  # fields of the state


def test_the_numbers_are_those_of_the_layout() -> None:
    for name in ("DEST_NONE", "DEST_TARGET", "DEST_GROUP", "DEST_DENY", "PORT_LISTEN", "PORT_TARGET"):
        assert getattr(ops, name) == layout.CONSTANTS[name]
    assert layout.CONSTANTS["DEVICE_XDP_REDIRECT"] == ops.DEVICE_XDP_REDIRECT


def test_equal_states_make_an_empty_plan() -> None:
    wanted = want(WEB)
    found = plan(wanted, applied(wanted), revision=Revision(2, 2, b"2" * 16), blobs={b"2" * 16: b"x"})
    assert found.empty
    assert found.operations == ()
    assert found.to_json() == {"changes": [], "operations": 0, "counts": {}, "revision": None, "connections": []}


def test_a_first_plan_has_everything_in_its_phase() -> None:
    on = host(interface(2, "eth0", "192.0.2.1/24", xdp_transmit=True), sysctls={"net/ipv4/conf/lo/forwarding": "0"})
    one = proxy(to=WEB.default_target, routes=(route("10.0.0.0/8", "10.0.0.9:81"),))
    found = plan(want(one, on=on), nothing(), revision=Revision(1, 5, b"m" * 16), blobs={b"m" * 16: b"manifest"})
    assert [type(each).__name__ for each in found.stage] == [
        "LoadProgram",
        "SetSysctl",
        "PutProxyName",
        "PutTarget",
        "PutTarget",
        "PutTarget",
        "PutGroup",
        "OpenPort",
        "OpenPort",
        "OpenPort",
        "PutBlob",
        "StageSettings",
        "StageProxy",
        "StageRoute",
        "StageListener",
        "StageRevision",
    ]
    assert found.attach == (
        ops.Attach(None, Attachment(2, "eth0", XdpMode.OFF)),
        ops.PutDevice(2, None, ops.DEVICE_XDP_REDIRECT),
    )
    assert found.switch == ops.Switch(0, 1)
    assert found.finish == ()
    assert of(found, ops.PutTarget) == [
        ops.PutTarget(1, 1, endpoint("10.0.0.1:8080")),
        ops.PutTarget(2, 1, endpoint("10.0.0.2:8080")),
        ops.PutTarget(3, 1, endpoint("10.0.0.9:81")),
    ]
    assert of(found, ops.PutGroup) == [ops.PutGroup(1, ((1, 1), (2, 1)), ("10.0.0.1:8080", "10.0.0.2:8080"))]
    assert of(found, ops.OpenPort) == [
        ops.OpenPort(80, 0, ops.PORT_LISTEN),
        ops.OpenPort(81, 0, ops.PORT_TARGET),
        ops.OpenPort(8080, 0, ops.PORT_TARGET),
    ]
    (staged,) = of(found, ops.StageProxy)
    assert isinstance(staged, ops.StageProxy)
    assert staged.before is None
    assert staged.after is not None
    assert staged.after.dest4 == ops.Dest(ops.DEST_GROUP, 1)
    assert staged.after.dest6 == ops.Dest()
    assert (staged.after.routes4, staged.after.routes6) == (True, False)
    assert found.counts["target"] == 3
    assert sum(found.counts.values()) == found.to_json()["operations"] == len(found.operations)


def test_a_target_that_keeps_the_clients_port_opens_the_listeners() -> None:
    found = plan(want(proxy(to=targets("10.0.0.1"), ports=[80, 443])), nothing())
    both = ops.PORT_LISTEN | ops.PORT_TARGET
    assert of(found, ops.OpenPort) == [ops.OpenPort(80, 0, both), ops.OpenPort(443, 0, both)]


# -- numbers


def test_new_numbers_are_the_lowest_that_nothing_uses() -> None:
    live = applied(want(WEB))
    live = replace(
        live,
        allocation=replace(
            live.allocation,
            targets={("web", endpoint("10.0.0.1:8080")): 2, ("web", endpoint("10.0.0.2:8080")): 5},
            retired_targets=frozenset({1}),
            groups=dict.fromkeys(live.allocation.groups, 1),
        ),
    )
    found = plan(want(proxy(to=targets(*(f"10.0.0.{n}:8080" for n in (1, 2, 3, 4, 5))))), live)
    assert [each.id for each in of(found, ops.PutTarget)] == [3, 4, 6]  # type: ignore[attr-defined]  # PutTarget
    assert [each.id for each in of(found, ops.PutGroup)] == [2]  # type: ignore[attr-defined]  # PutGroup
    assert of(found, ops.FreeGroup) == [ops.FreeGroup(1, (2, 5))]


def test_a_target_that_comes_back_takes_up_its_retired_number() -> None:
    live = applied(want(proxy(to=targets("10.0.0.1:8080"))))
    back = ("web", endpoint("10.0.0.7:8080"))
    allocation = replace(live.allocation, targets={**live.allocation.targets, back: 9}, retired_targets=frozenset({9}))
    found = plan(want(proxy(to=targets("10.0.0.7:8080"))), replace(live, allocation=allocation))
    assert of(found, ops.PutTarget) == []
    (staged,) = of(found, ops.StageProxy)
    assert staged.after.dest4 == ops.Dest(ops.DEST_TARGET, 9)  # type: ignore[attr-defined]  # a StageProxy


def test_equal_destinations_of_a_proxy_share_a_group() -> None:
    pair = ("10.0.0.1:8080", "10.0.0.2:8080")
    found = plan(want(proxy(to=targets(*pair), routes=(route("10.0.0.0/8", *reversed(pair)),))), nothing())
    assert len(of(found, ops.PutGroup)) == 1


def test_equal_destinations_of_two_proxies_have_targets_and_groups_of_their_own() -> None:
    found = plan(want(WEB, proxy("b", ports=[81], to=WEB.default_target)), nothing())
    assert [(each.id, each.proxy_id) for each in of(found, ops.PutTarget)] == [  # type: ignore[attr-defined]
        (1, 1),
        (2, 1),
        (3, 2),
        (4, 2),
    ]
    assert len(of(found, ops.PutGroup)) == 2


def test_a_lone_target_of_weight_zero_is_a_group_without_choice() -> None:
    found = plan(want(proxy(to=targets(("10.0.0.1:8080", 0)))), nothing())
    assert of(found, ops.PutGroup) == [ops.PutGroup(1, ((1, 0),), ("10.0.0.1:8080",))]


# -- routes


def stage_routes(found: Plan) -> dict[str, tuple[ops.RouteSlot, ops.RouteSlot]]:
    return {str(each.source): (each.before, each.after) for each in found.stage if isinstance(each, ops.StageRoute)}


def test_a_new_route_says_to_the_old_configuration_what_covers_it_there() -> None:
    outer = route("10.0.0.0/8", "10.0.0.1:8080")
    live = applied(want(proxy(routes=(outer,))))
    found = plan(want(proxy(routes=(outer, route("10.1.0.0/16")))), live)
    one = ops.Dest(ops.DEST_TARGET, 1)
    assert stage_routes(found) == {
        "10.1.0.0/16": (ops.RouteSlot(one, False), ops.RouteSlot(ops.Dest(ops.DEST_DENY), True))
    }
    assert of(found, ops.StageProxy) == []


def test_a_removed_route_says_to_the_new_configuration_what_covers_it_there() -> None:
    """The covering prefix is exchanged in the same commit, and one in between goes as well."""
    live = applied(want(proxy(routes=(route("10.0.0.0/8"), route("10.1.0.0/16", "10.0.0.2:1"), route("10.1.2.0/24")))))
    found = plan(want(proxy(routes=(route("10.0.0.0/9", "10.0.0.3:1"),))), live)
    deny, none = ops.Dest(ops.DEST_DENY), ops.Dest()
    two, three = ops.Dest(ops.DEST_TARGET, 2), ops.Dest(ops.DEST_TARGET, 3)
    assert stage_routes(found) == {
        "10.0.0.0/8": (ops.RouteSlot(deny, True), ops.RouteSlot(none, False)),
        "10.0.0.0/9": (ops.RouteSlot(deny, False), ops.RouteSlot(three, True)),
        "10.1.0.0/16": (ops.RouteSlot(two, True), ops.RouteSlot(three, False)),
        "10.1.2.0/24": (ops.RouteSlot(deny, True), ops.RouteSlot(three, False)),
    }


def test_another_proxys_or_familys_prefix_does_not_cover() -> None:
    live = applied(want(proxy("a", routes=(route("0.0.0.0/0"),)), proxy("b", ports=[81], routes=(route("::/0"),))))
    wanted = want(
        proxy("a", routes=(route("0.0.0.0/0"),)),
        proxy("b", ports=[81], routes=(route("::/0"), route("10.0.0.0/8"))),
    )
    (slots,) = stage_routes(plan(wanted, live)).values()
    assert slots[0] == ops.RouteSlot(ops.Dest(), False)


def test_the_first_and_last_route_of_a_family_switch_the_lookup_on_and_off() -> None:
    bare, routed = want(proxy()), want(proxy(routes=(route("10.0.0.0/8"),)))
    (on,) = of(plan(routed, applied(bare)), ops.StageProxy)
    assert (on.before.routes4, on.after.routes4) == (False, True)  # type: ignore[attr-defined]  # a StageProxy
    (off,) = of(plan(bare, applied(routed)), ops.StageProxy)
    assert (off.before.routes4, off.after.routes4) == (True, False)  # type: ignore[attr-defined]  # a StageProxy


def test_many_routes_find_their_cover_like_few() -> None:
    """Above a thousand the planner looks through fewer prefix lengths; what it finds is the same."""
    few = [route("10.0.0.0/8"), route("10.0.0.0/14", "10.0.0.9:1")]
    many = [route(f"10.{n >> 8}.{n & 255}.0/24", "10.0.0.8:1") for n in range(1500)]
    found = stage_routes(plan(want(proxy(routes=(*few, *many))), applied(want(proxy(routes=tuple(few))))))
    assert len(found) == 1500
    before = {source: slots[0].dest.kind for source, slots in found.items()}
    for source, kind in before.items():
        inside = ip_network(source).subnet_of(ip_network("10.0.0.0/14"))  # type: ignore[arg-type]  # both IPv4
        assert kind == (ops.DEST_TARGET if inside else ops.DEST_DENY), source
    assert set(before.values()) == {ops.DEST_DENY, ops.DEST_TARGET}
    live = applied(want(proxy(routes=(*few, *many))))
    back = stage_routes(plan(want(proxy(routes=(few[1], route("10.0.0.0/16", "10.0.0.9:1")))), live))
    assert back["10.0.0.0/8"][1] == ops.RouteSlot(ops.Dest(), False)
    nine = back["10.0.0.0/16"][1].dest
    for number, each in enumerate(many):  # 1024 of them within 10.0.0.0/14
        assert back[str(each.source)][1] == ops.RouteSlot(nine if number < 1024 else ops.Dest(), False)


# -- repairs, revisions, programs


def test_a_repair_of_interfaces_or_sysctls_switches_and_records_nothing() -> None:
    wanted = want(WEB)
    same = Revision(2, 2, b"1" * 16)
    name = "net/ipv4/conf/lo/forwarding"
    for live, operation in (
        (with_state(applied(wanted), attachments={}), ops.Attach(None, Attachment(2, "eth0", XdpMode.OFF))),
        (with_state(applied(wanted), sysctls={name: "0"}), ops.SetSysctl(name, "0", "1")),
        (with_state(applied(wanted), devices=frozenset({9})), ops.PutDevice(9, ops.DEVICE_XDP_REDIRECT, None)),
    ):
        found = plan(wanted, live, revision=same, blobs={b"1" * 16: b"x"})
        assert found.operations == (operation,)
        assert found.switch is None
        assert found.revision is None


def test_a_repair_of_what_packets_choose_by_is_recorded() -> None:
    wanted = want(WEB)
    again = Revision(2, 2, b"1" * 16)
    found = plan(wanted, with_state(applied(wanted), listeners={}), revision=again, blobs={b"1" * 16: b"x"})
    assert of(found, ops.StageRevision) == [ops.StageRevision(Revision(1, 1, b"1" * 16), again)]
    assert found.revision == again


def test_a_change_of_the_files_is_recorded_even_if_it_moves_interfaces_only() -> None:
    on = host(interface(2, "eth0", "192.0.2.1/24", xdp_native=True))
    live = applied(want(WEB, on=on, xdp_mode="off"))
    new = Revision(2, 2, b"2" * 16)
    found = plan(want(WEB, on=on), live, revision=new, blobs={b"2" * 16: b"x"})
    assert of(found, ops.StageRevision) == [ops.StageRevision(live.revision, new)]
    assert found.switch == ops.Switch(0, 1)
    assert found.revision == new


def test_only_new_blobs_are_stored_and_unused_ones_freed() -> None:
    live = replace(applied(want(WEB)), blobs=frozenset({b"a" * 16, b"b" * 16}), active=1)
    found = plan(
        want(proxy(to=targets("10.0.0.1:8080"))),
        live,
        revision=Revision(2, 2, b"c" * 16),
        blobs={b"c" * 16: b"manifest", b"b" * 16: b"kept"},
    )
    assert of(found, ops.PutBlob) == [ops.PutBlob(b"c" * 16, b"manifest")]
    assert of(found, ops.FreeBlob) == [ops.FreeBlob(b"a" * 16)]
    assert found.switch == ops.Switch(1, 0)


def test_new_programs_are_loaded_first_and_exchanged_on_every_interface() -> None:
    wanted = want(WEB)
    live = with_state(applied(wanted), program=ProgramState("old", 1000))
    found = plan(wanted, live)
    here = Attachment(2, "eth0", XdpMode.OFF)
    assert found.stage == (ops.LoadProgram(ProgramState("old", 1000), ProgramState("tag", 1000)),)
    assert found.attach == (ops.Attach(here, here),)


def test_interfaces_go_after_the_switch_and_their_redirects_before_it() -> None:
    wide = host(
        interface(2, "eth0", "192.0.2.1/24", xdp_transmit=True), interface(3, "eth1", "192.0.2.9/24", xdp_transmit=True)
    )
    found = plan(want(WEB, on=wide), applied(want(proxy(interfaces=["eth1"], to=WEB.default_target), on=wide)))
    assert found.stage[0] == ops.PutDevice(3, ops.DEVICE_XDP_REDIRECT, None)
    assert found.attach[-1] == ops.PutDevice(2, None, ops.DEVICE_XDP_REDIRECT)
    assert found.finish[0] == ops.Detach(Attachment(3, "eth1", XdpMode.OFF))


def test_sysctls_are_set_and_given_back_in_an_order_that_loses_no_routes() -> None:
    """accept_ra on every interface, then each interface's forwarding, then the one for all, which sets the others;
    and back the other way round. What somebody else has changed since stays."""
    names = [
        "net/ipv6/conf/eth0/accept_ra",
        "net/ipv6/conf/eth1/accept_ra",
        "net/ipv6/conf/eth0/forwarding",
        "net/ipv6/conf/eth1/forwarding",
        "net/ipv6/conf/all/forwarding",
    ]
    before = {name: "1" if name.endswith("accept_ra") else "0" for name in names}
    after = {name: "2" if name.endswith("accept_ra") else "1" for name in names}
    on = host(
        interface(2, "eth0", "2001:db8::1/64"),
        interface(3, "eth1"),
        sysctls=before | {"net/ipv6/conf/lo/forwarding": "1"},
    )
    six = proxy(to=targets("[2001:db8:9::1]:1"))
    stack, fast = (want(six, on=on, fast_path=fast_path) for fast_path in (False, True))
    live = with_state(applied(fast), sysctls={})
    assert of(plan(stack, live), ops.SetSysctl) == [ops.SetSysctl(name, before[name], after[name]) for name in names]
    changed_since = {names[1]: "0"}
    back = replace(
        with_state(applied(stack), sysctls=after | changed_since),
        remembered={name: (before[name], after[name]) for name in names},
    )
    given_back = of(plan(fast, back), ops.RestoreSysctl)
    assert ops.RestoreSysctl(names[1], "0", "0") in given_back
    others = [name for name in names if name != names[1]]
    assert [each for each in given_back if each.name != names[1]] == [  # type: ignore[attr-defined]  # RestoreSysctl
        ops.RestoreSysctl(name, after[name], before[name]) for name in reversed(others)
    ]


# -- connections


def moved() -> tuple[Desired, Observed]:
    return want(proxy(to=targets("10.0.0.3:9000"))), applied(want(WEB))


def test_targets_without_connections_are_freed_with_their_ports() -> None:
    found = plan(*moved())
    assert of(found, ops.FreeGroup, ops.FreeTarget, ops.FreeProxyName, ops.ClosePort) == [
        ops.FreeGroup(1, (1, 2)),
        ops.FreeTarget(1),
        ops.FreeTarget(2),
        ops.ClosePort(8080, ops.PORT_TARGET, 0),
    ]


def test_targets_with_connections_retire() -> None:
    facts = RuntimeFacts(busy_targets=frozenset({2}), busy_ports={8080: ops.PORT_TARGET})
    found = plan(*moved(), runtime=facts)
    assert of(found, ops.FreeTarget, ops.ClosePort) == [ops.FreeTarget(1)]


def test_a_proxy_is_named_as_long_as_anything_of_it_lives() -> None:
    live = applied(want(WEB))
    for facts in (RuntimeFacts(busy_targets=frozenset({2})), RuntimeFacts(busy_proxies=frozenset({1}))):
        assert of(plan(want(), live, runtime=facts), ops.FreeProxyName) == []
    assert of(plan(want(), live), ops.FreeProxyName) == [ops.FreeProxyName(1)]


def test_a_port_opened_and_partly_closed_in_one_plan() -> None:
    live = applied(want(proxy(ports=[80], to=targets("10.0.0.1:90"))))
    found = plan(want(proxy(ports=[90], to=targets("10.0.0.1:80"))), live)
    both = ops.PORT_LISTEN | ops.PORT_TARGET
    assert of(found, ops.OpenPort, ops.ClosePort) == [
        ops.OpenPort(80, ops.PORT_LISTEN, both),
        ops.OpenPort(90, ops.PORT_TARGET, both),
        ops.ClosePort(80, both, ops.PORT_TARGET),
        ops.ClosePort(90, both, ops.PORT_LISTEN),
    ]


def test_touched_connections_are_those_whose_target_goes() -> None:
    facts = RuntimeFacts(
        connections={("web", "10.0.0.1:8080"): 3, ("web", "10.0.0.2:8080"): 1, ("other", "10.0.0.1:8080"): 9}
    )
    live = applied(want(WEB))
    for edit, expected in (
        (want(proxy(to=targets("10.0.0.1:8080", "10.0.0.3:1"))), (Touched("web", "10.0.0.2:8080", 1),)),
        (want(proxy(to=targets("10.0.0.1:8080", ("10.0.0.2:8080", 0)))), (Touched("web", "10.0.0.2:8080", 1),)),
        (want(), (Touched("web", "10.0.0.1:8080", 3), Touched("web", "10.0.0.2:8080", 1))),
        (want(proxy(to=WEB.default_target, timeout_sec=9)), ()),
    ):
        assert plan(edit, live, runtime=facts).touched == expected


# -- capacity


@pytest.mark.parametrize(
    ("name", "limit", "what"),
    [
        ("proxy", 2, "proxies"),
        ("target", 4, "targets"),
        ("group", 2, "target groups"),
        ("route4", 1, "IPv4 source routes"),
        ("listener4", 1, "IPv4 listeners"),
        ("group_member", 3, "members of target groups"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, limit: int, what: str) -> None:
    wanted = want(
        proxy("a", to=WEB.default_target, routes=(route("10.0.0.0/8"), route("11.0.0.0/8"))),
        proxy("b", ports=[81], to=targets("10.0.0.1:1", "10.0.0.2:1")),
    )
    with pytest.raises(CapacityError, match=rf"{what}.*the map {name} holds {limit}"):
        plan(wanted, nothing(), limits=Limits({name: limit}))
    plan(wanted, nothing(), limits=Limits({name: limit + 1}))


def test_old_and_new_must_fit_together() -> None:
    live, wanted = applied(want(proxy(routes=(route("10.0.0.0/8"),)))), want(proxy(routes=(route("11.0.0.0/8"),)))
    with pytest.raises(CapacityError):
        plan(wanted, live, limits=Limits({"route4": 1}))
    assert plan(wanted, live, limits=LIMITS).changes


# -- cost


def test_one_route_of_a_hundred_thousand_costs_little() -> None:
    """Two writes, and a plan in a small part of a second (60 ms on a quiet machine; the bound allows for others)."""
    small = want(proxy(routes=tuple(route(f"11.0.{n}.0/24", f"10.0.0.{n + 1}:80") for n in range(50))))
    kinds = list(small.state.routes.values())
    routes = {RouteKey.of_numbers("web", 4, (11 << 24) + (n << 8), 24): kinds[n % 50] for n in range(100_000)}
    live = applied(replace(small, state=replace(small.state, routes=routes)))
    # The other side has keys and destinations of its own, as if read from the kernel.
    copies = {id(each): Destination(each.members) for each in kinds}
    fresh = {RouteKey.of_numbers(*key): copies[id(each)] for key, each in routes.items()}
    fresh[RouteKey.of_numbers("web", 4, (11 << 24) + (777 << 8), 24)] = kinds[0]
    changed = replace(small, state=replace(small.state, routes=fresh))

    def once() -> float:
        start = time.process_time()
        assert len(plan(changed, live).operations) == 2
        return time.process_time() - start

    assert min(once() for _ in range(5)) < 0.15


# -- text


def test_the_text_says_what_will_be_done() -> None:
    live = applied(want(WEB))
    edited = proxy(
        to=targets("10.0.0.1:8080", ("10.0.0.3:8080", 2), line=9),
        routes=(route("10.0.0.0/8", line=12),),
        timeout_sec=60,
    )
    facts = RuntimeFacts(busy_targets=frozenset({2}), connections={("web", "10.0.0.2:8080"): 2})
    assert plan_text(plan(want(edited), live, runtime=facts)) == (
        "~ update proxy web  # web.yaml:4\n"
        "    connection_timeout_sec: 300 -> 60\n"
        "- delete target web/10.0.0.2:8080\n"
        "    weight: 1\n"
        "+ create target web/10.0.0.3:8080  # web.yaml:9\n"
        "    weight: 2\n"
        "+ create route web/10.0.0.0/8  # web.yaml:12\n"
        "    action: deny\n"
        "\n"
        "6 operations: 1 control, 2 group, 1 proxy, 1 route, 1 target.\n"
        "2 live connections of web to 10.0.0.2:8080 stay where they are until they end.\n"
        "Plan: 2 to create, 1 to update, 1 to delete.\n"
    )


def test_the_text_of_a_repair_and_of_nothing() -> None:
    wanted = want(WEB)
    text = plan_text(plan(wanted, with_state(applied(wanted), attachments={})))
    assert "+ attach interface eth0\n    xdp: off\n    tc: true\n" in text
    assert "No switch: packets choose as before.\nPlan: 1 to attach.\n" in text
    assert plan_text(plan(wanted, applied(wanted))) == "No changes: the kernel is as the files say.\n"
    assert "\033[32m+ attach interface eth0\033[0m" in plan_text(
        plan(wanted, with_state(applied(wanted), attachments={})), color=True
    )


def test_the_json_can_be_written() -> None:
    facts = RuntimeFacts(connections={("web", "10.0.0.2:8080"): 2})
    found = plan(want(), applied(want(WEB)), runtime=facts, revision=Revision(7, 7, b"7" * 16)).to_json()
    assert json.loads(json.dumps(found)) == found
    assert found["revision"] == 7
    assert found["operations"] == sum(found["counts"].values())
    assert found["connections"] == [
        {
            "proxy": "web",
            "target": "10.0.0.2:8080",
            "connections": 2,
            "fate": "stay where they are until they end",
        }
    ]


def test_an_observed_state_without_numbers_still_gets_a_plan() -> None:
    """Names or targets lost from the kernel: everything is numbered anew."""
    wanted = want(WEB)
    live = with_state(replace(applied(wanted), allocation=Allocation()), proxies={}, listeners={})
    assert [type(each).__name__ for each in plan(wanted, live).stage][:3] == ["PutProxyName", "PutTarget", "PutTarget"]
