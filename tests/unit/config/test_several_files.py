"""What several files, or several proxies, say together: every error at once, and listeners that are taken already."""

from __future__ import annotations

import pytest

from reconciler.config import parse_sources

# Line 1 to 12; a case replaces some of its text.
from tests.unit.config.refused import BASE, LISTEN_PORT, errors


def test_all_errors_of_all_files_at_once() -> None:
    first = BASE.replace(LISTEN_PORT, "prot: 80\n").replace("10.0.0.10", "10.0.0.300").replace(": true", ": 1")
    second = BASE.replace("/16", "/8")  # its proxy is wrong, and its name and settings stand in the other file
    assert errors(a=first, b=second, c="a: [") == [
        "a.yaml:2:23: 'fast_path' must be true or false, not 1",
        "a.yaml:8:7: unknown key 'prot' (did you mean 'port'?)",
        "a.yaml:12:22: 'ip' must be an IPv4 or IPv6 address, not '10.0.0.300'",
        "b.yaml:2:1: 'settings' stands in a second file: first at a.yaml:2:1",
        "b.yaml:4:11: there is a proxy 'web' already, at a.yaml:4:11",
        "b.yaml:11:17: the address has bits set beyond the length /8: the network is 192.0.0.0/8",
        *errors(c="a: ["),
    ]


def test_one_error_hides_none_of_the_others() -> None:
    """Neither in its own proxy nor between that and another, nor what a test expects."""
    wrong = listening("a", "{interfaces: [eth0], port: 80}", "[{ip: 10.0.0.1}, {ip: 10.0.0.1}]")
    wrong += """    source_routes:
      - {source: 10.1.2.3/8, action: deny}
      - {source: 11.0.0.0/8, action: deny}
      - {source: 11.0.0.0/8, action: deny}
tests:
  - {from: 10.0.0.1, to: "10.0.0.2:80", expect: {proxy: c}}
"""
    assert errors(a=wrong, b=listening("b", "{interfaces: [eth0], port: 80}")) == [
        "a.yaml:5:38: the target 10.0.0.1 stands twice in this list: first at a.yaml:5:22",
        "a.yaml:7:18: the address has bits set beyond the length /8: the network is 10.0.0.0/8",
        "a.yaml:9:9: there is a route for 11.0.0.0/8 already, at a.yaml:8:9",
        "a.yaml:11:57: there is no proxy 'c'",
        "b.yaml:4:13: the proxy 'a' listens on tcp port 80 of eth0, its own IPv4 addresses, already, at a.yaml:4:13",
    ]


def test_an_unknown_key_hides_nothing_of_the_other_parts() -> None:
    wrong = listening("a", "{interfaces: [eth0], prt: 80}", "[{ip: 10.0.0.1, weight: 0}]")
    wrong += """    source_routes:
      - {source: 10.1.2.3/8, action: deny}
      - {source: 11.0.0.0/8, action: deny}
      - {source: 11.0.0.0/8, action: deny}
  - name: b
    listen: {interfaces: [eth0], port: 80, addresses: [0.0.0.0]}
    default_target: {ip: 224.0.0.1}
    mod: dnat
tests:
  - {from: 10.0.0.1, to: "10.0.0.2:80", expect: {proxy: c}}
"""
    unspecified = "0.0.0.0 stands for no address: leave 'addresses' out to listen on the interfaces' own"
    assert errors(a=wrong) == [
        "a.yaml:4:34: unknown key 'prt' (did you mean 'port'?)",
        "a.yaml:5:22: the weights of 1 target sum to 0: the proxy would lead nowhere",
        "a.yaml:7:18: the address has bits set beyond the length /8: the network is 10.0.0.0/8",
        "a.yaml:9:9: there is a route for 11.0.0.0/8 already, at a.yaml:8:9",
        f"a.yaml:11:56: {unspecified}",
        "a.yaml:12:26: 224.0.0.1 is a multicast address, which can't be a target",
        "a.yaml:13:5: unknown key 'mod' (did you mean 'mode'?)",
        "a.yaml:15:57: there is no proxy 'c'",
    ]


def test_a_wrong_health_check_hides_nothing() -> None:
    """Neither other keys of it, nor what is wrong elsewhere in its proxy."""
    wrong = listening("a", "{interfaces: [eth0], port: [80, 81], protocol: udp, addresses: [192.0.2.1]}")
    wrong += """    health_check: {type: tcp, path: /x, on_unhealthy: reset, expected_codes: [299-200, 250-200]}
    source_routes:
      - {source: 10.0.0.0/8, target: {ip: "2001:db8::1", port: 80}}
"""
    assert errors(a=wrong) == [
        "a.yaml:6:19: a health check of the target 10.0.0.1, which has no port of its own, needs a 'port'",
        "a.yaml:6:31: 'path' goes with 'type: http' or 'https', not with 'tcp'",
        "a.yaml:6:41: 'on_unhealthy: reset' goes with TCP: UDP knows no reset",
        "a.yaml:6:62: 'expected_codes' goes with 'type: http' or 'https', not with 'tcp'",
        "a.yaml:6:62: the range '250-200' begins above its end",
        "a.yaml:6:62: the range '299-200' begins above its end",
        "a.yaml:8:38: the target [2001:db8::1]:80 is IPv6, but no listen address of the proxy is",
        "a.yaml:8:38: the target [2001:db8::1]:80 is IPv6, the source 10.0.0.0/8 is IPv4",
    ]


def listening(name: str, listen: str, target: str = "{ip: 10.0.0.1}") -> str:
    return f"apiVersion: revproxy/v1\nproxies:\n  - name: {name}\n    listen: {listen}\n    default_target: {target}\n"


@pytest.mark.parametrize(
    ("first", "second", "on"),
    [
        ("{interfaces: [eth0], port: 80}", "{interfaces: [eth1, eth0], port: [81, 80]}", "its own IPv4 addresses"),
        (
            "{interfaces: [eth0], port: 80, addresses: [192.0.2.2, 192.0.2.1]}",
            "{interfaces: [eth0], port: 80, addresses: [192.0.2.1]}",
            "192.0.2.1",
        ),
    ],
)
def test_two_proxies_on_one_listener(first: str, second: str, on: str) -> None:
    assert errors(a=listening("a", first), b=listening("b", second)) == [
        f"b.yaml:4:13: the proxy 'a' listens on tcp port 80 of eth0, {on}, already, at a.yaml:4:13"
    ]


@pytest.mark.parametrize(
    ("first", "second", "target"),
    [
        ("{interfaces: [eth0], port: 80}", "{interfaces: [eth1], port: 80}", "10.0.0.1"),
        ("{interfaces: [eth0], port: 80}", "{interfaces: [eth0], port: 81}", "10.0.0.1"),
        ("{interfaces: [eth0], port: 80}", "{interfaces: [eth0], port: 80, protocol: udp}", "10.0.0.1"),
        ("{interfaces: [eth0], port: 80}", "{interfaces: [eth0], port: 80}", "'fd00::1'"),
        ("{interfaces: [eth0], port: 80}", "{interfaces: [eth0], port: 80, addresses: [192.0.2.1]}", "10.0.0.1"),
    ],
)
def test_two_proxies_apart(first: str, second: str, target: str) -> None:
    sources = {"a.yaml": listening("a", first), "b.yaml": listening("b", second, f"{{ip: {target}}}")}
    assert len(parse_sources({name: text.encode() for name, text in sources.items()}).proxies) == 2


def test_target_that_is_another_proxys_listener_is_a_warning() -> None:
    a = listening("a", "{interfaces: [eth0], port: 80}", "{ip: 192.0.2.9}")
    b = listening("b", "{interfaces: [eth0], port: 80, addresses: [192.0.2.9]}")
    warnings = parse_sources({"a.yaml": a.encode(), "b.yaml": b.encode()}).warnings
    assert [str(warning) for warning in warnings] == [
        "a.yaml:5:21: the target 192.0.2.9 is where the proxy 'b' listens, at b.yaml:4:13: "
        "what is forwarded there does not go through that proxy"
    ]
    udp = listening("b", "{interfaces: [eth0], port: 80, protocol: udp, addresses: [192.0.2.9]}")
    assert parse_sources({"a.yaml": a.encode(), "b.yaml": udp.encode()}).warnings == ()
