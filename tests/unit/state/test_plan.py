"""Plans: which operations, in which order."""

from __future__ import annotations

from dataclasses import replace

from reconciler.kernel import layout
from reconciler.state import operations as ops
from reconciler.state.desired import Desired
from reconciler.state.facts import RuntimeFacts
from reconciler.state.objects import (
    Attachment,
    Observed,
    ProgramState,
    Revision,
    XdpMode,
)
from reconciler.state.touched import Touched
from tests.unit.state.build import (
    WEB,
    applied,
    endpoint,
    host,
    interface,
    nothing,
    of,
    plan,
    proxy,
    route,
    targets,
    want,
    with_state,
)


def test_the_numbers_are_those_of_the_layout() -> None:
    for name in ("DEST_NONE", "DEST_TARGET", "DEST_GROUP", "DEST_DENY", "PORT_LISTEN", "PORT_TARGET"):
        assert getattr(ops, name) == layout.CONSTANTS[name]
    assert layout.CONSTANTS["DEVICE_XDP_REDIRECT"] == ops.DEVICE_XDP_REDIRECT


def test_equal_states_make_an_empty_plan() -> None:
    wanted = want(WEB)
    found = plan(wanted, applied(wanted), revision=Revision(2, 2, b"2" * 16), blobs={b"2" * 16: b"x"})
    assert found.empty
    assert found.operations == ()


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
    assert sum(found.counts.values()) == len(found.operations)


def test_a_target_that_keeps_the_clients_port_opens_the_listeners() -> None:
    found = plan(want(proxy(to=targets("10.0.0.1"), ports=[80, 443])), nothing())
    both = ops.PORT_LISTEN | ops.PORT_TARGET
    assert of(found, ops.OpenPort) == [ops.OpenPort(80, 0, both), ops.OpenPort(443, 0, both)]


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


def test_touched_connections_are_those_whose_target_or_listeners_go() -> None:
    facts = RuntimeFacts(
        connections={("web", "10.0.0.1:8080"): 3, ("web", "10.0.0.2:8080"): 1, ("other", "10.0.0.1:8080"): 9}
    )
    both = (Touched("web", "10.0.0.1:8080", 3), Touched("web", "10.0.0.2:8080", 1))
    live = applied(want(WEB))
    for edit, expected in (
        (want(proxy(to=targets("10.0.0.1:8080", "10.0.0.3:1"))), (Touched("web", "10.0.0.2:8080", 1),)),
        (want(proxy(to=targets("10.0.0.1:8080", ("10.0.0.2:8080", 0)))), (Touched("web", "10.0.0.2:8080", 1),)),
        (want(), both),
        (want(proxy(to=WEB.default_target, timeout_sec=9)), ()),
        (want(proxy(to=WEB.default_target, ports=(81,))), both),
        (want(proxy(to=WEB.default_target, ports=(80, 81))), ()),
        (want(proxy("new", to=WEB.default_target)), both),
    ):
        assert plan(edit, live, runtime=facts).touched == expected
