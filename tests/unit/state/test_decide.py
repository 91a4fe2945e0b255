"""What a configuration says about a packet, and with which packets a commit is tried: against ``tests/model.py``."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.state.decide import Trial, decide, is_martian, trials
from reconciler.state.objects import DENY, IPAddress, ListenerKey, Protocol
from reconciler.state.operations import PutProxyName
from reconciler.state.plan import Plan
from tests.model import decide as model
from tests.unit.state.build import applied, host, interface, nothing, plan, proxy, route, targets, want

HOST = host(
    interface(2, "eth0", "192.0.2.1/24", "2001:db8::1/64"),
    interface(3, "eth1", "198.51.100.1/24"),
    ways={"10.0.0.1": 3, "10.0.0.2": 3, "10.0.0.3": 3, "2001:db8:1::1": 3},
)
BOTH = targets("10.0.0.1:8080", "10.0.0.2:8080", "[2001:db8:1::1]:8080")
ROUTES = (
    route("10.0.0.0/8", "10.0.0.3:80"),
    route("10.1.0.0/16"),
    route("10.1.2.0/24", "10.0.0.1:8080"),
    route("10.1.2.3/32"),
    route("2001:db8:2::/48"),
)
LISTENER = ListenerKey(2, ip_address("192.0.2.1"), Protocol.TCP, 80)
LISTENER6 = ListenerKey(2, ip_address("2001:db8::1"), Protocol.TCP, 80)


@given(st.integers(0, 2**24 - 1).map(lambda low: ip_address(10 << 24 | low)) | st.ip_addresses())
def test_a_decision_is_the_models(source: IPAddress) -> None:
    idle = targets("10.0.0.1:8080", ("10.0.0.2:8080", 0), "[2001:db8:1::1]:8080", ("[2001:db8:1::2]:8080", 0))
    state = want(proxy(to=idle, routes=ROUTES), on=HOST).state
    listener = LISTENER if source.version == 4 else LISTENER6
    found, wanted = decide(state, listener, source), model(state, 2, source, listener.ip, Protocol.TCP, 80)
    assert (found.proxy, found.rule) == (wanted.proxy, wanted.rule)
    assert found.targets(80) == wanted.targets
    assert (found.destination is DENY) == (wanted.reason == "denied")


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("10.1.2.3", "10.1.2.3/32"),
        ("10.1.2.4", "10.1.2.0/24"),
        ("10.1.3.4", "10.1.0.0/16"),
        ("10.2.3.4", "10.0.0.0/8"),
        ("11.2.3.4", None),
    ],
)
def test_the_longest_prefix_decides(source: str, rule: str | None) -> None:
    found = decide(want(proxy(to=BOTH, routes=ROUTES), on=HOST).state, LISTENER, ip_address(source))
    assert found.rule == (ip_network(rule) if rule else None)


def test_nobody_listens() -> None:
    state = want(proxy(to=BOTH), on=HOST).state
    assert decide(state, ListenerKey(2, LISTENER.ip, Protocol.UDP, 80), ip_address("10.0.0.1")).proxy is None


@pytest.mark.parametrize(
    "source", ["127.0.0.1", "0.1.2.3", "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "ff02::1"]
)
def test_sources_that_nobody_has(source: str) -> None:
    assert is_martian(ip_address(source))


def tried(made: Plan, state: object, names: dict[int, str] | None = None) -> list[Trial]:
    found = {each.id: each.name for each in made.stage if isinstance(each, PutProxyName)}
    return list(trials(state, made.stage, {**(names or {}), **found}))  # type: ignore[arg-type]


def test_a_first_commit_tries_each_listener_and_each_route() -> None:
    wanted = want(proxy(to=BOTH, routes=ROUTES), proxy("dns", ports=(53, 54), protocol=Protocol.UDP, to=BOTH), on=HOST)
    found = tried(plan(wanted, nothing()), wanted.state)
    assert {each.listener for each in found} == set(wanted.state.listeners)
    assert [each.decision.rule for each in found if each.decision.rule] == [each.source for each in ROUTES]
    assert all(each.source in each.decision.rule for each in found if each.decision.rule)


def test_what_does_not_change_is_not_tried() -> None:
    before = applied(want(proxy(to=BOTH, routes=ROUTES), proxy("other", ports=(81,), to=BOTH), on=HOST))
    wanted = want(
        proxy(to=BOTH, routes=(*ROUTES[1:], route("10.0.0.0/8"))), proxy("other", ports=(81,), to=BOTH), on=HOST
    )
    names = {number: name for name, number in before.allocation.proxies.items()}
    found = tried(plan(wanted, before), wanted.state, names)
    assert [(each.listener, each.decision.rule) for each in found] == [(LISTENER, ip_network("10.0.0.0/8"))]


def test_a_route_that_goes_is_tried_too() -> None:
    before = applied(want(proxy(to=BOTH, routes=ROUTES), on=HOST))
    wanted = want(proxy(to=BOTH, routes=ROUTES[1:]), on=HOST)
    names = {number: name for name, number in before.allocation.proxies.items()}
    found = tried(plan(wanted, before), wanted.state, names)
    outside = [each for each in found if each.source in ip_network("10.0.0.0/8") and each.decision.rule is None]
    assert outside, "nobody of 10.0.0.0/8 was sent to the default"


def test_other_targets_are_tried_by_each_family() -> None:
    before = applied(want(proxy(to=targets("10.0.0.1:8080", "[2001:db8:1::1]:8080")), on=HOST))
    wanted = want(proxy(to=targets("10.0.0.2:8080", "[2001:db8:1::1]:8081")), on=HOST)
    names = {number: name for name, number in before.allocation.proxies.items()}
    found = tried(plan(wanted, before), wanted.state, names)
    assert {each.listener for each in found} == {LISTENER, LISTENER6}


def test_with_other_settings_each_proxy_is_tried() -> None:
    both = (proxy(to=BOTH), proxy("other", ports=(81,), to=targets("10.0.0.1:8080")))
    before, wanted = applied(want(*both, on=HOST)), want(*both, on=HOST, fast_path=False)
    names = {number: name for name, number in before.allocation.proxies.items()}
    found = tried(plan(wanted, before), wanted.state, names)
    assert {(each.decision.proxy, each.listener.ip.version) for each in found} == {("web", 4), ("web", 6), ("other", 4)}


def test_a_route_for_everybody_is_tried_by_somebody_who_exists() -> None:
    wanted = want(proxy(to=BOTH, routes=(route("0.0.0.0/0"), route("::/0"))), on=HOST)
    found = tried(plan(wanted, nothing()), wanted.state)
    assert all(not is_martian(each.source) for each in found)
    assert {str(each.decision.rule) for each in found} == {"0.0.0.0/0", "::/0"}


def test_of_many_routes_some_are_tried_from_first_to_last() -> None:
    routes = tuple(route(f"10.{number}.0.0/16") for number in range(200))
    wanted = want(proxy(to=BOTH, routes=routes), on=HOST)
    made = plan(wanted, nothing())
    names = {each.id: each.name for each in made.stage if isinstance(each, PutProxyName)}
    found = [each.decision.rule for each in trials(wanted.state, made.stage, names, 10)]
    assert [str(rule) for rule in found if rule] == [f"10.{number}.0.0/16" for number in range(0, 200, 20)]
