"""Packed source routes read like the tuple of objects that they stand for."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from ipaddress import ip_address, ip_network

import pytest

from reconciler.config.files import parse_sources
from reconciler.config.place import Place
from reconciler.config.sourceroutes import SourceRoute, SourceRoutes, WeightedTarget, mark
from reconciler.state.objects import Endpoint

FILE = "a.yaml"


def some(chance: random.Random, line: int) -> SourceRoute:
    """A route of either family with up to two targets, which may stand elsewhere."""
    if chance.random() < 0.2:
        return SourceRoute(ip_network((chance.getrandbits(128) >> 64 << 64, 64)), True, (), Place(FILE, line, 5))
    first = 1 if chance.random() < 0.1 else line  # where an alias leads
    targets = tuple(
        WeightedTarget(
            Endpoint(ip_address(chance.randint(1, 3)), 80),
            chance.randint(1, 2),
            Place(FILE, first + at, chance.choice((9, 11))),
        )
        for at in range(chance.randint(1, 2))
    )
    return SourceRoute(ip_network((chance.getrandbits(24) << 8, 24)), False, targets, Place(FILE, line, 5))


def exactly(routes: object) -> list[tuple[object, ...]]:
    """With places, which do not count when routes are compared."""
    return [(each, each.place, *(target.place for target in each.targets)) for each in routes]  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(20))
def test_reads_like_a_tuple(seed: int) -> None:
    chance = random.Random(seed)
    plain = tuple(some(chance, 10 * line) for line in range(1, chance.randint(2, 40)))
    packed = SourceRoutes(plain)
    assert exactly(packed) == exactly(plain)
    assert exactly(packed[at] for at in range(-len(plain), len(plain))) == exactly(plain * 2)
    assert packed == plain
    assert packed == SourceRoutes(plain)
    assert [*packed.numbers()] == [
        (each.source.version, int(each.source.network_address), each.source.prefixlen) for each in plain
    ]
    assert [*packed.marks()] == [mark(*numbers) for numbers in packed.numbers()]
    assert packed.endpoints() == Counter(target.endpoint for each in plain for target in each.targets)
    assert [lead.meaning for lead in packed.leads()] == [(each.deny, each.targets) for each in plain]
    assert {(version, *lead.whole) for version, lead in packed.kinds()} == {
        (each.source.version, *lead.whole) for each, lead in zip(plain, packed.leads(), strict=True)
    }
    with pytest.raises(IndexError):
        packed[len(plain)]


@pytest.mark.parametrize("seed", range(20))
def test_parts_put_together(seed: int) -> None:
    """As an edit does, again and again."""
    chance = random.Random(seed)
    plain = tuple(some(chance, 10 * line) for line in range(1, 20))
    packed = SourceRoutes(plain)
    for _ in range(100):
        first = chance.randrange(len(plain) + 1)
        last = chance.randint(first, min(len(plain), first + 3))
        fresh = tuple(some(chance, 5000 + line) for line in range(chance.randint(0, 3)))
        made = packed[:first] + SourceRoutes(fresh) + packed[last:]
        expected = (*plain[:first], *fresh, *plain[last:])
        assert exactly(made) == exactly(expected)
        assert exactly(packed) == exactly(plain)
        start, stop = packed.common_ends(made)
        assert plain[:start] == expected[:start]
        assert plain[len(plain) - stop :] == expected[len(expected) - stop :]
        assert start >= min(first, len(expected))
        assert start + stop >= min(len(plain) - (last - first), len(expected))
        assert made.common_ends(SourceRoutes(expected)) == (len(expected), 0)
        packed, plain = made, expected


def test_leads_that_nobody_has_any_more_are_forgotten() -> None:
    routes = SourceRoutes(some(random.Random(seed), 10) for seed in range(5))
    for number in range(500):
        target = WeightedTarget(Endpoint(ip_address(number), 80), 1, Place(FILE, 10, 9))
        route = SourceRoute(ip_network("10.0.0.0/8"), False, (target,), Place(FILE, 10, 5))
        routes = routes[:2] + SourceRoutes([route]) + routes[3:]
        assert routes[2].targets == (target,)
        assert len(routes._leads) <= 2 * len(routes) + 64


def test_a_shift_takes_the_targets_along() -> None:
    plain = (some(random.Random(1), 10), some(random.Random(2), 20))
    moved = SourceRoutes(plain).shifted(3)
    assert moved == plain
    assert [each.place.line for each in moved] == [13, 23]
    assert [target.place.line for each in moved for target in each.targets] == [
        target.place.line + 3 for each in plain for target in each.targets
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda route: SourceRoute(ip_network("10.0.0.0/25"), route.deny, route.targets, route.place),
        lambda route: SourceRoute(ip_network("10.0.1.0/24"), route.deny, route.targets, route.place),
        lambda route: SourceRoute(ip_network("::a00:0/120"), route.deny, route.targets, route.place),
        lambda route: SourceRoute(route.source, True, (), route.place),
        lambda route: SourceRoute(
            route.source, False, (WeightedTarget(route.targets[0].endpoint, 2, route.place),), route.place
        ),
    ],
)
def test_differences_count_and_places_do_not(change: object) -> None:
    target = WeightedTarget(Endpoint(ip_address("10.9.0.1"), 80), 1, Place(FILE, 8, 9))
    route = SourceRoute(ip_network("10.0.0.0/24"), False, (target,), Place(FILE, 7, 5))
    elsewhere = SourceRoute(route.source, False, (WeightedTarget(target.endpoint, 1),), Place(FILE, 70, 7))
    assert SourceRoutes([route]) == SourceRoutes([elsewhere])
    assert hash(SourceRoutes([route])) == hash(SourceRoutes([elsewhere]))
    assert SourceRoutes([route]) != SourceRoutes([route, route])
    other = change(route)  # type: ignore[operator]
    assert SourceRoutes([route]) != SourceRoutes([other])
    assert SourceRoutes([route]).common_ends(SourceRoutes([other])) == (0, 0)


def test_aliases_are_one_lead() -> None:
    """A target that is defined once stands where it is defined, whoever leads there."""
    lines = ["apiVersion: revproxy/v1", "proxies:", "  - name: web", "    listen: {interfaces: [eth0], port: 80}"]
    lines += ["    default_target: &there {ip: 10.0.0.1, port: 80}", "    source_routes:"]
    lines += [f"      - {{source: 192.168.{number}.0/24, target: *there}}" for number in range(100)]
    routes = parse_sources({FILE: "\n".join(lines).encode()}).proxies[0].source_routes
    assert {target.place.line for each in routes for target in each.targets} == {5}
    assert len({id(lead) for lead in routes.leads()}) == 1


def test_memory() -> None:
    target = WeightedTarget(Endpoint(ip_address("10.9.0.1"), 80), 1)
    tracemalloc.start()
    try:
        routes = SourceRoutes(
            SourceRoute(ip_network((number << 8, 24)), False, (target,), Place(FILE, number, 5))
            for number in range(10_000)
        )
        assert tracemalloc.get_traced_memory()[0] < 60 * len(routes)
    finally:
        tracemalloc.stop()
