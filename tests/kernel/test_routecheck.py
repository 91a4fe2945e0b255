"""Routes that are looked up in a trie many at a time: every difference is found, wherever it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from reconciler.errors import KernelError
from reconciler.kernel import bpf, layout, routecheck
from reconciler.kernel.arrays import Array
from reconciler.kernel.maps import Map, Maps
from reconciler.kernel.routecheck import Found, RouteCheck
from tests.kernel.kernelmaps import private_maps, small_arrays
from tests.kernel.test_mirror import keys, values

COUNT = 300
VERSIONS = (4, 6)


@pytest.fixture
def maps() -> Iterator[Maps]:
    with small_arrays(), private_maps() as found:
        for version in VERSIONS:
            found[f"route{version}"].put_many(*routes(version))
        yield found


@pytest.fixture
def check() -> Iterator[RouteCheck]:
    made = RouteCheck()
    yield made
    made.close()


def routes(version: int, count: int = COUNT) -> tuple[Array, Array]:
    """More than are looked up in one run."""
    return keys(*range(count), version=version), values(*(1 + number % 4 for number in range(count)))


def holds(check: RouteCheck, table: Map, wanted: Array, content: Array) -> bool | None:
    """All of them are as they should be."""
    found = check.check(table, wanted, content, 60)
    assert found is None or found.count == len(wanted) or not found.same
    return None if found is None else found.same


@pytest.mark.parametrize("version", VERSIONS)
def test_every_difference_is_found(
    maps: Maps, check: RouteCheck, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    table = maps[f"route{version}"]
    per_run = routecheck._per_run(table)
    assert 2 * per_run < COUNT
    monkeypatch.setattr(routecheck, "_AT_ONCE", 2 * per_run)
    wanted_keys, wanted = routes(version)
    assert holds(check, table, wanted_keys, wanted) is True
    for place in (0, 1, per_run - 1, per_run, 2 * per_run - 1, 2 * per_run, COUNT - 1):
        for field in ("dest", "flags"):
            for slot in range(layout.SLOTS):
                other = wanted.copy()
                other["slot"][field][place, slot] ^= 1 << 31
                assert holds(check, table, wanted_keys, other) is False, (place, field, slot)
        missing = wanted_keys.copy()
        missing["proxy"][place] = 7
        assert holds(check, table, missing, wanted) is False, place
    assert holds(check, table, wanted_keys[5:6], wanted[5:6]) is True
    assert holds(check, table, wanted_keys[:0], wanted[:0]) is True


def test_it_ends_when_its_time_is_up(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    table, now = maps["route4"], [0.0]

    def clock() -> float:
        now[0] += 1
        return now[0]

    check, (wanted_keys, wanted) = RouteCheck(clock), routes(4)
    per_run = routecheck._per_run(table)
    monkeypatch.setattr(routecheck, "_AT_ONCE", per_run)
    assert check.check(table, wanted_keys, wanted, 0) == Found(per_run, same=True)
    assert check.check(table, wanted_keys, wanted, 1.5) == Found(2 * per_run, same=True)
    assert check.check(table, wanted_keys, wanted, 9) == Found(COUNT, same=True)
    wanted["slot"]["dest"][per_run + 5] += 1
    assert check.check(table, wanted_keys, wanted, 9) == Found(per_run, same=False)
    check.close()


def test_a_longer_prefix_is_not_taken_for_the_route(maps: Maps, check: RouteCheck) -> None:
    """What packets of a part of it would be told."""
    table = maps["route4"]
    inner = keys(5)
    inner["prefixlen"] += 4
    table.put_many(inner, values(4))
    assert holds(check, table, *routes(4)) is True
    assert holds(check, table, inner, values(4)) is True
    assert holds(check, table, inner, values(2)) is False
    table.delete_many(keys(5))
    assert holds(check, table, *routes(4)) is False


def test_another_trie_gets_a_program_of_its_own(maps: Maps, check: RouteCheck) -> None:
    assert holds(check, maps["route4"], *routes(4)) is True
    with private_maps() as others:
        assert holds(check, others["route4"], *routes(4)) is False
        others["route4"].put_many(*routes(4))
        assert holds(check, others["route4"], *routes(4)) is True
    assert holds(check, maps["route4"], *routes(4)) is True


def test_a_kernel_that_refuses_the_program(maps: Maps, check: RouteCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def refuse(_kind: int, name: str, *_: object) -> int:
        tried.append(name)
        raise KernelError("load", name, 1)

    monkeypatch.setattr(bpf, "prog_load", refuse)
    for _ in range(3):
        assert holds(check, maps["route4"], *routes(4)) is None
    assert tried == ["rp_routes"]


def test_a_run_that_fails_is_an_error(maps: Maps, check: RouteCheck) -> None:
    table = maps["route4"]
    assert holds(check, table, *routes(4)) is True
    number, program = check._programs["route4"]
    check._programs["route4"] = number, table.fd  # no program
    with pytest.raises(KernelError, match="test run"):
        holds(check, table, *routes(4))
    check._programs["route4"] = number, program
