"""``python -m tests.bench [--json FILE] [--cell CELL ...] [NAME ...]``: run the benchmarks, print tables, write the
figures as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "packaging" / "lab"))  # netlab is no installed package

from tests.bench import connections, control_plane, lab, packet_cost
from tests.bench.lab_cells import CELLS

Bench = Callable[[Sequence[str]], tuple[str, list[dict[str, object]]]]
BENCHES: dict[str, Bench] = {
    "packet-cost": lambda _cells: packet_cost.run(),
    "lab": lab.run,
    "control-plane": lambda _cells: control_plane.run(),
    "connections": connections.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("names", nargs="*", choices=[[], *BENCHES], help="which (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--cell", action="append", choices=list(CELLS), help="of lab: only this one (repeatable)")
    options = parser.parse_args()
    figures: dict[str, list[dict[str, object]]] = {}
    for name in options.names or BENCHES:
        cpus = os.sched_getaffinity(0)  # which a benchmark may narrow
        text, figures[name] = BENCHES[name](options.cell or ())
        os.sched_setaffinity(0, cpus)
        print(f"== {name}\n{text}\n", flush=True)
    text = json.dumps(figures, indent=2)
    if options.json:
        options.json.write_text(text + "\n")
    else:
        print(text)
    if any(row.get("failed") for rows in figures.values() for row in rows):
        sys.exit("some measurements did not hold: see FAILED above")


if __name__ == "__main__":
    main()
