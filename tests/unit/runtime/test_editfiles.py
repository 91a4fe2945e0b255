"""Edits on disk: whole at every moment, nobody else's overwritten, taken back when they can't be applied."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from reconciler.config.edit import AddProxy, FileEdit, RemoveProxy, SetWeight
from reconciler.daemon.hold import Hold
from reconciler.errors import ConfigError, EditError, KernelError, LockedError
from reconciler.runtime import editfiles
from reconciler.runtime.editfiles import carry_out, write

WEB = b"""\
apiVersion: revproxy/v1
proxies:
  - name: web
    listen: {interfaces: [eth0], port: 80}
    default_target: {ip: 10.0.0.1, port: 8080, weight: 1} # x
"""
HEAVIER = SetWeight("web", {"ip": "10.0.0.1"}, None, 9)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "web.yaml"
    path.write_bytes(WEB)
    return path


def test_mode_stays_and_no_draft_is_left(file: Path) -> None:
    file.chmod(0o640)
    done = carry_out(file.parent, HEAVIER, None)
    assert [each.path for each in done.edits] == [str(file)]
    assert file.read_bytes() == WEB.replace(b"weight: 1", b"weight: 9")
    assert file.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in file.parent.iterdir()] == ["web.yaml"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_owner_stays(file: Path) -> None:
    os.chown(file, 1234, 4321)
    carry_out(file.parent, HEAVIER, None)
    assert (file.stat().st_uid, file.stat().st_gid) == (1234, 4321)


def test_a_symlink_stays_one(file: Path, tmp_path: Path) -> None:
    directory = tmp_path / "config.d"
    directory.mkdir()
    (directory / "web.yaml").symlink_to("../web.yaml")
    carry_out(directory, HEAVIER, None)
    assert (directory / "web.yaml").readlink() == Path("../web.yaml")
    assert b"weight: 9" in file.read_bytes()


def test_a_file_that_changed_meanwhile_is_left(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = editfiles.config_files.parse_sources

    def parse_while_somebody_writes(*arguments: object) -> object:
        file.write_bytes(WEB + b"# mine\n")
        return parse(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(editfiles.config_files, "parse_sources", parse_while_somebody_writes)
    with pytest.raises(EditError, match="changed by somebody else meanwhile"):
        carry_out(file.parent, HEAVIER, None)
    assert file.read_bytes() == WEB + b"# mine\n"


def test_a_new_file_never_replaces_one(file: Path) -> None:
    with pytest.raises(EditError, match="changed by somebody else"):
        write(FileEdit(str(file), None, b"x"))
    assert file.read_bytes() == WEB


def test_one_that_somebody_makes_in_that_moment_stays(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editfiles, "_content", lambda _path: None)
    with pytest.raises(EditError, match="File exists"):
        write(FileEdit(str(file), None, b"x"))
    assert [path.name for path in file.parent.iterdir()] == ["web.yaml"]
    assert file.read_bytes() == WEB


def test_a_loss_of_power_takes_no_edit_back(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    carry_out(file.parent, HEAVIER, None)
    draft, directory = synced
    assert draft.name.startswith(".web.yaml.")
    assert directory == file.parent


@pytest.mark.parametrize("wanted", [HEAVIER, RemoveProxy("web"), AddProxy({
    "name": "api", "listen": {"interfaces": ["eth0"], "port": 81}, "default_target": {"ip": "10.0.0.1"}
})])  # fmt: skip
def test_what_can_not_be_applied_is_taken_back(file: Path, wanted: object) -> None:
    seen: list[dict[str, bytes]] = []

    def apply() -> None:
        seen.append(editfiles.read(file.parent))
        raise KernelError("attach", "eth0", 22)

    with pytest.raises(KernelError):
        carry_out(file.parent, wanted, apply)  # type: ignore[arg-type]
    assert seen != [{str(file): WEB}]
    assert editfiles.read(file.parent) == {str(file): WEB}
    assert [path.name for path in file.parent.iterdir()] == ["web.yaml"]


def test_what_somebody_changed_while_it_was_applied_is_not_taken_back(file: Path) -> None:
    def apply() -> None:
        file.write_bytes(WEB + b"# mine\n")
        raise KernelError("attach", "eth0", 22)

    with pytest.raises(EditError, match=r"attach eth0.*; the edit could not be taken back: .*somebody else"):
        carry_out(file.parent, HEAVIER, apply)
    assert file.read_bytes() == WEB + b"# mine\n"


def test_nothing_is_written_if_the_result_is_wrong(file: Path) -> None:
    (file.parent / "b.yaml").write_bytes(WEB.replace(b"80}", b"81}").replace(b"weight: 1", b"weight: x"))
    with pytest.raises(ConfigError, match=r"b\.yaml:3:11: there is a proxy 'web' already"):
        carry_out(file.parent, HEAVIER, None)
    assert file.read_bytes() == WEB


def test_two_editors_take_turns(file: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        inside.set()
        go_on.wait(10)

    first = threading.Thread(target=carry_out, args=(file.parent, HEAVIER, slow))
    first.start()
    assert inside.wait(10)
    second = threading.Thread(target=carry_out, args=(file.parent, SetWeight("web", {"ip": "10.0.0.1"}, None, 5), None))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    assert b"weight: 9" in file.read_bytes()
    go_on.set()
    first.join(10)
    second.join(10)
    assert b"weight: 5" in file.read_bytes()


def test_without_a_directory(tmp_path: Path) -> None:
    with pytest.raises(EditError, match="make it first"):
        carry_out(tmp_path / "none", HEAVIER, None)


def test_a_hold_is_one_editors_and_ends_by_itself() -> None:
    now, released = [0.0], []
    hold = Hold(clock=lambda: now[0])
    hold.released = lambda: released.append(now[0])
    token = hold.take(10)
    assert hold.remaining_sec == 10
    with pytest.raises(LockedError):
        hold.take(10)
    hold.release("another")
    assert hold.remaining_sec == 10
    hold.release(token)
    assert (hold.remaining_sec, released) == (0, [0.0])
    hold.take(10)
    now[0] = 11
    assert hold.remaining_sec == 0
    hold.take(10)
