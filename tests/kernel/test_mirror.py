"""What this process knows of a trie without reading it, against reading it; and what is observed from that."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from reconciler.errors import KernelError
from reconciler.kernel import layout
from reconciler.kernel.arrays import Array
from reconciler.kernel.gateway import FaultGateway
from reconciler.kernel.lastlook import RouteMemory
from reconciler.kernel.maps import Map, Maps
from reconciler.kernel.observe import observe
from tests.kernel.kernelmaps import MAX_CONNECTIONS, bpffs_directory, private_maps, small_arrays


@pytest.fixture
def maps() -> Iterator[Maps]:
    with small_arrays(), private_maps() as found:
        yield found


def entries(content: tuple[Array, Array]) -> dict[bytes, bytes]:
    return {key.tobytes(): value.tobytes() for key, value in zip(*content, strict=True)}


def keys(*numbers: int, version: int = 4) -> Array:
    found = np.zeros(len(numbers), layout.route_key4 if version == 4 else layout.route_key6)
    found["prefixlen"], found["proxy"] = 32 + 24, 1
    found["addr_be"][:, 1] = [number >> 8 for number in numbers]
    found["addr_be"][:, 2] = [number & 255 for number in numbers]
    return found


def values(*targets: int) -> Array:
    found = np.zeros(len(targets), layout.route_slots)
    found["slot"]["dest"] = [[layout.CONSTANTS["DEST_TARGET"] << 28 | each] * 2 for each in targets]
    found["slot"]["flags"] = layout.CONSTANTS["ROUTE_PRESENT"]
    return found


def configure(maps: Maps) -> None:
    """A proxy with four targets and a thousand routes."""
    proxy = maps["proxy"].values_array(1)
    proxy["slot"]["flags"] = layout.CONSTANTS["PROXY_PRESENT"] | layout.CONSTANTS["PROXY_ROUTES4"]
    maps["proxy"].put(1, proxy)
    name = np.zeros(1, layout.proxy_name)
    name["name"] = b"web"
    maps["proxy_name"].put(1, name)
    for number in range(1, 5):
        target = np.zeros(1, layout.target)
        target["addr_be"][0, :4] = (10, 0, 0, number)
        target["family"], target["proxy"], target["port_be"] = 4, 1, 80
        maps["target"].put(number, target)
    maps["route4"].put_many(keys(*range(1000)), values(*(1 + number % 4 for number in range(1000))))


@pytest.mark.parametrize("seed", range(3))
def test_known_is_what_is_there(maps: Maps, seed: int) -> None:
    chance, table, memory = random.Random(seed), maps["route4"], RouteMemory()
    configure(maps)
    observe(maps, memory=memory)
    for _ in range(30):
        before = observe(maps, memory=memory, routes_as_known=True).state.routes
        kept = dict(before)
        chosen = [chance.randrange(1200) for _ in range(chance.choice((1, 3, 100)))]
        if chance.random() < 0.5:
            table.put_many(keys(*chosen), values(*(chance.randint(1, 4) for _ in chosen)))
        elif chance.random() < 0.5:
            table.delete_many(keys(*chosen))
        else:
            table.put(keys(chosen[0]), values(chance.randint(1, 4)))
            table.delete(keys(chosen[-1]))
        assert entries(table.known()) == entries(table._items())
        found = observe(maps, memory=memory, routes_as_known=True).state
        assert found == observe(maps).state
        assert before == kept  # whoever has it keeps what he has


def test_others_writes_are_seen_by_reading(maps: Maps) -> None:
    configure(maps)
    memory = RouteMemory()
    whole = observe(maps, memory=memory).state.routes
    stranger = Maps(maps.root.parent)
    stranger.open()
    try:
        stranger["route4"].delete_many(keys(5, 6))
    finally:
        stranger.close()
    assert observe(maps, memory=memory, routes_as_known=True).state.routes == whole
    assert len(observe(maps, memory=memory).state.routes) == len(whole) - 2
    assert len(observe(maps, memory=memory, routes_as_known=True).state.routes) == len(whole) - 2


def test_an_exchanged_map_is_another_one(maps: Maps) -> None:
    """Somebody has removed the pins and made the maps anew."""
    configure(maps)
    memory = RouteMemory()
    assert observe(maps, memory=memory).state.routes
    maps.remove()
    maps.create(MAX_CONNECTIONS)
    assert observe(maps, memory=memory, routes_as_known=True).state.routes == {}


@pytest.mark.parametrize("write", [lambda table: table.put(keys(3), values(2)), lambda table: table.delete(keys(3))])
def test_after_a_failed_write_nothing_is_known(write: object) -> None:
    assert callable(write)
    gateway = FaultGateway()
    with small_arrays(), bpffs_directory() as directory:
        maps = Maps(directory, gateway)
        maps.create(MAX_CONNECTIONS)
        try:
            configure(maps)
            table: Map = maps["route4"]
            table.items()
            gateway.fail_at = len(gateway.calls) + 1
            with pytest.raises(KernelError):
                write(table)
            assert maps.mirrors["route4"].read(table._id) is None
            assert entries(table.known()) == entries(table._items())
        finally:
            maps.close()
            gateway.fail_at = 0
            maps.remove()


def test_a_proxy_that_went_with_its_name_has_no_routes(maps: Maps) -> None:
    configure(maps)
    memory = RouteMemory()
    assert len(observe(maps, memory=memory).state.routes) == 1000
    for number in range(0, 1000, 100):
        maps["route4"].delete_many(keys(*range(number, number + 100)))
        if number == 400:
            assert len(observe(maps, memory=memory, routes_as_known=True).state.routes) == 500
    maps["proxy"].put(1, maps["proxy"].values_array(1))
    maps["proxy_name"].delete(1)
    assert observe(maps, memory=memory, routes_as_known=True).state.routes == {}


def test_who_has_read_keeps_what_he_has_read(maps: Maps) -> None:
    """A snapshot is of one moment: an entry that is written later does not change in it."""
    table = maps["route4"]
    table.put_many(keys(1, 2), values(1, 2))
    table.items()
    before = table.known()
    copies = [part.copy() for part in before]
    table.put_many(keys(2), values(3))
    table.delete_many(keys(1))
    assert [part.tobytes() for part in before] == [part.tobytes() for part in copies]
    assert entries(table.known()) == {keys(2).tobytes(): values(3).tobytes()}
