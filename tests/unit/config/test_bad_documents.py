"""Files that are no documents, or more of one than anybody means: encoding, aliases, size, JSON."""

from __future__ import annotations

import pytest

from reconciler.config import document, parse_sources
from reconciler.errors import ConfigError

# Line 1 to 12; a case replaces some of its text.
from tests.unit.config.refused import errors


def test_not_utf8() -> None:
    assert errors(web="apiVersion: é\n".encode() + b"name: \xff\n") == ["web.yaml:2:7: not UTF-8: byte 0xff"]


def test_alias_bomb() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 12)]
    assert errors(bomb="\n".join(lines)) == ["bomb.yaml:6:10: aliases stand for more than 100000 values"]


def test_alias_chain_is_as_deep_as_what_it_stands_for() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 100)]
    assert errors(chain="\n".join(lines)) == ["chain.yaml:32:12: nested deeper than 32 levels"]


def test_more_values_than_a_file_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MAX_VALUES", 5)
    assert errors(list="[1, 2, 3, 4,\n5]") == ["list.yaml:2:2: more than 5 values in one file"]
    monkeypatch.setattr(document, "MAX_VALUES", 7)
    assert errors(list="[1, 2, 3, 4,\n5]")[0].startswith("list.yaml:1:1: the file must be a mapping")


def test_json() -> None:
    for text, expected in {
        '{"apiVersion": "revproxy/v1",\n "proxies": [1,]}': "2:16: not JSON: ",
        '{"apiVersion": "revproxy/v1"': "1:29: not JSON: ",
        '{"apiVersion": "revproxy/v1",\n "proxies": NaN}': "2:13: not JSON: NaN",
        "[" * 100_000: "1:33: nested deeper than 32 levels",
        '{"a":\n 1' + "0" * 5000 + "}": "2:2: a number of thousands of digits",
        '{"apiVersion":"revproxy/v1",\n\t"prxies":[]}': "2:2: unknown key 'prxies' (did you mean 'proxies'?)",
        '{"apiVersion":"revproxy/v1",\n\n  "proxies": [{}, "a\\n\\"b"]}': "3:15: the key 'default_target' is missing",
        '{"apiVersion":"revproxy/v1",\n "\\ud800": 1}': "2:2: unknown key '\\ud800' (known: apiVersion, ",
    }.items():
        with pytest.raises(ConfigError) as caught:
            parse_sources({"a.json": text.encode()})
        assert str(caught.value.problems[0]).startswith(f"a.json:{expected}")
        str(caught.value).encode()
