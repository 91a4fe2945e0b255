"""What is observed of maps in order, and of maps that somebody has been at."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import numpy as np
import pytest

from reconciler.kernel import codec, groups, layout, store
from reconciler.kernel.lastlook import RouteMemory
from reconciler.kernel.maps import Maps
from reconciler.kernel.observe import observe
from reconciler.kernel.recover import recover
from reconciler.kernel.transaction import execute
from reconciler.state.objects import DENY, DataPlaneSettings, Destination, KernelState, RouteKey
from reconciler.state.routes import Routes
from reconciler.state.share import Share
from tests.kernel.kernelmaps import (
    Instance,
    bpffs_directory,
    connection_entry,
    listener,
    proxy,
    route,
    small_arrays,
    state,
    to,
)

STATE = state(
    [proxy("web", to("10.0.0.1:80", ("10.0.0.2:80", 0)), to("[fd00::1]:0")), proxy("dns", to("10.0.0.53:53"))],
    {listener("192.0.2.1", 80): "web", listener("2001:db8::1", 80): "web", listener("192.0.2.1", 53): "dns"},
    {
        route("web", "0.0.0.0/0"): to("10.0.0.3:80"),
        route("web", "10.1.2.0/24"): DENY,
        route("web", "::/0"): DENY,
        route("web", "2001:db8::/33"): to("[fd00::1]:80", "[fd00::2]:80"),
        route("web", "192.0.2.77/32"): to("10.0.0.1:80", ("10.0.0.2:80", 0)),
    },
)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    with small_arrays(), bpffs_directory() as directory:
        found = Instance(directory, tmp_path)
        execute(found.plan(STATE, "text"), found.context)
        yield found
        found.close()


def test_nothing_pinned() -> None:
    with bpffs_directory() as directory:
        found = observe(Maps(directory))
        assert not found.exists
        assert not found.unfinished
        assert found.state == KernelState()


def test_observed_is_what_was_applied(instance: Instance) -> None:
    found = instance.observe()
    assert found.state == STATE
    assert found.exists
    assert not found.unfinished
    assert found.revision.number == 1
    assert len(found.blobs) == 2
    assert found.ports == {80: 3, 53: 3}  # the target without a port keeps 80
    assert set(found.allocation.proxies) == {"web", "dns"}
    assert not found.allocation.retired_targets


def _wipe(name: str) -> Callable[[Maps], None]:
    def wipe(maps: Maps) -> None:
        if name in ("target", "proxy", "port", "settings", "revision"):
            keys, values = maps[name].items()
            maps[name].put_many(keys, np.zeros_like(values))
        else:
            maps[name].delete_many(maps[name].keys())

    return wipe


def _poke(name: str, field: str, value: int, *, sub: str = "slot") -> Callable[[Maps], None]:
    """Write a value into a field of the active and the standby slot of every entry that is not zero."""

    def poke(maps: Maps) -> None:
        keys, values = maps[name].items()
        used = np.ascontiguousarray(values).view(np.uint8).reshape(len(keys), -1).any(axis=1)
        target = values if not sub else values[sub]
        if field:
            target[field][used] = value
        else:
            target[used] = value
        maps[name].put_many(keys[used], values[used])

    return poke


def _give_default(kind: str) -> Callable[[Maps], None]:
    """Have the proxies without an IPv6 target lead IPv6 clients somewhere."""

    def give(maps: Maps) -> None:
        keys, values = maps["proxy"].items()
        chosen = (values["slot"]["flags"][:, 0] != 0) & (values["slot"]["dest6"][:, 0] == 0)
        assert chosen.any()
        values["slot"]["dest6"][chosen] = layout.CONSTANTS[kind] << layout.CONSTANTS["DEST_KIND_SHIFT"] | 1
        maps["proxy"].put_many(keys[chosen], values[chosen])

    return give


def _garbage(maps: Maps) -> None:
    """Entries that no reconciler would write."""
    keys = np.zeros(3, layout.listener_key4)
    keys["protocol"], keys["port_be"], keys["zero"] = [99, 6, 17], [80, 0, 80], [0, 0, 5]
    maps["listener4"].put_many(keys, np.ones(3, layout.listener_slots))
    prefixes = np.zeros(2, layout.route_key6)
    prefixes["prefixlen"], prefixes["proxy"] = [7, 40], [1, 4_000_000_000]
    values = np.zeros(2, layout.route_slots)
    values["slot"]["flags"] = 1
    maps["route6"].put_many(prefixes, values)
    maps["proxy_name"].put(4_000_000_000, np.array([(b"\xff\xfe",)], layout.proxy_name))
    maps["target"].put(200, np.full(layout.target.itemsize, 0xEE, np.uint8).view(layout.target))
    member = np.zeros(1, layout.group_member_key)
    member["group"], member["target"] = 4_000_000_000, 4_000_000_001
    maps["group_member"].put(member, np.ones(1, layout.u32))
    blob = np.full(20, 7, np.uint8).view(layout.blob_key)
    maps["blob"].put(blob, np.full(layout.blob_chunk.itemsize, 0xEE, np.uint8).view(layout.blob_chunk))


DRIFT: dict[str, Callable[[Maps], None]] = {
    **{
        f"{name} wiped": _wipe(name)
        for name in ("listener4", "listener6", "route4", "route6", "proxy", "target", "group_member", "proxy_name")
    },
    "settings wiped": _wipe("settings"),
    "group wiped": lambda maps: maps["group"].delete_many(np.arange(1, 5)),
    "mode unknown": _poke("proxy", "mode", 77),
    "balance unknown": _poke("proxy", "balance", 77),
    "dest of unknown kind": _poke("proxy", "dest4", 0xF0000001),
    "default of a family without one: deny": _give_default("DEST_DENY"),
    "default of a family without one: nothing": _give_default("DEST_GROUP"),
    "default of a family without one: an IPv4 target": _give_default("DEST_TARGET"),
    "weight that no file has": _poke("group_member", "", 1 << 31, sub=""),
    "dest out of range": _poke("proxy", "dest4", 0x1FFFFFFF),
    "group out of range": _poke("route4", "dest", 0x2FFFFFFF),
    "route to nothing": _poke("route4", "dest", 0),
    "listener of no proxy": _poke("listener4", "", 63, sub="proxy"),
    "target moved": _poke("target", "port_be", 81, sub=""),
    "target of no family": _poke("target", "family", 5, sub=""),
    "target of another proxy": _poke("target", "proxy", 60, sub=""),
    "limit changed": _poke("proxy", "idle_sec", 1),
}


@pytest.mark.parametrize("drift", DRIFT)
def test_drift_shows_and_is_repaired(instance: Instance, drift: str) -> None:
    memory = RouteMemory()
    observe(instance.maps, memory=memory)
    DRIFT[drift](instance.maps)
    found = instance.observe()
    assert found.state != STATE
    assert observe(instance.maps, memory=memory) == observe(instance.maps), "also by who remembers the last look"
    recover(instance.maps)
    assert not instance.observe().unfinished
    assert np.isin(instance.maps["target"].items()[1]["family"], (0, 4, 6)).all()
    plan = instance.plan(STATE, "text")
    assert plan.changes
    assert execute(plan, instance.context).pending is None
    recover(instance.maps)
    found = instance.observe()
    assert found.state == STATE
    assert not found.unfinished
    assert instance.plan(STATE, "text").empty
    assert observe(instance.maps, memory=memory) == observe(instance.maps)


def _exchange_slots(maps: Maps) -> None:
    """A slot that says something else of everything is the one that counts now."""
    _, (switch,) = maps["control"].items()
    switch["active"] = 1 - switch["active"]
    maps["control"].put(0, switch)


def _no_proxies(maps: Maps) -> None:
    """Whose routes don't count, which nobody has touched."""
    keys, values = maps["proxy"].items()
    values["slot"]["flags"] = 0
    maps["proxy"].put_many(keys, values)


def _another_weight(maps: Maps) -> None:
    keys, values = maps["group_member"].items()
    maps["group_member"].put_many(keys, values + 1)


def _another_table(maps: Maps) -> None:
    """By the same numbers as before: only its recipe tells it from the other."""
    number = int(groups.used_groups(maps)[0])
    table = groups.read_table(maps, number)
    assert table is not None
    groups.put_groups(maps, [number], [table], [4711])


REMEMBERED: dict[str, Callable[[Maps], None]] = {
    "a number's name": lambda maps: maps["proxy_name"].put(1, np.array([(b"other",)], layout.proxy_name)),
    "weights": _another_weight,
    "a table": _another_table,
    "proxies, and what routes count": _no_proxies,
    "which slot counts": _exchange_slots,
}


@pytest.mark.parametrize("change", REMEMBERED)
def test_who_remembers_the_last_look_sees_what_is_another_now(instance: Instance, change: str) -> None:
    maps, memory = instance.maps, RouteMemory()
    saved = {name: maps[name].items() for name in ("route4", "route6", "proxy", "proxy_name", "group_member")}
    keys, values = saved["route4"]
    values["slot"]["dest"][::2, 1 - instance.observe().active] = (
        layout.CONSTANTS["DEST_DENY"] << layout.CONSTANTS["DEST_KIND_SHIFT"]
    )
    maps["route4"].put_many(keys, values)
    before = observe(maps, memory=memory)
    REMEMBERED[change](maps)
    found = observe(maps, memory=memory)
    assert found == observe(maps)
    assert found != before
    for name, entries in saved.items():
        if name != "route4":
            maps[name].put_many(*entries)
    assert observe(maps, memory=memory) == observe(maps), "and what is as it was again"


def test_of_what_is_wanted_only_what_is_there_counts_as_observed(instance: Instance) -> None:
    memory = RouteMemory()
    before = observe(instance.maps, memory=memory)
    memory.adopt(replace(STATE, routes=Routes(STATE.routes), proxies={}, listeners={}))
    assert observe(instance.maps, memory=memory) == before


def test_files_are_known_to_be_whole_by_how_many_pieces_there_are(instance: Instance) -> None:
    """While only files are the reason for a look; any other looks at each piece."""
    content, memory, table = os.urandom(5000), RouteMemory(), instance.maps["blob"]
    table.put_many(*store.encode_blob(store.digest_of(content), content))
    whole = observe(instance.maps, memory=memory).blobs
    keys, values = table.items()
    last = keys["chunk"] == 1
    assert len(keys[last]) == 1
    table.delete_many(keys[last])
    assert len(observe(instance.maps, memory=memory, routes_as_known=True).blobs) == len(whole) - 1
    table.put_many(keys[last], values[last])
    assert observe(instance.maps, memory=memory, routes_as_known=True).blobs == whole
    values["chunks"] += 1
    table.put_many(keys, values)
    assert observe(instance.maps, memory=memory, routes_as_known=True).blobs == whole, "there are as many"
    assert observe(instance.maps, memory=memory).blobs == frozenset()
    values["chunks"] -= 1
    table.put_many(keys, values)
    assert observe(instance.maps, memory=memory).blobs == whole
    table.delete_many(keys[(keys["digest"] == keys["digest"][last]).all(axis=1)])
    assert len(observe(instance.maps, memory=memory, routes_as_known=True).blobs) == len(whole) - 1


def test_garbage_is_unfinished_and_goes(instance: Instance) -> None:
    _garbage(instance.maps)
    found = instance.observe()
    assert found.state == STATE
    assert found.unfinished
    assert recover(instance.maps)
    assert not instance.observe().unfinished
    assert instance.observe().state == STATE


@pytest.mark.parametrize("name", ["settings", "proxy", "listener4", "listener6", "route4", "route6", "revision"])
def test_slots_that_differ_are_unfinished(instance: Instance, name: str) -> None:
    keys, values = instance.maps[name].items()
    slots = values.dtype.names[0]
    raw = values[slots][:, 1 - instance.observe().active : 2 - instance.observe().active]
    raw[:] = np.zeros(1, raw.dtype)
    instance.maps[name].put_many(keys, values)
    found = instance.observe()
    assert found.unfinished
    assert found.state == STATE
    recover(instance.maps)
    assert not instance.observe().unfinished
    assert instance.observe().state == STATE


def test_wrong_route_flags_of_a_proxy_are_put_right(instance: Instance) -> None:
    keys, values = instance.maps["proxy"].items()
    number = instance.observe().allocation.proxies["web"]
    values["slot"]["flags"][number] &= ~np.uint8(layout.CONSTANTS["PROXY_ROUTES4"])
    instance.maps["proxy"].put_many(keys, values)
    assert instance.observe().unfinished
    recover(instance.maps)
    flags = instance.maps["proxy"].items()[1]["slot"]["flags"][number]
    assert (flags & layout.CONSTANTS["PROXY_ROUTES4"]).all()


def test_what_connections_use_is_retired_not_unfinished(instance: Instance) -> None:
    numbers = instance.observe().allocation
    ids = numbers.proxies["dns"], numbers.targets["dns", next(e for n, e in numbers.targets if n == "dns")]
    keys, values = connection_entry(4, "198.51.100.1:1", "192.0.2.1:53", "10.0.0.53:53", ids=ids)
    instance.maps["connection4"].put_many(keys, values)
    without = replace(
        STATE,
        proxies={"web": STATE.proxies["web"]},
        listeners={key: name for key, name in STATE.listeners.items() if name == "web"},
    )
    # The plan was made in ignorance of the connection: the executor looks again.
    assert execute(instance.plan(without, "other"), instance.context).pending is None
    found = instance.observe()
    assert found.state == without
    assert not found.unfinished
    assert found.allocation.retired_proxies == {ids[0]}
    assert found.allocation.retired_targets == {ids[1]}
    assert found.ports[53] & layout.CONSTANTS["PORT_TARGET"]
    instance.maps["connection4"].delete_many(keys)
    assert instance.observe().unfinished
    recover(instance.maps)
    found = instance.observe()
    assert not found.unfinished
    assert not found.allocation.retired_proxies
    assert not found.allocation.retired_targets
    assert 53 not in found.ports


def test_two_numbers_for_one_thing(instance: Instance) -> None:
    """A second id for an endpoint is none that may be given away, and what its entry says is not what packets see."""
    values = instance.maps["target"].items()[1]
    used = int(np.flatnonzero(values["family"])[0])
    second = values[used : used + 1].copy()
    second["source_be"][0, second["source"][0] & 1, :4] = 192, 0, 2, 1
    second["flags"] = codec.pack_share(Share(0))
    instance.maps["target"].put(300, second)
    busy_keys, busy_values = connection_entry(4, "198.51.100.1:1", "192.0.2.1:80", "10.0.0.1:80", ids=(1, 300))
    instance.maps["connection4"].put_many(busy_keys, busy_values)
    found = instance.observe()
    assert found.state == STATE
    assert {used, 300} <= set(found.allocation.targets.values())
    assert 300 in found.allocation.retired_targets
    assert (found.allocation.sources, found.allocation.shares) == ({}, {})


def test_the_number_of_a_proxy_whose_name_is_lost_is_not_given_away(instance: Instance) -> None:
    """As long as a connection keeps one of its targets: it would be counted as another proxy's, and that one's target
    would have two numbers."""
    numbers = instance.observe().allocation
    ids = numbers.proxies["dns"], numbers.targets["dns", next(e for n, e in numbers.targets if n == "dns")]
    keys, values = connection_entry(4, "198.51.100.1:1", "192.0.2.1:53", "10.0.0.53:53", ids=ids)
    instance.maps["connection4"].put_many(keys, values)
    instance.maps["proxy_name"].delete(ids[0])
    for revision in ("one", "another"):  # the one that repairs, and one after it
        plan = instance.plan(
            STATE if revision == "one" else replace(STATE, settings=DataPlaneSettings(unanswered_sec=7)), revision
        )
        assert execute(plan, instance.context).pending is None
        recover(instance.maps)
        found = instance.observe()
        assert not found.unfinished
        assert found.allocation.proxies["dns"] != ids[0]
        assert ids[0] in found.allocation.retired_proxies
    instance.maps["connection4"].delete_many(keys)
    recover(instance.maps)
    assert ids[0] not in instance.observe().allocation.proxies.values()


@pytest.mark.parametrize("lost", ["blob", "revision"])
def test_files_that_nothing_names_any_more_stay_while_they_may_be_in_force(instance: Instance, lost: str) -> None:
    """Somebody else may know what they are of."""
    before, manifest = instance.observe().blobs, instance.observe().revision.manifest
    if lost == "blob":
        keys = instance.maps["blob"].keys()
        instance.maps["blob"].delete_many(keys[[bytes(key["digest"]) == manifest for key in keys]])
    else:
        _wipe("revision")(instance.maps)
    assert not instance.observe().unfinished
    recover(instance.maps)
    assert instance.observe().blobs == before - ({manifest} if lost == "blob" else set())
    execute(instance.plan(state([], {}), "other text"), instance.context)
    assert len(instance.observe().blobs) == 2, "until there is another revision"


def test_hundred_thousand_routes_are_read_in_under_a_second(tmp_path: Path) -> None:
    destinations = [to(f"10.9.0.{n}:80") for n in range(1, 51)]
    routes: dict[RouteKey, Destination] = {
        RouteKey.of_numbers("web", 4, int(ip_network("20.0.0.0/8").network_address) + n * 256, 24): destinations[n % 50]
        for n in range(50_000)
    }
    routes |= {RouteKey.of_numbers("web", 6, (0x20010DB8 << 96) + (n << 64), 64): DENY for n in range(50_000)}
    wanted = replace(STATE, routes=routes)
    with bpffs_directory() as directory:
        instance = Instance(directory, tmp_path)
        execute(instance.plan(wanted, "text"), instance.context)
        started = time.process_time()
        found = instance.observe()
        assert time.process_time() - started < 1.0
        assert found.state == wanted
        assert not found.unfinished
        instance.close()


def test_ports_that_targets_keep_are_no_unfinished_business(instance: Instance) -> None:
    """A target without a port has that of every listener of its proxy."""
    wanted = replace(STATE, listeners={**STATE.listeners, listener("2001:db8::1", 8081): "web"})
    execute(instance.plan(wanted, "more"), instance.context)
    assert instance.observe().ports == {80: 3, 53: 3, 8081: 3}
    assert not instance.observe().unfinished
    recover(instance.maps)
    assert instance.observe().ports == {80: 3, 53: 3, 8081: 3}
