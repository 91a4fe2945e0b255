"""What the files say and no map holds is put in force, kept and taken back like the rest, with a kernel that is a
value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reconciler.answers import Change, Sync
from reconciler.daemon.loop import Loop
from reconciler.engine import Engine
from reconciler.places import Places
from tests.unit.runtime.fakelive import FakeLive, break_
from tests.unit.runtime.revising import FILES, again

HEAD = "apiVersion: revproxy/v1\n"
PROXY = """\
proxies:
  - name: web
    listen: {listen}
    default_target: {{ip: 10.0.0.1, port: 8080{target}}}
{more}"""
LISTEN = "{interfaces: [eth0], port: 80}"
CHECK = "    health_check: {type: tcp}\n"


def proxy(listen: str = LISTEN, *, target: str = "", more: str = "") -> str:
    return PROXY.format(listen=listen, target=target, more=more)


BARE = HEAD + proxy()
CHECKED = HEAD + proxy(more=CHECK)
EDITS: dict[str, tuple[str, str, Any, Any]] = {
    CHECKED: ("target", "web/10.0.0.1:8080", None, "tcp"),
    HEAD + proxy(target=", health_check: {type: tcp}"): ("target", "web/10.0.0.1:8080", None, "tcp"),
    HEAD + "settings: {metrics: {enabled: true}}\n" + proxy(): ("setting", "metrics", False, True),
    HEAD + "settings: {takeover: true}\n" + proxy(): ("setting", "takeover", False, True),
    HEAD + "settings: {xdp_mode: 'off'}\n" + proxy(): ("setting", "xdp_mode", "auto", "off"),
    HEAD + proxy("{interfaces: [eth0, eth9], port: 80}"): ("proxy", "web", ["eth0"], ["eth0", "eth9"]),
    HEAD + proxy("{interfaces: [eth0], addresses: [192.0.2.1], port: 80}"): (
        "proxy",
        "web",
        "the interfaces' own",
        ["192.0.2.1"],
    ),
}
"""Texts instead of BARE, and what that changes: object, name, and the value that differs before and after."""


def put(places: Places, text: str, name: str = "a.yaml") -> Path:
    path = places.config_dir / name
    path.write_text(text)
    return path


def value(side: Any) -> Any:
    """The one that differs."""
    while isinstance(side, dict):
        side = side.get("type", next(iter(side.values())))
    return side


def told(change: Change) -> tuple[str, str, Any, Any]:
    return change.object, change.name, value(change.before), value(change.after)


def checked(engine: Engine) -> set[str]:
    """The targets that the engine has checked."""
    return {str(target) for _, target in engine.steering._checks or {}}


@pytest.mark.parametrize("text", EDITS, ids=lambda text: text.partition("\n")[2][:50])
@pytest.mark.parametrize("another", [False, True], ids=["same process", "another"])
def test_an_edit_of_it_is_a_difference_until_it_is_applied(
    places: Places, live: FakeLive, text: str, another: bool
) -> None:
    put(places, BARE)
    engine = again(places, live)
    engine.apply()
    path = put(places, text)
    if another:
        engine = again(places, live)
    assert engine.status().sync is Sync.OUT_OF_SYNC
    (change,) = engine.diff().changes
    assert (change.action, *told(change)) == ("update", *EDITS[text])
    assert change.place.startswith(f"{path}:")
    json.dumps([change.before, change.after])
    done = engine.apply()
    assert (done.revision, done.changes) == (2, (change,))
    assert engine.plan().changes == again(places, live).plan().changes == ()
    assert (engine.revisions.history()[-1].files, engine.status().sync) == (("a.yaml",), Sync.SYNCED)
    # And back.
    engine.revisions.rollback()
    assert live.sources(live.state.revision) == {"a.yaml": BARE.encode()}
    assert [each.after for each in engine.diff().changes] == [change.after]


@pytest.mark.parametrize(
    "text", [BARE + "# A word.\n", BARE.replace("[eth0]", "[ eth0 ]"), HEAD + "settings: {}\n" + proxy()]
)
def test_what_says_the_same_in_other_words_is_none(engine: Engine, places: Places, live: FakeLive, text: str) -> None:
    put(places, BARE)
    engine.apply()
    put(places, text)
    for each in (engine, again(places, live)):
        assert each.plan().changes == ()
        assert each.apply().revision == 1
    assert live.executed == 1


def test_files_that_break_later_take_nothing_of_it_back(engine: Engine, places: Places, live: FakeLive) -> None:
    put(places, BARE)
    loop = Loop(engine)
    loop.look(FILES)
    put(places, CHECKED)
    loop.look(FILES)
    assert checked(engine) == {"10.0.0.1:8080"}
    break_(places)
    loop.look(FILES)
    assert checked(engine) == {"10.0.0.1:8080"}
    later = again(places, live)
    Loop(later).look(frozenset({"start"}))
    assert checked(later) == {"10.0.0.1:8080"}
    assert (places.last_good / "a.yaml").read_text() == CHECKED


def test_manual_waits_with_it_and_then_keeps_it(engine: Engine, places: Places) -> None:
    manual = HEAD + "settings: {sync: manual}\n"
    metrics = HEAD + "settings: {sync: manual, metrics: {enabled: true}}\n"
    put(places, manual + proxy())
    engine.apply()
    loop = Loop(engine)
    put(places, metrics + proxy(more=CHECK))
    loop.look(FILES)
    engine.status()
    assert engine.settings is not None
    assert (checked(engine), engine.settings.metrics.enabled) == (set(), False)
    engine.apply()
    loop.look(frozenset({"reload"}))
    assert (checked(engine), engine.settings.metrics.enabled) == ({"10.0.0.1:8080"}, True)


def test_it_waits_to_be_confirmed(engine: Engine, places: Places, clock: list[float]) -> None:
    put(places, BARE)
    engine.apply()
    put(places, CHECKED)
    assert engine.apply(confirm_within_sec=30).unconfirmed is not None
    assert checked(engine) == {"10.0.0.1:8080"}
    clock[0] += 31
    engine.revisions.expire()
    assert checked(engine) == set()


def test_settings_and_proxies_may_move_between_files(engine: Engine, places: Places, live: FakeLive) -> None:
    settings = "settings: {metrics: {enabled: true}}\n"
    put(places, HEAD + settings + proxy(more=CHECK))
    put(places, HEAD, "b.yaml")
    engine.apply()
    put(places, CHECKED)
    put(places, HEAD + settings, "b.yaml")
    for each in (engine, again(places, live)):
        assert each.diff().changes == ()
    put(places, HEAD, "b.yaml")
    for each in (engine, again(places, live)):
        assert [told(change) for change in each.diff().changes] == [("setting", "metrics", True, False)]


def test_beside_a_difference_of_the_kernel_it_is_one_change(engine: Engine, places: Places) -> None:
    put(
        places, HEAD + proxy(target="}, {ip: 10.0.0.1, port: 8081").replace("{ip", "[{ip", 1).replace("8081}", "8081}]")
    )
    engine.apply()
    two = HEAD + proxy(target=", weight: 3}, {ip: 10.0.0.1, port: 8082", more=CHECK)
    put(places, two.replace("{ip", "[{ip", 1).replace("8082}", "8082}]"))
    found = {(each.action, each.name.rpartition("/")[2]): each for each in engine.diff().changes}
    assert found.keys() == {("update", "10.0.0.1:8080"), ("delete", "10.0.0.1:8081"), ("create", "10.0.0.1:8082")}
    update = found["update", "10.0.0.1:8080"]
    assert (update.before["weight"], update.after["weight"]) == (1, 3)
    assert (update.before["health_check"], update.after["health_check"]["type"]) == (None, "tcp")


def test_of_a_kernel_that_has_lost_the_files_nothing_is_said(
    engine: Engine, places: Places, live: FakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(places, BARE)
    engine.apply()
    put(places, CHECKED)
    monkeypatch.setattr(live, "sources", lambda _revision: None)
    assert again(places, live).diff().changes == ()
