"""Maps as a set and one by one, in the real kernel."""

from __future__ import annotations

import ctypes as ct
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from reconciler.errors import CapacityError, KernelError
from reconciler.kernel import bpf, eventring, groups, layout
from reconciler.kernel.arrays import address, prefix
from reconciler.kernel.gateway import KILLED_STATUS, FaultGateway, Gateway
from reconciler.kernel.layout import MapType
from reconciler.kernel.maps import CHUNK, Maps, map_of
from reconciler.kernel.newmaps import connections_for, create_map
from reconciler.runtime.live import map_limits
from tests.kernel.kernelmaps import MAX_CONNECTIONS, bpffs_directory, in_child, private_maps, small_arrays


@pytest.fixture
def maps() -> Iterator[Maps]:
    with private_maps() as found:
        yield found


@pytest.fixture
def small_maps() -> Iterator[Maps]:
    with small_arrays(), private_maps() as found:
        yield found


# -- the set -------------------------------------------------------------------------------------------------


def test_set_is_what_the_layout_says(maps: Maps) -> None:
    assert maps.exists
    assert maps.max_connections == MAX_CONNECTIONS
    for name, spec in layout.MAPS.items():
        info = bpf.map_info(maps[name].fd)
        assert (info.type, info.key_size, info.value_size) == (spec.type, spec.key.itemsize, spec.value.itemsize), name


def test_whole_set_is_not_made_again(small_maps: Maps) -> None:
    with pytest.raises(KernelError) as caught:
        small_maps.create(MAX_CONNECTIONS)
    assert caught.value.errno == errno.EEXIST


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"value": layout.u64}, "value size 8 instead of"),
        ({"key": layout.u64, "type": MapType.HASH, "flags": 0}, "key size 8 instead of 4"),
        ({"max_entries": 7}, "max_entries 7 instead of"),
        ({"type": MapType.HASH, "flags": layout.F_NO_PREALLOC}, "type 1 instead of 2, flags 1 instead of 1024"),
    ],
)
def test_pinned_map_of_another_layout_is_refused(small_maps: Maps, wrong: dict[str, object], word: str) -> None:
    path = small_maps.directory / "proxy"
    path.unlink()
    fd = create_map(replace(layout.MAPS["proxy"], **wrong), MAX_CONNECTIONS)  # type: ignore[arg-type]
    bpf.obj_pin(fd, str(path))
    os.close(fd)
    with pytest.raises(KernelError, match=word) as caught:
        small_maps.open()
    assert caught.value.errno == errno.EINVAL
    assert not small_maps.is_open


def test_making_killed_anywhere_is_completed() -> None:
    with small_arrays(), bpffs_directory() as directory:
        gateway = FaultGateway()
        whole = Maps(directory, gateway)
        whole.create(MAX_CONNECTIONS)
        whole.remove()
        for number in range(1, len(gateway.calls) + 1):
            maps = Maps(directory, FaultGateway(kill_after=number))
            status = in_child(lambda maps=maps: maps.create(MAX_CONNECTIONS))  # type: ignore[misc]
            if status == 0:  # from here on the calls were of remove()
                break
            assert status == KILLED_STATUS
            again = Maps(directory)
            if not again.exists:
                again.create(2 * MAX_CONNECTIONS)
                assert again.max_connections == 2 * MAX_CONNECTIONS
            again.open()
            again.remove()
            assert list(directory.iterdir()) == []
        assert number == len(layout.MAPS) + 3  # one directory, the layout, each map, and then it came to its end


def test_using_maps_that_are_not_open_says_so() -> None:
    with bpffs_directory() as directory:
        maps = Maps(directory)
        assert not maps.exists
        with pytest.raises(KernelError, match="not open"):
            maps["control"]
        with pytest.raises(KernelError) as caught:
            maps.open()
        assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("wanted", [1, 2, 4, 5, 6, 999, 1000, 65536, 100_000])
def test_a_connection_table_tells_max_connections(wanted: int) -> None:
    spec = layout.MAPS["connection4"]
    descriptor = create_map(spec, wanted)
    try:
        assert connections_for(descriptor, spec) == wanted
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("max_connections", [1, 100, 20_000])
def test_connection_table_holds_both_directions_of_max_connections(max_connections: int) -> None:
    spec = layout.MAPS["connection4"]
    table = map_of(spec, create_map(spec, max_connections), Gateway())
    keys = np.zeros(2 * max_connections, table.key_dtype)
    keys["saddr_be"], keys["protocol"] = np.arange(len(keys), dtype=">u4").view(np.uint8).reshape(-1, 4), 6
    try:
        table.put_many(keys, table.values_array(len(keys)))
        found = table.keys()
        keys["protocol"] = 17
        with pytest.raises(KernelError) as caught:
            table.put_many(keys[:1], table.values_array(1))
    finally:
        table.close()
    assert len(found) == 2 * max_connections
    assert caught.value.errno == errno.E2BIG


# -- entries -------------------------------------------------------------------------------------------------


def _listeners(count: int) -> tuple[np.ndarray, np.ndarray]:
    keys = np.zeros(count, layout.listener_key4)
    keys["ifindex"], keys["port_be"] = np.arange(count), 80
    values = np.zeros(count, layout.listener_slots)
    values["proxy"] = np.arange(count)[:, None] + 1
    return keys, values


def test_one_entry_there_and_gone(small_maps: Maps) -> None:
    table = small_maps["listener4"]
    keys, values = _listeners(1)
    assert table.get(keys) is None
    table.put(keys, values)
    assert table.get(keys) == values
    assert table.delete(keys)
    assert not table.delete(keys)
    assert table.get(keys) is None


def test_all_keys_of_a_connection_table_are_listed(maps: Maps) -> None:
    table = maps["connection4"]
    keys = table.keys_array(np.zeros(50, layout.connection_key4))
    keys["sport_be"], keys["protocol"] = np.arange(50), 6
    table.put_many(keys, table.values_array(50))
    assert sorted(table.keys()["sport_be"].tolist()) == list(range(50))


def test_batches_of_more_than_a_chunk(maps: Maps) -> None:
    count = 2 * CHUNK + 5
    table = maps["listener4"]
    table.gateway = gateway = FaultGateway()
    keys, values = _listeners(count)
    table.put_many(keys, values)
    assert [call[0] for call in gateway.calls] == ["update batch"] * 3
    found_keys, found_values = table.items()
    order = np.argsort(found_keys["ifindex"])
    assert found_keys[order].tobytes() == keys.tobytes()
    assert found_values[order].tobytes() == values.tobytes()
    assert len(table.keys()) == count
    found, some = table.get_many(keys[[5, 7]])
    assert found.all()
    assert some["proxy"].tolist() == [[6, 6], [8, 8]]
    table.delete_many(keys[::2])
    table.delete_many(keys[: CHUNK + 1])  # half of them are gone already
    assert len(table.items()[0]) == len(range(CHUNK + 2, count, 2))


def test_batch_that_does_not_fit_is_an_error(small_maps: Maps) -> None:
    spec = small_maps["proxy_name"].spec
    keys = np.arange(spec.max_entries + 1, dtype=layout.u32)
    with pytest.raises(KernelError, match=f"after {spec.max_entries} of {spec.max_entries + 1}") as caught:
        small_maps["proxy_name"].put_many(keys, np.zeros(len(keys), spec.value))
    assert caught.value.errno in (errno.E2BIG, errno.ENOSPC, errno.ENOMEM)


def test_room_for_many_takes_no_memory_before_there_are_many(small_maps: Maps) -> None:
    """Also once malloc has kept something large, which ``np.zeros`` would be given and would clear."""
    dirty = np.ones(24 << 20, np.uint8)
    del dirty
    for array in small_maps["route4"]._room(1 << 18):
        begin = address(array) // mmap.PAGESIZE * mmap.PAGESIZE
        size = address(array) + array.nbytes - begin
        there = (ct.c_ubyte * -(-size // mmap.PAGESIZE))()
        assert ct.CDLL(None).mincore(ct.c_void_p(begin), ct.c_size_t(size), there) == 0
        assert sum(there) <= 2
        assert not array[:1000].view(np.uint8).any()


def test_byte_order_survives_batches(small_maps: Maps) -> None:
    """numpy turns big-endian fields round when it joins arrays."""
    keys = np.arange(1, 101, dtype=layout.u32)
    values = np.zeros(100, layout.target)
    values["port_be"], values["family"] = 80, 4
    little = np.concatenate([values, values])[:100]  # the same values, other bytes
    small_maps["target"].put_many(keys, little)
    assert small_maps["target"].items()[1][1]["port_be"] == 80
    at = layout.target.fields["port_be"][1]  # type: ignore[index]
    assert bytes(small_maps["target"].items()[1][1:2].tobytes()[at : at + 2]) == b"\x00\x50"


def test_trie_tells_covering_from_exact(small_maps: Maps) -> None:
    table = small_maps["route4"]
    keys = np.zeros(2, layout.route_key4)
    keys["prefixlen"], keys["proxy"], keys["addr_be"] = [40, 48], 1, [[10, 0, 0, 0], [10, 1, 0, 0]]
    values = np.zeros(1, layout.route_slots)
    values["slot"]["dest"] = 7
    table.put(keys[:1], values)
    assert table.get_many(keys)[0].tolist() == [True, True]
    found, exact = table.get_exactly(keys)
    assert found.tolist() == [True, False]
    assert exact["slot"]["dest"].tolist() == [[7, 7], [0, 0]]


def test_per_cpu_counters_are_summed(small_maps: Maps) -> None:
    outcome, stats = small_maps["outcome"], small_maps["target_stats"]
    cpus = bpf.possible_cpus()
    outcome.put(3, np.full((1, cpus), 5, layout.u64))
    assert outcome.sums()[3] == 5 * cpus
    value = stats.values_array(1)
    value["bytes_reverse"] = np.arange(cpus)
    stats.put(2, value)
    assert stats.sums()[2]["bytes_reverse"] == sum(range(cpus))
    assert stats.sums()[1]["bytes_reverse"] == 0


def test_reading_one_by_one_gives_the_same(small_maps: Maps) -> None:
    table = small_maps["listener4"]
    table.put_many(*_listeners(300))
    batched = table.items()
    table._batches = False
    single = table.items()
    assert sorted(key.tobytes() for key in batched[0]) == sorted(key.tobytes() for key in single[0])
    assert sorted(value.tobytes() for value in batched[1]) == sorted(value.tobytes() for value in single[1])


def test_no_call_is_given_memory_that_others_may_take(small_maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the making of a call and the kernel's reading and writing, another thread may want memory."""
    taken: list[np.ndarray] = []

    def taking(call: Callable[..., object]) -> Callable[..., object]:
        def first_take(*arguments: object) -> object:
            taken.extend(np.full(size, 0xA5, np.uint8) for size in (4, 12) for _ in range(16))
            return call(*arguments)

        return first_take

    for name in ("map_lookup", "map_next_key", "map_update"):
        monkeypatch.setattr(bpf, name, taking(getattr(bpf, name)))
    listeners, holder = small_maps["listener4"], small_maps["event_ring"]
    assert listeners.is_empty
    listeners.put_many(*_listeners(1))
    assert not listeners.is_empty
    assert eventring.hanging(holder) is None
    with closing(eventring.provide(holder, mmap.PAGESIZE)) as ring:
        assert eventring.hanging(holder) == ring.id
    way = create_map(layout.MAPS["way"], MAX_CONNECTIONS)  # which begins with a head
    os.close(way)
    assert all((each == 0xA5).all() for each in taken)


def test_value_of_another_size_is_refused(small_maps: Maps) -> None:
    with pytest.raises(ValueError, match="bytes"):
        small_maps["outcome"].put(0, np.zeros(bpf.possible_cpus() + 1, layout.u64))
    with pytest.raises(ValueError, match="2 keys"):
        small_maps["port"].put_many(np.arange(2), np.zeros(3, layout.u8))


# -- groups --------------------------------------------------------------------------------------------------


def test_group_tables(small_maps: Maps) -> None:
    tables = [np.asarray([7, 8, 7], np.uint32), np.arange(1, 5000, dtype=np.uint32)]
    groups.put_groups(small_maps, [1, 2], tables)
    assert groups.used_groups(small_maps).tolist() == [1, 2]
    assert np.array_equal(groups.read_table(small_maps, 1), tables[0])
    assert np.array_equal(groups.read_table(small_maps, 2), tables[1])
    groups.put_groups(small_maps, [1], [np.asarray([9], np.uint32)])
    assert np.array_equal(groups.read_table(small_maps, 1), [9])
    groups.free_groups(small_maps, [1])
    assert groups.read_table(small_maps, 1) is None
    assert groups.used_groups(small_maps).tolist() == [2]
    groups.wait_for_packets(small_maps)
    assert groups.used_groups(small_maps).tolist() == [2]


def test_many_groups_are_one_call(small_maps: Maps) -> None:
    small_maps["group"].gateway = gateway = FaultGateway()
    groups.put_groups(small_maps, list(range(1, 401)), [np.asarray([n], np.uint32) for n in range(400)])
    groups.free_groups(small_maps, list(range(1, 400)))
    assert gateway.calls == [("update batch", "map group")] * 2
    assert groups.used_groups(small_maps).tolist() == [400]


@pytest.mark.parametrize("name", ["port", "proxy", "target"])
def test_large_array_is_read_from_memory_as_by_calls(maps: Maps, name: str) -> None:
    table = maps[name]
    assert len(table.prefix()) == 1
    written = np.asarray([3, 700], np.uint32)
    values = table.values_array(2)
    values.view(np.uint8)[:] = np.random.default_rng(1).integers(1, 255, values.nbytes, np.uint8)
    table.put_many(written, values)
    try:
        keys, found = table.items()
        assert keys.tolist() == list(range(table.max_entries))
        assert found[written].tobytes() == values.tobytes()
        assert found.tobytes() == table.get_many(keys)[1].tobytes()
        assert table.prefix().tobytes() == found[:701].tobytes()
    finally:
        table.put_many(written, table.values_array(2))
    assert len(table.prefix()) == 1


@pytest.mark.parametrize("last", [0, 3, 1023, 1024, 1535, 2047, 2048, 2100, 2499])
@pytest.mark.parametrize("also", [0, 3, 1500])
def test_what_is_used_of_an_array_ends_with_its_last_entry(last: int, also: int) -> None:
    """Wherever that is: in the first, in a whole or in the last, shorter one of the steps in which it is looked for."""
    values = np.ndarray((2500,), np.uint64, bytearray(2500 * 8))
    values[[last, min(also, last)]] = 7
    assert prefix(values).tobytes() == values[: last + 1].tobytes()


def test_limits_are_those_of_the_maps_there_are() -> None:
    """Whoever has asked for them before: tests make smaller ones."""
    whole = map_limits()
    with small_arrays():
        small = map_limits()
        with pytest.raises(CapacityError):
            small.check("target", layout.MAPS["target"].max_entries + 1, "targets")
        whole.check("target", layout.MAPS["target"].max_entries + 1, "targets")
    assert map_limits() == whole
