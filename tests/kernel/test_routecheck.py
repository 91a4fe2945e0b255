"""Routes that are looked up in a trie many at a time: every difference is found, wherever it is."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.errors import KernelError
from reconciler.kernel import bpf, layout, routecheck
from reconciler.kernel.arrays import Array
from reconciler.kernel.maps import Map, Maps
from reconciler.kernel.routecheck import RouteCheck
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
def check(maps: Maps) -> Iterator[RouteCheck]:  # noqa: ARG001  # opened before, and closed after
    """Leaves no descriptor open."""
    before = _descriptors()
    made = RouteCheck()
    yield made
    made.close()
    assert _descriptors() == before


def _descriptors() -> list[Path]:
    return sorted(Path("/proc/self/fd").iterdir())


def routes(version: int, count: int = COUNT) -> tuple[Array, Array]:
    """More than are looked up in one run."""
    return keys(*range(count), version=version), values(*(1 + number % 4 for number in range(count)))


def holds(check: RouteCheck, trie: Map, wanted: Array, content: Array) -> bool | None:
    """All of them are as they should be."""
    return check.holds(trie, wanted, content)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_difference_is_found(
    maps: Maps, check: RouteCheck, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    table = maps[f"route{version}"]
    at_once = COUNT // 3 - 1
    monkeypatch.setattr(routecheck, "AT_ONCE", at_once)
    wanted_keys, wanted = routes(version)
    assert holds(check, table, wanted_keys, wanted) is True
    for place in (0, 1, at_once - 1, at_once, 2 * at_once - 1, 2 * at_once, COUNT - 2, COUNT - 1):
        for field in ("dest", "flags"):
            for slot in range(layout.SLOTS):
                other = wanted.copy()
                other["slot"][field][place, slot] ^= 1 << 31
                assert holds(check, table, wanted_keys, other) is False, (place, field, slot)
        missing = wanted_keys.copy()
        missing["proxy"][place] = 7
        assert holds(check, table, missing, wanted) is False, place
    assert holds(check, table, wanted_keys[5:6], wanted[5:6]) is True


def test_another_content_is_looked_up_anew(maps: Maps, check: RouteCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same one not prepared again."""
    trie, (wanted_keys, wanted) = maps["route4"], routes(4)
    loaded: list[str] = []
    real = bpf.prog_load

    def load(kind: int, name: str, *arguments: str | bytes) -> int:
        loaded.append(name)
        return real(kind, name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(bpf, "prog_load", load)
    for _ in range(3):
        assert check.holds(trie, wanted_keys, wanted) is True
    other = wanted.copy()
    other["slot"]["dest"][5] += 1
    for _ in range(3):
        assert check.holds(trie, wanted_keys, other) is False
    assert loaded == ["rp_routes"] * 2
    trie.put_many(wanted_keys[5:6], other[5:6])
    assert check.holds(trie, wanted_keys, other) is True
    assert check.holds(trie, wanted_keys, wanted) is False
    del other
    other = wanted.copy()  # perhaps where the one before was
    assert check.holds(trie, wanted_keys, other) is False


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
    content = routes(4)
    assert holds(check, maps["route4"], *content) is True
    with private_maps() as others:
        assert holds(check, others["route4"], *content) is False
        others["route4"].put_many(*content)
        assert holds(check, others["route4"], *content) is True
    assert holds(check, maps["route4"], *content) is True


def test_a_kernel_that_refuses_the_program(maps: Maps, check: RouteCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def refuse(_kind: int, name: str, *_: object) -> int:
        tried.append(name)
        raise KernelError("load", name, 1)

    monkeypatch.setattr(bpf, "prog_load", refuse)
    content = routes(4)
    for _ in range(3):
        assert holds(check, maps["route4"], *content) is None
    assert tried == ["rp_routes"]


def test_no_room_for_what_should_be_there(maps: Maps, check: RouteCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise KernelError("create", "map", errno.ENOMEM)

    monkeypatch.setattr(bpf, "map_create", full)
    assert check.holds(maps["route4"], *routes(4)) is None


def test_a_run_that_fails_is_an_error(maps: Maps, check: RouteCheck) -> None:
    trie, content = maps["route4"], routes(4)
    assert check.holds(trie, *content) is True
    program = check._loaded["route4"].program
    assert program is not None
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, program)  # no program
    os.close(null)
    with pytest.raises(KernelError, match="test run"):
        check.holds(trie, *content)
