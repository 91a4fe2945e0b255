"""What a plan writes for source routes: what covers them in either configuration, and no more than has changed."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import ip_network

from reconciler.state import operations as ops
from reconciler.state.objects import (
    Destination,
    RouteKey,
)
from reconciler.state.plan import Plan
from tests.unit.state.build import (
    applied,
    of,
    plan,
    proxy,
    route,
    want,
)


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
