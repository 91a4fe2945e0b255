"""Compiled programs kept on disk: given back as they were, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reconciler.kernel import codecache

CODE = {"xdp_ingress": b"\x95" + bytes(7), "tc_ingress": bytes(range(256))}


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    codecache.write(tmp_path / "new", "abc", CODE)
    assert codecache.read(tmp_path / "new", "abc") == CODE
    assert codecache.read(tmp_path / "new", "other") is None


@pytest.mark.parametrize("damage", [lambda text: text[:-20], lambda text: text.replace("lQ", "lA"), lambda _text: "[]"])
def test_a_damaged_file_is_not_there(tmp_path: Path, damage: object) -> None:
    codecache.write(tmp_path, "abc", CODE)
    file = tmp_path / "abc.json"
    damaged = damage(file.read_text())  # type: ignore[operator]
    assert damaged != file.read_text()
    file.write_text(damaged)
    assert codecache.read(tmp_path, "abc") is None


def test_a_folder_others_can_write_to_is_neither_read_nor_written(tmp_path: Path) -> None:
    codecache.write(tmp_path, "abc", CODE)
    tmp_path.chmod(0o777)
    assert codecache.read(tmp_path, "abc") is None
    codecache.write(tmp_path, "def", CODE)
    assert not (tmp_path / "def.json").exists()


def test_the_oldest_go(tmp_path: Path) -> None:
    for number in range(codecache.KEPT + 2):
        codecache.write(tmp_path, f"set{number}", CODE)
        os.utime(tmp_path / f"set{number}.json", (number, number))
    codecache.write(tmp_path, "last", CODE)
    left = {path.stem for path in tmp_path.glob("*.json")}
    assert len(left) == codecache.KEPT
    assert {"last", f"set{codecache.KEPT + 1}"} <= left
    assert "set0" not in left


def test_where(tmp_path: Path) -> None:
    assert codecache.directory({}) == codecache.DIRECTORY
    assert codecache.directory({"CACHE_DIRECTORY": "/var/cache/one"}) == Path("/var/cache/one")
    assert codecache.directory({"CACHE_DIRECTORY": "/x", "REVPROXY_CACHE_DIR": str(tmp_path)}) == tmp_path
    assert codecache.directory({"REVPROXY_CACHE_DIR": ""}) is None
