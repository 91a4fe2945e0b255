"""The connection table: what programs and user space find, enter and remove in the same memory."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from reconciler.errors import KernelError
from reconciler.kernel import blocks, bpf, contable, layout
from reconciler.kernel.arrays import Array
from reconciler.kernel.contable import ConnectionTable
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.maps import map_of
from reconciler.kernel.newmaps import create_map
from tests.kernel.dataplane import XDP_DROP, XDP_REDIRECT, DataPlane, dest
from tests.kernel.packets import Flow, frame

pytestmark = pytest.mark.root

PLACES = layout.BLOCK_PLACES
LISTEN, TARGET = {4: "10.0.1.1", 6: "fd00:1::1"}, {4: "10.9.0.1", 6: "fd09::1"}
families = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def table(request: pytest.FixtureRequest) -> Iterator[ConnectionTable]:
    """Room for 500 connections."""
    spec = layout.MAPS[f"connection{request.param}"]
    made = map_of(spec, create_map(spec, 500), Gateway())
    assert isinstance(made, ConnectionTable)
    yield made
    made.close()


def keys_of(table: ConnectionTable, count: int, seed: int = 1) -> Array:
    """Any keys, each another."""
    random = np.random.default_rng(seed)
    keys = np.zeros(count, table.key_dtype)
    for side in ("saddr_be", "daddr_be"):
        keys[side] = random.integers(0, 256, keys[side].shape, np.uint8)
    keys["sport_be"], keys["dport_be"] = np.arange(count), random.integers(0, 65536, count)
    keys["protocol"] = random.choice([6, 17], count)
    return keys


def values_of(table: ConnectionTable, count: int, first: int = 0) -> Array:
    """Each says its number."""
    values = table.values_array(count)
    values["c"]["packets"] = first + np.arange(count)
    values["in_ifindex"] = first + np.arange(count)
    return values


def at_home(table: ConnectionTable, home: int, count: int, tag: int | None = None) -> Array:
    """So many keys that belong into this block, with this tag."""
    chosen: list[Array] = []
    number, seed = 0, 0
    while number < count:
        keys = keys_of(table, 65536, seed := seed + 1)
        homes, tags = table.blocks.homes(keys)
        here = keys[(homes == home) & ((tags == tag) if tag is not None else True)]
        if tag is None:
            _, first = np.unique(table.blocks.homes(here)[1], return_index=True)
            here = here[first]
        chosen.append(here[: count - number])
        number += len(chosen[-1])
    return np.concatenate([np.ascontiguousarray(each).view(np.uint8) for each in chosen]).view(table.key_dtype)


def as_set(keys: Array) -> set[bytes]:
    return {each.tobytes() for each in np.ascontiguousarray(keys)}


# -- as of any hash ----------------------------------------------------------------------------------------------


def test_what_is_entered_is_found_listed_and_removed(table: ConnectionTable) -> None:
    keys, values = keys_of(table, 900), values_of(table, 900)
    table.put_many(keys, values)
    found, read = table.get_many(keys)
    assert found.all()
    assert read.tobytes() == values.tobytes()
    assert as_set(table.keys()) == as_set(keys)
    assert table.blocks.used == 900
    table.delete_many(keys[::2])
    found, read = table.get_many(keys)
    assert found.tolist() == [False, True] * 450
    assert not np.ascontiguousarray(read[::2]).view(np.uint8).any()
    assert as_set(table.keys()) == as_set(keys[1::2])
    table.delete_many(keys)
    assert table.is_empty
    assert not len(table.keys())


def test_an_entry_is_written_over_and_not_entered_twice(table: ConnectionTable) -> None:
    keys = keys_of(table, 100)
    for first in (0, 1000):
        table.put_many(keys, values_of(table, 100, first))
    assert len(table.keys()) == table.blocks.used == 100
    assert table.get_many(keys)[1]["c"]["packets"].tolist() == list(range(1000, 1100))


def test_one_that_is_not_there(table: ConnectionTable) -> None:
    keys = keys_of(table, 3)
    table.put_many(keys[:1], values_of(table, 1))
    assert table.get(keys[1]) is None
    assert not table.delete(keys[2])
    assert table.delete(keys[0])
    assert table.is_empty


def test_a_full_table_takes_no_more_and_says_so(table: ConnectionTable) -> None:
    table.put_many(keys_of(table, 1000), values_of(table, 1000))
    with pytest.raises(KernelError) as caught:
        table.put_many(keys_of(table, 5, seed=9), values_of(table, 5))
    assert caught.value.errno == errno.E2BIG
    table.put_many(keys_of(table, 1000), values_of(table, 1000))  # those that are there are
    assert table.blocks.used == 1000


def test_random_edits_against_a_dictionary(table: ConnectionTable) -> None:
    pool, expected = keys_of(table, 700), dict[bytes, int]()
    random = np.random.default_rng(5)
    for turn in range(60):
        chosen = pool[random.choice(700, 100, replace=False)]
        if turn % 3 == 2:
            table.delete_many(chosen)
            for key in as_set(chosen):
                expected.pop(key, None)
        else:
            table.put_many(chosen, values_of(table, 100, 100 * turn))
            expected |= {key.tobytes(): 100 * turn + place for place, key in enumerate(chosen)}
        keys, values = table.items()
        read = {key.tobytes(): int(value["c"]["packets"]) for key, value in zip(keys, values, strict=True)}
        assert read == expected
        assert table.blocks.used == len(expected)


# -- blocks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", [0, 1])
def test_what_a_block_has_no_place_for_is_in_its_neighbour(table: ConnectionTable, home: int) -> None:
    keys = at_home(table, home, PLACES + 5)
    table.put_many(keys, values_of(table, len(keys)))
    assert len(table.blocks.read(home, 1)[0]) == PLACES
    assert len(table.blocks.read(home ^ 1, 1)[0]) == 5
    assert table.get_many(keys)[0].all()
    table.put_many(keys, values_of(table, len(keys), 1000))  # over what is there, wherever
    assert table.get_many(keys)[1]["c"]["packets"].tolist() == list(range(1000, 1000 + len(keys)))
    assert table.blocks.used == len(table.keys()) == len(keys)
    assert (abroad(table, home), abroad(table, home ^ 1)) == (5, 0)
    table.delete_many(keys[:PLACES])
    assert table.get_many(keys)[0].tolist() == [False] * PLACES + [True] * 5
    table.delete_many(keys)
    assert abroad(table, home) == 0
    assert table.is_empty


def abroad(table: ConnectionTable, block: int) -> int:
    """How many of its entries are in the neighbour; nobody holds its lock."""
    at = table.blocks
    memory, start = at._memory(at.lines, 1, 0)
    word = int(np.frombuffer(memory, np.uint64, 1, start + block * layout.line.itemsize)[0])
    assert not word & 1
    return word >> 1


def test_a_pair_of_blocks_without_a_place_refuses(table: ConnectionTable) -> None:
    keys = at_home(table, 2, 2 * PLACES + 1)
    table.put_many(keys[:-1], values_of(table, 2 * PLACES))
    with pytest.raises(KernelError) as caught:
        table.put_many(keys[-1:], values_of(table, 1))
    assert caught.value.errno == errno.E2BIG
    assert table.blocks.used == 2 * PLACES, "its room was given back"
    assert table.get_many(keys)[0].tolist() == [True] * 2 * PLACES + [False]


def test_of_two_with_the_same_tag_one_goes_next_door_and_the_third_is_refused(table: ConnectionTable) -> None:
    first = at_home(table, 3, 1)
    tag = int(table.blocks.homes(first)[1][0])
    keys = at_home(table, 3, 3, tag)
    table.put_many(keys[:2], values_of(table, 2))
    assert len(table.blocks.read(3, 1)[0]) == len(table.blocks.read(2, 1)[0]) == 1
    with pytest.raises(KernelError) as caught:
        table.put_many(keys[2:], values_of(table, 1))
    assert caught.value.errno == errno.E2BIG
    assert table.get_many(keys)[1]["c"]["packets"].tolist() == [0, 1, 0]
    assert table.get_many(keys)[0].tolist() == [True, True, False]
    table.delete_many(keys[:1])
    assert table.get_many(keys)[0].tolist() == [False, True, False]
    table.delete_many(keys[1:])
    assert table.is_empty


def test_no_two_tables_hash_alike(table: ConnectionTable) -> None:
    keys = keys_of(table, 200)
    other = map_of(table.spec, create_map(table.spec, 500), Gateway())
    assert isinstance(other, ConnectionTable)
    assert (table.blocks.homes(keys)[0] != other.blocks.homes(keys)[0]).any()
    other.close()


def test_tables_of_any_size_are_filled_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody keeps what another needs: batches are left out for user space."""
    monkeypatch.setattr(contable, "CHUNK", 64)
    for count in (1, 7, 300, 5000):
        spec = layout.MAPS["connection4"]
        made = map_of(spec, create_map(spec, count), Gateway())
        assert isinstance(made, ConnectionTable)
        made.put_many(keys_of(made, 2 * count), values_of(made, 2 * count))
        assert made.blocks.used == len(made.keys()) == made.max_entries == 2 * count
        made.close()


# -- as programs see it --------------------------------------------------------------------------------------


@pytest.fixture
def plane() -> Iterator[DataPlane]:
    made = DataPlane(f"rptable-{os.getpid()}", connections=40_000)
    for version in (4, 6):
        made.listener("cli", LISTEN[version], 80, 6, 1)
        made.target(version, TARGET[version], 8080)
    made.proxy(1, dest4=dest("TARGET", 4), dest6=dest("TARGET", 6))
    for device in ("srv", "cli"):
        made.device(device)
    yield made
    made.close()


@families
def test_programs_and_user_space_find_what_the_other_has_entered(plane: DataPlane, version: int) -> None:
    table = plane.connections(version)
    client = {4: "198.51.100.{}", 6: "2001:db8::{}"}[version]
    flows = [Flow(client.format(1 + port % 200), LISTEN[version], port, 80) for port in range(1000, 1300)]
    for flow in flows:
        assert plane.xdp(frame(flow, "S"))[0] == XDP_REDIRECT
    keys, values = table.items()
    assert len(keys) == table.blocks.used == 600
    assert table.get_many(keys)[0].all()
    table.delete_many(keys)
    assert table.is_empty
    table.put_many(keys, values)
    before = plane.outcomes()
    for flow in flows:
        assert plane.xdp(frame(flow, "A"))[0] == XDP_REDIRECT
    assert table.blocks.used == 600, "none was begun anew"
    counted = {name: count - before.get(name, 0) for name, count in plane.outcomes().items()}
    assert {name: count for name, count in counted.items() if count} == {"redirect_xdp": 300}


@families
def test_room_that_a_cpu_keeps_is_counted_as_room(plane: DataPlane, version: int) -> None:
    table = plane.connections(version)
    batch = blocks._element(table.fd, table.spec.value, 0)["batch"]
    assert batch > 1
    assert plane.xdp(frame(Flow("198.51.100.7" if version == 4 else "2001:db8::7", LISTEN[version], 999, 80), "S"))
    rooms = [
        int(blocks._element(table.fd, table.spec.value, place)["room"]) for place in range(1 + bpf.possible_cpus())
    ]
    assert table.max_entries - rooms[0] == batch, "one CPU took a batch"
    assert sum(rooms) == table.max_entries - 2
    assert table.blocks.used == 2


@families
def test_a_lock_that_is_never_given_back_refuses_and_changes_nothing(plane: DataPlane, version: int) -> None:
    """As of a CPU that was taken away."""
    table = plane.connections(version)
    flow = Flow("198.51.100.7" if version == 4 else "2001:db8::7", LISTEN[version], 4000, 80)
    assert plane.xdp(frame(flow, "S"))[0] == XDP_REDIRECT
    keys, _ = table.items()
    table.delete_many(keys)
    at = table.blocks
    homes = {int(home) for home in at.homes(keys)[0]}
    for home in homes:
        memory, start = at._memory(at.lines + home // layout.LINES, 1, mmap.PROT_WRITE)
        lock = np.ndarray((1,), np.uint64, memory, start + home % layout.LINES * layout.line.itemsize)
        lock[0] |= 1
        assert plane.xdp(frame(flow, "S"))[0] == XDP_DROP
        assert table.is_empty
        with pytest.raises(KernelError) as caught:
            table.put_many(keys, table.values_array(len(keys)))
        assert caught.value.errno == errno.EBUSY
        lock[0] &= ~np.uint64(1)
        table.delete_many(keys)
        assert plane.xdp(frame(flow, "S"))[0] == XDP_REDIRECT
        table.delete_many(keys)
    assert plane.outcomes()["drop_table_full"] == len(homes)


# -- edits that are disturbed --------------------------------------------------------------------------------------


def test_signals_do_not_end_an_edit(table: ConnectionTable) -> None:
    """The kernel ends a run when the process gets one."""
    keys, values = keys_of(table, 1000), values_of(table, 1000)
    table.put_many(keys[:1], values[:1])  # loads the program
    number, before = 0, signal.getsignal(signal.SIGALRM)

    def count(*_: object) -> None:
        nonlocal number
        number += 1

    signal.signal(signal.SIGALRM, count)
    signal.setitimer(signal.ITIMER_REAL, 0.00005, 0.00005)
    try:
        deadline = time.monotonic() + 20
        while number < 2000 and time.monotonic() < deadline:
            table.put_many(keys, values)
            table.delete_many(keys[1::2])
            assert table.blocks.used == 500
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert number >= 100, "none came"
    assert table.get_many(keys)[0].tolist() == [True, False] * 500


@pytest.mark.parametrize("remove", [False, True])
def test_an_edit_waits_for_a_lock_that_is_held_for_a_while(table: ConnectionTable, remove: bool) -> None:
    keys, values = keys_of(table, 50), values_of(table, 50)
    table.put_many(keys if remove else keys[:1], values if remove else values[:1])
    at = table.blocks
    home = int(at.homes(keys)[0][20])
    memory, start = at._memory(at.lines + home // layout.LINES, 1, mmap.PROT_WRITE)
    lock = np.ndarray((1,), np.uint64, memory, start + home % layout.LINES * layout.line.itemsize)
    lock[0] |= np.uint64(1)

    def let_go() -> None:
        lock[0] &= ~np.uint64(1)

    timer = threading.Timer(0.02, let_go)
    timer.start()
    try:
        if remove:
            table.delete_many(keys)
        else:
            table.put_many(keys, values)
    finally:
        timer.join()
    assert len(table.keys()) == (0 if remove else 50)
