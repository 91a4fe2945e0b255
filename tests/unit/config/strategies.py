"""Hypothesis strategies: documents that are right, and documents that are right but for a place or two."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

INTERFACES = st.sampled_from(["eth0", "eth1", "veth-a@b", "bond0.100"])
NAMES = st.from_regex(r"\A[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?\Z")
PORTS = st.integers(1, 65535)
PLAIN4 = st.integers(0x0A000000, 0x0AFFFFFF).map(lambda n: f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}")
PLAIN6 = st.integers(0, 0xFFFF).map(lambda n: f"fd00::{n:x}")


HEALTH_CHECK = st.fixed_dictionaries(
    {"type": st.sampled_from(["none", "https"])},
    optional={
        "port": PORTS,
        "interval_ms": st.integers(100, 3600000),
        "unhealthy_threshold": st.integers(1, 100),
        "path": st.sampled_from(["/", "/health?full=1"]),
        "expected_codes": st.lists(st.integers(100, 599) | st.just("200-299"), min_size=1, max_size=3),
        "verify": st.booleans() | st.just("/etc/ssl/ca.pem"),
    },
)


def targets(ips: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """One target or a list of different ones, of weights that do not sum to 0."""
    one = st.fixed_dictionaries({"ip": ips}, optional={"port": PORTS, "weight": st.integers(1, 65535)})
    return one | st.lists(one, min_size=1, max_size=3, unique_by=lambda target: target["ip"])


@st.composite
def routes(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Source routes of different sources."""
    found: dict[str, dict[str, Any]] = {}
    for number in draw(st.lists(st.integers(0, 0xFFFF), max_size=4, unique=True)):
        six = draw(st.booleans())
        source = f"2001:db8:{number:x}::/48" if six else f"172.{number >> 8}.{number & 255}.0/24"
        if draw(st.booleans()):
            found[source] = {"source": source, "action": "deny"}
        else:
            found[source] = {"source": source, "target": draw(targets(PLAIN6 if six else PLAIN4))}
    return list(found.values())


PROXY = st.fixed_dictionaries(
    {
        "name": NAMES,
        "listen": st.fixed_dictionaries(
            {
                "interfaces": st.lists(INTERFACES, min_size=1, max_size=3, unique=True),
                "port": PORTS | st.lists(PORTS, min_size=1, max_size=3, unique=True),
            },
            optional={"protocol": st.sampled_from(["tcp", "udp"])},
        ),
        "default_target": targets(PLAIN4 | PLAIN6),
    },
    optional={
        "mode": st.sampled_from(["dnat", "fullnat"]),
        "balance": st.sampled_from(["maglev", "source", "random"]),
        "source_routes": routes(),
        "connection_timeout_sec": st.integers(1, 2**32 - 1),
        "health_check": HEALTH_CHECK.map(lambda check: {"port": 80, **check}),
    },
)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "connection_timeout_sec": st.integers(1, 2**32 - 1),
        "max_connections": st.integers(1, 10**9),
        "fast_path": st.booleans(),
        "xdp_mode": st.sampled_from(["auto", "native", "generic", "off"]),
        "source_ports": st.fixed_dictionaries(
            {}, optional={"first": st.integers(1024, 10000), "last": st.integers(10000, 65535)}
        ),
    },
)
ROOT = st.fixed_dictionaries(
    {"apiVersion": st.just("revproxy/v1")},
    optional={"settings": SETTINGS, "proxies": st.lists(PROXY, max_size=3, unique_by=lambda proxy: proxy["name"])},
)

ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**33),
    st.floats(allow_nan=False),
    st.sampled_from(["", "eth0", "10.0.0.1", "10.0.0.0/8", "deny", "a/b", "eth0\n", "x" * 70, "tcp", "80", ".", "a b"]),
    st.lists(st.sampled_from([80, 80.0, True, "eth0", "10.0.0.1"]), max_size=3),
    st.dictionaries(st.sampled_from(["ip", "port", "name", "action", "target", "x"]), st.just("10.0.0.1"), max_size=2),
)


def _containers(value: Any) -> list[Any]:
    if not isinstance(value, (dict, list)):
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(found for item in inner for found in _containers(item))]


@st.composite
def _documents(draw: st.DrawFn) -> Any:
    document = copy.deepcopy(draw(ROOT))
    for _ in range(draw(st.integers(0, 2))):
        container = draw(st.sampled_from(_containers(document)))
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        action = draw(st.sampled_from(["replace", "delete", "add"]))
        if action == "add" or not keys:
            if isinstance(container, dict):
                container[draw(st.sampled_from(["port", "target", "action", "weight", "zzz"]))] = draw(ODD)
            else:
                container.append(draw(ODD))
        elif action == "replace":
            container[draw(st.sampled_from(keys))] = draw(ODD)
        else:
            del container[draw(st.sampled_from(keys))]
    return document


DOCUMENTS: st.SearchStrategy[Any] = _documents()
