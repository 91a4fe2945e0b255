"""Which revision is in force is known although somebody was at the map that says it, or at the manifest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.engine import Engine
from reconciler.kernel.store import encode_manifest
from reconciler.places import Places
from reconciler.state.objects import Revision
from tests.unit.runtime.fakelive import FakeLive, write

MANIFEST = bytes(range(16))


@pytest.fixture
def second(engine: Engine, live: FakeLive, places: Places) -> Engine:
    """Of two revisions the second is in force."""
    for port in (8080, 8081):
        write(places, port)
        engine.apply()
    assert live.state.revision.number == 2
    return engine


def damage(live: FakeLive, said: Revision) -> Revision:
    """The map says something else; what is right."""
    right = live.state.revision
    live.state = replace(live.state, revision=said)
    return right


@pytest.mark.parametrize("how", ["zeroed", "number", "time", "manifest"])
def test_what_the_map_says_is_put_right_and_is_no_new_revision(second: Engine, live: FakeLive, how: str) -> None:
    right = live.state.revision
    said = {
        "zeroed": Revision(),
        "number": replace(right, number=7),
        "time": replace(right, applied_ns=5),
        "manifest": replace(right, manifest=MANIFEST),
    }[how]
    damage(live, said)
    (change,) = second.diff().changes
    assert (change.object, change.name) == ("setting", "revision in force")
    assert second.status().revision == 2
    second.apply()
    assert live.state.revision == right
    assert [each.number for each in second.archive.entries()] == [1, 2]
    assert second.diff().changes == ()


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize("how", ["zeroed", "manifest"])
def test_another_process_knows_it_from_the_history(live: FakeLive, places: Places, how: str) -> None:
    right = damage(live, Revision() if how == "zeroed" else replace(live.state.revision, manifest=MANIFEST))
    other = Engine(places, live=live)  # type: ignore[arg-type]
    assert other.diff().changes
    assert other.status().revision == 2
    other.apply()
    assert live.state.revision.manifest == right.manifest
    assert abs(live.state.revision.applied_ns - right.applied_ns) < 10**9
    assert [each.number for each in other.archive.entries()] == [1, 2]


@pytest.mark.usefixtures("second")
def test_what_nobody_knows_any_more_becomes_a_new_revision(live: FakeLive, places: Places) -> None:
    places.history.unlink()
    damage(live, Revision())
    other = Engine(places, live=live)  # type: ignore[arg-type]
    (change,) = other.diff().changes
    assert "not known any more" in str(change.after)
    assert other.status().revision == 0
    other.apply()
    assert live.state.revision.number == 1
    assert other.diff().changes == ()


def test_a_commit_of_another_process_is_no_damage(second: Engine, live: FakeLive, places: Places) -> None:
    write(places, 8082)
    Engine(places, live=live).apply()  # type: ignore[arg-type]
    assert live.state.revision.number == 3
    assert second.diff().changes == ()
    assert second.status().revision == 3


def test_a_failed_commit_leaves_known_what_the_kernel_says(second: Engine, live: FakeLive, places: Places) -> None:
    write(places, 8082)
    live.errors = [RuntimeError("in the middle")]
    with pytest.raises(RuntimeError):
        second.apply()
    write(places, 8081)
    assert second.diff().changes == ()
    assert second.status().revision == 2


def test_a_manifest_that_is_lost_is_brought_back(second: Engine, live: FakeLive) -> None:
    manifest = live.state.revision.manifest
    content = live.blobs.pop(manifest)
    assert encode_manifest(live.known) == content
    live.state = replace(live.state, blobs=frozenset(live.blobs), files_lost=True)
    (change,) = second.diff().changes
    assert change.name == "files in force"
    second.apply()
    assert live.blobs[manifest] == content
    assert live.state.revision.number == 2
