"""``python -m tests.soak``: edits, git checkouts, drift, kills and restarts for minutes, under steady traffic.

What must hold: no held connection is lost, and no new one fails but while somebody has damaged the maps; back at the
first commit, the maps hold as many entries as in the beginning; the daemon's memory, open files and threads have not
grown in the last third, in which it is not killed; and after ``down`` nothing is left.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "packaging" / "lab"))  # netlab is no installed package

from netlab import Lab, wait_for
from tests.e2e.instance import Instance
from tests.soak.accounts import Footprint, entries
from tests.soak.chaos import FIRST_PORT, TCP_LISTEN, TRANSIENT, UDP_LISTEN, Chaos
from tests.soak.diagnosis import Diagnosis
from tests.soak.traffic import Traffic, Windows

HELD = 24
MOST_HELD = 120
GROWTH_KIB = 8 * 1024
"""Room for what a process remembers of the last files, and for the allocator."""
BREAKS = ("kill", "entries", "memory")


class Soak:
    """One run. ``broken``: what to break on purpose, to see that it is found."""

    def __init__(self, minutes: float, seed: int, broken: str = "") -> None:
        self.seconds, self.seed, self.broken = minutes * 60, seed, broken
        self.chance = random.Random(seed)
        self.failures: list[str] = []
        self.lines: list[str] = []
        self.trace: Sequence[str] = ()

    def run(self) -> None:
        """All of it; what did not hold is in ``failures``, the summary in ``lines``."""
        with Lab(offload=False, xdp_peers=True) as lab:
            with Instance(lab) as instance:
                try:
                    self._run(lab, instance)
                except AssertionError:
                    files = sorted(instance.config_dir.glob("*.yaml"))
                    self.failures += [f"the files then, {path.name}:\n{path.read_text()}" for path in files]
                    raise
            self.lines.append("nothing left after down: no pin, program, filter, qdisc or setting")

    def _run(self, lab: Lab, instance: Instance) -> None:
        windows = Windows()
        chaos = Chaos(lab, instance, windows, self.seed, self.broken)
        self.trace = chaos.trace
        diagnosis = Diagnosis(lab, instance)
        chaos.begin()
        chaos.start()
        chaos.settle()
        before = entries(instance.bpffs_dir)
        tcp, udp = (str(lab.proxy4), TCP_LISTEN), (str(lab.proxy4), UDP_LISTEN)
        started = time.monotonic()
        footprints: list[Footprint] = []
        with Traffic(lab, windows, tcp, udp, self.seed) as traffic:
            traffic.hold(tcp, socket.SOCK_STREAM, HELD)
            traffic.hold(udp, socket.SOCK_DGRAM, HELD)
            while (passed := time.monotonic() - started) < self.seconds and not traffic.tally.lost:
                late = passed > self.seconds * 2 / 3
                chaos.act(kills=not late)
                self._hold_more(lab, traffic, chaos)
                if late:
                    chaos.settle()
                    footprints.append(self._footprint(chaos))
                self._say(passed, chaos, traffic)
            seen = diagnosis.told() if traffic.tally.lost else ""
            chaos.settle()
            held = traffic.held
        if traffic.tally.lost:
            assert instance.daemon is not None
            told = [*chaos.trace, instance.daemon.output()[-6000:], seen]
            self.failures.append("before that:\n" + "\n".join(told))
        self._judge_traffic(traffic, held)
        self._judge_footprint(footprints)
        self._judge_drops(chaos)
        chaos.back_to_the_beginning()
        self._judge_entries(chaos, before)
        chaos.end()
        done = ", ".join(f"{number} {name}" for name, number in sorted(chaos.done.items()))
        self.lines.append(
            f"{time.monotonic() - started:.0f} s, seed {self.seed}: {done}; {len(chaos.commits)} commits in git"
        )

    def _hold_more(self, lab: Lab, traffic: Traffic, chaos: Chaos) -> None:
        """Now and then connections through a proxy that may go any time."""
        if self.chance.random() < 0.7:
            return
        chaos.settle()
        number = self.chance.randrange(TRANSIENT)
        kind = socket.SOCK_DGRAM if number % 2 else socket.SOCK_STREAM
        if (chaos.instance.config_dir / f"p{number}.yaml").exists():
            traffic.hold((str(lab.proxy4), FIRST_PORT + number), kind, 4)
        if traffic.held > MOST_HELD:
            traffic.release(MOST_HELD // 3)

    def _footprint(self, chaos: Chaos) -> Footprint:
        assert chaos.instance.daemon is not None
        found = Footprint.of(chaos.instance.daemon.pid)
        extra = 2 * GROWTH_KIB if self.broken == "memory" and self.lines else 0
        self.lines.append("") if self.broken == "memory" else None
        return Footprint(found.memory_kib + extra, found.files, found.threads)

    def _say(self, passed: float, chaos: Chaos, traffic: Traffic) -> None:
        tally = traffic.tally
        print(
            f"\r{passed:5.0f} of {self.seconds:.0f} s: {chaos.done.total()} done, {traffic.held} held,"
            f" {len(tally.lost)} lost, {tally.fresh} new, {len(tally.failed)} failed",
            end="" if sys.stderr.isatty() else "\n",
            file=sys.stderr,
            flush=True,
        )

    # -- judging -------------------------------------------------------------------------------------------------

    def _judge_traffic(self, traffic: Traffic, held: int) -> None:
        tally = traffic.tally
        self.lines.append(
            f"held: {tally.held} connections, {held} of them to the end, {tally.beats} beats; lost: {len(tally.lost)}"
        )
        self.lines.append(
            f"new: {tally.fresh}; failed: {len(tally.failed)}, and {tally.excused} while the maps were damaged"
        )
        self.failures += [f"held connection lost: {each}" for each in tally.lost]
        self.failures += [f"new connection failed: {each}" for each in tally.failed]
        if not tally.held or not tally.fresh or not tally.beats:
            self.failures.append("there was no traffic")

    def _judge_footprint(self, found: list[Footprint]) -> None:
        """Against the first quarter of the last third, in which everything has been met once."""
        if len(found) < 8:
            self.lines.append(f"memory: not judged, {len(found)} looks only")
            return
        early, last = found[: max(2, len(found) // 4)], found[-1]
        memory = max(each.memory_kib for each in early)
        self.lines.append(
            f"the daemon's own memory: {memory} KiB early in the last third, {last.memory_kib} KiB at its end,"
            f" {last.files} files, {last.threads} threads ({len(found)} looks)"
        )
        if last.memory_kib > memory + GROWTH_KIB:
            self.failures.append(f"memory has grown from {memory} to {last.memory_kib} KiB")
        if last.files > max(each.files for each in early) + 2:
            self.failures.append(f"open files have grown to {last.files}")
        if last.threads > max(each.threads for each in early):
            self.failures.append(f"threads have grown to {last.threads}")

    def _judge_entries(self, chaos: Chaos, before: dict[str, int]) -> None:
        """Once the connections are forgotten, what they kept goes too."""
        chaos.client.flush_connections()
        after: dict[str, int] = {}

        def same() -> bool:
            after.update(entries(chaos.instance.bpffs_dir))
            if self.broken == "entries":
                after["blob"] += 1
            return not self._differing(before, after)

        try:
            wait_for(same, "as many map entries as in the beginning", timeout_sec=20)
        except TimeoutError:
            self.failures.append(f"map entries, before and after: {self._differing(before, after)}")
        self.lines.append("map entries as in the beginning: " + ", ".join(f"{k} {v}" for k, v in sorted(after.items())))

    @staticmethod
    def _differing(before: dict[str, int], after: dict[str, int]) -> dict[str, tuple[int, int]]:
        return {name: (before[name], after[name]) for name in before if before[name] != after[name]}

    def _judge_drops(self, chaos: Chaos) -> None:
        """What the data plane has dropped, and may not have: two connections that look alike, a table that is full."""
        found = {reason: number for reason, number in chaos.client.stats().drops.items() if number}
        self.lines.append("dropped: " + (", ".join(f"{number} {each}" for each, number in found.items()) or "nothing"))
        wrong = found.keys() & {"conflict", "no_port", "table_full", "error"}
        self.failures += [f"dropped without a reason: {found[each]} packets, {each}" for each in sorted(wrong)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, default=None, help="repeats the actions of an earlier run")
    parser.add_argument("--break", dest="broken", choices=BREAKS, default="", help="break something, to see it found")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("the soak takes root")
    seed = random.randrange(1 << 31) if options.seed is None else options.seed
    print(f"soak: {options.minutes:g} minutes, --seed {seed}", file=sys.stderr, flush=True)
    soak = Soak(options.minutes, seed, options.broken)
    try:
        soak.run()
    except (AssertionError, RuntimeError) as error:
        soak.failures.append("before that:\n" + "\n".join(soak.trace))
        soak.failures.append(str(error) or "".join(traceback.format_exception(error)))
    print("\n" + "\n".join(line for line in soak.lines if line))
    for failure in soak.failures:
        print(f"FAILED: {failure}")
    print("failed" if soak.failures else "everything held")
    sys.exit(1 if soak.failures else 0)


if __name__ == "__main__":
    main()
