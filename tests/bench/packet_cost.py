"""What one packet costs the XDP program, against an empty program in the same run.

Every iteration gets the packet as it came (see ``wrapper.py``; the wrapper's own cost is subtracted), and the counters
must say that every iteration took the path that is being timed.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace

import numpy as np

from reconciler.config import schema
from reconciler.kernel import bpf, layout
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.maps import map_of
from tests.bench.lab_traffic import ahead
from tests.bench.wrapper import Wrapper, empty_program
from tests.kernel.dataplane import DataPlane, dest
from tests.kernel.packets import Flow, frame

REPEATS, ROUNDS = 400_000, 5
FLOWS = 65_536
NEW_FLOWS = 1_200_000
"""So many all-new flows are measured, in a table that has room for them."""
LISTEN = {4: "10.0.1.1", 6: "fd00:1::1"}
CLIENT = {4: "20.0.0.0", 6: "fd77::"}
VARY = {4: 26, 6: 34}  # a word of the source address
ALL = 0xFFFFFFFF
GOALS_FLOOR_NS = 28
"""What an empty program took where the goals were set. Elsewhere it may be 5, and the rest not as much faster."""
RATIO = "a ratio"


@dataclass(frozen=True)
class Cost:
    """``over_floor``: nanoseconds beyond the wrapper's, in units of an empty program's run measured just before."""

    case: str
    version: int
    ns: float
    over_floor: float
    goal: float | None
    asserted: str


@dataclass(frozen=True)
class Case:
    """Packets to ``port``; ``mask``: how many flows minus one, ``ALL``: every packet is a flow of its own. At
    least this part of them must have come to this ``outcome`` (none: to none at all)."""

    name: str
    port: int
    mask: int
    goal: float
    rounds: int = ROUNDS
    flags: str = "A"
    outcome: str = "redirect_xdp"
    least: float = 0.9999


SMALL = (
    Case("none of ours", 81, 0, 0.7, outcome=""),
    Case("established, one flow", 80, 0, 3.5),
    Case("established, 65536 flows", 80, FLOWS - 1, 10.0),
)
NEW = Case("first packet, all flows new", 80, ALL, 18.0, NEW_FLOWS // REPEATS)
FLOOD = Case("SYN of a flood, full table", 80, ALL, 4.0, flags="S", outcome="drop_flood", least=0.9)
"""So many SYNs that most of them are above the rate at which connections are begun in a full table."""


def measure() -> Iterator[Cost]:
    """Each case, both families. Raises AssertionError if a case did not take its path."""
    floor_fd = empty_program()
    try:
        for cases, connections in (
            (SMALL, schema.default("settings", "max_connections")),
            ((NEW,), NEW_FLOWS + REPEATS // 4),
            ((FLOOD,), schema.default("settings", "max_connections")),
        ):
            for table in ("fresh table", "aged table"):
                first: dict[str, float] = {}
                with closing(DataPlane(f"rpbench-{os.getpid()}", connections=connections)) as plane:
                    _configure(plane)
                    plane.namespace.run(ahead, 0, 1)
                    for version in (4, 6):
                        yield from _family(plane, version, cases, floor_fd, table, first)
    finally:
        os.close(floor_fd)


def _family(
    plane: DataPlane, version: int, cases: tuple[Case, ...], floor_fd: int, table: str, first: dict[str, float]
) -> Iterator[Cost]:
    """``first``: what the other family's cases cost in floors, if it was measured before."""
    wrapper = Wrapper(VARY[version], 64 if version == 4 else 80)
    try:
        if table == "aged table":
            _age(plane, wrapper, version)
        for cost in _cases(plane, wrapper, version, cases, floor_fd):
            if version == 6 and cost.case in first:
                ratio = cost.over_floor / first[cost.case]
                yield Cost(f"{cost.case}, {table}, against IPv4", 6, cost.ns, ratio, 1.15, RATIO)
            first.setdefault(cost.case, cost.over_floor)
            yield replace(cost, case=f"{cost.case}, {table}")
    finally:
        wrapper.close()


def _age(plane: DataPlane, wrapper: Wrapper, version: int) -> None:
    """Fill the connection table and forget everything in random order: what comes next lies all over the memory."""
    table = map_of(layout.MAPS[f"connection{version}"], os.dup(plane.fds[f"connection{version}"]), Gateway())
    try:
        wrapper.prepare(_packet(version, 80), plane.programs["xdp_ingress"], ALL)
        _run(plane, wrapper.fd, _packet(version, 80), table.max_entries // 2 * 9 // 10)
        keys, _ = table.items()
        assert len(keys) > table.max_entries // 2
        np.random.default_rng(version).shuffle(keys)
        table.delete_many(keys)
    finally:
        table.close()


def _configure(plane: DataPlane) -> None:
    for version in (4, 6):
        plane.listener("cli", LISTEN[version], 80, 6, 1)
    plane.proxy(1, dest4=dest("TARGET", 1), dest6=dest("TARGET", 2))
    plane.target(1, "10.9.0.1", 8080)
    plane.target(2, "fd09::1", 8080)
    plane.device("srv")
    plane.device("cli")


def _packet(version: int, port: int, flags: str = "A") -> bytes:
    """64 bytes in all for IPv4."""
    return frame(Flow(CLIENT[version], LISTEN[version], 4000, port), flags, bytes(10 if version == 4 else 6))


def _cases(plane: DataPlane, wrapper: Wrapper, version: int, cases: tuple[Case, ...], floor_fd: int) -> Iterator[Cost]:
    program = plane.programs["xdp_ingress"]
    for case in cases:
        packet = _packet(version, case.port, case.flags)
        floor = _median(plane, floor_fd, bytes(64))
        wrapper.prepare(packet, floor_fd, 0)
        base = _median(plane, wrapper.fd, packet)
        wrapper.prepare(packet, program, case.mask)
        if case.mask == FLOWS - 1:  # all of them known before the clock runs
            _run(plane, wrapper.fd, packet, FLOWS)
        elif case is FLOOD:
            _run(plane, wrapper.fd, packet, REPEATS)
        before = plane.outcomes()
        ns = statistics.median(_run(plane, wrapper.fd, packet, REPEATS) for _ in range(case.rounds)) - base
        counted = {key: value - before.get(key, 0) for key, value in plane.outcomes().items()}
        came = counted.get(case.outcome, 0) if case.outcome else sum(counted.values())
        want = REPEATS * case.rounds if case.outcome else 0
        # One checksum in 65536 looks unfinished, and such a packet is TC's.
        assert want * case.least <= came <= want, f"{case.name}: {counted}, {want} iterations"
        yield Cost(case.name, version, ns, ns / floor, case.goal, f"{case.outcome or 'counted'}: {came} of {want}")


def _median(plane: DataPlane, fd: int, data: bytes) -> float:
    return statistics.median(_run(plane, fd, data, REPEATS) for _ in range(ROUNDS))


def _run(plane: DataPlane, fd: int, data: bytes, repeat: int) -> int:
    context = np.array([0, len(data), 0, plane.ifindex("cli"), 0, 0], "<u4").tobytes()
    return plane.namespace.run(bpf.prog_test_run, fd, data, context, repeat).duration_ns


def table(costs: list[Cost]) -> str:
    """For a person."""
    lines = [f"{'case':60} {'IP':>2} {'ns':>7} {'floors':>7} {'goal':>6}  of {GOALS_FLOOR_NS} ns"]
    for cost in costs:
        goal = f"{cost.goal:6.2f}" if cost.goal else "      "
        missed = " missed" if cost.goal and cost.over_floor > cost.goal else ""
        there = "" if cost.asserted == RATIO else f"{cost.ns / GOALS_FLOOR_NS:9.2f}"
        lines.append(f"{cost.case:60} {cost.version:>2} {cost.ns:7.1f} {cost.over_floor:7.2f} {goal}{there:9}{missed}")
    return "\n".join(lines)


def run() -> tuple[str, list[dict[str, object]]]:
    """The table and the same as JSON-able rows."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    costs = list(measure())
    return table(costs), [asdict(cost) for cost in costs]
