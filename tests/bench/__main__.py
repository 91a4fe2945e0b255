"""``python -m tests.bench [--json FILE] [--cell CELL ...] [NAME ...]``: run the benchmarks, print tables, write the
figures as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "packaging" / "lab"))  # netlab is no installed package

from tests.bench import lab, packet_cost
from tests.bench.lab_cells import CELLS

Bench = Callable[[Sequence[str]], tuple[str, list[dict[str, object]]]]
BENCHES: dict[str, Bench] = {"packet-cost": lambda _cells: packet_cost.run(), "lab": lab.run}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("names", nargs="*", choices=[[], *BENCHES], help="which (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--cell", action="append", choices=list(CELLS), help="of lab: only this one (repeatable)")
    options = parser.parse_args()
    figures = {}
    for name in options.names or BENCHES:
        text, figures[name] = BENCHES[name](options.cell or ())
        print(f"== {name}\n{text}\n", flush=True)
    text = json.dumps(figures, indent=2)
    if options.json:
        options.json.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
