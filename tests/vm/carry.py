"""Tests carried out in a machine, and what it had not come to when it died in another one of its kind.

The test in which a machine died has failed, and is not tried again: whether the kernel or QEMU is to blame is for
somebody to find out, from the console that is printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.vm import results
from tests.vm.machine import Machine, MachineError

# Emulated, a processor is ten to twenty times slower, so everything may take longer and less is tried at random.
ENVIRONMENT: Final = {
    "REVPROXY_PATIENCE": "10",
    "REVPROXY_DIFFERENTIAL_PACKETS": "8000",
    "REVPROXY_TRAFFIC_MEGABYTES": "4",
    "REVPROXY_VM_REPORT": "/share/report.jsonl",
    "REVPROXY_VM_DONE": "/share/done",
}
PLUGINS: Final = "-p tests.vm.report -p no:xdist -p no:hypothesispytest -o junit_family=xunit1 --timeout=3600"
DEATHS: Final = 3
"""After so many machines that died it is given up."""


@dataclass
class Outcome:
    """What is known of each test by its id (:func:`results.read_report`), how long the first machine took to boot, and
    what all of them took of the host's processors."""

    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    boot_sec: float = 0.0
    processor_sec: float = 0.0


def carry_out(machine: Machine, tests: Sequence[str], limit_sec: float, say: Callable[[str], None]) -> Outcome:
    """Run ``tests``, as pytest's command line has them, within ``limit_sec`` in all. Raises :class:`MachineError` when
    the first machine does not come up."""
    outcome = Outcome()
    end = time.monotonic() + limit_sec
    command = f".venv/bin/python -m pytest {PLUGINS} -v --junitxml=/share/junit.xml {' '.join(tests)}"
    for deaths in range(DEATHS):
        try:
            machine.start(say)
        except MachineError as error:
            if not deaths:
                raise
            say(str(error))
            break
        outcome.boot_sec = outcome.boot_sec or machine.boot_sec
        before = machine.processor_sec()
        report = machine.share / "report.jsonl"
        report.unlink(missing_ok=True)
        (machine.share / "done").write_text("".join(f"{name}\n" for name in outcome.found))
        died = False
        try:
            machine.run(command, max(1.0, end - time.monotonic()), ENVIRONMENT, tests)
            processor_sec = machine.processor_sec()
        except MachineError as error:
            say(str(error))
            processor_sec, died = error.processor_sec, error.died
        outcome.processor_sec += max(0.0, processor_sec - before)
        fresh = results.read_report(report)
        outcome.found |= fresh
        unended = [name for name, entry in fresh.items() if entry["reason"] == results.UNENDED]
        if not died or not unended:
            break
        for name in unended:
            fresh[name]["reason"] = results.DIED
            say(f"{name}: {results.DIED}")
    return outcome
