"""What the control plane costs: ``python -m tests.bench control-plane``.

For each number of source routes and of files: loading everything from nothing, one edited route from the file's rename
to the kernel's map, reading the observed state, the daemon's memory, and what it does with nothing to do. In the same
run, what nftables, HAProxy and nginx take for as many elements or listeners. The programs are started as they are
installed. CPU time is told beside time that others on the machine have a part in.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from netlab import Lab, wait_for
from reconciler.kernel import layout
from reconciler.kernel.maps import Maps
from reconciler.runtime.live import Live
from reconciler.runtime.snapshot import QUIET_SEC
from reconciler.state import maglev
from tests.bench import control_plane_others as others
from tests.bench import lab_tools
from tests.e2e.instance import Instance

SIZES = (10, 1_000, 100_000)
FILES = (1, 1_000)
EDITS = 7
OBSERVATIONS = 5
LOOKS_SEC = {100_000: 75.0}
"""With so many routes the daemon looks without a reason at least this often; with fewer every 30 seconds."""
EDIT, EDIT_CPU = "edit of one route", "edit of one route, CPU of the daemon"
TARGETS = 5
FIRST_PORT = 1024


@dataclass(frozen=True)
class Figure:
    """One measured thing. ``goal``: at most that, None for none."""

    name: str
    routes: int
    files: int
    value: float
    unit: str
    goal: float | None = None
    who: str = "revproxy"

    @property
    def missed(self) -> bool:
        return self.goal is not None and self.value > self.goal


# -- configurations ----------------------------------------------------------------------------------------------


def source(number: int) -> str:
    """The prefix of a route: no two overlap."""
    return f"{20 + (number >> 16)}.{number >> 8 & 255}.{number & 255}.0/24"


def text(lab: Lab, proxy: int, routes: Sequence[int], edited: dict[int, int]) -> str:
    """A file with one proxy. ``edited``: routes with another target."""
    subnet = str(lab.backends[0].ip4).rpartition(".")[0]
    lines = [
        "apiVersion: revproxy/v1",
        "proxies:",
        f"  - name: p{proxy}",
        f"    listen: {{interfaces: [eth0], port: {FIRST_PORT + proxy}}}",
        f"    default_target: {{ip: {lab.backends[0].ip4}, port: 8080}}",
    ]
    if routes:
        lines.append("    source_routes:")
    for number in routes:
        target = edited.get(number, 20 + number % TARGETS)
        lines.append(f"      - source: {source(number)}\n        target: {{ip: {subnet}.{target}, port: 8080}}")
    return "\n".join(lines) + "\n"


def shares(routes: int, files: int) -> Iterator[tuple[int, range]]:
    """Which routes each file has."""
    for number in range(files):
        yield number, range(routes * number // files, routes * (number + 1) // files)


# -- measuring ---------------------------------------------------------------------------------------------------


class Cell:
    """One number of routes in one number of files."""

    def __init__(self, lab: Lab, instance: Instance, routes: int, files: int) -> None:
        self.lab, self.instance, self.routes, self.files = lab, instance, routes, files
        self._edited: dict[int, int] = {}

    def run(self) -> Iterator[Figure]:
        """Every figure."""
        for number, mine in shares(self.routes, self.files):
            self.instance.write(text(self.lab, number, mine, {}), f"f{number:04}.yaml")
        started, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        self.instance.ctl("apply", "--yes")
        loaded, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        yield self._figure("full load from nothing", loaded, "s", 15.0 if self.routes >= 100_000 else None)
        cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
        yield self._figure("full load from nothing, CPU", cpu, "s")
        started = time.monotonic()
        daemon = self.instance.start_daemon(ready=False)
        self._wait_quiet(daemon.pid)
        yield self._figure("daemon's start, taking over what is there", time.monotonic() - started, "s")
        edits = [self._edit(number) for number in range(EDITS)]
        yield self._figure(EDIT, statistics.median(took for took, _ in edits) * 1e3, "ms", 100.0)
        yield self._figure(EDIT_CPU, statistics.median(cpu for _, cpu in edits) * 1e3, "ms")
        observed = [self.lab.proxy.call(self._observe) * 1e3 for _ in range(OBSERVATIONS)]
        yield self._figure("reading the observed state", statistics.median(observed), "ms")
        looks_sec = LOOKS_SEC.get(self.routes, 30.0)
        time.sleep(looks_sec + 1)  # after an edit it has more to do
        self._wait_quiet(daemon.pid)
        before, began = cpu_sec(daemon.pid), time.monotonic()
        time.sleep(2 * looks_sec + 1)
        used = cpu_sec(daemon.pid) - before
        yield self._figure("idle CPU", 100 * used / (time.monotonic() - began), "%", 0.1)
        yield self._figure("memory of the idle daemon", resident_mib(daemon.pid), "MiB", 120e6 / 2**20)

    def _figure(self, name: str, value: float, unit: str, goal: float | None = None) -> Figure:
        return Figure(name, self.routes, self.files, value, unit, goal)

    def _edit(self, number: int) -> tuple[float, float]:
        """Give one route another target; seconds from the rename until packets see it, without the quiet period that
        every edit waits for, and of the daemon's CPU time until it has nothing more to do."""
        assert self.instance.daemon is not None
        used = cpu_sec(self.instance.daemon.pid)
        files = dict(shares(self.routes, self.files))
        having = [each for each, mine in files.items() if mine]
        file = having[number * 7919 % len(having)]
        route = files[file][number * 7919 % len(files[file])]
        self._edited[route] = 90 + number
        content = text(self.lab, file, files[file], self._edited)
        draft = self.instance.config_dir.with_name(
            "draft"
        )  # where nobody watches: a quiet moment begins with the rename
        draft.write_text(content)
        maps = Maps(self.instance.bpffs_dir)
        maps.open()
        try:
            key = np.zeros(1, layout.route_key4)
            key["prefixlen"], key["addr_be"] = 32 + 24, [int(word) for word in source(route).split("/")[0].split(".")]
            key["proxy"] = self._proxy_id(maps, f"p{file}")
            before = self._dest(maps, key)
            started = time.monotonic()
            draft.rename(self.instance.config_dir / f"f{file:04}.yaml")
            while self._dest(maps, key) == before:
                assert time.monotonic() - started < 120, "the edit has not come through"
                time.sleep(0.0005)
            took = time.monotonic() - started - QUIET_SEC
        finally:
            maps.close()
        self._wait_quiet(self.instance.daemon.pid)
        return took, cpu_sec(self.instance.daemon.pid) - used

    @staticmethod
    def _proxy_id(maps: Maps, name: str) -> int:
        keys, values = maps["proxy_name"].items()
        return int(next(key for key, value in zip(keys, values["name"], strict=True) if value.decode() == name))

    @staticmethod
    def _dest(maps: Maps, key: np.ndarray) -> int:
        active = int(maps["control"].items()[1][0]["active"])
        value = maps["route4"].get(key)
        assert value is not None
        return int(value[0]["slot"][active]["dest"])

    def _observe(self) -> float:
        live = Live(self.instance.bpffs_dir)
        try:
            started = time.monotonic()
            found = live.observe()
            took = time.monotonic() - started
        finally:
            live.close()
        assert len(found.state.routes) == self.routes
        return took

    @staticmethod
    def _wait_quiet(pid: int) -> None:
        """Until the daemon does nothing for a while."""
        used = [cpu_sec(pid)]

        def quiet() -> bool:
            time.sleep(0.5)
            used.append(cpu_sec(pid))
            return used[-1] - used[-2] < 0.01

        wait_for(quiet, "a quiet daemon", timeout_sec=120)


def cpu_sec(pid: int) -> float:
    """What a process has used, to the nanosecond."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def resident_mib(pid: int) -> float:
    """Resident memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) / 1024


def maglev_ms() -> float:
    """A table of 16,381 places for 1,000 targets."""
    keys = [f"10.0.{number >> 8}.{number & 255}:80" for number in range(1000)]
    times = []
    for _ in range(5):
        started = time.monotonic()
        assert len(maglev.table(keys, [1] * 1000, 16381)) == 16381
        times.append(time.monotonic() - started)
    return statistics.median(times) * 1e3


def measure() -> Iterator[Figure]:
    """Everything."""
    yield Figure("Maglev table, 16381 places", 1000, 0, maglev_ms(), "ms", 100.0)
    for files in FILES:
        for routes in SIZES:
            print(f"{routes} routes in {files} files ...", file=sys.stderr, flush=True)
            with Lab(servers=False) as lab, Instance(lab, forked=False) as instance:
                yield from Cell(lab, instance, routes, files).run()
    tools = lab_tools.find()
    for elements in SIZES:
        print(f"the others with {elements} ...", file=sys.stderr, flush=True)
        with Lab(servers=False) as lab:
            for who, name, unit, value in others.measure(lab, tools, elements, source):
                yield Figure(name, elements, 1, value, unit, who=who)


def ratios(figures: Sequence[Figure]) -> Iterator[Figure]:
    """An edit with the most routes against one with the fewest."""
    for name in (EDIT, EDIT_CPU):
        edits = {(each.routes, each.files): each.value for each in figures if each.name == name}
        for files in FILES:
            if (SIZES[0], files) in edits and (SIZES[-1], files) in edits:
                ratio = edits[SIZES[-1], files] / edits[SIZES[0], files]
                yield Figure(f"{name}, against {SIZES[0]}", SIZES[-1], files, ratio, "times", 3.0)


def table(figures: Sequence[Figure], missing: str) -> str:
    """For a person."""
    lines = [missing] if missing else []
    lines.append(f"{'':10} {'':48} {'routes':>8} {'files':>6} {'value':>10} {'':6} {'goal':>6}")
    lines += map(line, figures)
    return "\n".join(lines)


def line(each: Figure) -> str:
    """One figure."""
    goal = f"{each.goal:6.4g}" + (" missed" if each.missed else "") if each.goal is not None else ""
    what = f"{each.who:10} {each.name:48} {each.routes:>8} {each.files or '':>6}"
    return f"{what} {each.value:>10.3f} {each.unit:6} {goal}"


def run() -> tuple[str, list[dict[str, object]]]:
    """The table and the same as JSON-able rows."""
    if os.geteuid() != 0:
        return "skipped: takes root", []
    figures = []
    try:
        for figure in measure():
            print(line(figure), file=sys.stderr, flush=True)
            figures.append(figure)
    except (AssertionError, OSError) as error:  # what was measured before is worth telling
        figures += ratios(figures)
        text = f"{table(figures, lab_tools.find().missing)}\nFAILED, what follows is left out: {error}"
        return text, [*map(_row, figures), {"failed": [str(error)]}]
    figures += ratios(figures)
    return table(figures, lab_tools.find().missing), [_row(each) for each in figures]


def _row(figure: Figure) -> dict[str, object]:
    return asdict(figure) | {"missed": figure.missed}
