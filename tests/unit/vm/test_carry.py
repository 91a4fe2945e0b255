"""A machine that dies: its test has failed, and what it had not come to is done in another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.vm import report
from tests.vm.carry import DEATHS, Outcome, carry_out
from tests.vm.machine import Machine, MachineError


class Played(Machine):
    """A machine that carries out one of ``acts`` instead of each command, or instead of coming up."""

    acts: list[Callable[[], int]]

    def start(self, *_: Any) -> None:
        self.share.mkdir(parents=True, exist_ok=True)
        if self.acts[0] is refuse:
            self.acts.pop(0)()

    def run(self, *_: Any) -> int:
        return self.acts.pop(0)()

    @property
    def boot_sec(self) -> float:
        return 5.0

    def processor_sec(self) -> float:
        return 1.0


def refuse() -> int:
    """It does not come up."""
    raise MachineError("it did not come up")


@pytest.fixture
def machine(tmp_path: Path) -> Played:
    return Played(tmp_path, "6.1", "amd64")


def reports(machine: Machine, *outcomes: tuple[str, str], error: MachineError | None = None) -> Callable[[], int]:
    """What happens in the machine: ``error`` at its end."""

    def act() -> int:
        with (machine.share / "report.jsonl").open("w") as stream:
            for name, outcome in outcomes:
                line = {"id": name, "outcome": outcome, "seconds": 1, "reason": "", "properties": {}}
                stream.write(json.dumps(line) + "\n")
        if error:
            raise error
        return 0

    return act


def played(machine: Played, *acts: Callable[[], int]) -> tuple[Outcome, list[str]]:
    said: list[str] = []
    object.__setattr__(machine, "acts", list(acts))
    outcome = carry_out(machine, ["a.py"], 100, said.append)
    assert machine.acts == [], "as many machines as expected"
    return outcome, said


def outcomes(outcome: Outcome) -> dict[str, tuple[str, str]]:
    return {name: (entry["outcome"], entry["reason"]) for name, entry in outcome.found.items()}


DEAD = MachineError("the machine ended.", 8.0, died=True)


def test_what_is_left_when_a_machine_dies_is_done_in_another(machine: Played) -> None:
    first = reports(machine, ("a.py::one", "passed"), ("a.py::two", "started"), error=DEAD)
    outcome, said = played(machine, first, reports(machine, ("a.py::three", "passed")))
    assert outcomes(outcome) == {
        "a.py::one": ("passed", ""),
        "a.py::two": ("failed", "the machine died in it"),
        "a.py::three": ("passed", ""),
    }
    assert said == ["the machine ended.", "a.py::two: the machine died in it"]
    assert (outcome.boot_sec, outcome.processor_sec) == (5.0, 7.0)
    assert (machine.share / "done").read_text() == "a.py::one\na.py::two\n"


def test_a_machine_that_was_stopped_is_not_followed_by_another(machine: Played) -> None:
    outcome, _ = played(machine, reports(machine, ("a.py::one", "started"), error=MachineError("not done in 1 s", 2.0)))
    assert outcomes(outcome) == {"a.py::one": ("failed", "it did not end")}


def test_machines_that_die_again_and_again_are_given_up(machine: Played) -> None:
    acts = [reports(machine, (f"a.py::{number}", "started"), error=DEAD) for number in range(DEATHS)]
    outcome, _ = played(machine, *acts)
    assert set(outcomes(outcome).values()) == {("failed", "the machine died in it")}
    assert len(outcome.found) == DEATHS


def test_what_is_known_stays_when_the_next_one_does_not_come_up(machine: Played) -> None:
    outcome, said = played(machine, reports(machine, ("a.py::one", "started"), error=DEAD), refuse)
    assert outcomes(outcome) == {"a.py::one": ("failed", "the machine died in it")}
    assert said[-1] == "it did not come up"
    with pytest.raises(MachineError, match="it did not come up"):
        played(machine, refuse)


def test_a_machine_that_dies_before_its_first_test_is_the_last(machine: Played) -> None:
    """Its report is not the one of the machine before."""

    def die() -> int:
        raise DEAD

    outcome, _ = played(machine, reports(machine, ("a.py::one", "started"), error=DEAD), die)
    assert outcomes(outcome) == {"a.py::one": ("failed", "the machine died in it")}


def test_what_another_machine_did_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = tmp_path / "done"
    done.write_text("a.py::one[b c]\n")
    monkeypatch.setattr(report, "DONE", str(done))
    items: list[Any] = [SimpleNamespace(nodeid=name) for name in ("a.py::one[b c]", "a.py::one")]
    report.pytest_collection_modifyitems(items)
    assert [item.nodeid for item in items] == ["a.py::one"]
