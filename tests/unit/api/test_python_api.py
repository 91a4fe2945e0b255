"""The Python API with arguments that mean nothing: every refusal is a RevproxyError, and nothing is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler import Client, RevproxyError
from reconciler.api.client import DaemonClient, NoDaemonError
from reconciler.errors import EditError, UsageError
from reconciler.places import Places, instance_lock
from tests.thorough import examples

FILE = """\
apiVersion: revproxy/v1
settings: {connection_timeout_sec: 60}
proxies:
  - name: web   # mine
    listen: {interfaces: [eth0], port: [80, 81]}
    default_target: [{ip: 10.0.0.1, port: 8080}, {ip: 10.0.0.2}]
    source_routes:
      - {source: 192.0.2.0/24, target: {ip: 10.0.0.7}}
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "config.d"
    directory.mkdir()
    (directory / "web.yaml").write_text(FILE)
    return directory


def client(directory: Path) -> Client:
    return Client(run_dir=directory.parent / "run", config_dir=directory)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(
    "call",
    [
        lambda it: it.add_proxy("x", "eth0", 80, [("10.0.0.1:80", 3)], apply=False),
        lambda it: it.add_proxy("x", "eth0", 80, [], apply=False),
        lambda it: it.add_proxy("x", [], 80, "10.0.0.1", apply=False),
        lambda it: it.attach_interfaces([], apply=False),
        lambda it: it.detach_interfaces((), apply=False),
        lambda it: it.add_proxy("x", "eth0", 80, "10.0.0.1:0", apply=False),
        lambda it: it.add_proxy("x", 5, 80, "10.0.0.1", apply=False),
        lambda it: it.add_proxy("x", "eth0", "80", "10.0.0.1", apply=False),
        lambda it: it.add_proxy("x", "eth0", 80.5, "10.0.0.1", apply=False),
        lambda it: it.add_proxy("x", "eth0", [80, None], "10.0.0.1", apply=False),
        lambda it: it.add_proxy("../x", "eth0", 80, "10.0.0.1", apply=False),
        lambda it: it.add_proxy(None, "eth0", 80, "10.0.0.1", apply=False),
        lambda it: it.add_proxy("x", "eth0", 80, "10.0.0.1", protocol="sctp", apply=False),
        lambda it: it.add_proxy("x", "eth0", 80, {"ip": "10.0.0.1", "weight": object()}, apply=False),
        lambda it: it.add_source_route("web", "192.0.2.0/33", "10.0.0.1", apply=False),
        lambda it: it.add_source_route("web", "198.51.100.0/24", apply=False),
        lambda it: it.add_source_route("nope", "198.51.100.0/24", deny=True, apply=False),
        lambda it: it.remove_source_route("web", "everybody", apply=False),
        lambda it: it.add_target("web", ("10.0.0.9", 80), apply=False),
        lambda it: it.add_target("web", "10.0.0.9", weight=math.nan, apply=False),
        lambda it: it.add_target("web", "10.0.0.9", weight=-1, apply=False),
        lambda it: it.remove_target("web", "10.0.0.77", apply=False),
        lambda it: it.remove_target("web", "localhost", apply=False),
        lambda it: it.set_weight("web", "10.0.0.1:8080", 1 << 70, apply=False),
        lambda it: it.set_weight("web", "10.0.0.1:8080", "heavy", apply=False),
        lambda it: it.attach_interfaces("eth/0", apply=False),
        lambda it: it.attach_interfaces([None], apply=False),
        lambda it: it.detach_interfaces("eth0", proxy="nope", apply=False),
        lambda it: it.set_setting("sync", {1, 2}, apply=False),
        lambda it: it.set_setting("no_such", 1, apply=False),
        lambda it: it.remove_proxy("nope", apply=False),
        lambda it: it.proxy("nope"),
        lambda it: it.apply("/no/such/plan"),
    ],
)
def test_what_can_not_be_is_a_revproxy_error(directory: Path, call: Callable[[Client], object]) -> None:
    before = files(directory)
    with pytest.raises(RevproxyError) as caught:
        call(client(directory))
    assert str(caught.value)
    assert files(directory) == before


@pytest.mark.parametrize(
    "call",
    [
        lambda it: it.connections(target="nowhere"),
        lambda it: it.connections(client="10.0.0.1:99999999"),
        lambda it: it.connections(client="10.0.0.1:²"),
        lambda it: it.connections(state="liquid"),
        lambda it: it.connections(sort="luck"),
        lambda it: it.connections(limit=-1),
        lambda it: it.connection_count(client="::1/129"),
        lambda it: it.flush_connections(target="[::1"),
        lambda it: it.events(kinds=["BOGUS"]),
        lambda it: it.events(kinds="BOGUS"),
        lambda it: it.drain("10.0.0.1:x"),
        lambda it: it.undrain(""),
        lambda it: it.draining("10.0.0.1:70000"),
        lambda _: Client(bpffs_dir=""),
        lambda _: Client(run_dir=5),
        lambda _: Client(state_dir=b"/run"),
        lambda _: Client(require_signed=5),
        lambda _: Client(require_signed=[5]),
        lambda _: Client(require_signed="/one.gpg"),
        lambda it: it.drain(None),
        lambda it: it.undrain(8080),
        lambda it: it.connections(target=["10.0.0.1"]),
        lambda it: it.connection_count(client=b"10.0.0.1"),
        lambda it: it.flush_connections(client=3),
        lambda it: it.flush_connections(proxy=3),
        lambda it: it.connections(limit="3"),
        lambda it: it.events(kinds=None),
        lambda it: it.events(kinds=[3]),
        lambda it: it.explain(None, "10.0.0.1:80"),
        lambda it: it.explain("10.0.0.1", 80),
        lambda it: it.apply(confirm_within_sec="5m"),
        lambda it: it.apply(confirm_within_sec=True),
        lambda it: it.rollback("3"),
        lambda it: it.rollback([]),
    ],
)
def test_what_can_not_be_meant_is_a_usage_error_before_anybody_is_asked(
    directory: Path, call: Callable[[Client], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for way in ("_change", "_read"):  # what is not refused would be done, on this host
        monkeypatch.setattr(Client, way, lambda *_, **__: pytest.fail("somebody was asked"))
    with pytest.raises(UsageError):
        call(client(directory))


def test_a_target_that_is_none_is_named(directory: Path) -> None:
    with pytest.raises(EditError, match="neither IP:PORT nor a mapping"):
        client(directory).add_target("web", [("10.0.0.9:80", 3)], apply=False)  # type: ignore[arg-type]


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4)
anything = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["ip", "port", "weight"]) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
METHODS = {
    "add_proxy": 4,
    "remove_proxy": 1,
    "add_source_route": 3,
    "remove_source_route": 2,
    "add_target": 2,
    "remove_target": 2,
    "set_weight": 3,
    "attach_interfaces": 1,
    "detach_interfaces": 1,
    "set_setting": 2,
}
words = st.sampled_from(["web", "10.0.0.1:8080", "eth0", "192.0.2.0/24", "connection_timeout_sec", 80])


@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(METHODS)), st.data())
def test_no_argument_is_too_strange(directory: Path, name: str, data: Any) -> None:
    arguments = [data.draw(words | anything) for _ in range(METHODS[name])]
    for path in directory.iterdir():
        path.unlink()
    (directory / "web.yaml").write_text(FILE)
    it = client(directory)
    before = files(directory)
    try:
        getattr(it, name)(*arguments, apply=False)
    except RevproxyError:
        assert files(directory) == before
    else:
        it.proxies()  # still a valid configuration


def test_a_daemon_that_comes_up_is_asked_while_its_lock_is_waited_for(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Up(DaemonClient):
        def _request(self, *_: object) -> Any:
            return {"suspended": True, "since": None}

    made, up = client(directory), iter((False, False, True))

    def daemon(**_: bool) -> Up:
        if next(up):
            return Up(directory)
        raise NoDaemonError("not yet")

    monkeypatch.setattr(made, "_daemon", daemon)
    monkeypatch.setattr(made, "_direct", object)
    with instance_lock(Places(run_dir=directory.parent / "run")):
        assert made.suspend().suspended
