"""Anything at all as input: a Config or a ConfigError, nothing else; and every right document is read as written."""

from __future__ import annotations

import io
import json
from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from reconciler.config import Config, SourcePorts, parse_sources
from reconciler.config.sourceroutes import WeightedTarget
from reconciler.errors import ConfigError, Problem
from reconciler.state.objects import Endpoint
from tests.thorough import examples
from tests.unit.config.strategies import DOCUMENTS, ROOT

# fmt: off
PIECES = st.sampled_from([
    "apiVersion: revproxy/v1\n", "proxies:\n", "  - ", "name: web\n", "\n", " ", "\t", "{", "}", "[", "]", ": ", ", ",
    ":", "&a ", "*a", "<<", "!!str ", "!x ", "%YAML 1.2\n", "---\n", "...\n", "|\n", ">", "'", '"', "#", "? ", "\\",
    "~", "-", "10.0.0.1", "fd00::1", "80", "1e5", ".nan", "0x", "0o9", "\u0000", "\ufeff", "\u2028", "\u0085",
    "\u00fc", "\r", "\r\n", "\"\\ud800\"", "true", "null", "\"a\": 1",
])
# fmt: on
TEXTS = st.lists(PIECES, max_size=40).map("".join).map(lambda text: text.encode("utf-8", "surrogatepass"))


def problems(file: str, content: bytes) -> list[Problem]:
    """What is wrong with a file; anything but a ConfigError fails the test."""
    try:
        parse_sources({file: content})
    except ConfigError as error:
        str(error).encode()
        return list(error.problems) or [Problem("none", 0, 0, "", "")]
    return []


@settings(max_examples=examples(1000), deadline=None)
@given(st.one_of(TEXTS, st.binary(max_size=60)), st.sampled_from(["a.yaml", "a.json"]))
def test_only_config_errors(content: bytes, file: str) -> None:
    lines = sum(map(content.count, (b"\n", b"\r", "\u2028".encode(), "\x85".encode())))
    for problem in problems(file, content):
        assert problem.file == file
        assert 1 <= problem.line <= lines + 1
        assert problem.column >= 1
        assert "\n" not in problem.message


@settings(max_examples=examples(200), deadline=None)
@given(DOCUMENTS)
def test_wrong_documents_have_places_within_the_text(document: Any) -> None:
    lines = json.dumps(document, indent=1).splitlines()
    for problem in problems("a.json", "\n".join(lines).encode()):
        assert 1 <= problem.column <= len(lines[problem.line - 1])


def _targets(written: Any) -> tuple[WeightedTarget, ...]:
    return tuple(
        WeightedTarget(Endpoint(ip_address(one["ip"]), one.get("port", 0)), one.get("weight", 1))
        for one in (written if isinstance(written, list) else [written])
    )


def _unless_listeners_collide(content: bytes) -> Config | None:
    """The strategy for right documents leaves only that to chance."""
    try:
        return parse_sources({"a.yaml": content})
    except ConfigError as error:
        if any(" listens on " not in problem.message for problem in error.problems):
            raise
        return None


@settings(max_examples=examples(150), deadline=None)
@given(ROOT)
def test_right_documents_are_read_as_written(document: Any) -> None:
    out = io.StringIO()
    YAML(typ="safe", pure=True).dump(document, out)
    config = _unless_listeners_collide(out.getvalue().encode())
    assume(config is not None)
    assert config is not None
    as_json = parse_sources({"a.json": json.dumps(document).encode()})
    assert (as_json.settings, as_json.proxies) == (config.settings, config.proxies)
    for key, value in document.get("settings", {}).items():
        if key == "source_ports":
            value = SourcePorts(value.get("first", 10000), value.get("last", 32767))
        assert getattr(config.settings, key) == value
    written = document.get("proxies", [])
    assert len(config.proxies) == len(written)
    for proxy, one in zip(config.proxies, written, strict=True):
        assert proxy.name == one["name"]
        ports = one["listen"]["port"]
        assert proxy.listen.ports == tuple(ports if isinstance(ports, list) else [ports])
        assert proxy.listen.interfaces == tuple(one["listen"]["interfaces"])
        assert proxy.listen.protocol == one["listen"].get("protocol", "tcp")
        assert proxy.mode == one.get("mode", "dnat")
        assert proxy.balance == one.get("balance", "maglev")
        assert proxy.connection_timeout_sec == one.get("connection_timeout_sec")
        assert proxy.default_target == _targets(one["default_target"])
        routes = one.get("source_routes", [])
        assert [route.source for route in proxy.source_routes] == [ip_network(route["source"]) for route in routes]
        assert [route.deny for route in proxy.source_routes] == ["action" in route for route in routes]
        assert [route.targets for route in proxy.source_routes] == [
            _targets(route["target"]) if "target" in route else () for route in routes
        ]
