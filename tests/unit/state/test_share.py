"""What health and drains make of weights: tables that keep everybody else's places, and plans that are no commits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from reconciler.state import maglev, share
from reconciler.state import operations as ops
from reconciler.state.desired import Desired, desired
from reconciler.state.diff import diff
from reconciler.state.facts import RuntimeFacts
from reconciler.state.objects import FULL, Destination, Endpoint, Observed, Share
from reconciler.state.share import Drain
from reconciler.state.steering import operations
from tests.unit.state.build import applied, config, endpoint, host, plan, proxy, route, targets, want

A, B, C = (endpoint(f"10.0.0.{number}:80") for number in (1, 2, 3))
GROUP = Destination(((A, 2), (B, 1), (C, 3)))
WEB = proxy(to=targets(("10.0.0.1:80", 2), ("10.0.0.2:80", 1), ("10.0.0.3:80", 3)))
OUT = Share(0)


def weights(**known: Share) -> tuple[int, ...]:
    """Effective weights of GROUP."""
    return share.effective(
        "web", GROUP, {("web", {"a": A, "b": B, "c": C}[name]): each for name, each in known.items()}
    )


def test_effective_weights() -> None:
    assert weights() == (8, 4, 12)
    assert weights(a=OUT) == (0, 4, 12)
    assert weights(a=Share(1), c=Share(3)) == (2, 4, 9)
    assert weights(a=Share(4, drained=True)) == (0, 4, 12)
    assert weights(a=OUT, b=OUT, c=OUT) == (8, 4, 12), "all down: the configured ones stay"
    assert weights(a=OUT, b=OUT, c=Share(4, drained=True)) == (8, 4, 0), "but for those that are drained"
    assert weights(a=Share(0, drained=True), b=Share(4, drained=True), c=Share(4, drained=True)) == (0, 0, 0)


def test_a_weight_of_0_stays_one_when_all_are_down() -> None:
    destination = Destination(((A, 0), (B, 1)))
    assert share.effective("web", destination, {("web", B): OUT}) == (0, 4)


def test_other_proxies_targets_are_others() -> None:
    assert share.effective("api", GROUP, {("web", A): OUT}) == (8, 4, 12)


@pytest.mark.parametrize("members", [2, 3, 10, 11, 40])
def test_the_others_keep_their_places(members: int) -> None:
    ids, keys, ones = list(range(1, members + 1)), [f"10.0.0.{n}:80" for n in range(members)], [1] * members
    before = share.table(ids, keys, ones, [4] * members)
    assert np.array_equal(before, np.asarray(ids)[maglev.table(keys, ones)]), "all of their weight: the plain table"
    for quarters in (0, 1, 2, 3):
        now = share.table(ids, keys, ones, [quarters, *[4] * (members - 1)])
        assert len(now) == len(before)
        others = before != 1
        assert (now[others] != before[others]).mean() < 0.06
        found = (now == 1).mean()
        wanted = quarters / (quarters + 4 * (members - 1))
        assert abs(found - wanted) <= 1 / len(now) + wanted * 0.02


def test_a_table_of_nobody() -> None:
    assert share.table([5, 6], ["x", "y"], [1, 1], [0, 0]).tolist() == [share.NOBODY]
    assert share.table([5, 6], ["x", "y"], [0, 0], [0, 0]).tolist() == []


def test_a_recipe_says_who_and_how_much() -> None:
    one = share.recipe([1, 2], [4, 8])
    assert one == share.recipe([2, 1], [8, 4])
    assert len({one, share.recipe([1, 2], [8, 4]), share.recipe([1, 3], [4, 8]), share.recipe([1], [4])}) == 4


@pytest.mark.parametrize(
    ("drain", "meant"),
    [
        (Drain(A), True),
        (Drain(A, "web"), True),
        (Drain(Endpoint(A.ip, 0)), True),
        (Drain(Endpoint(A.ip, 0), "web"), True),
        (Drain(A, "api"), False),
        (Drain(B), False),
        (Drain(Endpoint(A.ip, 81)), False),
    ],
)
def test_which_target_a_drain_means(drain: Drain, meant: bool) -> None:
    assert share.is_drained(frozenset({drain}), "web", A) is meant


# -- plans -----------------------------------------------------------------------------------------------------


def facing(*drains: Drain, health: Mapping[Endpoint, int] | None = None, to: Any = WEB) -> Desired:
    facts = RuntimeFacts(
        drains=frozenset(drains), health={("web", each): number for each, number in (health or {}).items()}
    )
    return desired(config(to), host(), facts, tag="tag")


def with_shares(wanted: Desired) -> Observed:
    """A kernel that holds just this."""
    found = applied(wanted)
    return replace(found, allocation=replace(found.allocation, shares=dict(wanted.state.shares)))


def test_a_change_of_health_is_no_commit() -> None:
    found = plan(facing(health={A: 0, B: 4}), applied(want(WEB)))
    assert found.switch is None
    assert found.revision is None
    assert found.stage == found.attach == ()
    assert found.finish == (
        ops.SwapTable(1, ((1, 2), (2, 1), (3, 3)), tuple(map(str, (A, B, C))), (0, 4, 12)),
        ops.SetShare(1, FULL, OUT),
    )
    (change,) = found.changes
    assert (change.action, change.object, change.name) == ("update", "target", f"web/{A}")
    assert (change.before, change.after) == ({"weight": 2}, {"weight": 2, "share": "0/4"})


def test_once_it_is_so_nothing_differs() -> None:
    wanted = facing(Drain(B), health={A: 2})
    assert wanted.state.shares == {("web", A): Share(2), ("web", B): Share(4, drained=True)}
    assert plan(wanted, with_shares(wanted)).empty


def test_a_drained_target_leaves_the_table_before_it_refuses() -> None:
    """And is one again before the table names it."""
    full, drained = want(WEB), facing(Drain(A))
    assert [type(each) for each in plan(drained, applied(full)).finish] == [ops.SwapTable, ops.SetShare]
    assert [type(each) for each in plan(full, with_shares(drained)).finish] == [ops.SetShare, ops.SwapTable]


def test_a_single_target_has_no_table() -> None:
    alone = proxy(to=targets("10.0.0.1:80"))
    found = plan(facing(Drain(A), to=alone), applied(want(alone)))
    assert found.finish == (ops.SetShare(1, FULL, Share(4, drained=True)),)


def test_new_targets_and_groups_have_their_share_from_the_first() -> None:
    found = plan(facing(Drain(A), health={B: 1}), applied(want(proxy(to=targets("10.0.0.9:80")))))
    assert [(each.endpoint, each.share) for each in found.stage if isinstance(each, ops.PutTarget)] == [
        (A, Share(4, drained=True)),
        (B, Share(1)),
        (C, FULL),
    ]
    (group,) = (each for each in found.stage if isinstance(each, ops.PutGroup))
    assert group.effective == (0, 1, 12)
    assert not any(isinstance(each, ops.SetShare | ops.SwapTable) for each in found.finish)


def test_a_target_that_comes_back_has_its_share_before_the_switch() -> None:
    observed = applied(want(proxy(to=targets("10.0.0.9:80"))))
    observed = replace(
        observed,
        allocation=replace(
            observed.allocation,
            targets=observed.allocation.targets | {("web", A): 7},
            retired_targets=frozenset({7}),
            shares={("web", A): OUT},
        ),
    )
    alone = proxy(to=targets("10.0.0.1:80"))
    assert ops.SetShare(7, OUT, FULL) in plan(facing(to=alone), observed).stage
    assert ops.SetShare(7, OUT, Share(4, drained=True)) in plan(facing(Drain(A), to=alone), observed).stage


def test_a_wrong_table_is_a_difference() -> None:
    wanted = want(WEB)
    observed = applied(wanted)
    broken = replace(observed, state=replace(observed.state, wrong_tables=frozenset({("web", GROUP)})))
    (change,) = diff(wanted, broken)
    assert (change.action, change.object, change.name) == ("update", "proxy", "web")
    assert [type(each) for each in plan(wanted, broken).stage] == [ops.SwapTable]
    assert [type(each) for each in operations(observed.state, broken)] == [ops.SwapTable]


def test_targets_of_routes_have_shares() -> None:
    routed = proxy(to=targets("10.0.0.9:80"), routes=(route("192.0.2.0/24", "10.0.0.1:80", "10.0.0.2:80"),))
    found = plan(facing(health={A: 0}, to=routed), applied(want(routed)))
    assert [type(each) for each in found.finish] == [ops.SwapTable, ops.SetShare]
    assert [(each.name, each.before, each.after) for each in found.changes] == [(f"web/{A}", {}, {"share": "0/4"})]


def test_facts_about_others_matter_to_nobody() -> None:
    wanted = desired(
        config(WEB), host(), RuntimeFacts(health={("api", A): 0}, drains=frozenset({Drain(A, "api")})), tag="tag"
    )
    assert wanted.state.shares == {}


def test_fail_open_and_nobody_left() -> None:
    shares = {("web", A): OUT, ("web", B): OUT, ("web", C): OUT}
    assert share.fails_open("web", GROUP, shares)
    assert not share.nobody_left("web", GROUP, shares)
    shares |= {("web", C): Share(4, drained=True)}
    assert share.fails_open("web", GROUP, shares)
    idle = Destination(tuple((endpoint, 0) for endpoint, _ in GROUP.members))
    assert not share.nobody_left("web", idle, shares), "there was nobody before"
    drained = dict.fromkeys(shares, Share(0, drained=True))
    assert share.nobody_left("web", GROUP, drained)
    assert not share.fails_open("web", GROUP, drained)
