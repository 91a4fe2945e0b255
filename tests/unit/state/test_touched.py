"""Connections that a plan touches, where a part of a target's are."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from reconciler.state.desired import Desired
from reconciler.state.diff import compare
from reconciler.state.objects import Endpoint, Protocol
from reconciler.state.touched import in_part, one_by_one
from tests.unit.state.build import applied, endpoint, proxy, route, targets, want


@dataclass(frozen=True)
class Connection:
    client: Endpoint
    listen: Endpoint
    target: Endpoint
    protocol: Protocol = Protocol.TCP


ONE, TWO = "10.0.0.1:8080", "10.0.0.2:8080"
TO = targets(ONE, TWO)


def connection(client: str, port: int = 80, target: str = ONE, at: str = "192.0.2.1") -> Connection:
    return Connection(endpoint(f"{client}:1000"), endpoint(f"{at}:{port}"), endpoint(target))


LIVE = (
    connection("198.51.100.1"),
    connection("198.51.100.2", port=81),
    connection("203.0.113.1"),
    connection("203.0.113.9", target=TWO),
)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (want(proxy(to=TO, ports=(80, 81))), want(proxy(to=TO, ports=(80,))), {ONE: 1}),
        (want(proxy(to=TO, ports=(80, 81))), want(proxy(to=TO, ports=(81,))), {ONE: 2, TWO: 1}),
        (want(proxy(to=TO)), want(proxy(to=TO, routes=(route("203.0.113.0/24"),))), {ONE: 1, TWO: 1}),
        (want(proxy(to=TO)), want(proxy(to=TO, routes=(route("0.0.0.0/0"),))), {ONE: 3, TWO: 1}),
        (want(proxy(to=TO)), want(proxy(to=TO, routes=(route("203.0.113.0/24", TWO),))), {ONE: 1}),
        (  # the longer one was there, and holds on
            want(proxy(to=TO, routes=(route("203.0.113.9/32", TWO),))),
            want(proxy(to=TO, routes=(route("203.0.113.9/32", TWO), route("203.0.113.0/24")))),
            {ONE: 1},
        ),
        (  # one goes, and what it covers leads elsewhere
            want(proxy(to=targets(ONE), routes=(route("203.0.113.9/32", TWO),))),
            want(proxy(to=targets(ONE))),
            {TWO: 1},
        ),
        (  # a default that only some clients have come by
            want(proxy(to=TO, routes=(route("203.0.113.0/24", ONE, TWO),))),
            want(proxy(to=targets(TWO), routes=(route("203.0.113.0/24", ONE, TWO), route("10.0.0.0/8")))),
            {ONE: 2},
        ),
        (want(proxy(to=TO)), want(proxy(to=TO, routes=(route("2001:db8::/32"),))), {}),
    ],
)
def test_those_of_listeners_that_go_and_of_clients_that_are_led_elsewhere(
    before: Desired, after: Desired, expected: dict[str, int]
) -> None:
    delta = compare(after, applied(before))
    assert in_part(delta) == {"web"}
    found = one_by_one("web", LIVE, delta, after.state, before.state)
    assert {each.target: each.connections for each in found} == expected


def test_nobody_is_looked_at_where_all_of_a_target_fare_the_same() -> None:
    before = applied(want(proxy(to=TO)))
    for after in (want(proxy(to=targets(ONE))), want(), want(proxy(to=TO), proxy("new", ports=(90,), to=TO))):
        assert in_part(compare(after, before)) == frozenset()
