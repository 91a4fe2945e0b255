"""Edits of documents written in every style: they say what was meant, and nothing else is touched."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.config import document
from reconciler.config.draft import plain
from reconciler.config.edit import (
    AddRoute,
    AddTarget,
    AttachInterfaces,
    DetachInterfaces,
    Edit,
    RemoveProxy,
    RemoveRoute,
    RemoveTarget,
    SetSetting,
    SetWeight,
    edit,
)
from reconciler.config.spans import Node
from reconciler.config.splice import Source
from tests.thorough import examples
from tests.unit.config.layouts import texts
from tests.unit.config.strategies import PROXY, SETTINGS

TARGET = {"ip": "192.0.2.1", "port": 7}
ROOT = st.fixed_dictionaries(
    {
        "apiVersion": st.just("revproxy/v1"),
        "proxies": st.lists(PROXY, min_size=1, max_size=3, unique_by=lambda proxy: proxy["name"]),
    },
    optional={"settings": SETTINGS.filter(bool)},
)
Way = tuple[str | int, ...]
Wanted = tuple[Edit, Any, Way]  # the edit, what the document says then, and the way to what is edited


@st.composite
def wishes(draw: st.DrawFn, root: Any) -> Wanted:
    """An edit of a document."""
    after = copy.deepcopy(root)
    index = draw(st.integers(0, len(root["proxies"]) - 1))
    proxy = after["proxies"][index]
    name, way = proxy["name"], ("proxies", index)
    choices = ["proxy -", "route +", "target +", "weight", "interface +"]
    routes = proxy.get("source_routes", [])
    choices += ["route -"] * bool(routes) + ["setting"] * ("settings" in root)
    if isinstance(proxy["default_target"], list) and len(proxy["default_target"]) > 1:
        choices.append("target -")
    if len(proxy["listen"]["interfaces"]) > 1:
        choices.append("interface -")
    choice = draw(st.sampled_from(choices))
    if choice == "proxy -":
        del after["proxies"][index]
        return RemoveProxy(name), after, ("proxies",)
    if choice == "route +":
        some = draw(st.sampled_from([(), (TARGET,), (TARGET, {"ip": "192.0.2.2"})]))
        new = {"target": some[0] if len(some) == 1 else list(some)} if some else {"action": "deny"}
        proxy["source_routes"] = [*routes, {"source": "203.0.113.0/24", **new}]
        inner: Way = ("source_routes",) if "source_routes" in root["proxies"][index] else ()
        return AddRoute(name, "203.0.113.0/24", some), after, (*way, *inner)
    if choice == "route -":
        gone = draw(st.sampled_from(routes))
        routes.remove(gone)
        if not routes:
            del proxy["source_routes"]
        return RemoveRoute(name, gone["source"]), after, (*way, "source_routes") if routes else way
    if choice == "setting":
        key, value = draw(st.sampled_from([("fast_path", False), ("max_connections", 77)]))
        after["settings"][key] = value
        return SetSetting(key, value), after, ("settings",)
    if choice.startswith("interface"):
        names = proxy["listen"]["interfaces"]
        way = (*way, "listen", "interfaces")
        if choice == "interface +":
            names.append("new0")
            return AttachInterfaces(("new0",), name), after, way
        gone = draw(st.sampled_from(names))
        names.remove(gone)
        return DetachInterfaces((gone,), name), after, way
    return _target_wish(draw, choice, proxy, after, way)


def _target_wish(draw: st.DrawFn, choice: str, proxy: Any, after: Any, way: Way) -> Wanted:
    """An edit of the default targets, or of one route's."""
    holder, key, route = proxy, "default_target", None
    way = (*way, key)
    with_target = [n for n, each in enumerate(proxy.get("source_routes", [])) if "target" in each]
    if with_target and choice != "target -" and draw(st.booleans()):
        number = draw(st.sampled_from(with_target))
        holder, key = proxy["source_routes"][number], "target"
        route, way = holder["source"], (*way[:-1], "source_routes", number, key)
    found = holder[key] if isinstance(holder[key], list) else [holder[key]]
    if choice == "target +":
        holder[key] = [*found, TARGET]
        return AddTarget(proxy["name"], TARGET, route), after, way
    one = draw(st.sampled_from(found))
    endpoint = {field: one[field] for field in ("ip", "port") if field in one}
    if choice == "target -":
        found.remove(one)
        return RemoveTarget(proxy["name"], endpoint), after, way
    one["weight"] = 4711
    return SetWeight(proxy["name"], endpoint, route, 4711), after, way


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, str, Wanted]:
    root = draw(ROOT)
    suffix, text = draw(texts(root))
    return suffix, text, draw(wishes(root))


def changed_lines(before: str, after: str) -> tuple[int, int]:
    """The first line of ``before`` that an edit touched, and the one behind the last."""
    old, new = before.split("\n"), after.split("\n")
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    stop = len(old)
    shift = len(new) - len(old)
    while stop > start and stop + shift > start and old[stop - 1] == new[stop + shift - 1]:
        stop -= 1
    return start, stop


def node_lines(text: str, suffix: str, way: Way) -> tuple[int, int]:
    """The lines that what is edited stands on, its key's included."""
    source = Source(text, is_json=suffix == ".json")
    node: Node | None = source.root
    at = 0
    for step in way:
        assert node is not None
        if isinstance(step, str):
            number = node.index(step)
            assert number is not None
            key, node = node.entries[number]
            assert key is not None
            at = key.start
        else:
            node = node.items[step]
            at = node.start
    assert node is not None
    return text.count("\n", 0, at), text.count("\n", 0, node.end) + 1


@settings(max_examples=examples(250), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_an_edit_says_what_was_meant_and_touches_nothing_else(case: tuple[str, str, Wanted]) -> None:
    suffix, text, (wanted, meant, way) = case
    path = f"/etc/web{suffix}"
    assert plain(document.parse(path, text.encode()).root) is not None
    (found,) = edit("/etc", {path: text.encode()}, wanted) or (None,)
    if found is None:
        assert document.parse(path, text.encode()).root == meant
        return
    assert found.after is not None
    after = found.after.decode()
    assert document.parse(path, found.after).problems == []
    assert document.parse(path, found.after).root == meant
    bom = "\ufeff"
    start, stop = changed_lines(text, after)
    first, last = node_lines(text.removeprefix(bom), suffix, way)
    assert first <= start, after
    assert stop <= last, after
    assert after.startswith(bom) == text.startswith(bom)
    if "\r\n" in text:
        assert after.count("\n") == after.count("\r\n")


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.sampled_from(["route", "target", "interface"]))
def test_what_is_added_and_removed_again_leaves_no_trace(case: tuple[str, str, Wanted], what: str) -> None:
    suffix, text, _ = case
    path, content = f"/etc/web{suffix}", text.encode()
    proxy = document.parse(path, content).root["proxies"][0]
    name = proxy["name"]
    if what == "route":
        if proxy.get("source_routes") == []:  # with the last route goes the key
            return
        add, remove = AddRoute(name, "203.0.113.0/24", (TARGET,)), RemoveRoute(name, "203.0.113.0/24")
    elif what == "target":
        if not isinstance(proxy["default_target"], list):  # it stays a list
            return
        add, remove = AddTarget(name, TARGET), RemoveTarget(name, TARGET)
    else:
        add, remove = AttachInterfaces(("new0",), name), DetachInterfaces(("new0",), name)
    (added,) = edit("/etc", {path: content}, add)
    assert added.after is not None
    (removed,) = edit("/etc", {path: added.after}, remove)
    assert removed.after == content
