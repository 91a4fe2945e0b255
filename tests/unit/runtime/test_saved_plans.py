"""Plans saved and applied later, with a kernel that is a value."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from reconciler import answers
from reconciler.daemon.loop import Loop
from reconciler.engine import Engine
from reconciler.errors import (
    RevproxyError,
    StaleError,
)
from reconciler.places import Places
from reconciler.runtime import savedplan
from tests.unit.runtime.fakelive import FakeLive, write
from tests.unit.runtime.revising import FILES, lose_listeners, port


def test_a_plan_survives_its_file_and_is_applied(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    saved = savedplan.parse(json.loads(json.dumps(answers.to_json(engine.saved_plan()))))
    assert saved.plan.changes == engine.plan().changes
    assert engine.apply(plan=saved).changes == saved.plan.changes
    assert (port(live), engine.archive.entries()[-1].cause) == (2, "plan")
    assert engine.status().waiting == "", "the files are those of the plan"


def test_a_plan_with_other_files_holds_those_there_are(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    saved = engine.saved_plan()
    write(places, 3)
    engine.apply(plan=saved)
    Loop(engine).look(FILES)
    assert port(live) == 2
    assert "saved plan" in engine.status().waiting


def test_a_plan_whose_files_can_not_be_held_is_told(
    engine: Engine, places: Places, live: FakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon would apply those there are."""
    write(places, 1)
    saved = engine.saved_plan()
    write(places, 2)

    def refuse(*_: object) -> None:
        raise RevproxyError("control.json can't be written")

    monkeypatch.setattr(engine.revisions.file, "write", refuse)
    with pytest.raises(RevproxyError, match="it is applied, but not remembered: control"):
        engine.apply(plan=saved)
    assert port(live) == 1


def stale(engine: Engine, saved: answers.SavedPlan, live: FakeLive) -> None:
    before = live.executed
    with pytest.raises(StaleError, match="make it anew"):
        engine.apply(plan=saved)
    assert live.executed == before


def test_a_plan_is_stale_when_the_kernel_or_the_host_moved_on(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    saved = engine.saved_plan()
    there = live.state
    lose_listeners(live)
    stale(engine, saved, live)
    live.state = there
    live.native = True  # the driver can do what it could not
    stale(engine, saved, live)
    live.native = False
    stale(engine, replace(saved, tag="another"), live)
    engine.apply()
    stale(engine, saved, live)


def test_a_plan_is_stale_also_where_it_would_do_the_same_again(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places, 1)
    engine.apply()
    write(places, 2)
    saved = engine.saved_plan()
    for number in (3, 1):
        write(places, number)
        engine.apply()
    stale(engine, saved, live)


@pytest.mark.parametrize("content", ["x", "[]", "{}", '{"format": "revproxy-plan/v1"}', '{"format": 3}'])
def test_what_is_no_plan(tmp_path: Any, content: str) -> None:
    path = tmp_path / "plan"
    path.write_text(content)
    with pytest.raises(RevproxyError, match="plan"):
        savedplan.load(path)


def test_a_plan_of_another_version_is_to_be_made_anew(engine: Engine, places: Places) -> None:
    write(places, 1)
    document = answers.to_json(engine.saved_plan())
    with pytest.raises(StaleError, match=r"made by version 0\.0\.1 .*, this is .*: make it anew"):
        savedplan.parse(document | {"version": "0.0.1"})


def test_a_plan_that_shows_other_than_it_would_do_is_refused(engine: Engine, places: Places, live: FakeLive) -> None:
    write(places, 1)
    saved = engine.saved_plan()
    text = json.dumps(answers.to_json(saved))
    for old, new in ((":80/tcp", ":81/tcp"), ('"action": "create"', '"action": "update"'), ("PutTarget", "FreeTarget")):
        assert old in text
        before = live.executed
        with pytest.raises(RevproxyError, match="edited"):
            engine.apply(plan=savedplan.parse(json.loads(text.replace(old, new))))
        assert live.executed == before
    assert engine.apply(plan=savedplan.parse(json.loads(text))).changes


def test_a_plan_whose_files_are_damaged_is_refused(engine: Engine, places: Places) -> None:
    write(places, 1)
    saved = engine.saved_plan()
    with pytest.raises(RevproxyError, match="damaged"):
        engine.apply(plan=replace(saved, files=(answers.PlanFile("a.yaml", "!"),)))
