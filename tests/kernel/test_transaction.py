"""The executor's promises beside those of the fault tests."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reconciler.errors import KernelError, RevproxyError, StaleError, TransactionError
from reconciler.kernel import groups, layout, store
from reconciler.kernel.finishing import carry_out
from reconciler.kernel.gateway import FaultGateway
from reconciler.kernel.recover import recover
from reconciler.kernel.transaction import execute
from reconciler.state.objects import Attachment, ProgramState, Revision, XdpMode
from reconciler.state.operations import (
    ClosePort,
    FreeProxyName,
    FreeTarget,
    Operation,
    PutDevice,
    RestoreSysctl,
    SetSource,
    SetSysctl,
    StageProxy,
)
from reconciler.state.plan import Plan
from tests.kernel.kernelmaps import (
    MAX_CONNECTIONS,
    FakeHost,
    FakePrograms,
    Instance,
    bpffs_directory,
    configuration,
    connection_entry,
    dump,
    listener,
    proxy,
    route,
    small_arrays,
    state,
    to,
)

FORWARDING = "net/ipv4/conf/lo/forwarding"
OLD = state(
    [proxy("web", to("10.0.0.1:80"))],
    {listener("192.0.2.1", 80): "web"},
    {route("web", "10.0.0.0/8"): to("10.0.0.2:80")},
)
NEW = replace(
    OLD,
    proxies={"web": proxy("web", to("10.0.0.1:80", "10.0.0.3:80"))},
    routes={**OLD.routes, route("web", "10.1.0.0/16"): to("10.0.0.4:80")},
)


@pytest.fixture
def gateway() -> FaultGateway:
    return FaultGateway()


@pytest.fixture
def instance(tmp_path: Path, gateway: FaultGateway) -> Iterator[Instance]:
    with small_arrays(), bpffs_directory() as directory:
        found = Instance(directory, tmp_path, gateway)
        execute(found.plan(OLD, "old"), found.context)
        gateway.calls.clear()
        yield found
        found.close()


def test_order_of_a_commit(instance: Instance, gateway: FaultGateway) -> None:
    wanted = replace(NEW, attachments={**OLD.attachments, 3: Attachment(3, "eth1", XdpMode.OFF)})
    execute(instance.plan(wanted, "new"), instance.context)
    maps = [subject.removeprefix("map ") for _, subject in gateway.calls]
    switch = maps.index("control")
    assert maps.count("control") == 1
    assert maps[switch - 1] == "eth1"
    assert maps[switch + 1] == "group", "waits for packets in flight before it clears up"
    assert set(maps[: switch - 1]) >= {"target", "group", "group_member", "proxy", "route4", "revision", "blob"}
    assert set(maps[switch + 2 :]) == {"proxy", "route4", "revision", "blob"}


def test_until_the_switch_the_active_slot_is_untouched(instance: Instance) -> None:
    seen: list[tuple[object, object]] = []
    active = instance.observe().active

    def look(standby: int) -> None:
        slots = [instance.maps[name].items()[1] for name in ("proxy", "listener4", "revision", "settings")]
        values = [value[value.dtype.names[0]] for value in slots]
        seen.append(([v[:, active].tobytes() for v in values], [v[:, standby].tobytes() for v in values]))
        keys, routes = instance.maps["route4"].items()
        new = keys["prefixlen"] == 48
        # As if absent: what the covering prefix says.
        assert routes["slot"]["dest"][new, active] == routes["slot"]["dest"][~new, active]
        assert routes["slot"]["flags"][new].tolist() == [[0, 1] if standby else [1, 0]]

    before = [instance.maps[name].items()[1] for name in ("proxy", "listener4", "revision", "settings")]
    execute(instance.plan(NEW, "new"), replace(instance.context, verify=look))
    assert seen[0][0] == [value[value.dtype.names[0]][:, active].tobytes() for value in before]
    assert seen[0][1] != seen[0][0]


def test_failing_verification_rolls_back(instance: Instance) -> None:
    def refuse(standby: int) -> None:
        raise RevproxyError(f"slot {standby} does not answer")

    before = dump(instance.maps)
    with pytest.raises(TransactionError, match="does not answer; rolled back") as caught:
        execute(instance.plan(NEW, "new"), replace(instance.context, verify=refuse))
    assert caught.value.rolled_back
    assert dump(instance.maps) == before


def test_trouble_of_the_host_is_told_with_what_to_do(instance: Instance) -> None:
    """And it may pass."""
    before = dump(instance.maps)

    def fail(_slot: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with pytest.raises(TransactionError, match=r"^Too many open files: raise .* limit .*; rolled back$") as caught:
        execute(instance.plan(NEW, "new"), replace(instance.context, verify=fail))
    assert caught.value.transient
    assert dump(instance.maps) == before


def test_interrupt_before_the_switch_rolls_back(instance: Instance) -> None:
    def interrupt(_standby: int) -> None:
        raise KeyboardInterrupt

    before = dump(instance.maps)
    with pytest.raises(KeyboardInterrupt):
        execute(instance.plan(NEW, "new"), replace(instance.context, verify=interrupt))
    assert dump(instance.maps) == before


def test_interrupt_just_behind_the_switch_keeps_the_commit(
    instance: Instance, gateway: FaultGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is taken back of what packets already see; what is left to clear up is found by the next look."""
    call = gateway.call

    def interrupted(operation: str, subject: str, function: Callable[[], Any]) -> Any:
        result = call(operation, subject, function)
        if subject == "map control":
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(gateway, "call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute(instance.plan(NEW, "new"), instance.context)
    monkeypatch.undo()
    left = instance.observe()
    assert configuration(left) == configuration(NEW)
    assert left.unfinished
    recover(instance.maps)
    observed = instance.observe()
    assert (configuration(observed), observed.unfinished) == (configuration(NEW), False)


@pytest.mark.parametrize("part", ["interface eth1", "the set of maps"])
def test_an_undo_without_effect_is_told(
    instance: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def refuse(_standby: int) -> None:
        raise RevproxyError("no answer")

    wanted, here = replace(NEW, attachments={**OLD.attachments, 3: Attachment(3, "eth1", XdpMode.OFF)}), instance
    if part == "the set of maps":
        (tmp_path / "other").mkdir()
        here = Instance(instance.maps.root / "other", tmp_path / "other")
    monkeypatch.setattr(FakeHost, "detach", lambda *_: None)
    monkeypatch.setattr(FakePrograms, "undo", lambda *_: None)
    with pytest.raises(TransactionError, match="roll-back incomplete") as caught:
        execute(here.plan(wanted, "new"), replace(here.context, verify=refuse))
    assert not caught.value.rolled_back
    assert f"{part} is not what it was" in caught.value.residue
    here.close()


@pytest.mark.parametrize("what", ["unseen", "tables"])
def test_an_undo_that_can_not_be_looked_at_or_leaves_a_table_is_told(
    instance: Instance, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def refuse(_standby: int) -> None:
        raise RevproxyError("no answer")

    def unseen(*_: object) -> None:
        raise KernelError("read", "attachments", errno.EIO)

    plan = instance.plan(replace(NEW, attachments={**OLD.attachments, 3: Attachment(3, "eth1", XdpMode.OFF)}), "new")
    if what == "unseen":
        monkeypatch.setattr(FakeHost, "attachments", unseen)
    else:
        monkeypatch.setattr(groups, "free_groups", lambda *_: None)
    with pytest.raises(TransactionError, match="roll-back incomplete") as caught:
        execute(plan, replace(instance.context, verify=refuse))
    (residue,) = caught.value.residue
    told = {"unseen": "looking at it after the undo: read attachments: EIO", "tables": "map group is not what it was"}
    assert residue == told[what]


def test_an_interface_that_connections_have_come_to_need_meanwhile_stays_attached(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeHost, "busy_interfaces", lambda _: frozenset({2}))
    execute(instance.plan(replace(OLD, attachments={}), "old"), instance.context)
    assert instance.host.attachments() == OLD.attachments


def test_files_of_many_pieces_go_as_a_whole(instance: Instance) -> None:
    many = "".join(hashlib.sha256(str(number).encode()).hexdigest() for number in range(2048))
    execute(instance.plan(NEW, many), instance.context)
    assert len(instance.maps["blob"].keys()) > 3
    execute(instance.plan(OLD, "small"), instance.context)
    assert len(instance.maps["blob"].keys()) == 2, "the file and what names it"


def test_undo_has_descriptors_when_the_commit_took_all(instance: Instance) -> None:
    before, open_files = dump(instance.maps), resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []

    def take_all(_standby: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, open_files[1]))
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))

    try:
        with pytest.raises(TransactionError, match=r"^.*/dev/null: Too many open files: .*; rolled back$"):
            execute(instance.plan(NEW, "new"), replace(instance.context, verify=take_all))
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, open_files)
    assert dump(instance.maps) == before


def test_another_program_is_adopted_when_no_packet_is_in_the_former(instance: Instance, gateway: FaultGateway) -> None:
    """And when nothing is attached any more that is known as ours by the former one alone."""
    another = ProgramState("tag2", MAX_CONNECTIONS)
    execute(instance.plan(replace(OLD, program=another), "old"), instance.context)
    calls = [operation for operation, _ in gateway.calls if operation in ("attach", "detach", "adopt")]
    assert calls == ["attach", "adopt"]
    assert ("update", "map control") not in gateway.calls
    adopted = gateway.calls.index(("adopt", "program"))
    assert gateway.calls[adopted - 1] == ("update", "map group")
    gateway.calls.clear()
    wanted = replace(OLD, program=ProgramState("tag3", MAX_CONNECTIONS), attachments={})
    execute(instance.plan(wanted, "old"), instance.context)
    assert gateway.calls[-2:] == [("detach", "eth0"), ("adopt", "program")]


def test_plan_made_from_another_revision_is_refused(instance: Instance) -> None:
    plan = instance.plan(NEW, "new")
    execute(instance.plan(replace(OLD, routes={}), "between"), instance.context)
    before = dump(instance.maps)
    with pytest.raises(StaleError, match=r"slot 1 was active, now slot 0 is"):
        execute(plan, instance.context)
    assert dump(instance.maps) == before


def test_plan_made_two_commits_ago_is_refused(instance: Instance) -> None:
    plan = instance.plan(NEW, "new")
    execute(instance.plan(replace(OLD, routes={}), "between"), instance.context)
    execute(instance.plan(OLD, "old"), instance.context)
    with pytest.raises(StaleError, match="from revision 1, the kernel is at 3"):
        execute(plan, instance.context)


def test_plan_made_when_the_other_slot_was_active_is_refused(instance: Instance) -> None:
    plan = instance.plan(NEW, "new")
    value = instance.maps["control"].items()[1]
    value["active"] ^= 1
    instance.maps["control"].put(0, value)
    with pytest.raises(StaleError, match="slot"):
        execute(plan, instance.context)


def test_generation_survives_the_switch(instance: Instance) -> None:
    value = instance.maps["control"].items()[1]
    value["generation"] = 77
    instance.maps["control"].put(0, value)
    execute(instance.plan(NEW, "new"), instance.context)
    assert instance.maps["control"].items()[1]["generation"] == 77


def test_group_table_is_the_maglev_table(instance: Instance) -> None:
    from reconciler.state import maglev

    execute(instance.plan(NEW, "new"), instance.context)
    numbers = instance.observe().allocation
    (number,) = numbers.groups.values()
    found = groups.read_table(instance.maps, number)
    keys = ["10.0.0.1:80", "10.0.0.3:80"]
    ids = {str(endpoint): target for (_, endpoint), target in numbers.targets.items()}
    assert found is not None
    assert found.tolist() == [ids[keys[index]] for index in maglev.table(keys, [1, 1])]


def test_applied_text_can_be_read_back(instance: Instance) -> None:
    execute(instance.plan(NEW, "new"), instance.context)
    revision = store.read_revision(instance.maps)
    assert revision.number == 2
    manifest = store.read_manifest(instance.maps, revision.manifest)
    assert store.read_sources(instance.maps, manifest) == {"a.yaml": b"new"}
    assert len(instance.observe().blobs) == 2  # those of the revision before are gone


def test_original_sysctl_value_is_remembered_over_commits(instance: Instance) -> None:
    execute(instance.plan(replace(OLD, sysctls={FORWARDING: "1"}), "old"), instance.context)
    assert instance.observe().remembered == {FORWARDING: ("0", "1")}
    instance.host.write_sysctl(FORWARDING, "2")  # somebody else
    execute(instance.plan(replace(OLD, sysctls={FORWARDING: "1"}), "old"), instance.context)
    assert instance.observe().remembered == {FORWARDING: ("0", "1")}
    execute(instance.plan(OLD, "old"), instance.context)
    assert instance.host.read_sysctl(FORWARDING) == "0"
    assert instance.observe().remembered == {}


def test_original_sysctl_value_known_from_elsewhere_is_remembered(instance: Instance) -> None:
    """As where the map that remembers has been lost: what is live is ours."""
    instance.host.write_sysctl(FORWARDING, "1")
    known = SetSysctl(FORWARDING, "1", "1", "7")
    execute(Plan(stage=(known,), base=instance.observe().revision), instance.context)
    assert instance.observe().remembered == {FORWARDING: ("7", "1")}


def test_a_sysctl_that_nobody_may_write_needs_no_undo(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, where /proc/sys is read-only: it is what it was."""

    def refuse(name: str, _value: str) -> None:
        raise KernelError("set sysctl", name, errno.EROFS)

    before = dump(instance.maps)
    plan = instance.plan(replace(NEW, sysctls={FORWARDING: "1"}), "new")
    monkeypatch.setattr(instance.host, "write_sysctl", refuse)
    with pytest.raises(TransactionError, match=r"EROFS.*; rolled back$"):
        execute(plan, instance.context)
    assert dump(instance.maps) == before


def test_freeing_looks_at_connections_again(instance: Instance) -> None:
    numbers = instance.observe().allocation
    proxy_id, busy_id = numbers.proxies["web"], min(numbers.targets.values())
    instance.maps["target"].put(50, instance.maps["target"].get(busy_id))
    instance.maps["target_stats"].put(50, np.ones(instance.maps["target_stats"].values_array(1).shape, layout.u64))
    keys, values = connection_entry(4, "198.51.100.1:1", "192.0.2.1:80", "10.0.0.1:80", ids=(proxy_id, busy_id))
    instance.maps["connection4"].put_many(keys, values)
    freeing = [FreeTarget(busy_id), FreeTarget(50), FreeProxyName(proxy_id), ClosePort(80, 3, 0), ClosePort(443, 1, 0)]
    carry_out(freeing, instance.context)
    assert instance.maps["target"].items()[1]["family"][[busy_id, 50]].tolist() == [4, 0]
    assert instance.maps["target_stats"].sums()[50]["connections"] == 0
    assert instance.maps["proxy_name"].get(proxy_id) is not None
    assert instance.maps["port"].get(80)[0] == 3
    instance.maps["connection4"].delete_many(keys)
    carry_out(freeing, instance.context)
    assert instance.maps["target"].items()[1]["family"][[busy_id, 50]].tolist() == [0, 0]
    assert instance.maps["port"].get(80)[0] == 0


def test_operation_in_the_wrong_phase_is_refused(instance: Instance) -> None:
    plan = instance.plan(NEW, "new")
    before = dump(instance.maps)
    with pytest.raises(TransactionError, match="FreeTarget") as caught:
        execute(replace(plan, stage=(*plan.stage, FreeTarget(1))), instance.context)
    assert caught.value.rolled_back
    assert dump(instance.maps) == before
    with pytest.raises(KernelError, match="StageProxy"):
        carry_out([StageProxy(1, None, None)], instance.context)


def test_slots_without_a_switch_are_refused(instance: Instance) -> None:
    plan = instance.plan(NEW, "new")
    with pytest.raises(TransactionError, match="no switch"):
        execute(replace(plan, switch=None), instance.context)


def test_too_long_a_name_is_no_other_name(instance: Instance) -> None:
    with pytest.raises(KernelError, match="ENAMETOOLONG"):
        carry_out([RestoreSysctl("net/" + "x" * 120, "0", "0")], instance.context)


def test_devices(instance: Instance) -> None:
    carry_out([PutDevice(9, None, 1)], instance.context)
    assert instance.observe().state.devices == {9}
    carry_out([PutDevice(9, 1, 3)], instance.context)
    assert (instance.observe().state.devices, instance.observe().state.guarded) == ({9}, {9})
    before = dump(instance.maps)
    refused = Plan(stage=(PutDevice(9, 3, None), StageProxy(1, None, None)), base=instance.observe().revision)
    with pytest.raises(TransactionError, match="rolled back"):
        execute(refused, instance.context)
    assert dump(instance.maps) == before
    carry_out([PutDevice(9, 3, None)], instance.context)
    assert (instance.observe().state.devices, instance.observe().state.guarded) == (frozenset(), frozenset())


@pytest.mark.parametrize("version", [4, 6])
def test_a_target_gets_another_source_in_place_and_back(instance: Instance, version: int) -> None:
    """Nothing else of its entry changes, and a failure afterwards takes it back."""
    both = replace(NEW, proxies={"web": proxy("web", to("10.0.0.1:80"), to("[2001:db8::1]:80"))})
    execute(instance.plan(both, "both"), instance.context)
    key, number = next(
        item for item in instance.observe().allocation.targets.items() if item[0][1].ip.version == version
    )
    first, second = (ip_address(f"192.0.2.{n}" if version == 4 else f"2001:db8:9::{n}") for n in (1, 2))
    target = instance.maps["target"]
    value = target.get(number)
    value["flags"] = layout.CONSTANTS["TARGET_DRAINED"]
    target.put(number, value)
    before = dump(instance.maps)

    def plan(*stage: Operation) -> Plan:
        return Plan(stage=stage, base=store.read_revision(instance.maps))

    execute(plan(SetSource(number, None, first)), instance.context)
    found = instance.observe()
    assert found.state.sources == found.allocation.sources == {key: first}
    assert not found.unfinished
    assert target.get(number)["flags"] == layout.CONSTANTS["TARGET_DRAINED"]
    middle = dump(instance.maps)
    with pytest.raises(TransactionError) as caught:
        execute(plan(SetSource(number, first, second), FreeTarget(1)), instance.context)
    assert caught.value.rolled_back
    assert dump(instance.maps) == middle
    carry_out([SetSource(number, first, None)], instance.context)
    assert dump(instance.maps) == before


def test_revision_is_part_of_the_commit(instance: Instance) -> None:
    plan = instance.plan(NEW, "new")
    assert store.read_revision(instance.maps) == plan.base
    execute(plan, instance.context)
    assert store.read_revision(instance.maps) == plan.revision
    assert plan.revision is not None
    assert plan.revision != Revision()
