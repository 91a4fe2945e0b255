"""The lab benchmark's figures and goals, as rows and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bench.lab import Rounds

_SCALE = {"M": 1e6, "k": 1e3, "Gbit/s": 1e9, "us": 1.0}
_FEWEST = 4
AGAINST = ("nftables", "bare", "forwarding")
"""Columns of ratios."""


@dataclass(frozen=True)
class Goal:
    """``who``'s figure is at least (of times: at most) ``factor`` times that of ``against``, to two digits."""

    cell: str
    figure: str
    who: str
    against: str
    factor: float
    at_most: bool = False

    def met(self, ratio: float) -> bool:
        """Whether this ratio is good enough."""
        return round(ratio, 2) <= self.factor if self.at_most else round(ratio, 2) >= self.factor


def _not_behind(cell: str, figure: str, at_most: bool = False) -> Iterator[Goal]:
    for rival in ("forwarding", "nftables", "haproxy", "nginx"):
        yield Goal(cell, figure, "xdp", rival, 1.0, at_most)


GOALS = (
    Goal("pps", "packets/s", "xdp", "bare", 1.0),
    Goal("pps", "packets/s", "xdp", "nftables", 4.5),
    Goal("new-flows", "flows/s", "xdp", "nftables", 4.0),
    *_not_behind("requests", "requests/s"),
    *_not_behind("connections", "connections/s"),
    *_not_behind("latency", "p50", at_most=True),
    *_not_behind("latency", "p99", at_most=True),
    Goal("bulk", "throughput", "tc", "forwarding", 0.98),
    Goal("bulk", "throughput", "fullnat-tc", "tc", 0.95),
    Goal("requests", "requests/s", "fullnat", "xdp", 0.95),
    Goal("connections", "connections/s", "fullnat", "xdp", 0.95),
)


def ratio(rounds: Rounds, figure: str, who: str, against: str) -> float | None:
    """Taken within each round, the median over them. None if one of the two was not measured."""
    ratios = _ratios(rounds, figure, who, against)
    return statistics.median(ratios) if ratios else None


def _ratios(rounds: Rounds, figure: str, who: str, against: str) -> list[float]:
    return [
        each[who][figure] / each[against][figure]
        for each in rounds.figures
        if who in each and against in each and each[against][figure]
    ]


def spread(rounds: Rounds, goal: Goal) -> tuple[float, float] | None:
    """Between what bounds the middle half of the rounds' ratios lies; None with fewer than four."""
    ratios = _ratios(rounds, goal.figure, goal.who, goal.against)
    if len(ratios) < _FEWEST:
        return None
    low, _, high = statistics.quantiles(ratios, n=4)
    return low, high


def rows(done: Sequence[Rounds]) -> list[dict[str, object]]:
    """A row for each figure of each contestant, then one for each goal."""
    found: list[dict[str, object]] = []
    for rounds in done:
        cell = rounds.cell
        for kind in cell.kinds:
            for figure, unit in cell.figures.items():
                values = [each[kind.name][figure] for each in rounds.figures if kind.name in each]
                row: dict[str, object] = {"cell": cell.name, "figure": figure, "unit": "us" if unit == "us" else "1"}
                row |= {"contestant": kind.name, "rounds": values}
                row["median"] = statistics.median(values) if values else None
                row["skipped"] = rounds.skipped.get(kind.name, "")
                row |= {f"to_{other}": ratio(rounds, figure, kind.name, other) for other in AGAINST}
                row |= {"cache_line_ns": rounds.cache_line_ns, "rounds_repeated": rounds.far}
                row["failed"] = [each for each in rounds.failed if each.startswith(f"{kind.name}:")]
                found.append(row)
    for goal, reached, half in _reached(done):
        met = None if reached is None else goal.met(reached)
        found.append({"goal": asdict(goal), "ratio": reached, "middle_half": half, "met": met})
    return found


def _reached(done: Sequence[Rounds]) -> Iterator[tuple[Goal, float | None, tuple[float, float] | None]]:
    by_name = {rounds.cell.name: rounds for rounds in done}
    for goal in GOALS:
        if goal.cell in by_name:
            rounds = by_name[goal.cell]
            yield goal, ratio(rounds, goal.figure, goal.who, goal.against), spread(rounds, goal)


def table(done: Sequence[Rounds], missing: str) -> str:
    """For a person."""
    lines = [missing] if missing else []
    for rounds in done:
        lines += ["", *cell_lines(rounds)]
    lines += ["", f"{'goal':66} {'reached':>7}         middle half of the rounds"]
    for goal, reached, half in _reached(done):
        bound = "at most" if goal.at_most else "at least"
        text = f"{goal.cell}: {goal.who}'s {goal.figure} {bound} {goal.factor:.2f} of {goal.against}'s"
        said = "skipped" if reached is None else f"{reached:7.2f}" + ("" if goal.met(reached) else " missed")
        between = f" {half[0]:.2f} to {half[1]:.2f}" if half else ""
        lines.append(f"{text:66} {said:15}{between}".rstrip())
    return "\n".join(lines)


def cell_lines(rounds: Rounds) -> Iterator[str]:
    """One cell's table."""
    cell = rounds.cell
    line = f"{statistics.median(rounds.cache_line_ns):.0f} ns" if rounds.cache_line_ns else "not measured"
    again = f", {rounds.far} repeated" if rounds.far else ""
    yield f"{cell.title}: medians of {len(rounds.figures)} rounds{again}; a cache line to the other CPU {line}"
    figures = [
        f"{figure} ({unit})" if unit not in ("M", "k") else f"{unit} {figure}" for figure, unit in cell.figures.items()
    ]
    heads = "".join(f"{figure:>18}" for figure in figures)
    yield f"  {'':24}{heads}" + "".join(f"{'of ' + other:>15}" for other in AGAINST)
    first = next(iter(cell.figures))
    for kind in cell.kinds:
        measured = [each[kind.name] for each in rounds.figures if kind.name in each]
        if not measured:
            yield f"  {kind.title:24}{'skipped':>18}"
            continue
        medians = [
            f"{statistics.median(each[figure] for each in measured) / _SCALE[unit]:18.2f}"
            for figure, unit in cell.figures.items()
        ]
        ratios = (ratio(rounds, first, kind.name, other) for other in AGAINST)
        yield f"  {kind.title:24}{''.join(medians)}" + "".join(f"{each:15.2f}" if each else " " * 15 for each in ratios)
    yield from (f"  FAILED, left out: {each}" for each in rounds.failed)
