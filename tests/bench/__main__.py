"""Run benchmarks, print tables, write the figures as JSON::

python -m tests.bench [--json FILE] [--cell CELL ...] [--times N] [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "packaging" / "lab"))  # netlab is no installed package

from tests.bench import connections, control_plane, lab, packet_cost
from tests.bench.lab_cells import CELLS

Bench = Callable[[argparse.Namespace], tuple[str, list[dict[str, object]]]]
BENCHES: dict[str, Bench] = {
    "packet-cost": lambda _: packet_cost.run(),
    "lab": lambda options: lab.run(options.cell or (), options.times),
    "control-plane": lambda _: control_plane.run(),
    "connections": lambda _: connections.run(),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("names", nargs="*", choices=[[], *BENCHES], help="which (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--cell", action="append", choices=list(CELLS), help="of lab: only this one (repeatable)")
    parser.add_argument("--times", type=int, default=1, metavar="N", help="of lab: N times as many rounds (default: 1)")
    options = parser.parse_args()
    figures: dict[str, list[dict[str, object]]] = {}
    for name in options.names or BENCHES:
        cpus = os.sched_getaffinity(0)  # which a benchmark may narrow
        text, figures[name] = BENCHES[name](options)
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
