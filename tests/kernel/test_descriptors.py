"""What can't be made leaves no descriptor open: a commit that fails is tried again and again."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.errors import KernelError
from reconciler.kernel import bpf, eventring, layout, program
from reconciler.kernel.compiler import ObjectCode
from reconciler.kernel.gateway import FaultGateway, Gateway
from reconciler.kernel.identity import LoadedProgram
from reconciler.kernel.newmaps import create_map
from reconciler.kernel.program import TABLES, Programs
from reconciler.kernel.rescue import rescue
from reconciler.state.facts import ProgramInfo
from reconciler.state.objects import ProgramState
from reconciler.state.operations import LoadProgram
from tests.kernel.kernelmaps import MAX_CONNECTIONS, private_maps, small_arrays

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def _no_descriptor_left() -> Iterator[None]:
    before = sorted(Path("/proc/self/fd").iterdir())
    yield
    assert sorted(Path("/proc/self/fd").iterdir()) == before


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes nothing into its maps."""

    def refuse(*_arguments: Any) -> None:
        raise KernelError("update", "map", errno.ENOMEM)

    monkeypatch.setattr(bpf, "map_update", refuse)


@pytest.mark.parametrize("failing", range(1, len(TABLES) + 1))
def test_connection_tables_of_another_size(monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    monkeypatch.setattr(program, "compile_programs", lambda _source: None)
    gateway = FaultGateway(fail_at=failing)
    with small_arrays(), private_maps() as maps:
        programs = Programs(maps, Path("nowhere"), gateway)
        operation = LoadProgram(ProgramState("one", MAX_CONNECTIONS), ProgramState("two", 2 * MAX_CONNECTIONS))
        with pytest.raises(KernelError):
            programs.stage(operation)
    assert gateway.calls[-1] == ("pin", f"map {TABLES[failing - 1]}_next")


@pytest.mark.usefixtures("refusing")
@pytest.mark.parametrize("name", ["connection4", "way"])
def test_map_with_a_head(name: str) -> None:
    with pytest.raises(KernelError):
        create_map(layout.MAPS[name], MAX_CONNECTIONS)


@pytest.mark.usefixtures("refusing")
def test_program_that_others_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "load_program", lambda *_arguments: os.dup(0))
    with pytest.raises(KernelError):
        program.load_set(ObjectCode("", {}), {}, Gateway())


def test_ring_that_there_is_no_room_for_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon tries it every second."""

    def refuse(*_arguments: Any, **_more: Any) -> None:
        raise OSError(errno.ENOMEM, "no room")

    with small_arrays(), private_maps() as maps, monkeypatch.context() as patched:
        patched.setattr(mmap, "mmap", refuse)
        for _made_and_found in range(2):
            with pytest.raises(KernelError, match="map into memory map events: ENOMEM"):
                eventring.provide(maps["event_ring"])


def few_descriptors(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """The limit of this process is reached with the second one that is opened."""
    given: list[int] = []

    def opened(_what: object) -> int:
        if given:
            raise KernelError("open", "pin", errno.EMFILE)
        given.append(os.dup(0))
        return given[0]

    monkeypatch.setattr(bpf, call, opened)


def test_programs_of_a_set_that_not_all_can_be_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with small_arrays(), private_maps() as maps:
        programs = Programs(maps, Path("nowhere"))
        monkeypatch.setattr(LoadedProgram, "of", lambda fd: LoadedProgram(fd, ProgramInfo(1, "", "")))
        few_descriptors(monkeypatch, "obj_get")
        with pytest.raises(KernelError, match="EMFILE"):
            programs._load_pins(tmp_path)
        programs.close()


def test_maps_that_are_found_again_by_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    with small_arrays(), private_maps() as maps:
        info = bpf.map_info(maps["target"].fd)
        monkeypatch.setattr("reconciler.kernel.rescue.maps_of", lambda _program: frozenset({1, 2}))
        monkeypatch.setattr(bpf, "map_info", lambda _fd: info)
        few_descriptors(monkeypatch, "map_by_id")
        with pytest.raises(KernelError, match="EMFILE"):
            rescue(maps, [1])
