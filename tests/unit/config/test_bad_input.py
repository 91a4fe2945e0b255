"""Bad input: every case of a file that is refused, with the exact place and words; and all errors at once."""

from __future__ import annotations

import pytest

from reconciler.config import parse_sources
from reconciler.config.explain import Explainer
from reconciler.errors import ConfigError

# Line 1 to 12; a case replaces some of its text.
from tests.unit.config.refused import BASE, LISTEN_PORT, errors

TARGET = "{ip: 10.0.0.1, port: 8080}\n"
CHECKED_TARGET = "{ip: 10.0.0.1, health_check: {type: tcp, path: /x}}\n"

# name -> ((old, new), ...), expected lines without "web.yaml:"
CASES: dict[str, tuple[tuple[tuple[str, str], ...], tuple[str, ...]]] = {
    # -- keys
    "unknown key": (((LISTEN_PORT, "prot: 80\n"),), ("8:7: unknown key 'prot' (did you mean 'port'?)",)),
    "unknown key, near none": (
        (("settings: {", "settings: {xyzzy: 1, "),),
        (
            "2:12: unknown key 'xyzzy'"
            " (known: connection_timeout_sec, max_connections, fast_path, xdp_mode, takeover, sync, stats_enabled,"
            " metrics, source_ports)",
        ),
    ),
    "unknown key in another case": (
        (("apiVersion", "apiversion"),),
        ("1:1: unknown key 'apiversion' (did you mean 'apiVersion'?)",),
    ),
    "duplicate key, and one behind it": (
        ((LISTEN_PORT, LISTEN_PORT + "      port: 81\n      prot: 82\n"),),
        (
            "9:7: the key 'port' stands twice in this mapping: first in line 8",
            "10:7: unknown key 'prot' (did you mean 'port'?)",
        ),
    ),
    "duplicate key": (
        ((LISTEN_PORT, LISTEN_PORT + "      port: 81\n"),),
        ("9:7: the key 'port' stands twice in this mapping: first in line 8",),
    ),
    "number as key": (((LISTEN_PORT, LISTEN_PORT + "      80: x\n"),), ("9:7: a key must be a string, not 80",)),
    "list as key": (((LISTEN_PORT, LISTEN_PORT + "      [a]: x\n"),), ("9:7: a key must be a string, not a list",)),
    "missing key": (
        (("  - name: web\n    listen:", "  - listen:"),),
        ("4:5: the key 'name' is missing",),
    ),
    "missing apiVersion": (
        (("apiVersion: revproxy/v1\n", ""),),
        ("1:1: the key 'apiVersion' is missing: write 'apiVersion: revproxy/v1' at the top",),
    ),
    "another apiVersion": (
        (("revproxy/v1", "revproxy/v2"), (LISTEN_PORT, "prot: 80\n")),
        ("1:13: 'apiVersion' must be 'revproxy/v1', not 'revproxy/v2': this version reads no other",),
    ),
    # -- types and ranges
    "port: text": (
        ((LISTEN_PORT, "port: http\n"),),
        ("8:13: 'port' must be an integer from 1 to 65535, or a non-empty list of them, not 'http'",),
    ),
    "target port: text": (
        ((TARGET, "{ip: 10.0.0.1, port: http}\n"),),
        ("9:42: 'port' must be an integer from 1 to 65535, not 'http'",),
    ),
    "port: a float": (
        ((LISTEN_PORT, "port: [80.0]\n"),),
        ("8:14: an item of 'port' must be an integer from 1 to 65535, not 80.0",),
    ),
    "port: a boolean": (
        ((TARGET, "{ip: 10.0.0.1, port: true}\n"),),
        ("9:42: 'port' must be an integer from 1 to 65535, not true",),
    ),
    "port: zero": (((LISTEN_PORT, "port: 0\n"),), ("8:13: 'port' must be an integer from 1 to 65535, not 0",)),
    "port: too large": (
        ((LISTEN_PORT, "port: [80, 65536]\n"),),
        ("8:18: an item of 'port' must be an integer from 1 to 65535, not 65536",),
    ),
    "port: twice": (((LISTEN_PORT, "port: [80, 81, 80]\n"),), ("8:22: 80 stands twice in this list",)),
    "port: none": (
        ((LISTEN_PORT, "port: []\n"),),
        ("8:13: 'port' must be an integer from 1 to 65535, or a non-empty list of them, not an empty list",),
    ),
    "weight: too large": (
        ((TARGET, "{ip: 10.0.0.1, weight: 65536}\n"),),
        ("9:44: 'weight' must be an integer from 0 to 65535, not 65536",),
    ),
    "a boolean of YAML 1.1": (((": true}", ": on}"),), ("2:23: 'fast_path' must be true or false, not 'on'",)),
    "max_connections: zero": (
        ((": true", ": true, max_connections: 0"),),
        ("2:46: 'max_connections' must be an integer from 1 to 1000000000, not 0",),
    ),
    "timeout: text": (
        ((": true", ": true, connection_timeout_sec: 5s"),),
        ("2:53: 'connection_timeout_sec' must be a whole number of seconds from 1 to 4294967295, not '5s'",),
    ),
    "xdp_mode: misspelt": (
        ((": true", ": true, xdp_mode: nativ"),),
        ("2:39: 'xdp_mode' must be 'auto', 'native', 'generic' or 'off', not 'nativ' (did you mean 'native'?)",),
    ),
    "protocol: misspelt": (
        ((LISTEN_PORT, LISTEN_PORT + "      protocol: tpc\n"),),
        ("9:17: 'protocol' must be 'tcp' or 'udp', not 'tpc' (did you mean 'tcp'?)",),
    ),
    "name: not a label": (
        ((": web", ": Web"),),
        (
            "4:11: 'name' must be a DNS label: lowercase letters, digits and inner hyphens, at most 63 characters, "
            "not 'Web'",
        ),
    ),
    "name: too long": (
        ((": web", ": " + "a" * 64),),
        (
            "4:11: 'name' must be a DNS label: lowercase letters, digits and inner hyphens, at most 63 characters, "
            "not '" + "a" * 57 + "...'",
        ),
    ),
    "name: ends in a line break": (
        ((": web", ': "web\\n"'),),
        (
            "4:11: 'name' must be a DNS label: lowercase letters, digits and inner hyphens, at most 63 characters, "
            r"not 'web\n'",
        ),
    ),
    "interfaces: text": (
        ((": [eth0]", ": eth0"),),
        ("6:19: 'interfaces' must be a non-empty list of interface names, not 'eth0'",),
    ),
    "interfaces: none": (
        ((": [eth0]", ": []"),),
        ("6:19: 'interfaces' must be a non-empty list of interface names, not an empty list",),
    ),
    "interfaces: no such name": (
        ((": [eth0]", ": [eth0, a/b, abcdefghijklmnop]"),),
        (
            "6:26: an item of 'interfaces' must be an interface name: 1 to 15 printable characters without '/', ':' "
            "and spaces, not 'a/b'",
            "6:31: an item of 'interfaces' must be an interface name: 1 to 15 printable characters without '/', ':' "
            "and spaces, not 'abcdefghijklmnop'",
        ),
    ),
    "interfaces: twice": (((": [eth0]", ": [eth0, eth0]"),), ("6:26: 'eth0' stands twice in this list",)),
    "null": (
        (("proxies:\n" + BASE.partition("proxies:\n")[2], "proxies: ~\n"),),
        ("3:10: 'proxies' must be a list of proxies, not null",),
    ),
    "target: text": (
        ((TARGET, "10.0.0.1:8080\n"),),
        ("9:21: 'default_target' must be a target or a non-empty list of targets, not '10.0.0.1:8080'",),
    ),
    "target: empty list": (
        ((TARGET, "[]\n"),),
        ("9:21: 'default_target' must be a target or a non-empty list of targets, not an empty list",),
    ),
    "target: no ip": (((TARGET, "[{port: 1}]\n"),), ("9:22: the key 'ip' is missing",)),
    # -- addresses
    "ip: not an address": (
        ((TARGET, "{ip: 10.0.0.300}\n"),),
        ("9:26: 'ip' must be an IPv4 or IPv6 address, not '10.0.0.300'",),
    ),
    "ip: a number": (((TARGET, "{ip: 10.0}\n"),), ("9:26: 'ip' must be an IPv4 or IPv6 address, not 10.0",)),
    "ip: with a zone": (
        ((TARGET, "{ip: 'fe80::1%eth0'}\n"),),
        ("9:26: 'ip' must be an IPv4 or IPv6 address, not 'fe80::1%eth0'",),
    ),
    "ip: multicast": (
        ((TARGET, "{ip: 224.0.0.1}\n"),),
        ("9:26: 224.0.0.1 is a multicast address, which can't be a target",),
    ),
    "ip: unspecified": (
        ((TARGET, "{ip: 0.0.0.0}\n"),),
        ("9:26: 0.0.0.0 stands for no address, which can't be a target",),
    ),
    "ip: broadcast": (
        ((TARGET, "{ip: 255.255.255.255}\n"),),
        ("9:26: 255.255.255.255 is the broadcast address, which can't be a target",),
    ),
    "ip: link-local": (
        ((TARGET, "{ip: 'fe80::1'}\n"),),
        ("9:26: fe80::1 is a link-local address, which can't be a target: it means nothing without an interface",),
    ),
    "ip: IPv4 in IPv6": (
        ((TARGET, "{ip: '::ffff:10.0.0.1'}\n"),),
        ("9:26: ::ffff:a00:1 is an IPv4 address in IPv6 form: write 10.0.0.1",),
    ),
    "address: any": (
        (("[192.0.2.1]", "[192.0.2.1, 0.0.0.0]"),),
        ("7:30: 0.0.0.0 stands for no address: leave 'addresses' out to listen on the interfaces' own",),
    ),
    "address: link-local": (
        (("[192.0.2.1]", "[192.0.2.1, 'fe80::1']"),),
        ("7:30: fe80::1 is a link-local address, which can't be a listen address: nothing is forwarded from or to it",),
    ),
    "address: twice": (
        (("[192.0.2.1]", "[192.0.2.1, '2001:db8::1', '2001:0DB8::1']"),),
        ("7:45: 2001:db8::1 stands twice in this list",),
    ),
    "addresses: none": (
        (("[192.0.2.1]", "[]"),),
        ("7:18: 'addresses' must be a non-empty list of IPv4 and IPv6 addresses, not an empty list",),
    ),
    "source: not a network": (
        (("/16", "/33"),),
        ("11:17: 'source' must be an IPv4 or IPv6 network such as 192.168.0.0/16, not '192.168.0.0/33'",),
    ),
    "source: a netmask": (
        (("/16", "/255.255.0.0"),),
        ("11:17: 'source' must be an IPv4 or IPv6 network such as 192.168.0.0/16, not '192.168.0.0/255.255.0.0'",),
    ),
    "source: host bits": (
        (("192.168.0.0/16", "192.168.7.0/16"),),
        ("11:17: the address has bits set beyond the length /16: the network is 192.168.0.0/16",),
    ),
    "source: IPv4 in IPv6": (
        (("192.168.0.0/16", "'::ffff:10.0.0.0/104'"),),
        ("11:17: ::ffff:a00:0/104 is an IPv4 network in IPv6 form: write 10.0.0.0/8",),
    ),
    # -- routes
    "route: nowhere": (
        (("        target: {ip: 10.0.0.10, port: 8080}\n", ""),),
        ("11:9: one of the keys 'target' and 'action' is missing",),
    ),
    "route: target and action": (
        (("10, port: 8080}\n", "10, port: 8080}\n        action: deny\n"),),
        ("13:9: 'target' and 'action' exclude each other",),
    ),
    "route: action misspelt": (
        (("target: {ip: 10.0.0.10, port: 8080}", "action: drop"),),
        ("12:17: 'action' must be 'deny', not 'drop'",),
    ),
    "identical sources": (
        (("    source_routes:\n", "    source_routes:\n      - {source: 192.168.0.0/16, action: deny}\n"),),
        ("12:9: there is a route for 192.168.0.0/16 already, at web.yaml:11:9",),
    ),
    "route: families": (
        (("10.0.0.10", "'fd00::1'"), ("      addresses: [192.0.2.1]\n", "")),
        ("11:17: the target [fd00::1]:8080 is IPv6, the source 192.168.0.0/16 is IPv4",),
    ),
    # -- target lists
    "target twice": (
        ((TARGET, "[{ip: 10.0.0.1}, {ip: 10.0.0.2}, {ip: 10.0.0.1, weight: 3}]\n"),),
        ("9:54: the target 10.0.0.1 stands twice in this list: first at web.yaml:9:22",),
    ),
    "weights sum to 0": (
        ((TARGET, "[{ip: 10.0.0.1, weight: 0}, {ip: 10.0.0.2, weight: 0}]\n"),),
        ("9:22: the weights of 2 targets sum to 0: the proxy would lead nowhere",),
    ),
    "weights of one family sum to 0": (
        ((TARGET, "[{ip: 10.0.0.1}, {ip: 'fd00::1', weight: 0}]\n"), ("      addresses: [192.0.2.1]\n", "")),
        ("8:38: the weights of 1 IPv6 target sum to 0: the proxy would lead nowhere",),
    ),
    "weight of a route's only target is 0": (
        (("10, port: 8080", "10, weight: 0"),),
        ("12:17: the weights of 1 target sum to 0: the route would lead nowhere",),
    ),
    "target of a family that is not listened on": (
        (("192.0.2.1", "'2001:db8::1'"),),
        ("9:21: the target 10.0.0.1:8080 is IPv4, but no listen address of the proxy is (and 1 more target likewise)",),
    ),
    "target is its own listener": (
        (("10.0.0.10, port: 8080", "192.0.2.1, port: 80"),),
        ("12:17: the target 192.0.2.1:80 is the proxy's own listener: it would forward to itself",),
    ),
    "target without port is its own listener": (
        (("10.0.0.10, port: 8080", "192.0.2.1"),),
        ("12:17: the target 192.0.2.1 is the proxy's own listener: it would forward to itself",),
    ),
    "takeover: text": (
        ((": true}", ": true, takeover: always}"),),
        ("2:39: 'takeover' must be true or false, not 'always'",),
    ),
    "on_unhealthy": (
        (
            (": web\n", ": web\n    health_check: {type: tcp, on_unhealthy: reset}\n"),
            (LISTEN_PORT, "port: 80\n      protocol: udp\n"),
        ),
        ("5:31: 'on_unhealthy: reset' goes with TCP: UDP knows no reset",),
    ),
    # -- health checks
    "health check without a type": (
        ((TARGET, "{ip: 10.0.0.1, health_check: {}}\n"),),
        ("9:50: the key 'type' is missing",),
    ),
    "health check of an unknown type": (
        ((": web\n", ": web\n    health_check: {type: htpp}\n"),),
        ("5:26: 'type' must be 'none', 'tcp', 'http' or 'https', not 'htpp' (did you mean 'http'?)",),
    ),
    "health check with wrong numbers": (
        ((": web\n", ": web\n    health_check: {type: tcp, interval_ms: 99, timeout_ms: 1s, port: 0}\n"),),
        (
            "5:44: 'interval_ms' must be an integer from 100 to 3600000, not 99",
            "5:60: 'timeout_ms' must be an integer from 10 to 600000, not '1s'",
            "5:70: 'port' must be an integer from 1 to 65535, not 0",
        ),
    ),
    "health check with wrong codes": (
        ((": web\n", ": web\n    health_check: {type: http, expected_codes: [200, 2xx, 700]}\n"),),
        (
            "5:54: an item of 'expected_codes' must be an HTTP status code from 100 to 599 or a range such as"
            " '200-299', not '2xx'",
            "5:59: an item of 'expected_codes' must be an HTTP status code from 100 to 599 or a range such as"
            " '200-299', not 700",
        ),
    ),
    "a wrong code that would be a right port": (
        ((": web\n", ": web\n    health_check: {type: http, expected_codes: [600]}\n"),),
        (
            "5:49: an item of 'expected_codes' must be an HTTP status code from 100 to 599 or a range such as"
            " '200-299', not 600",
        ),
    ),
    "a target that would be a right port": (
        ((TARGET, "443\n"),),
        ("9:21: 'default_target' must be a target or a non-empty list of targets, not 443",),
    ),
    "health check with codes from end to beginning": (
        ((": web\n", ": web\n    health_check: {type: http, expected_codes: [299-200]}\n"),),
        ("5:32: the range '299-200' begins above its end",),
    ),
    "health check with a key of another type": (
        ((": web\n", ": web\n    health_check: {type: http, verify: false}\n"), (TARGET, CHECKED_TARGET)),
        (
            "5:32: 'verify' goes with 'type: https', not with 'http'",
            "10:62: 'path' goes with 'type: http' or 'https', not with 'tcp'",
        ),
    ),
    "health check with a relative path of CA certificates": (
        ((": web\n", ": web\n    health_check: {type: https, verify: ca.pem}\n"),),
        ("5:41: 'verify' must be true, false or the absolute path of a file with CA certificates, not 'ca.pem'",),
    ),
    "health check without a port": (
        (
            (": web\n", ": web\n    health_check: {type: tcp}\n"),
            (TARGET, "{ip: 10.0.0.1}\n"),
            (LISTEN_PORT, "port: [80, 81]\n"),
        ),
        ("5:19: a health check of the target 10.0.0.1, which has no port of its own, needs a 'port'",),
    ),
    "two health checks of one target": (
        (
            (TARGET, "{ip: 10.0.0.10, port: 8080, health_check: {type: tcp}}\n"),
            ("{ip: 10.0.0.10, port: 8080}", "{ip: 10.0.0.10, port: 8080, health_check: {type: http}}"),
        ),
        ("9:63: the target 10.0.0.10:8080 has two different health checks",),
    ),
    "mode": (
        ((": web\n", ": web\n    mode: fullnet\n"),),
        ("5:11: 'mode' must be 'dnat' or 'fullnat', not 'fullnet' (did you mean 'fullnat'?)",),
    ),
    "source ports of the host": (
        ((": true", ": true, source_ports: {first: 1023}"),),
        ("2:51: 'first' must be an integer from 1024 to 65535, not 1023",),
    ),
    "source ports from end to beginning": (
        ((": true", ": true, source_ports: {first: 40000}"),),
        ("2:43: 'source_ports' begin with 40000, which is above their end, 32767",),
    ),
    "source ports as text": (
        ((": true", ": true, source_ports: 10000-32767"),),
        ("2:43: 'source_ports' must be a mapping of first and last, not '10000-32767'",),
    ),
    "fullnat to another family": (
        ((": web\n", ": web\n    mode: fullnat\n"), ("192.0.2.1", "'2001:db8::1'")),
        (
            "10:21: the target 10.0.0.1:8080 is IPv4,"
            " but no listen address of the proxy is (and 1 more target likewise)",
        ),
    ),
    # -- notation
    "not YAML": (
        ((": web", ": [web"),),
        ("5:11: not YAML: ",),
    ),
    "a tab": ((("    listen", "\tlisten"),), ("5:1: not YAML: ",)),
    "a control character": ((("web", "w\x00b"),), ("4:12: not YAML: the character U+0000 is not allowed",)),
    "two documents": ((("proxies:", "---\nproxies:"),), ("3:1: a second document begins: a file holds one",)),
    "YAML 1.1": (
        (("apiVersion", "# old\n%YAML 1.1\n---\napiVersion"),),
        ("2:1: the directive asks for another YAML than 1.2",),
    ),
    "a tag": (
        ((": web", ": !!python/name:os.system web"),),
        ("4:11: the tag '!!python/name:os.system' has no meaning here",),
    ),
    "a tag that does not fit": (((": web", ": !!int web"),), ("4:11: the tag '!!int' has no meaning here",)),
    "an alias of nothing": (((": web", ": *web"),), ("4:11: the alias '*web' has no anchor before it",)),
    "an alias in itself": (((": [eth0]", ": &a [*a]"),), ("6:23: the alias '*a' stands within what it stands for",)),
    "merging no mapping": (
        ((": {fast_path: true", ": {<<: [1]"),),
        ("2:16: '<<' takes a mapping or a list of mappings, not 1",),
    ),
    "deep": ((("[eth0]", "[" * 40 + "]" * 40),), ("6:47: nested deeper than 32 levels",)),
}


@pytest.mark.parametrize("case", CASES)
def test_error_with_place(case: str) -> None:
    changes, expected = CASES[case]
    text = BASE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    found = errors(web=text)
    assert len(found) == len(expected), found
    for line, wanted in zip(found, expected, strict=True):
        # A YAML parser's own words differ between its C and its Python form.
        assert line.startswith(f"web.yaml:{wanted}") if wanted.endswith("YAML: ") else line == f"web.yaml:{wanted}"


def test_what_is_wrong_is_refused_even_without_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Explainer, "faults", lambda *_: iter(()))
    assert errors(web=BASE.replace("port: 80\n", "port: 0\n")) == [
        "web.yaml:1:1: does not satisfy the JSON Schema of revproxy/v1, and why could not be found out"
    ]


def test_base_is_right() -> None:
    assert parse_sources({"web.yaml": BASE.encode()}).warnings == ()


def test_problems_say_where_in_the_document() -> None:
    text = BASE.replace("10.0.0.10", "nowhere").replace(LISTEN_PORT, "prot: 80\n")
    with pytest.raises(ConfigError) as caught:
        parse_sources({"web.yaml": text.encode()})
    assert [problem.path for problem in caught.value.problems] == [
        "proxies[0].listen.prot",
        "proxies[0].source_routes[0].target.ip",
    ]


def test_no_more_errors_of_a_file_than_a_person_reads() -> None:
    routes = "".join(f"      - {{source: 10.{n >> 8}.{n & 255}.0/24}}\n" for n in range(1500))
    found = errors(web=BASE + routes)
    assert len(found) == 1001
    assert found[0] == "web.yaml:1:1: more than 1000 errors: the rest is not shown"
