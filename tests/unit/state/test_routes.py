"""Routes by the thousand: what is made or found from a difference is what doing it all gives."""

from __future__ import annotations

import random
from collections.abc import Iterable
from ipaddress import ip_address, ip_network

import pytest

from reconciler.state.desired import Memo, desired
from reconciler.state.diff import difference
from reconciler.state.objects import Destination, Endpoint, RouteKey
from reconciler.state.routes import Routes, common_ends, uncommon
from tests.unit.state.build import config, host, proxy, route

MANY = 9000


def key(number: int, name: str = "a") -> RouteKey:
    return RouteKey.of_numbers(name, 4, number << 8, 24)


def destinations() -> list[Destination]:
    return [Destination(((Endpoint(ip_address(f"10.0.0.{number}"), 80), 1),)) for number in range(1, 5)]


def reach(routes: Routes) -> dict[str, tuple[set[object], ...]]:
    """In no order."""
    return {name: (set(each.endpoints), set(each.groups), set(each.ports)) for name, each in routes.reach.items()}


def counts(routes: Routes) -> dict[tuple[str, int, int], int]:
    return {use: count for use, (_, count) in routes.uses.items()}


@pytest.mark.parametrize("seed", range(3))
def test_patched_routes_are_what_making_them_gives(seed: int) -> None:
    chance, some = random.Random(seed), destinations()
    plain = {key(number, chance.choice("ab")): chance.choice(some) for number in range(MANY)}
    routes = Routes(plain)
    for _ in range(30):
        removed = chance.sample(sorted(plain), chance.randrange(4))
        put = {key(chance.randrange(2 * MANY), chance.choice("ab")): chance.choice(some) for _ in range(3)}
        if chance.random() < 0.2:  # what one target of a proxy was for
            rare = Destination(((Endpoint(ip_address("10.0.0.99"), 99), 1),))
            put = {key(2 * MANY + chance.randrange(2), "a"): chance.choice((rare, some[0]))}
        before = dict(plain)
        removed = [each for each in removed if each not in put]
        for each in removed:
            del plain[each]
        plain |= put
        former, routes = routes, routes.patched(removed, put)
        assert routes == plain
        assert counts(routes) == counts(Routes(plain))
        if chance.random() < 0.5:  # not each time: then it is made from one before the last
            assert reach(routes) == reach(Routes(plain))
        assert former == before
        expected = {k: (before.get(k), plain.get(k)) for k in before | plain if before.get(k) != plain.get(k)}
        assert difference(former, routes) == expected
        assert difference(dict(sorted(former.items(), reverse=True)), routes) == expected
        assert difference(Routes(former), routes) == expected
        assert difference(routes, former) == {k: (after, before) for k, (before, after) in expected.items()}
        assert sum(map(len, uncommon(former, routes))) <= 2 * (len(removed) + len(put))
        assert sum(map(len, uncommon(Routes(former), routes))) <= 2 * MANY


@pytest.mark.parametrize("seed", range(20))
def test_routes_made_of_the_same_ones_differ_where_either_was_changed(seed: int) -> None:
    """What is wanted and what a commit has written, both made of what was there before."""
    chance, some = random.Random(seed), destinations()
    base = Routes({key(number): chance.choice(some) for number in range(2 * MANY)})
    sides = []
    for _ in range(2):
        removed = chance.sample(sorted(base), chance.randrange(4))
        put = {key(chance.randrange(3 * MANY)): chance.choice(some) for _ in range(chance.randrange(4))}
        sides.append(base.patched([each for each in removed if each not in put], put))
    one, other = sides
    expected = {k: (one.get(k), other.get(k)) for k in one | other if one.get(k) != other.get(k)}
    assert difference(one, other) == expected
    assert difference(one, one) == {}
    assert sum(map(len, uncommon(one, other))) <= 16
    assert difference(base.patched([], dict.fromkeys(base, some[0])), base) == difference(
        dict.fromkeys(base, some[0]), dict(base)
    )


def test_what_proxies_reach_follows_each_edit() -> None:
    """Also where nobody asked between two of them."""
    some = destinations()
    routes = Routes({key(1, "a"): some[0], key(2, "b"): some[0]})
    assert reach(routes)["a"][0] == set(dict(some[0].members))
    made = routes.patched([], {key(1, "a"): some[1]}).patched([], {key(2, "b"): some[2]})
    assert reach(made) == reach(Routes(dict(made)))


def test_one_edit_leaves_little_to_compare() -> None:
    some = destinations()
    routes = Routes({key(number): some[0] for number in range(MANY)})
    old, new = uncommon(routes, routes.patched([], {key(MANY // 2): some[1]}))
    assert (dict(old), dict(new)) == ({key(MANY // 2): some[0]}, {key(MANY // 2): some[1]})
    old, new = uncommon(routes, routes.patched([key(7)], {}))
    assert (dict(old), dict(new)) == ({key(7): some[0]}, {})


@pytest.mark.parametrize(
    ("one", "other", "ends"),
    [
        ("", "", (0, 0)),
        ("abc", "abc", (3, 0)),
        ("abc", "abxc", (2, 1)),
        ("aaa", "aa", (2, 0)),
        ("xbc", "ybc", (0, 2)),
        ("abcabc", "abc", (3, 0)),
    ],
)
def test_common_ends(one: str, other: str, ends: tuple[int, int]) -> None:
    assert common_ends([one], [other]) == ends
    assert common_ends([list(one), one], [list(other), other]) == ends


def test_a_memo_gives_what_no_memo_gives() -> None:
    chance, memo = random.Random(5), Memo()
    sources = [str(ip_network(((20 << 24) + (number << 8), 24))) for number in range(60)]

    def routes(chosen: Iterable[str]) -> tuple[object, ...]:
        return tuple(route(source, f"10.0.0.{chance.randint(1, 4)}:80") for source in chosen)

    known = {name: proxy(name, ports=[80 + at], routes=routes(sources)) for at, name in enumerate("abc")}
    for _ in range(60):
        name = chance.choice("abcd")
        if name in known and chance.random() < 0.2:
            del known[name]
        elif name in known:
            old = list(known[name].source_routes)
            at = chance.randrange(len(old) + 1)
            fresh = routes({sources[chance.randrange(60)]} - {str(each.source) for each in old[:at] + old[at + 1 :]})
            known[name] = proxy(name, ports=[80 + "abcd".index(name)], routes=(*old[:at], *fresh, *old[at + 1 :]))
        else:
            known[name] = proxy(name, ports=[80 + "abcd".index(name)], routes=routes(sources[:5]))
        wanted = config(*known.values())
        found, whole = (desired(wanted, host(), tag="tag", memo=each) for each in (memo, None))
        assert found == whole
        assert {each: found.causes.place("route", f"{each.proxy}/{each.source}") for each in found.state.routes} == {
            each: whole.causes.place("route", f"{each.proxy}/{each.source}") for each in whole.state.routes
        }


def test_a_memo_knows_where_routes_stand_now() -> None:
    """Not where they stood when they came: an edit above them moves them, and what has gone stands nowhere."""
    memo, shift = Memo(), 100

    def causes(moved: int, *sources: str) -> dict[str, int | None]:
        routes = tuple(route(source, "10.0.0.1:80", line=moved + at) for at, source in enumerate(sources))
        found = desired(config(proxy("a", routes=routes)), host(), tag="tag", memo=memo).causes
        places = {source: found.place("route", f"a/{source}") for source in (one, two, three)}
        return {source: place.line if place else None for source, place in places.items()}

    one, two, three = "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"
    assert causes(1, one, three) == {one: 1, two: None, three: 2}
    assert causes(1, one, two, three) == {one: 1, two: 2, three: 3}
    assert [str(each.source) for each in memo.fresh] == [two], "no looking through all of them for it"
    assert causes(shift, one, two, three) == {one: shift, two: shift + 1, three: shift + 2}
    assert causes(shift, one, three) == {one: shift, two: None, three: shift + 1}
