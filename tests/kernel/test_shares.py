"""Tables and targets that follow shares: exchanged for both slots at once, without a commit, and read back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reconciler.errors import TransactionError
from reconciler.kernel import connections, groups, layout, store
from reconciler.kernel.finishing import carry_out
from reconciler.kernel.gateway import FaultGateway
from reconciler.kernel.recover import recover
from reconciler.kernel.targets import live_targets
from reconciler.kernel.transaction import execute
from reconciler.state.objects import Endpoint, KernelState, Share
from reconciler.state.steering import operations
from tests.kernel.kernelmaps import (
    Instance,
    bpffs_directory,
    connection_entry,
    dump,
    endpoint,
    listener,
    proxy,
    route,
    small_arrays,
    state,
    to,
)

A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"
SINGLE = "10.0.0.9:80"
WEB = state(
    [proxy("web", to((A, 2), (B, 1), (C, 3)))],
    {listener("192.0.2.1", 80): "web"},
    {route("web", "10.0.0.0/8"): to(SINGLE), route("web", "10.1.0.0/16"): to(A, B)},
)
DRAINED = Share(4, drained=True)


@pytest.fixture
def gateway() -> FaultGateway:
    return FaultGateway()


@pytest.fixture
def instance(tmp_path: Path, gateway: FaultGateway) -> Iterator[Instance]:
    with small_arrays(), bpffs_directory() as directory:
        found = Instance(directory, tmp_path, gateway)
        execute(found.plan(WEB, "web"), found.context)
        gateway.calls.clear()
        yield found
        found.close()


def shared(**named: Share) -> KernelState:
    """WEB with shares: ``a``, ``b``, ``c``, ``single``."""
    names = {"a": A, "b": B, "c": C, "single": SINGLE}
    return replace(WEB, shares={("web", endpoint(names[name])): each for name, each in named.items()})


def number(instance: Instance, text: str) -> int:
    return instance.observe().allocation.targets["web", endpoint(text)]


def places(instance: Instance, *members: str) -> dict[str, float]:
    """The part that each target has of the table of the group with these members."""
    allocation = instance.observe().allocation
    (group,) = (
        each for (_, to_), each in allocation.groups.items() if {str(e) for e, _ in to_.members} == set(members)
    )
    table = groups.read_table(instance.maps, group)
    assert table is not None
    names = {each: str(key[1]) for key, each in allocation.targets.items()}
    ids, counts = np.unique(table, return_counts=True)
    found = zip(ids.tolist(), counts.tolist(), strict=True)
    return {names.get(each, "nobody"): count / len(table) for each, count in found}


def test_a_share_changes_tables_and_nothing_else(instance: Instance, gateway: FaultGateway) -> None:
    before = dump(instance.maps)
    plan = instance.plan(shared(a=Share(0)), "web")
    assert plan.switch is None
    execute(plan, instance.context)
    assert {subject for _, subject in gateway.calls} == {"map group", "map target"}
    after = dump(instance.maps)
    assert before
    assert after
    assert {name for name in after if after[name] != before[name]} == {"group", "target"}, "both slots as they were"
    assert places(instance, A, B, C) == {B: pytest.approx(1 / 4, abs=0.02), C: pytest.approx(3 / 4, abs=0.02)}
    assert places(instance, A, B) == {B: 1.0}
    assert instance.observe().state == shared(a=Share(0))
    assert store.read_revision(instance.maps).number == 1
    assert instance.plan(shared(a=Share(0)), "web").empty


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarters(instance: Instance, quarters: int) -> None:
    execute(instance.plan(shared(c=Share(quarters)), "web"), instance.context)
    part = 3 * quarters / (3 * quarters + 12)
    assert places(instance, A, B, C)[C] == pytest.approx(part, abs=0.02)
    execute(instance.plan(WEB, "web"), instance.context)
    assert places(instance, A, B, C)[C] == pytest.approx(1 / 2, abs=0.02)
    assert instance.observe().state == WEB


def test_fail_open_is_for_each_destination(instance: Instance) -> None:
    execute(instance.plan(shared(a=Share(0), b=Share(0)), "web"), instance.context)
    assert places(instance, A, B, C) == {C: 1.0}
    assert set(places(instance, A, B)) == {A, B}


def test_all_drained(instance: Instance) -> None:
    execute(instance.plan(shared(a=DRAINED, b=DRAINED, single=DRAINED), "web"), instance.context)
    assert places(instance, A, B) == {"nobody": 1.0}
    flags = instance.maps["target"].items()[1]["flags"]
    drained = layout.CONSTANTS["TARGET_DRAINED"]
    assert [int(flags[number(instance, each)]) & drained for each in (A, B, C, SINGLE)] == [1, 1, 0, 1]
    assert not instance.observe().unfinished
    assert recover(instance.maps) == []
    execute(instance.plan(WEB, "web"), instance.context)
    assert instance.observe().state == WEB


def test_within_a_commit(instance: Instance) -> None:
    """New and known targets, new and known groups at once."""
    wanted = replace(
        shared(a=Share(0), b=Share(2), c=DRAINED),
        proxies={"web": proxy("web", to((A, 2), (B, 1), (C, 3), "10.0.0.4:80"))},
    )
    wanted.shares["web", endpoint("10.0.0.4:80")] = Share(1)
    execute(instance.plan(wanted, "new"), instance.context)
    assert instance.observe().state == wanted
    assert places(instance, A, B) == {B: 1.0}
    assert places(instance, A, B, C, "10.0.0.4:80") == {
        B: pytest.approx(2 / 3, abs=0.02),
        "10.0.0.4:80": pytest.approx(1 / 3, abs=0.02),
    }


def test_a_target_comes_back_otherwise_than_it_went(instance: Instance) -> None:
    execute(instance.plan(shared(single=DRAINED), "web"), instance.context)
    without = replace(WEB, routes={route("web", "10.1.0.0/16"): to(A, B)})
    known = number(instance, SINGLE)
    keys, values = connection_entry(4, "198.51.100.1:1", "192.0.2.1:80", SINGLE, ids=(1, known))
    instance.maps["connection4"].put_many(keys, values)
    plan = instance.plan(without, "without")
    execute(replace(plan, finish=()), instance.context)
    recover(instance.maps)
    observed = instance.observe()
    assert known in observed.allocation.retired_targets
    assert observed.allocation.shares == {("web", endpoint(SINGLE)): DRAINED}
    assert observed.state.shares == {}
    assert [each.share for each in live_targets(instance.maps, {}) if each.endpoint == endpoint(SINGLE)] == [DRAINED]
    execute(instance.plan(WEB, "web"), instance.context)
    assert instance.observe().state == WEB
    assert number(instance, SINGLE) == known


@pytest.mark.parametrize("damage", ["other members", "other recipe", "written to"])
def test_a_wrong_table_is_seen_and_mended(instance: Instance, damage: str) -> None:
    allocation = instance.observe().allocation
    (group,) = (each for (_, found), each in allocation.groups.items() if len(found.members) == 3)
    before = groups.read_table(instance.maps, group)
    recipe = groups.read_recipes(instance.maps)[group]
    assert before is not None
    assert recipe is not None
    if damage == "other members":
        groups.put_groups(instance.maps, [group], [np.full(7, number(instance, A), np.uint32)])
    elif damage == "other recipe":
        groups.put_groups(instance.maps, [group], [before], [recipe ^ 1])
    else:
        inner = int(instance.maps["group"].get(group)[0])  # type: ignore[index]
        _write_inner(inner, 5, number(instance, A) ^ 3)
        assert groups.read_recipes(instance.maps)[group] == groups.DAMAGED
    observed = instance.observe()
    assert [name for name, _ in observed.state.wrong_tables] == ["web"]
    assert not observed.unfinished
    plan = instance.plan(WEB, "web")
    assert [(each.object, each.name) for each in plan.changes] == [("proxy", "web")]
    execute(plan, instance.context)
    assert np.array_equal(groups.read_table(instance.maps, group), before)  # type: ignore[arg-type]
    assert instance.observe().state == WEB


def _write_inner(map_id: int, place: int, value: int) -> None:
    import os

    from reconciler.kernel import bpf
    from reconciler.kernel.arrays import address

    fd = bpf.map_by_id(map_id)
    try:
        key, content = np.asarray([place], np.uint32), np.asarray([value], np.uint32)
        bpf.map_update(fd, address(key), address(content))
    finally:
        os.close(fd)


def test_interrupted_anywhere_it_is_finished_by_the_next(instance: Instance, gateway: FaultGateway) -> None:
    """And never is a drained target refused while a table still names it alone."""
    wanted = shared(a=DRAINED, b=Share(2))
    there = instance.observe()
    steps = tuple(operations(wanted, there))
    carry_out(steps, instance.context)
    calls = len(gateway.calls)
    carry_out(tuple(operations(WEB, instance.observe())), instance.context)
    for broken in range(1, calls + 1):
        gateway.fail_at = len(gateway.calls) + broken
        with pytest.raises(Exception, match="made to fail"):
            carry_out(steps, instance.context)
        gateway.fail_at = 0
        observed = instance.observe()
        assert not observed.unfinished
        if observed.state.shares.get(("web", endpoint(A))) == DRAINED:
            assert A not in places(instance, A, B)
        carry_out(tuple(operations(wanted, observed)), instance.context)
        assert instance.observe().state == wanted
        carry_out(tuple(operations(WEB, instance.observe())), instance.context)
        assert instance.observe().state == WEB


def test_a_commit_that_fails_leaves_shares_as_they_were(instance: Instance) -> None:
    before = dump(instance.maps)
    wanted = replace(shared(a=Share(0)), proxies={"web": proxy("web", to(A, C))})

    def refuse(_slot: int) -> None:
        raise TransactionError(RuntimeError("refused"), rolled_back=True)

    with pytest.raises(TransactionError):
        execute(instance.plan(wanted, "new"), replace(instance.context, verify=refuse))
    assert dump(instance.maps) == before


def test_targets_with_their_connections(instance: Instance) -> None:
    known = number(instance, A)
    keys, values = connection_entry(
        4, "198.51.100.1:1", "192.0.2.1:80", A, ids=(1, known), times_ns=(0, 1 << 62), idle_sec=60
    )
    instance.maps["connection4"].put_many(keys, values)
    counts = connections.count(instance.maps).targets
    found = {each.endpoint: each.connections for each in live_targets(instance.maps, counts)}
    assert found == {Endpoint(endpoint(each).ip, 80): int(each == A) for each in (A, B, C, SINGLE)}
