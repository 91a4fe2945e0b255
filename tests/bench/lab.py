"""revproxy against others on the three-namespace lab, in interleaved rounds: ``python -m tests.bench lab``.

In each round of a cell every contestant is measured once, one right after the other, so that what changes on the
machine changes for all; the next round begins with the next one, since who comes first after a pause has it otherwise
than the rest. Ratios are taken within a round, and the median over the rounds is what counts. Before each round the
cost of handing a cache line from one CPU to the other is measured; a round in which they are far apart is repeated.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.bench import lab_cells as cells
from tests.bench import lab_report, lab_tools
from tests.bench.lab_cells import CELLS, Cell
from tests.bench.lab_contestants import Contestant, build_lab, can_run
from tests.bench.lab_traffic import cache_line_ns

FAR, FAR_NS = 1.5, 100
"""The CPUs are far apart: so many times the nearest that was seen, or so many nanoseconds."""

REPEATS = 2
"""At most so many rounds of a cell are measured again for that; what remains is taken as it is, and told."""


@dataclass
class Rounds:
    """What a cell's rounds gave. ``far``: how many were repeated because the CPUs were far apart; ``skipped``: who was
    not measured, and why; ``failed``: measurements that did not hold, in words, and are in no figure."""

    cell: Cell
    figures: list[dict[str, cells.Figures]] = field(default_factory=list)
    cache_line_ns: list[float] = field(default_factory=list)
    far: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


class Course:
    """Measures cells, ``times`` as many rounds as usual; labs stand as long as the cells that use them follow each
    other."""

    def __init__(self, tools: lab_tools.Tools, times: int = 1) -> None:
        self.tools, self.times = tools, times
        self.nearest_ns = float("inf")

    def run(self, names: Sequence[str]) -> list[Rounds]:
        """The cells of these names."""
        wanted = [cell for cell in CELLS.values() if cell.name in names]
        done = []
        for offload in (False, True):
            group = [cell for cell in wanted if cell.offload is offload]
            if group:
                done += self._group(group, offload)
        return done

    def _group(self, group: list[Cell], offload: bool) -> list[Rounds]:
        kinds = dict.fromkeys(kind for cell in group for kind in cell.kinds if can_run(kind, self.tools))
        with contextlib.ExitStack() as stack:
            people: dict[type[Contestant], Contestant] = {}
            for kind in kinds:
                lab = build_lab(offload)
                stack.callback(lab.close)
                cells.start_servers(lab, self.tools)
                people[kind] = stack.enter_context(kind(lab, self.tools))
            return [self._cell(cell, people) for cell in group]

    def _cell(self, cell: Cell, people: dict[type[Contestant], Contestant]) -> Rounds:
        print(f"{cell.title} ...", file=sys.stderr, flush=True)
        rounds = Rounds(cell)
        rounds.skipped = {kind.name: self.tools.missing for kind in cell.kinds if kind not in people}
        if not self.tools.has(*cell.needs):
            rounds.skipped = {kind.name: self.tools.missing for kind in cell.kinds}
            return rounds
        there = [people[kind] for kind in cell.kinds if kind in people]
        with contextlib.ExitStack() as stack:
            paths = [stack.enter_context(cells.prepared(cell, who)) for who in there]
            number = 0
            while len(rounds.figures) < cell.rounds * self.times:
                line = cache_line_ns()
                self.nearest_ns = min(self.nearest_ns, line)
                figures: dict[str, cells.Figures] = {}
                for turn in range(len(there)):
                    who, path = there[(number + turn) % len(there)], paths[(number + turn) % len(there)]
                    try:
                        figures[who.name] = cells.measure(cell, who, path, number, self.tools)
                    except AssertionError as error:
                        rounds.failed.append(str(error))
                number += 1
                if line > min(FAR * self.nearest_ns, FAR_NS) and rounds.far < REPEATS * self.times:
                    rounds.far += 1
                    continue
                rounds.figures.append(figures)
                rounds.cache_line_ns.append(line)
        print("\n".join(lab_report.cell_lines(rounds)), file=sys.stderr, flush=True)
        return rounds


def run(names: Sequence[str] = (), times: int = 1) -> tuple[str, list[dict[str, object]]]:
    """The table and the same as JSON-able rows. ``names``: of cells, all if none; ``times`` as many rounds as usual."""
    if os.geteuid() != 0 or len(os.sched_getaffinity(0)) < 2:
        return "skipped: takes root and two CPUs", []
    tools = lab_tools.find()
    done = Course(tools, times).run(names or list(CELLS))
    return lab_report.table(done, tools.missing), lab_report.rows(done)
