"""The JSON Schema itself: complete, consistent, and the same as the fast check that is made from it."""

from __future__ import annotations

import copy
import ipaddress
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.validators import extend

from reconciler.config import SourcePorts, default_settings, parse_sources, schema
from reconciler.config.formats import Formats
from reconciler.config.predicate import Compiler, is_integer, pattern
from reconciler.errors import ConfigError
from tests.thorough import examples
from tests.unit.config.strategies import DOCUMENTS

SCHEMA = schema.load()


def mappings() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "", SCHEMA
    yield from ((name, definition) for name, definition in SCHEMA["$defs"].items() if "properties" in definition)


PROPERTIES = [
    pytest.param(owner, key, value, id=f"{name}.{key}")
    for name, owner in mappings()
    for key, value in owner["properties"].items()
]


def test_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize(("owner", "key", "value"), PROPERTIES)
def test_every_key_is_described_and_has_a_default(owner: dict[str, Any], key: str, value: dict[str, Any]) -> None:
    assert value["description"].endswith(".")
    if key in owner.get("required", ()):
        assert "Required" in value["description"]
    else:
        assert "default" in value
        if value["default"] is not None:
            assert Compiler(SCHEMA, Formats().known).predicate(value)(value["default"])


def test_every_mapping_is_closed_and_every_value_has_words() -> None:
    for name, owner in mappings():
        assert owner["additionalProperties"] is False, name
        for key, value in owner["properties"].items():
            assert "title" in value or "$ref" in value, key
    assert all("title" in definition for definition in SCHEMA["$defs"].values())


def test_default_settings_are_the_contracts() -> None:
    settings_ = default_settings()
    assert settings_.connection_timeout_sec == 300
    assert settings_.max_connections == 100000
    assert settings_.fast_path is True
    assert settings_.xdp_mode == "auto"
    assert settings_.source_ports == SourcePorts(10000, 32767)


def test_a_keyword_that_the_fast_check_does_not_know_is_refused() -> None:
    changed = copy.deepcopy(SCHEMA)
    changed["$defs"]["target"]["properties"]["weight"]["multipleOf"] = 2
    with pytest.raises(ValueError, match="multipleOf"):
        Compiler(changed, Formats().known).predicate(changed)


def with_patterns(value: Any) -> Iterator[dict[str, Any]]:
    """Every subschema with a regular expression."""
    if isinstance(value, dict) and isinstance(value.get("pattern"), str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from with_patterns(inner)


def reference() -> Any:
    """Plain jsonschema, but for integers, and with the meaning of ``$`` that JSON Schema gives it."""
    formats = FormatChecker(formats=())

    @formats.checks("ip", raises=ValueError)
    def ip(value: Any) -> bool:
        return not isinstance(value, str) or ("%" not in value and bool(ipaddress.ip_address(value)))

    @formats.checks("network", raises=ValueError)
    def network(value: Any) -> bool:
        text = isinstance(value, str)
        if text and "/" in value:
            length = value.partition("/")[2]
            return length.isascii() and length.isdecimal() and "%" not in value and known(value)
        return not text or ("%" not in value and known(value))

    def known(value: str) -> bool:
        return bool(ipaddress.ip_network(value, strict=False))

    changed = copy.deepcopy(SCHEMA)
    for definition in with_patterns(changed):
        definition["pattern"] = pattern(definition["pattern"]).pattern
    integer = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: is_integer(value))
    return extend(Draft202012Validator, type_checker=integer)(changed, format_checker=formats)


REFERENCE = reference()


@settings(max_examples=examples(200), deadline=None)
@given(DOCUMENTS)
@example({"apiVersion": "revproxy/v1", "proxies": [{"name": "a\n", "listen": {}, "default_target": {"ip": "::"}}]})
def test_the_fast_check_agrees_with_jsonschema(document: Any) -> None:
    assert Compiler(SCHEMA, Formats().known).predicate(SCHEMA)(document) == REFERENCE.is_valid(document)


ANYTHING = [0, 1, 99, 443, 600, 70000, "x", "200-299", "/ca", True, None, [], [99], [443], {}, {"ip": "10.0.0.1"}]


@pytest.mark.parametrize("key", ["port", "default_target", "target", "expected_codes", "verify"])
def test_what_jsonschema_refuses_no_file_may_hold(key: str) -> None:
    for value in ANYTHING:
        given = {key: [value] if key == "expected_codes" else value}
        proxy = {
            "name": "web",
            "listen": {"interfaces": ["eth0"], "port": given.get("port", 80)},
            "default_target": given.get("default_target", {"ip": "10.0.0.1", "port": 80}),
            "source_routes": [{"source": "10.0.0.0/8", "target": given.get("target", {"ip": "10.0.0.1"})}],
            "health_check": {
                "type": "https",
                "port": 443,
                "expected_codes": given.get("expected_codes", [200]),
                "verify": given.get("verify", True),
            },
        }
        document = {"apiVersion": "revproxy/v1", "proxies": [proxy]}
        try:
            parse_sources({"a.json": json.dumps(document).encode()})
        except ConfigError:
            refused = True
        else:
            refused = False
        assert refused != REFERENCE.is_valid(document), value


ADDRESS_TEXT = (
    st.ip_addresses().map(str)
    | st.ip_addresses(v=6).map(lambda ip: ip.exploded)
    | st.from_regex(r"\A[0-9a-fA-F:.]{1,20}(/[0-9]{1,4})?\Z")
    | st.text(max_size=8)
    | st.tuples(st.ip_addresses().map(str), st.integers(-1, 130)).map(lambda pair: f"{pair[0]}/{pair[1]}")
)


@settings(max_examples=examples(300), deadline=None)
@given(ADDRESS_TEXT)
@example("10.0.0.01")
@example("fe80::1%eth0")
@example("10.0.0.0/255.0.0.0")
@example("::ffff:1.2.3.4")
@example("10.0.0.0/٣")
def test_addresses_and_networks_are_those_of_ipaddress(text: str) -> None:
    formats = Formats()
    try:
        expected = None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        expected = None
    assert formats.known("ip", text) == (expected is not None)
    if expected is not None:
        assert formats.address(text) == expected
    length = text.partition("/")[2]
    try:
        bad = "%" in text or ("/" in text and not (length.isascii() and length.isdecimal() and len(length) < 4))
        network = None if bad else ipaddress.ip_network(text, strict=False)
    except ValueError:
        network = None
    assert formats.known("network", text) == (network is not None)
    if network is not None:
        host_bits = ipaddress.ip_address(text.partition("/")[0]) != network.network_address
        assert formats.network(text) == (network, host_bits)
