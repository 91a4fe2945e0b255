"""What `--require-signed` holds back, and what it does not: what was in force stays and comes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.daemon.loop import Loop
from reconciler.engine import Engine
from reconciler.errors import UnsignedError
from reconciler.places import Places
from tests.signing import Key, Tree, need, ssh_key
from tests.unit.runtime.fakelive import FakeLive, write
from tests.unit.runtime.revising import port

FILES = frozenset({"files"})


@pytest.fixture
def key(tmp_path: Path) -> Key:
    need("git")
    return ssh_key(tmp_path)


@pytest.fixture
def tree(places: Places) -> Tree:
    return Tree(places.config_dir)


def strict(places: Places, live: FakeLive, key: Key) -> Engine:
    return Engine(replace(places, require_signed=(key.keyring,)), live=live)  # type: ignore[arg-type]


def test_the_last_good_stays_in_force(tree: Tree, key: Key, places: Places, live: FakeLive) -> None:
    engine = strict(places, live, key)
    loop = Loop(engine)
    write(places, 1)
    tree.commit(key)
    loop.look(FILES)
    assert port(live) == 1
    write(places, 2)
    loop.look(FILES)
    assert "a.yaml differs" in engine.status().errors[0].message
    identity = tree.commit()
    loop.look(FILES)
    assert port(live) == 1
    status = engine.status()
    assert f"commit {identity} is not signed" in status.errors[0].message
    assert [(each.type, each.reason) for each in status.conditions] == [
        ("Synced", "FilesNotSigned"),
        ("Degraded", "FilesNotSigned"),
        ("Progressing", "Stuck"),
    ]
    assert [each.result for each in engine.revisions.history()] == ["applied", "refused", "refused"]
    tree.git("commit", "-q", "--amend", "--no-edit", "-S", key=key)
    loop.look(FILES)
    assert port(live) == 2


def test_plans_need_a_signature_as_well(tree: Tree, key: Key, places: Places, live: FakeLive) -> None:
    engine, lenient = strict(places, live, key), Engine(places, live=live)  # type: ignore[arg-type]
    write(places, 1)
    unsaid = lenient.saved_plan()
    with pytest.raises(UnsignedError, match="of no commit"):
        engine.apply(plan=unsaid)
    tree.commit()
    with pytest.raises(UnsignedError, match="is not signed"):
        engine.apply(plan=lenient.saved_plan())
    tree.commit(key)
    plan = engine.saved_plan()
    write(places, 2)
    tree.commit()
    forged = replace(plan, files=lenient.saved_plan().files)
    with pytest.raises(UnsignedError, match="differs"):
        engine.apply(plan=forged)
    engine.apply(plan=plan)
    assert port(live) == 1


def test_a_revision_that_was_never_signed_is_none_to_go_back_to(
    tree: Tree, key: Key, places: Places, live: FakeLive
) -> None:
    lenient = Engine(places, live=live)  # type: ignore[arg-type]
    for number in (1, 2):
        write(places, number)
        tree.commit()
        lenient.apply()
    engine = strict(places, live, key)
    for number in (3, 4):
        write(places, number)
        tree.commit(key)
        engine.apply()
    with pytest.raises(UnsignedError, match="is not signed"):
        engine.revisions.rollback(2)
    assert port(live) == 4
    engine.revisions.rollback(3)
    assert port(live) == 3


def test_what_was_in_force_comes_back_when_a_commit_is_not_confirmed(
    tree: Tree, key: Key, places: Places, live: FakeLive, clock: list[float]
) -> None:
    write(places, 1)
    Engine(places, live=live).apply()  # type: ignore[arg-type]
    engine = strict(places, live, key)
    write(places, 2)
    tree.commit(key)
    engine.apply(confirm_within_sec=10)
    assert port(live) == 2
    clock[0] += 11
    Loop(engine).look(FILES)
    assert port(live) == 1
