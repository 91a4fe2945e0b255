"""``tests:`` in the files: what is read, and what is refused with its place before any kernel is asked."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from reconciler.config.files import parse_sources
from reconciler.config.model import Expectation
from reconciler.errors import ConfigError
from reconciler.state.objects import Endpoint, Protocol

WEB = """\
apiVersion: revproxy/v1
proxies:
  - name: web
    listen: {interfaces: [eth0, eth1], addresses: [203.0.113.10], port: [80, 81]}
    default_target: {ip: 10.0.0.1, port: 8080}
    source_routes:
      - {source: 192.168.0.0/16, target: [{ip: 10.0.0.10, port: 8080}, {ip: 10.0.0.11}]}
"""
DNS = """\
apiVersion: revproxy/v1
proxies:
  - name: dns
    listen: {interfaces: [eth0], port: 53, protocol: udp}
    default_target: [{ip: 10.0.0.53, port: 53}, {ip: "2001:db8::53", port: 53}]
"""


def read(*tests: str) -> dict[str, bytes]:
    text = "apiVersion: revproxy/v1\ntests:\n" + "".join(f"  - {each}\n" for each in tests)
    return {"web.yaml": WEB.encode(), "dns.yaml": DNS.encode(), "tests.yaml": text.encode()}


def test_keys_and_defaults() -> None:
    config = parse_sources(
        read(
            '{from: 192.168.3.4, to: "203.0.113.10:80", expect: {target: "10.0.0.10:8080"}}',
            '{from: "2001:db8::7", source_port: 7, to: "[2001:db8::1]:53", protocol: udp, interface: eth0,'
            " expect: {proxy: dns}}",
            '{from: 192.0.2.1, to: "203.0.113.10:81", expect: {action: deny}}',
            '{from: 192.0.2.1, to: "203.0.113.99:99", interface: eth7, expect: {action: pass}}',
        )
    )
    first, second, third, fourth = config.tests
    assert (first.source, first.destination) == (
        Endpoint(ip_address("192.168.3.4"), 40000),
        Endpoint(ip_address("203.0.113.10"), 80),
    )
    assert (first.protocol, first.interface) == (Protocol.TCP, None)
    assert first.expect == Expectation(target=Endpoint(ip_address("10.0.0.10"), 8080))
    assert str(first.place) == "tests.yaml:3:5"
    assert (second.source.port, second.protocol, second.interface) == (7, Protocol.UDP, "eth0")
    assert second.expect == Expectation(proxy="dns")
    assert (third.expect.action, fourth.expect.action) == ("deny", "pass")
    assert (str(first.expect), str(second.expect), str(third.expect)) == ("target 10.0.0.10:8080", "proxy dns", "deny")


@pytest.mark.parametrize(
    "expect",
    [
        '{target: "10.0.0.10"}',  # at whatever port
        '{target: "10.0.0.11:80"}',  # the target keeps the client's port
    ],
)
def test_targets_that_are_there(expect: str) -> None:
    assert parse_sources(read(f'{{from: 192.168.3.4, to: "203.0.113.10:80", expect: {expect}}}')).tests


WRONG = {
    "unknown proxy": (
        '{from: 192.0.2.1, to: "203.0.113.10:80", expect: {proxy: wed}}',
        "3:62: there is no proxy 'wed' (did you mean 'web'?)",
    ),
    "unknown target": (
        '{from: 192.0.2.1, to: "203.0.113.10:80", expect: {target: "10.0.0.1:8081"}}',
        "3:63: no proxy has the target 10.0.0.1:8081 (did you mean '10.0.0.1:8080'?)",
    ),
    "target of another proxy": (
        '{from: 192.0.2.1, to: "203.0.113.10:80", expect: {target: "10.0.0.53:53"}}',
        "3:63: the target 10.0.0.53:53 is none of 'web', which listens on 203.0.113.10:80/tcp",
    ),
    "target that keeps another port": (
        '{from: 192.0.2.1, to: "203.0.113.10:80", expect: {target: "10.0.0.11:81"}}',
        "3:63: no proxy has the target 10.0.0.11:81 (did you mean '10.0.0.11'?)",
    ),
    "unknown interface": (
        '{from: 192.0.2.1, to: "203.0.113.10:80", interface: eht0, expect: {proxy: web}}',
        "3:57: no proxy listens on the interface 'eht0' (did you mean 'eth0'?)",
    ),
    "interface of another proxy": (
        '{from: 192.0.2.1, to: "192.0.2.9:53", protocol: udp, interface: eth1, expect: {proxy: dns}}',
        "3:5: no proxy listens on 192.0.2.9:53/udp of eth1",
    ),
    "nobody's port": (
        '{from: 192.0.2.1, to: "203.0.113.10:82", expect: {proxy: web}}',
        "3:5: no proxy listens on 203.0.113.10:82/tcp",
    ),
    "nobody's protocol": (
        '{from: 192.0.2.1, to: "203.0.113.10:80", protocol: udp, expect: {action: deny}}',
        "3:5: no proxy listens on 203.0.113.10:80/udp",
    ),
    "nobody's address": (
        '{from: 192.0.2.1, to: "203.0.113.11:80", expect: {proxy: web}}',
        "3:5: no proxy listens on 203.0.113.11:80/tcp",
    ),
    "another proxy's listener": (
        '{from: 192.0.2.1, to: "203.0.113.10:80", expect: {proxy: dns}}',
        "3:62: the proxy 'dns' does not listen on 203.0.113.10:80/tcp: 'web' may",
    ),
    "two families": (
        '{from: "2001:db8::1", to: "203.0.113.10:80", expect: {proxy: web}}',
        "3:31: 'from' is IPv6, 'to' is IPv4",
    ),
    "no port": (
        "{from: 192.0.2.1, to: 203.0.113.10, expect: {proxy: web}}",
        "3:27: 'to' must be an address and a port, such as 203.0.113.10:80 or [2001:db8::10]:80, not '203.0.113.10'",
    ),
    "port 0": (
        '{from: 192.0.2.1, to: "203.0.113.10:0", expect: {proxy: web}}',
        "3:27: 'to' must be an address and a port, such as 203.0.113.10:80 or [2001:db8::10]:80, not '203.0.113.10:0'",
    ),
    "IPv6 without brackets": (
        '{from: "2001:db8::1", to: "2001:db8::2:80", expect: {proxy: web}}',
        "3:31: 'to' must be an address and a port, such as 203.0.113.10:80 or [2001:db8::10]:80, not '2001:db8::2:80'",
    ),
    "no expectation": ('{from: 192.0.2.1, to: "203.0.113.10:80"}', "3:5: the key 'expect' is missing"),
    "an empty expectation": (
        '{from: 192.0.2.1, to: "203.0.113.10:80", expect: {}}',
        "3:54: one of the keys 'target', 'proxy' and 'action' is missing",
    ),
    "two expectations": (
        '{from: 192.0.2.1, to: "203.0.113.10:80", expect: {proxy: web, action: deny}}',
        "3:67: 'proxy' and 'action' exclude each other",
    ),
    "unknown action": (
        '{from: 192.0.2.1, to: "203.0.113.10:80", expect: {action: drop}}',
        "3:63: 'action' must be 'deny' or 'pass', not 'drop'",
    ),
    "misspelt key": (
        '{form: 192.0.2.1, to: "203.0.113.10:80", expect: {proxy: web}}',
        "3:6: unknown key 'form' (did you mean 'from'?)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_error_with_place(case: str) -> None:
    test, expected = WRONG[case]
    with pytest.raises(ConfigError) as caught:
        parse_sources(read(test))
    assert [str(each) for each in caught.value.problems] == [f"tests.yaml:{expected}"]


def test_a_proxy_that_is_wrong_is_told_of_before_what_its_tests_lack() -> None:
    sources = read('{from: 192.0.2.1, to: "203.0.113.10:80", expect: {proxy: web}}')
    sources["web.yaml"] = sources["web.yaml"].replace(b"port: [80, 81]", b"port: x")
    with pytest.raises(ConfigError) as caught:
        parse_sources(sources)
    assert [each.file for each in caught.value.problems] == ["web.yaml"]


def test_every_wrong_test_is_told_of() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_sources(read(*(test for test, _ in WRONG.values())))
    assert {each.line for each in caught.value.problems} >= set(range(3, 3 + len(WRONG))) - {
        3 + list(WRONG).index(name) for name in ("two families",)
    }
