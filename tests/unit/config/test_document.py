"""The tree of a file: YAML 1.2 values, positions, aliases and merge keys, JSON."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from reconciler.config.document import Mapping, Sequence, parse
from reconciler.config.notation import line_column, resolve


def root(text: str, file: str = "a.yaml") -> object:
    document = parse(file, text.encode())
    assert document.problems == []
    return document.root


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"), ("no", "no"), ("y", "y"), ("True", True), ("false", False), ("", None), ("~", None),
        ("0o17", 15), ("017", 17), ("0x1F", 31), ("0b1", "0b1"), ("1_000", "1_000"), ("12:30:45", "12:30:45"),
        ("+1", 1), ("-1", -1), ("1.5", 1.5), ("1e3", 1000.0), (".5", 0.5), (".inf", float("inf")),
        ("-.INF", float("-inf")), ("2001-01-01", "2001-01-01"), ("10.0.0.1", "10.0.0.1"), ("::1", "::1"), ("=", "="),
        ("<<", "<<"), ("9" * 200, 1e200),
    ],
)  # fmt: skip
def test_plain_scalars_are_yaml_1_2(text: str, value: object) -> None:
    assert resolve(text) == value
    assert type(resolve(text)) is type(value)
    assert root(f"[{text or '~'}]") == [value]


def test_not_a_number() -> None:
    assert resolve(".nan") != resolve(".nan")


@pytest.mark.parametrize(
    "text",
    [
        "a: {b: [1, x, '2', true, ~, 1.5]}\nc: |\n  d\n   e\n",
        "&x a: *x\nb: [&y {c: 1}, *y]",
        "- !!str 1\n- ! 2\n- 'on'\n- !!float 1",
    ],
)
def test_same_values_as_the_library_loads(text: str) -> None:
    assert root(text) == YAML(typ="safe").load(text)


def test_positions() -> None:
    tree = root("a:\n  - {b: 1, 'ü': \"x\"}\n  - c: [2]\n")
    assert isinstance(tree, Mapping)
    items = tree["a"]
    assert isinstance(items, Sequence)
    assert [line_column(at) for at in (tree.at, tree.key_at("a"), tree.value_at("a"))] == [(1, 1), (1, 1), (2, 3)]
    assert [line_column(at) for at in items.marks] == [(2, 5), (3, 5)]
    assert line_column(items[0].key_at("ü")) == (2, 12)
    assert line_column(items[0].value_at("ü")) == (2, 17)
    assert line_column(items[1]["c"].marks[0]) == (3, 9)


def test_json_positions_are_those_of_yaml() -> None:
    text = '{\n\t"a": [1, -2.5e3,\n   true, null, {"b\\" ]": "\\u00fc"}],\n "c": {}}'
    ours = root(text, "a.json")
    assert ours == json.loads(text)
    yaml = root(text.replace("\t", " "))
    assert isinstance(ours, Mapping)
    assert isinstance(yaml, Mapping)
    assert ours == yaml
    assert (ours.at, ours.marks, ours["a"].marks) == (yaml.at, yaml.marks, yaml["a"].marks)
    assert ours["a"][4].marks == yaml["a"][4].marks


def test_merge_keys() -> None:
    text = "x: &x {a: 1, b: 2}\ny: &y {a: 3, c: 4}\nz: {a: 0, <<: [*y, *x]}\nw: {<<: *x, b: 5}"
    assert root(text) == YAML(typ="safe").load(text)
    tree = root(text)
    assert isinstance(tree, Mapping)
    assert line_column(tree["z"].value_at("c")) == (2, 17)


@pytest.mark.parametrize("text", ["{ip: fd00::1, p: [::1, fd00::]}", "[::]", "a: [b,\n  http://x.y/z]"])
def test_what_only_yaml_1_2_allows_in_brackets(text: str) -> None:
    assert root(text) == YAML(typ="safe", pure=True).load(text)


def test_what_only_yaml_1_2_allows_in_brackets_far_down_a_large_file() -> None:
    tree = root("a:\n" + "  - [1, 2, 3]\n" * 30_000 + "b: {ip: fd00::1}\n")
    assert isinstance(tree, Mapping)
    assert tree["b"] == {"ip": "fd00::1"}


def test_an_alias_is_placed_where_it_stands_and_its_content_where_that_stands() -> None:
    tree = root("x: &x {a: 1}\ny: *x\n")
    assert isinstance(tree, Mapping)
    assert line_column(tree.value_at("y")) == (2, 4)
    assert line_column(tree["y"].value_at("a")) == (1, 11)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "~", "\ufeff", "\n\n"])
def test_a_file_that_says_nothing(text: str) -> None:
    assert root(text) is None
    assert root("" if text[:1] in "#-~" else text, "a.json") is None


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcü #'\"<"), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_json_and_yaml_write_is_read_back(value: object) -> None:
    assert root(json.dumps(value), "a.json") == value
    assert root(json.dumps(value, indent=1, ensure_ascii=False), "a.json") == value
    out = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.width = 1 << 20  # it breaks long flow mappings within plain keys, which is no YAML
    writer.dump(value, out)
    assume(reads_back(out.getvalue(), value))
    assert root(out.getvalue()) == value


def reads_back(text: str, value: object) -> bool:
    """ruamel.yaml does not read all that it writes: ["?0"] as [?0], for one."""
    try:
        return bool(YAML(typ="safe", pure=True).load(text) == value)
    except YAMLError:
        return False
