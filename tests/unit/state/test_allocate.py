"""Under which numbers the maps hold things, and what they have no room for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.errors import CapacityError
from reconciler.kernel import layout
from reconciler.state import operations as ops
from reconciler.state.allocate import Limits, allocate
from reconciler.state.objects import (
    Allocation,
)
from tests.unit.state.build import (
    WEB,
    applied,
    endpoint,
    nothing,
    of,
    plan,
    proxy,
    route,
    targets,
    want,
    with_state,
)

LIMITS = Limits({spec.name: spec.max_entries for spec in layout.MAPS.values()})


def test_new_numbers_are_the_lowest_that_nothing_uses() -> None:
    live = applied(want(WEB))
    live = replace(
        live,
        allocation=replace(
            live.allocation,
            targets={
                ("web", endpoint("10.0.0.1:8080")): 2,
                ("web", endpoint("10.0.0.2:8080")): 5,
                ("gone", endpoint("10.0.0.1:8080")): 1,
            },
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


def test_what_has_not_changed_keeps_its_numbers_without_being_looked_at() -> None:
    """As if all was: neither what only connections use nor what is left of something lost has a number of its own."""
    a, b = proxy("a"), proxy("b", ports=[81])
    live = applied(want(a, b, proxy("c", ports=[82])))
    left = {("a", endpoint("10.0.0.7:1")): 9, ("?7", endpoint("10.0.0.8:1")): 10}
    known = replace(live.allocation, targets={**live.allocation.targets, **left}, retired_targets=frozenset({9}))
    wanted = want(a, replace(b, default_target=targets("10.0.0.2:1"))).state
    found = allocate(wanted, known, Limits({}), {"b", "c"})
    assert found == allocate(wanted, known, Limits({}))
    assert set(found.targets) == {("a", endpoint("10.0.0.1:8080")), ("b", endpoint("10.0.0.2:1"))}


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


def test_an_observed_state_without_numbers_still_gets_a_plan() -> None:
    """Names or targets lost from the kernel: everything is numbered anew."""
    wanted = want(WEB)
    live = with_state(replace(applied(wanted), allocation=Allocation()), proxies={}, listeners={})
    assert [type(each).__name__ for each in plan(wanted, live).stage][:3] == ["PutProxyName", "PutTarget", "PutTarget"]
