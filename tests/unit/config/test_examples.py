"""The configuration of the interface page, and the example that is shipped."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from reconciler import resources
from reconciler.config import load, parse_sources

PAGE = """\
apiVersion: revproxy/v1

settings:
  connection_timeout_sec: 300    # idle timeout of an established connection
  max_connections: 100000        # tracked connections
  fast_path: true                # forward in XDP where the route allows it; false: DNAT, then the kernel stack
  xdp_mode: auto                 # native | generic | off (TC only)

proxies:
  - name: web                    # unique, DNS label
    listen:
      interfaces: [eth0, eth1]
      addresses: [203.0.113.10, "2001:db8::10"]   # optional; left out: the interfaces' own addresses
      port: 80                   # or a list: [80, 443]
      protocol: tcp              # tcp | udp
    mode: dnat                   # dnat: the backend sees the client's address
    balance: maglev              # maglev | source (session affinity by client address) | random
    default_target: {ip: 10.0.0.1, port: 8080}    # or a list, each with an optional weight (0..65535, default 1)
    source_routes:               # longest prefix wins, then default_target
      - source: 192.168.0.0/16
        target: {ip: 10.0.0.10, port: 8080}       # or a list
      - source: 192.168.66.0/24
        action: deny             # drop
    connection_timeout_sec: 60   # optional, overrides the setting
"""


def test_the_page() -> None:
    config = parse_sources({"web.yaml": PAGE.encode()})
    assert [str(warning) for warning in config.warnings] == [
        "web.yaml:13:33: nothing listens on 2001:db8::10: the proxy 'web' has no IPv6 target"
    ]
    (web,) = config.proxies
    assert web.listen.addresses == (ip_address("203.0.113.10"), ip_address("2001:db8::10"))
    assert web.families == {4}
    assert web.connection_timeout_sec == 60
    assert [str(target.endpoint) for target in web.default_target] == ["10.0.0.1:8080"]
    assert [(route.source, route.deny, len(route.targets)) for route in web.source_routes] == [
        (ip_network("192.168.0.0/16"), False, 1),
        (ip_network("192.168.66.0/24"), True, 0),
    ]
    assert str(web.source_routes[0].targets[0].place) == "web.yaml:21:17"


def test_the_shipped_example() -> None:
    config = load(resources.directory("config.d"))
    assert config.warnings == ()
    assert {interface for proxy in config.proxies for interface in proxy.listen.interfaces} == {"eth0"}
    assert {proxy.listen.protocol for proxy in config.proxies} == {"tcp", "udp"}
    assert {family for proxy in config.proxies for family in proxy.families} == {4, 6}
    assert any(route.deny for proxy in config.proxies for route in proxy.source_routes)
