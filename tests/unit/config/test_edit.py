"""Edits by example: how each looks in the file, and what is refused."""

from __future__ import annotations

import json

import pytest

from reconciler.config.edit import (
    AddProxy,
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
from reconciler.errors import ConfigError, EditError

PATH = "/etc/web.yaml"
WEB = """\
apiVersion: revproxy/v1  # v1
proxies:
  # the shop
  - name: web
    listen: {interfaces: [eth0], port: 80}
    default_target:
      ip: 10.0.0.1       # the old one

      port: 8080
    mode: dnat
  # the end
"""
TARGET = {"ip": "10.0.0.2", "port": 80}


def after(text: str, wanted: Edit, path: str = PATH) -> str:
    """The one file after an edit."""
    (found,) = edit("/etc", {path: text.encode()}, wanted)
    assert found.before == text.encode()
    assert found.after is not None
    return found.after.decode()


def test_a_block_mapping_becomes_a_list() -> None:
    assert after(WEB, AddTarget("web", TARGET)) == WEB.replace(
        """\
      ip: 10.0.0.1       # the old one

      port: 8080
""",
        """\
      - ip: 10.0.0.1       # the old one

        port: 8080
      - ip: 10.0.0.2
        port: 80
""",
    )


def test_a_flow_mapping_becomes_a_list_on_its_line() -> None:
    text = WEB.replace("\n      ip: 10.0.0.1       # the old one\n\n      port: 8080", " {ip: 10.0.0.1}  # the old one")
    assert "default_target: [{ip: 10.0.0.1}, {ip: 10.0.0.2, port: 80}]  # the old one\n" in after(
        text, AddTarget("web", TARGET)
    )


def test_json_keeps_its_indentation() -> None:
    root = {
        "apiVersion": "revproxy/v1",
        "proxies": [
            {"name": "web", "listen": {"interfaces": ["eth0"], "port": 80}, "default_target": {"ip": "10.0.0.1"}}
        ],
    }
    text = json.dumps(root, indent="\t") + "\n"
    root["proxies"][0]["default_target"] = [{"ip": "10.0.0.1"}, TARGET]  # type: ignore[index]
    assert after(text, AddTarget("web", TARGET), "/etc/web.json") == json.dumps(root, indent="\t") + "\n"


def test_a_route_is_written_like_those_beside_it() -> None:
    first = after(WEB, AddRoute("web", "10.0.0.0/8", (TARGET,)))
    added = """\
    mode: dnat
    source_routes:
      - source: 10.0.0.0/8
        target: {ip: 10.0.0.2, port: 80}
"""
    assert first == WEB.replace("    mode: dnat\n", added)
    denied = after(first, AddRoute("web", "fd00::/8"))
    assert denied == first.replace(added, added + '      - source: "fd00::/8"\n        action: deny\n')
    assert after(after(denied, RemoveRoute("web", "fd00::/8")), RemoveRoute("web", "10.0.0.0/8")) == WEB


def test_weights() -> None:
    assert after(WEB, SetWeight("web", {"ip": "10.0.0.1"}, None, 7)) == WEB.replace(
        "      port: 8080\n", "      port: 8080\n      weight: 7\n"
    )
    with_weight = WEB.replace("port: 8080", "weight: 0b1").replace("0b1", "0x10   # share")
    assert "weight: 7   # share\n" in after(with_weight, SetWeight("web", {"ip": "10.0.0.1"}, None, 7))


def test_a_file_may_end_without_a_line_break() -> None:
    text = WEB.removesuffix("\n  # the end\n")
    assert after(text, AddRoute("web", "10.0.0.0/8")).endswith("{source: 10.0.0.0/8, action: deny}")
    assert after(after(text, AddRoute("web", "10.0.0.0/8")), RemoveRoute("web", "10.0.0.0/8")) == text


@pytest.mark.parametrize(
    ("routes", "stays"),
    [
        ("[{source: 10.0.0.0/8, action: deny}]  # them", ""),
        ("\n  - source: 10.0.0.0/8  # them\n    action: deny\n", ""),
        ("[{source: 10.0.0.0/8, action: deny}]\n  # the name", "# the name\n  "),
        ("\n  # enemies\n  - {source: 10.0.0.0/8, action: deny}\n  # the name", "# enemies\n  # the name\n  "),
    ],
    ids=["flow", "block", "comment", "comments"],
)
def test_the_last_route_goes_from_beside_the_dash(routes: str, stays: str) -> None:
    """What comes next stands there then."""
    text = "apiVersion: revproxy/v1\nproxies:\n- {0}name: web\n  default_target: {{ip: 10.0.0.1}}\n"
    found = after(text.format(f"source_routes: {routes}\n  "), RemoveRoute("web", "10.0.0.0/8"))
    assert found == text.format(stays)


def test_the_last_proxy_leaves_its_file_with_its_comments() -> None:
    assert after(WEB, RemoveProxy("web")) == "apiVersion: revproxy/v1  # v1\nproxies: []\n  # the shop\n  # the end\n"


def test_a_new_proxy_gets_a_file_which_goes_with_it() -> None:
    proxy = {
        "name": "dns",
        "listen": {"interfaces": ["eth0"], "port": [53, 54], "protocol": "udp"},
        "default_target": [TARGET, {"ip": "fd00::1"}],
    }
    (made,) = edit("/etc", {PATH: WEB.encode()}, AddProxy(proxy))
    assert (made.path, made.before) == ("/etc/50-dns.yaml", None)
    assert made.after is not None
    assert (
        made.after.decode()
        == """\
apiVersion: revproxy/v1

proxies:
  - name: dns
    listen:
      interfaces: [eth0]
      port: [53, 54]
      protocol: udp
    default_target:
      - {ip: 10.0.0.2, port: 80}
      - {ip: "fd00::1"}
"""
    )
    (gone,) = edit("/etc", {PATH: WEB.encode(), made.path: made.after}, RemoveProxy("dns"))
    assert (gone.path, gone.after) == (made.path, None)
    commented = made.after + b"# mine\n"
    (kept,) = edit("/etc", {made.path: commented}, RemoveProxy("dns"))
    assert kept.after == b"apiVersion: revproxy/v1\n\nproxies: []\n# mine\n"
    (other,) = edit("/etc", {made.path: WEB.encode()}, AddProxy(proxy))
    assert other.path == "/etc/50-dns-2.yaml"


@pytest.mark.parametrize("name", ["../../evil", "a/b", "50", "on", "1e3"])
def test_odd_names_make_no_odd_paths(name: str) -> None:
    (made,) = edit("/etc", {}, AddProxy({"name": name, "default_target": TARGET}))
    assert made.path.startswith("/etc/50-")
    assert made.path.count("/") == 2
    assert json.dumps(name).encode() in made.after or name.encode() in made.after  # type: ignore[operator]


def test_settings_are_set_where_they_are_or_in_a_file_of_their_own() -> None:
    (made,) = edit("/etc", {PATH: WEB.encode()}, SetSetting("fast_path", False))
    assert made.path == "/etc/00-settings.yaml"
    assert made.after == b"apiVersion: revproxy/v1\n\nsettings: {fast_path: false}\n"
    (again,) = edit("/etc", {made.path: made.after}, SetSetting("fast_path", True))
    assert again.after == made.after.replace(b"false", b"true")
    assert edit("/etc", {made.path: made.after}, SetSetting("fast_path", False)) == ()


def test_interfaces_of_one_proxy_and_of_all() -> None:
    other = WEB.replace("web", "api")
    files = {PATH: WEB.encode(), "/etc/api.yaml": other.encode()}
    assert len(edit("/etc", files, AttachInterfaces(("eth1", "eth0")))) == 2
    (one,) = edit("/etc", files, AttachInterfaces(("eth1",), "api"))
    assert b"[eth0, eth1]" in one.after  # type: ignore[operator]
    with pytest.raises(EditError, match="proxy api listens on nothing else than eth0"):
        edit("/etc", files, DetachInterfaces(("eth0",), "api"))


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (RemoveProxy("wbe"), r"no proxy 'wbe' in /etc \(did you mean 'web'\?\)"),
        (AddProxy({"name": "web"}), "a proxy 'web' already, in /etc/web.yaml"),
        (RemoveRoute("web", "10.0.0.0/8"), "no route for 10.0.0.0/8"),
        (AddTarget("web", {"ip": "10.0.0.1", "port": 8080}), "has the target 10.0.0.1:8080 already"),
        (RemoveTarget("web", {"ip": "10.0.0.1"}), "the only target"),
        (RemoveTarget("web", {"ip": "10.0.0.1", "port": 1}), "has no target 10.0.0.1:1, .* it has 10.0.0.1:8080"),
        (AddTarget("web", TARGET, "10.0.0.0/8"), "no route for 10.0.0.0/8"),
    ],
)
def test_refusals(wanted: Edit, words: str) -> None:
    with pytest.raises(EditError, match=words):
        edit("/etc", {PATH: WEB.encode()}, wanted)


ALIASED = """\
apiVersion: revproxy/v1
proxies:
  - name: one
    listen: &listen {interfaces: [eth0], port: 80}
    default_target: &targets [{ip: 10.0.0.1}]
  - name: two
    listen: {<<: *listen, port: 81}
    default_target: *targets
"""


@pytest.mark.parametrize(
    ("wanted", "place", "reason"),
    [
        (AddTarget("one", TARGET), "5:21", "something else as well"),
        (AddTarget("two", TARGET), "8:21", "it is an alias"),
        (AttachInterfaces(("eth1",), "two"), "4:34", "by an alias or a merge"),
    ],
)
def test_what_is_shared_is_not_edited(wanted: Edit, place: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        edit("/etc", {PATH: ALIASED.encode()}, wanted)
    assert str(refused.value).startswith(f"{PATH}:{place}: this can't be edited in place: ")
    assert reason in str(refused.value)


def test_a_file_that_can_not_be_read_is_told_of() -> None:
    with pytest.raises(ConfigError, match=r"/etc/web\.yaml:1:11: not YAML"):
        edit("/etc", {PATH: b"proxies: ["}, RemoveProxy("web"))
