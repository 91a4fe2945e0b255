"""The main job shown step by step: ``demo.py [--config DIR] [--step N]``.

Builds client, proxy host and backends in network namespaces, runs revproxyd there on a copy of the example
configuration, and verifies what it shows. Exit status 0: every step held. 1: one did not. 130: interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Collection
from pathlib import Path
from types import FrameType

from demonstration.screen import Screen
from demonstration.stage import Stage, StepFailed
from demonstration.steps import STEPS
from netlab import CommandError

EXAMPLE = Path(__file__).resolve().parents[2] / "config.d"

PICTURE = """\
  {name}-client     10.90.1.2, fd90:1::2             client$ is a shell there
     | eth0
     | eth0
  {name}-proxy      10.90.1.1, fd90:1::1             proxy# is a shell there
     | eth1
     | eth0
  {name}-backends   backend1, backend2, backend3: 10.90.2.11 to .13, fd90:2::11 to ::13, HTTP on port 8080
"""


def play(screen: Screen, config: Path, wanted: Collection[int]) -> None:
    """The first step and those with the wanted numbers. Raises :class:`StepFailed` at the first thing that does not
    hold; the lab is then taken down."""
    screen.text(
        "Three network namespaces, joined by veth pairs. What follows are real programs: HTTP servers, curl, revproxyd."
        f" The configuration is a copy of {config}."
    )
    with Stage(screen, config) as stage:
        screen.picture(PICTURE.format(name=stage.lab.name))
        screen.text("The programs are told where this instance's files are:")
        for name, place in stage.places.items():
            screen.command("proxy#", f"export {name}={place}")
        for number, step in enumerate(STEPS, 1):
            if number not in wanted and number > 1:
                continue
            title = f"{number}. {(step.__doc__ or '').strip().removesuffix('.')}"
            screen.heading(title)
            try:
                step(stage)
            except (StepFailed, CommandError, OSError) as error:
                details = f"{error.details}\n" if isinstance(error, StepFailed) and error.details else ""
                raise StepFailed(f"step {title}: {error}", details + stage.daemon_log()) from error


def _end(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="Show revproxy at work in network namespaces.")
    parser.add_argument("--config", type=Path, default=EXAMPLE, metavar="DIR", help="instead of the example, config.d/")
    numbers = range(1, len(STEPS) + 1)
    parser.add_argument(
        "--step",
        type=int,
        action="append",
        choices=numbers,
        metavar="N",
        help="only this one and the first; repeatable",
    )
    options = parser.parse_args()
    wanted = {1, *(options.step or numbers)}
    if os.geteuid() != 0:
        print("demo: network namespaces and BPF take root: run it as root", file=sys.stderr)
        return 1
    if not options.config.is_dir():
        print(f"demo: {options.config}: no such directory", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _end)
    screen, started = Screen(), time.monotonic()
    try:
        play(screen, options.config, wanted)
    except KeyboardInterrupt:
        screen.failed("interrupted; everything was taken down")
        return 130
    except StepFailed as failure:
        screen.failed(str(failure), failure.details)
        return 1
    except Exception as error:  # whatever it is, it is no success, and the lab has been taken down
        screen.failed(f"{type(error).__name__}: {error}", traceback.format_exc())
        return 1
    screen.heading("Every step held")
    screen.text(f"{len(wanted)} steps in {time.monotonic() - started:.0f} s, and everything was taken down.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
