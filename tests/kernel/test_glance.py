"""A glance says that nothing has changed only where a whole look would find nothing: whatever is changed is seen."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from pyroute2.netlink import NETLINK_ROUTE
from pyroute2.netlink.rtnl import RTM_GETLINK

from netlab import wait_for
from reconciler.errors import KernelError
from reconciler.kernel import bpf, genetlink, glance, groups, layout, rawlinks, sysctls
from reconciler.kernel.arrays import Array
from reconciler.kernel.glance import Glance
from reconciler.kernel.maps import Map, Maps
from tests.kernel.kernelmaps import private_maps, small_arrays
from tests.kernel.network import GATEWAY, add_veth, command, load_xdp
from tests.kernel.test_mirror import configure, keys, values
from tests.kernel.test_xdp import attach

pytestmark = pytest.mark.own_namespace

FORWARDING = "net/ipv4/conf/lo/forwarding"


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Maps]:
    """With a thousand routes, which are many."""
    monkeypatch.setattr(glance, "LARGE", 100)
    with small_arrays(), private_maps() as found:
        configure(found)
        groups.put_groups(found, [1], [np.asarray([1, 2], np.uint32)], [7])
        for target in (1, 2):
            found["group_member"].put(np.asarray((1, target), layout.group_member_key), np.ones(1, np.uint32))
        yield found


def remembered(maps: Maps) -> Glance:
    """One that knows how things are. (No fixture: those are made in another namespace.)"""
    seen = Glance(lambda: maps)
    seen.remember(b"", [FORWARDING])
    maps["route4"].items()
    taken = seen.take()
    assert taken
    seen.remember(taken, [FORWARDING])
    maps.open()
    return seen


def same(seen: Glance, maps: Maps) -> bool:
    found = seen.same(seen.take())
    maps.open()
    return found


def put(name: str, value: int = 1) -> Callable[[Maps], None]:
    """Another value, in the first entry."""

    def change(maps: Maps) -> None:
        content = maps[name].values_array(1)
        content.view(np.uint8).reshape(-1)[0] = value
        maps[name].put(np.zeros(1, maps[name].spec.key), content)

    return change


CHANGES: dict[str, Callable[[Maps], object]] = {
    **{name: put(name) for name in ("settings", "revision", "proxy", "target", "port", "listener4", "listener6")},
    **{name: put(name) for name in ("group_member", "device", "proxy_name", "sysctl", "blob")},
    "name": lambda maps: maps["proxy_name"].delete(1),
    "table": lambda maps: groups.put_groups(maps, [1], [np.asarray([2, 1], np.uint32)], [8]),
    "slot": lambda maps: maps["control"].put(0, np.ones(1, layout.control)),
    "pin": lambda maps: (maps.root / "more").mkdir(),
    "map": lambda maps: (maps.directory / "fragment4").unlink(),
    "interface": lambda _: add_veth(),
    "sysctl's value": lambda _: sysctls.write(FORWARDING, "1", GATEWAY),
}


def test_what_stays_is_the_same(maps: Maps) -> None:
    seen = remembered(maps)
    for _ in range(5):
        assert same(seen, maps)
    control = maps["control"].items()[1]
    control["generation"] += 1  # a neighbour was heard
    maps["control"].put(0, control)
    assert same(seen, maps)


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_seen(maps: Maps, change: str) -> None:
    seen = remembered(maps)
    assert same(seen, maps)
    CHANGES[change](maps)
    assert not seen.same(seen.take())


@pytest.mark.parametrize("looked_up", [True, False])
@pytest.mark.parametrize("counted", [True, False])
def test_of_many_routes_a_change_is_seen_at_once(
    maps: Maps, monkeypatch: pytest.MonkeyPatch, counted: bool, looked_up: bool
) -> None:
    """As somebody else writes them: this process' own writes it knows of. Also where the kernel neither lets them be
    looked up, nor counts them."""
    if not counted:
        monkeypatch.setattr(glance, "_counted", lambda _: b"")
    elif not glance._counted(maps["route4"]):
        pytest.skip("this kernel does not count a trie's entries")
    if not looked_up:
        monkeypatch.setattr(bpf, "prog_load", refuse)
    for number, change in ((950, "value"), (5, "value"), (500, "gone"), (1001, "new")):
        seen = remembered(maps)
        for _ in range(3):
            assert same(seen, maps)
        meddle(maps, number, change)
        for _ in range(3):
            assert not same(seen, maps), "it is looked at until it is mended"


def refuse(_kind: int, name: str, *_: object) -> int:
    raise KernelError("load", name, errno.EPERM)


def test_many_routes_are_not_read(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    if not glance._counted(maps["route4"]):
        pytest.skip("this kernel does not count a trie's entries")
    seen = remembered(maps)
    read: list[tuple[str, int]] = []
    real = glance._read

    def reading(trie: Map, count: int) -> tuple[bytes, bytes]:
        read.append((trie.spec.name, count))
        return real(trie, count)

    monkeypatch.setattr(glance, "_read", reading)
    assert same(seen, maps)
    assert read == [("route6", 1)], "few are"
    assert seen.routes_sec > 0
    monkeypatch.setattr(glance, "LARGE", 1000)
    assert same(seen, maps)
    assert seen.routes_sec == 0, "and cost nothing to speak of"


def meddle(maps: Maps, number: int, change: str) -> None:
    """Change a route behind this process' back."""
    other = Maps(maps.root.parent)
    other.open()
    if change == "gone":
        other["route4"].delete_many(keys(number))
    else:
        other["route4"].put_many(keys(number), values(4 - number % 4))
    other.close()


def test_what_is_beyond_the_targets_in_use_costs_nothing(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what lies close behind them is seen."""
    monkeypatch.setattr(glance, "_BEYOND", 10)
    seen = remembered(maps)
    assert same(seen, maps)
    maps["target"].put(300, np.ones(1, layout.target))
    assert same(seen, maps)
    maps["target"].put(12, np.ones(1, layout.target))
    assert not same(seen, maps)


def test_a_hash_that_is_empty_is_not_read(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking through a million buckets for nothing takes a millisecond; the first entry is seen."""
    if not glance._counted(maps["listener6"]):
        pytest.skip("this kernel does not count a hash's entries")
    seen = remembered(maps)
    assert same(seen, maps)
    read: list[str] = []
    items = Map.items

    def noting(table: Map) -> tuple[Array, Array]:
        read.append(table.spec.name)
        return items(table)

    monkeypatch.setattr(Map, "items", noting)
    assert same(seen, maps)
    assert "listener6" not in read
    assert "proxy_name" in read
    put("listener6")(maps)
    assert not same(seen, maps)
    assert "listener6" in read


def test_contents_of_few_files_are_seen_to_change(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many that is left to a whole look: reading megabytes costs more than all the rest."""
    for few, looked in ((2, True), (1, False)):
        monkeypatch.setattr(glance, "FEW_CHUNKS", few)
        for digest in (b"0", b"1"):
            maps["blob"].put(np.frombuffer(digest * 20, layout.blob_key), np.zeros(1, layout.blob_chunk))
        seen = remembered(maps)
        assert same(seen, maps)
        changed = np.zeros(1, layout.blob_chunk)
        changed["data"][0, 4000] = 1
        maps["blob"].put(np.frombuffer(b"1" * 20, layout.blob_key), changed)
        assert same(seen, maps) is not looked
        maps["blob"].delete(np.frombuffer(b"1" * 20, layout.blob_key))
        assert not same(seen, maps), "that one is gone, in any case"


def test_a_kernel_that_tells_the_same_however_many_there_are(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 6.4 (bpf_map_memory_footprint): the size of keys and values of as many as fit in."""
    before = {"route4": 32 << 20, "route6": 40 << 20, "proxy_name": 8192, "device": 4096}
    for name, taken in before.items():
        monkeypatch.setattr(glance, "_taken_bytes", lambda _, taken=taken: taken)
        assert glance._counted(maps[name]) == b"", name
        monkeypatch.setattr(glance, "_taken_bytes", lambda _, taken=taken: taken + 64)
        assert glance._counted(maps[name]), name
    monkeypatch.setattr(glance, "_taken_bytes", lambda _: 0)
    assert glance._counted(maps["route4"]) == b""


def test_own_writes_are_known(maps: Maps) -> None:
    seen = remembered(maps)
    maps["route4"].put_many(keys(7), values(1))
    for _ in range(5):
        assert seen.take()
        maps.open()


def test_nothing_is_the_same_as_nothing(maps: Maps) -> None:
    seen = remembered(maps)
    (maps.directory / "fragment4").unlink()
    assert seen.take() == b""
    seen.remember(b"", [FORWARDING])
    assert not seen.same(seen.take())


def test_other_sysctls_take_another_glance(maps: Maps) -> None:
    seen = remembered(maps)
    seen.remember(seen.take(), [FORWARDING, "net/ipv6/conf/lo/forwarding"])
    maps.open()
    assert not same(seen, maps)


def bridge() -> bytes:
    """All that the kernel says of one."""
    request = rawlinks._LINK_BYTES * b"\0"
    return b"".join(each for each in rawlinks._dump(NETLINK_ROUTE, RTM_GETLINK, request) if b"br0\0" in each)


def test_interfaces_as_bytes() -> None:
    """A bridge's timers run on; everything that is done to an interface is seen."""
    command("ip link add br0 type bridge")
    command("ip link set br0 up type bridge stp_state 1")
    index = add_veth()
    before, timers = rawlinks.links(), bridge()
    wait_for(lambda: bridge() != timers, "a bridge's timers")
    assert rawlinks.links() == before
    for change in (
        "ip link set va mtu 1400",
        "ip link set vb down",
        "ip link set va name vc",
        "ip link set vc master br0",
    ):
        command(change)
        after = rawlinks.links()
        assert after != before, change
        before = after
    command("ip link set vc nomaster")
    command("ip link set vb up")
    before = rawlinks.links()
    program = load_xdp()
    attach(index, program)
    assert rawlinks.links() != before
    os.close(program.fd)


def test_drivers_features_as_bytes() -> None:
    family = genetlink.family_number()
    if family is None:
        pytest.skip("before Linux 6.3 the kernel does not tell what drivers can do")
    add_veth()
    before = rawlinks.features(family)
    assert before == rawlinks.features(family) != b""
    command("ip link del va")
    assert rawlinks.features(family) != before


def test_refusals_are_errors() -> None:
    with pytest.raises(OSError, match="No such file"):
        rawlinks.features(0x3FF)


def test_what_can_not_be_read_is_left_to_the_look(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = remembered(maps)

    def refuse() -> bytes:
        raise KernelError("list", "interfaces", 1)

    monkeypatch.setattr(rawlinks, "links", refuse)
    assert seen.take() == b""
