"""What one packet costs the XDP program, against an empty program in the same run.

Every iteration gets the packet as it came (see ``wrapper.py``; the wrapper's own cost is subtracted), and the counters
must say that every iteration took the path that is being timed.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from reconciler.kernel import bpf
from tests.bench.wrapper import Wrapper, empty_program
from tests.kernel.dataplane import DataPlane, dest
from tests.kernel.packets import Flow, frame

REPEATS, ROUNDS = 400_000, 5
FLOWS = 65_536
LISTEN = {4: "10.0.1.1", 6: "fd00:1::1"}
CLIENT = {4: "20.0.0.0", 6: "fd77::"}
VARY = {4: 26, 6: 34}  # a word of the source address


@dataclass(frozen=True)
class Cost:
    """``over_floor``: nanoseconds beyond the wrapper's, in units of an empty program's run."""

    case: str
    version: int
    ns: float
    over_floor: float
    goal: float | None
    asserted: str


def measure() -> Iterator[Cost]:
    """Each case, both families. Raises AssertionError if a case did not take its path."""
    plane = DataPlane(f"rpbench-{os.getpid()}", connections=1_300_000)
    floor_fd = empty_program()
    try:
        _configure(plane)
        floor = _median(plane, floor_fd, bytes(64))
        yield Cost("empty program (the floor)", 0, floor, 1.0, None, "")
        first: dict[str, float] = {}
        for version in (4, 6):
            wrapper = Wrapper(VARY[version], 64 if version == 4 else 80)
            try:
                for cost in _cases(plane, wrapper, version, floor_fd, floor):
                    if version == 6 and cost.case in first:
                        yield Cost(f"{cost.case}, against IPv4", 6, cost.ns, cost.ns / first[cost.case], 1.15, "")
                    first.setdefault(cost.case, cost.ns)
                    yield cost
            finally:
                wrapper.close()
    finally:
        os.close(floor_fd)
        plane.close()


def _configure(plane: DataPlane) -> None:
    for version in (4, 6):
        plane.listener("cli", LISTEN[version], 80, 6, 1)
    plane.proxy(1, dest4=dest("TARGET", 1), dest6=dest("TARGET", 2))
    plane.target(1, "10.9.0.1", 8080)
    plane.target(2, "fd09::1", 8080)
    plane.device("srv")
    plane.device("cli")


def _cases(plane: DataPlane, wrapper: Wrapper, version: int, floor_fd: int, floor: float) -> Iterator[Cost]:
    program = plane.programs["xdp_ingress"]

    def packet(port: int) -> bytes:
        # 64 bytes in all for IPv4.
        return frame(Flow(CLIENT[version], LISTEN[version], 4000, port), "A", bytes(10 if version == 4 else 6))

    wrapper.prepare(packet(80), floor_fd, 0)
    base = _median(plane, wrapper.fd, packet(80))
    for name, port, mask, goal in (
        ("none of ours", 81, 0, 0.7),
        ("established, one flow", 80, 0, 3.5),
        ("established, 65536 flows", 80, FLOWS - 1, 10.0),
        ("first packet, all flows new", 80, 0xFFFFFFFF, 18.0),
    ):
        wrapper.prepare(packet(port), program, mask)
        if mask == FLOWS - 1:  # all of them known before the clock runs
            _run(plane, wrapper.fd, packet(port), FLOWS)
        before = plane.outcomes()
        rounds = 3 if mask == 0xFFFFFFFF else ROUNDS
        ns = statistics.median(_run(plane, wrapper.fd, packet(port), REPEATS) for _ in range(rounds))
        counted = {key: value - before.get(key, 0) for key, value in plane.outcomes().items()}
        forwarded = counted.get("redirect_xdp", 0)
        want = 0 if port == 81 else REPEATS * rounds
        # One checksum in 65536 looks unfinished, and such a packet is TC's.
        assert want * 0.9999 <= forwarded <= want, f"{name}: {counted}, {want} iterations"
        yield Cost(name, version, ns - base, (ns - base) / floor, goal, f"{forwarded} of {want} redirected")


def _median(plane: DataPlane, fd: int, data: bytes) -> float:
    return statistics.median(_run(plane, fd, data, REPEATS) for _ in range(ROUNDS))


def _run(plane: DataPlane, fd: int, data: bytes, repeat: int) -> int:
    context = np.array([0, len(data), 0, plane.ifindex("cli"), 0, 0], "<u4").tobytes()
    return plane.namespace.run(bpf.prog_test_run, fd, data, context, repeat).duration_ns


def table(costs: list[Cost]) -> str:
    """For a person."""
    lines = [f"{'case':44} {'IP':>2} {'ns':>7} {'floors':>7} {'goal':>6}"]
    for cost in costs:
        goal = f"{cost.goal:6.2f}" if cost.goal else "      "
        missed = " missed" if cost.goal and cost.over_floor > cost.goal else ""
        lines.append(f"{cost.case:44} {cost.version or '':>2} {cost.ns:7.1f} {cost.over_floor:7.2f} {goal}{missed}")
    return "\n".join(lines)


def run() -> tuple[str, list[dict[str, object]]]:
    """The table and the same as JSON-able rows."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    costs = list(measure())
    return table(costs), [asdict(cost) for cost in costs]
