"""The state's own values."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from reconciler.state.objects import Destination, Endpoint, RouteKey


@pytest.mark.parametrize("text", ["10.1.0.0/16", "0.0.0.0/0", "::/0", "2001:db8::/32", "10.0.0.1/32"])
def test_a_route_key_is_its_proxy_and_prefix(text: str) -> None:
    key = RouteKey("web", ip_network(text))
    assert (key.proxy, key.source, key.version) == ("web", ip_network(text), ip_network(text).version)
    network = ip_network(text)
    assert RouteKey.of_numbers("web", network.version, int(network.network_address), network.prefixlen) == key
    assert hash(RouteKey("web", ip_network(text))) == hash(key)
    assert key != RouteKey("api", ip_network(text))
    assert repr(key) == f"RouteKey('web', '{text}')"


def test_keys_of_both_families_are_told_apart() -> None:
    assert RouteKey("web", ip_network("0.0.0.0/0")) != RouteKey("web", ip_network("::/0"))


def test_endpoints_and_destinations_read_as_in_the_files() -> None:
    four, six = Endpoint(ip_address("10.0.0.1"), 80), Endpoint(ip_address("2001:db8::1"), 80)
    assert (str(four), str(six), str(Endpoint(four.ip, 0))) == ("10.0.0.1:80", "[2001:db8::1]:80", "10.0.0.1")
    assert str(Destination(((four, 1), (Endpoint(four.ip, 81), 3)))) == "10.0.0.1:80, 10.0.0.1:81 weight 3"
    assert (str(Destination(deny=True)), str(Destination())) == ("deny", "none")


def test_only_a_lone_member_with_a_weight_is_a_single_target() -> None:
    one, two = Endpoint(ip_address("10.0.0.1"), 80), Endpoint(ip_address("10.0.0.2"), 80)
    assert Destination(((one, 1),)).single == one
    assert Destination(((one, 0),)).single is None
    assert Destination(((one, 1), (two, 0))).single is None
