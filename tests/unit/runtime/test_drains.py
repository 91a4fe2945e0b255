"""Drains as they are kept on disk."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path

import pytest

from reconciler.errors import RevproxyError
from reconciler.runtime.drains import Drains
from reconciler.state.objects import Endpoint
from reconciler.state.share import Drain

A, B = (Endpoint(ip_address("10.0.0.1"), port) for port in (80, 81))
EVERY = Endpoint(A.ip, 0)
LIVE = [("web", A), ("api", A), ("web", B)]


@pytest.fixture
def drains(tmp_path: Path) -> Drains:
    return Drains(tmp_path / "state")


def test_they_are_there_for_the_next_process(drains: Drains) -> None:
    assert drains.load() == {}
    assert drains.add(Drain(A, "web"))
    assert drains.add(Drain(B))
    assert not drains.add(Drain(B))
    assert Drains(drains.state_dir).load().keys() == {Drain(A, "web"), Drain(B)}


@pytest.mark.parametrize(
    ("kept", "wanted", "freed", "left"),
    [
        (Drain(A), Drain(A), {("web", A), ("api", A)}, set()),
        (Drain(A), Drain(A, "web"), {("web", A)}, {Drain(A, "api")}),
        (Drain(A, "web"), Drain(A), {("web", A)}, set()),
        (Drain(A, "web"), Drain(A, "api"), set(), {Drain(A, "web")}),
        (Drain(EVERY), Drain(A), {("web", A), ("api", A)}, {Drain(B, "web")}),
        (Drain(EVERY, "web"), Drain(EVERY), {("web", A), ("web", B)}, set()),
        (Drain(B), Drain(EVERY), {("web", B)}, set()),
        (Drain(B), Drain(A), set(), {Drain(B)}),
    ],
)
def test_what_is_taken_back_and_what_stays(
    drains: Drains, kept: Drain, wanted: Drain, freed: set[tuple[str, Endpoint]], left: set[Drain]
) -> None:
    drains.add(kept)
    assert drains.take_back(wanted, LIVE) == freed
    assert drains.load().keys() == left


def test_a_loss_of_power_takes_none_back(drains: Drains, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    drains.add(Drain(A))
    assert [path.name for path in synced] == [".drains.json.new", "state"]


def test_one_of_a_target_that_is_not_there_now(drains: Drains) -> None:
    drains.add(Drain(A))
    assert drains.take_back(Drain(A), []) == frozenset()
    assert drains.load() == {}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'[{"target": "x", "port": 1, "proxy": null, "since": ""}]', b"7", b'["\xff"]']
)
def test_a_file_that_somebody_wrote_to(drains: Drains, content: bytes) -> None:
    """Held, not forgotten: what is drained must not get connections because of it."""
    drains.state_dir.mkdir()
    drains.path.write_bytes(content)
    with pytest.raises(RevproxyError, match=r"drains\.json: not as it was written"):
        drains.load()


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RevproxyError, match="has to outlive this process"):
        Drains(tmp_path / "file" / "state").add(Drain(A))
