"""``python -m tests.bench [--json FILE] [NAME ...]``: run the benchmarks, print tables, write the figures as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from tests.bench import packet_cost

BENCHES: dict[str, Callable[[], tuple[str, list[dict[str, object]]]]] = {"packet-cost": packet_cost.run}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("names", nargs="*", choices=[[], *BENCHES], help="which (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    figures = {}
    for name in options.names or BENCHES:
        text, figures[name] = BENCHES[name]()
        print(f"== {name}\n{text}\n", flush=True)
    text = json.dumps(figures, indent=2)
    if options.json:
        options.json.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
