"""A machine that is stopped: by its limit, and by itself. A shell that keeps a processor busy stands for QEMU."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from tests.vm import __main__ as command
from tests.vm import results
from tests.vm.machine import Machine, MachineError

BUSY = 'n=0; until [ -e "$1/share/poweroff" ] || [ -e "$1/die" ]; do n=$((n + 1)); done'


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """One that is up, as far as anybody can tell."""
    found = Machine(tmp_path, "6.1", "amd64")
    (found.share / "jobs").mkdir(parents=True)
    with subprocess.Popen(["sh", "-c", BUSY, "sh", found.place]) as process:
        (found.place / "pid").write_text(str(process.pid))
        (found.share / "up").touch()
        yield found
        (found.place / "die").touch()


def test_at_its_limit_it_is_stopped_and_what_it_cost_is_recorded(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = machine.folder / "kernels" / "6.1-amd64"
    kernel.mkdir(parents=True)
    (kernel / "release").write_text("6.1.0-1-amd64\n")
    one = "tests/kernel/test_xdp.py::one"
    entry = {"id": one, "outcome": "passed", "seconds": 1, "reason": "", "properties": {}}
    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(results, "read_report", lambda _: {one: entry})
    monkeypatch.setattr(results, "keep", lambda _, result, **__: kept.append(result))
    monkeypatch.setattr("tests.vm.machine.pack_checkout", lambda *_: None)
    began, had = time.monotonic(), Machine.processor_sec
    monkeypatch.setattr(Machine, "processor_sec", lambda self: had(self) and 100 * (time.monotonic() - began))
    assert command.test(machine, 1, ["XDP"], record=True) == 1, "not every row was done"
    assert "vm: not done in 1 s: the machine was stopped" in capsys.readouterr().err
    assert kept[0]["processor_sec"] > 0
    assert kept[0]["features"] == {"native and generic XDP on veth": ANY}
    assert machine.pid() is None


def test_of_one_that_ends_by_itself_what_it_cost_is_known(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    read, found = Machine.processor_sec, list[float]()

    def until_it_ends(self: Machine) -> float:
        """It ends between the look whether it runs and this one, which finds nothing any more."""
        found.append(0.0 if any(found) else read(self))
        return found[-1]

    monkeypatch.setattr(Machine, "processor_sec", until_it_ends)
    timer = threading.Timer(1.2, (machine.place / "die").touch)
    timer.start()
    with pytest.raises(MachineError, match=r"^the machine ended") as caught:
        machine.run("true", 3600, tests=None)
    timer.join()
    assert caught.value.processor_sec == sum(found) > 0
    assert caught.value.died


def test_one_that_somebody_stopped_has_not_died(machine: Machine) -> None:
    timer = threading.Timer(0.3, machine.stop)
    timer.start()
    with pytest.raises(MachineError, match=r"^the machine ended") as caught:
        machine.run("true", 3600, tests=None)
    timer.join()
    assert not caught.value.died
