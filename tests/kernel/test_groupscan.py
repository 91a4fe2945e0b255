"""Groups are found without looking at every entry of their outer map, and written at the same time, for kernels where
a look or a write waits."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from reconciler.errors import KernelError
from reconciler.kernel import bpf, groups, groupscan, groupwrite, layout
from reconciler.kernel.arrays import address
from reconciler.kernel.gateway import FaultGateway
from reconciler.kernel.maps import Map, Maps
from tests.kernel.kernelmaps import private_maps

pytestmark = pytest.mark.root

USED = [1, 2, 63, 64, 65, 5000, layout.MAX_GROUPS - 1]


@pytest.fixture
def maps() -> Iterator[Maps]:
    with private_maps() as found:
        groups.put_groups(found, USED, [np.arange(1, 2 + n, dtype=np.uint32) for n in range(len(USED))], USED)
        groups.put_groups(found, [7, 300], [np.asarray([9], np.uint32)] * 2)
        groups.free_groups(found, [7, 300])  # they hold the empty table
        groups.wait_for_packets(found)
        yield found


def test_what_it_finds_is_what_reading_everything_finds(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    assert groupscan.in_use(maps["group"]).tolist() == USED
    expected = dict.fromkeys(USED) | dict(zip(USED, USED, strict=True))
    minutes = groupscan.waits(maps["group"])  # that reading everything takes here
    for waits in (True,) if minutes else (True, False):
        monkeypatch.setattr(groupscan, "waits", lambda _, waits=waits: waits)
        assert groups.read_recipes(maps) == expected
        assert groups.used_groups(maps).tolist() == USED


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_table_of_another_size_is_seen_as_damaged(maps: Maps, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = bpf.map_create(layout.MapType.ARRAY, "foreign", 4, 4, size, layout.F_INNER_MAP)
    try:
        maps["group"].put(9, np.asarray([foreign], layout.u32))
    finally:
        os.close(foreign)
    monkeypatch.setattr(groupscan, "waits", lambda _: True)
    assert groups.read_recipes(maps)[9] == groups.DAMAGED


def test_a_table_that_says_it_is_empty_is_seen_as_damaged(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    value = maps["group"].get(1)
    assert value is not None
    inner = bpf.map_by_id(int(value[0]))
    key, none = np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    bpf.map_update(inner, address(key), address(none))
    os.close(inner)
    monkeypatch.setattr(groupscan, "waits", lambda _: True)
    assert groups.read_recipes(maps)[1] == groups.DAMAGED


def test_looks_are_measured_and_one_slow_one_is_no_proof(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*seconds: float) -> bool:
        left = list(seconds)

        def look_up(_: Map) -> float:
            return left.pop(0)

        monkeypatch.setattr(groupscan, "_look_up_sec", look_up)
        return groupscan.waits(maps["group"])

    assert measured(0.01, 0.008)
    assert not measured(0.05, 0.00001)
    assert not measured(0.00001)


def test_reading_all_groups_costs_few_waits(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at by user space: only entries in use, with the first twice to see whether a look waits."""
    looked: list[int] = []
    real = bpf.map_lookup

    def counted(fd: int, key: int, value: int) -> bool:
        if fd == maps["group"].fd:
            looked.append(fd)
        return real(fd, key, value)

    monkeypatch.setattr(bpf, "map_lookup", counted)
    monkeypatch.setattr(groupscan, "WAITS_SEC", 0.0)
    assert sorted(groups.read_recipes(maps)) == USED
    assert len(looked) == len(USED) + 2


@pytest.mark.parametrize("waits", [True, False])
def test_many_are_written_in_one_call(waits: bool, maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once: list[int] = []
    real = bpf.map_update

    def noted(fd: int, key: int, value: int, flags: int = bpf.ANY) -> None:
        at_once.append(threading.get_ident())
        real(fd, key, value, flags)

    monkeypatch.setattr(bpf, "map_update", noted)
    monkeypatch.setattr(groupscan, "waits", lambda _: waits)
    maps["group"].gateway = gateway = FaultGateway()
    ids = list(range(100, 300))
    groups.put_groups(maps, ids, [np.asarray([n], np.uint32) for n in ids], ids)
    assert groupscan.in_use(maps["group"]).tolist() == sorted([*USED, *ids])
    assert [groups.read_table(maps, n) for n in (100, 299)] == [[100], [299]]
    assert not groups.all_free(maps, ids)
    assert not groups.all_free(maps, [7, 8, 300, 301, 299])
    groups.free_groups(maps, ids)
    assert groupscan.in_use(maps["group"]).tolist() == USED
    assert groups.all_free(maps, ids)
    assert gateway.calls == [("update batch", "map group")] * 2
    assert len(at_once) == (400 if waits else 0), "one by one only where each waits"
    assert threading.get_ident() not in at_once


def test_one_write_that_fails_is_told(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groupscan, "waits", lambda _: True)
    with pytest.raises(KernelError, match=r"update map group.*E2BIG"):  # beyond the map's end
        groups.free_groups(maps, [1, 2, 3, 63, layout.MAX_GROUPS])
    monkeypatch.setattr(groupwrite, "FEW", 5)
    with pytest.raises(KernelError, match=r"update map group.*E2BIG"):
        groups.free_groups(maps, [1, 2, 3, 63, layout.MAX_GROUPS])


def test_many_do_not_wait_one_after_the_other(maps: Maps) -> None:
    def took_sec(work: Callable[[], None]) -> float:
        began = time.monotonic()
        work()
        return time.monotonic() - began

    one = statistics.median(took_sec(lambda: groups.wait_for_packets(maps)) for _ in range(5))
    assert took_sec(lambda: groups.free_groups(maps, range(100, 400))) < 100 * one
