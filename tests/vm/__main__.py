"""``python -m tests.vm start|run|stop|test``: machines with other kernels, and the tests in them (see README.md)."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tests.vm import fetch, images, results
from tests.vm.carry import carry_out
from tests.vm.machine import Machine, MachineError

OLDEST: Final = (5, 15)
"""What the README promises. Of older kernels only that they are refused."""

MATRIX: Final = (("5.10", "amd64"), ("6.1", "amd64"), ("6.12", "amd64"), ("newest", "amd64"), ("6.12", "arm64"))
"""What ``--kernel all`` tests, one after the other."""

NOT_TO_BE_HAD: Final = 3
"""Exit status when packages can't be fetched or installed, so that nothing could be tried (``setup.sh`` has it too)."""


def say(text: str) -> None:
    """To whoever waits."""
    print(f"vm: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Exit status 1 when a test or the machine failed, :data:`NOT_TO_BE_HAD` when what it takes can't be had."""
    parser = argparse.ArgumentParser(prog="tests/vm", description=__doc__)
    parser.add_argument("action", choices=["start", "run", "stop", "test"])
    parser.add_argument(
        "--kernel", default=os.environ.get("KERNEL") or "6.1", help="a series as 6.1, newest, or (test) all"
    )
    parser.add_argument("--arch", default=os.environ.get("ARCH") or "amd64", choices=["amd64", "arm64"])
    parser.add_argument("--limit", type=float, default=4 * 3600, metavar="SECONDS", help="of one machine")
    parser.add_argument("--as-is", action="store_true", help="run: leave the checkout in the machine as it is")
    parser.add_argument("--no-record", action="store_true", help="test: leave man/kernels.json as it is")
    parser.add_argument("words", nargs="*")
    options = parser.parse_intermixed_args()
    folder = Path(os.environ.get("REVPROXY_VM_DIR") or images.CHECKOUT / ".vm").resolve()
    everything = options.kernel == "all"
    if everything and options.action != "test":
        parser.error("all machines at once can only be tested")
    machines = [Machine(folder, *each) for each in (MATRIX if everything else [(options.kernel, options.arch)])]
    machine = machines[0]
    signal.signal(
        signal.SIGTERM, lambda number, _: sys.exit(128 + number)
    )  # the machine is switched off on the way out
    try:
        if options.action == "stop":
            machine.stop()
            return 0
        if options.action == "test":
            return test_all(machines, options.limit, options.words, record=not options.no_record)
        machine.start(say)
        if options.action == "run":
            return machine.run(" ".join(options.words), options.limit, tests=None if options.as_is else ())
    except fetch.Unavailable as error:
        say(str(error))
        return NOT_TO_BE_HAD
    except MachineError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def test_all(machines: list[Machine], limit_sec: float, rows: list[str], record: bool) -> int:
    """:func:`test` in one machine after the other, whatever comes of it there. The first exit status that is not 0, but
    :data:`NOT_TO_BE_HAD` only if nothing worse happened."""
    worst = 0
    for each in machines:
        try:
            status = test(each, limit_sec, rows, record)
        except fetch.Unavailable as error:
            say(str(error))
            status = NOT_TO_BE_HAD
        except MachineError as error:
            say(str(error))
            status = 1
        worst = 1 if 1 in (worst, status) else worst or status
    return worst


def test(machine: Machine, limit_sec: float, rows: list[str], record: bool) -> int:
    """Run the list, or what of it is for features with one of ``rows`` in their names, in the machine that is up, or in
    one that is booted for it and switched off again; if it dies, the rest in another. What came of it is kept if
    ``record``."""
    was_up = machine.pid() is not None
    began = time.monotonic()
    fetch.fetch_kernel(machine.folder, machine.arch, machine.kernel)
    listed = results.features(fetch.version(machine.release) < OLDEST)
    wanted = {name: tests for name, tests in listed.items() if not rows or any(row in name for row in rows)}
    if not wanted:
        say(f"no row is named like that; there are: {'; '.join(listed)}")
        return 1
    chosen = [each for tests in wanted.values() for each in tests]
    about = {"order": [machine.arch, *fetch.version(machine.release)], "release": machine.release, "arch": machine.arch}
    about["date"] = f"{datetime.now(UTC):%Y-%m-%d}"
    try:
        outcome = carry_out(machine, chosen, limit_sec, say)
    finally:
        if not was_up:
            machine.stop()
    about |= {"boot_sec": round(outcome.boot_sec), "seconds": round(time.monotonic() - began)}
    about["processor_sec"] = round(outcome.processor_sec)
    found = outcome.found
    if not found:
        say("no test ran")
        return 1
    summary = results.summary(found, wanted)
    if record:
        results.keep(f"{machine.kernel}-{machine.arch}", about | summary, ran=found)
    say(f"Linux {machine.release}: done in {about['seconds']} s")
    return _conclude(found, summary, list(wanted))


def _conclude(found: dict[str, dict[str, Any]], summary: dict[str, Any], wanted: list[str]) -> int:
    """Say what came of it; the exit status."""
    for name, reason in summary["not passed"].items():
        say(f"{found[name]['outcome']}: {name}: {reason}")
    for feature, counts in summary["features"].items():
        say(f"{feature}: " + ", ".join(f"{count} {what}" for what, count in counts.items() if count))
    missing = [feature for feature in wanted if feature not in summary["features"]]
    for feature in missing:
        say(f"not done: {feature}")
    outcomes = [entry["outcome"] for entry in found.values()]
    say(", ".join(f"{outcomes.count(each)} {each}" for each in ("passed", "failed", "skipped")))
    return 1 if missing or "failed" in outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
