"""What ``revproxyctl connections``, and what else counts them, takes of processor and memory with a million live
connections, as somebody types it, daemon and all; and how long a change of the files takes meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from netlab import Lab, wait_for
from reconciler.kernel import eventring, layout
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.maps import Maps
from tests.e2e.instance import PROGRAMS, Instance, web
from tests.kernel.kernelmaps import in_child

LIVE = 1_000_000
SETTINGS = f"{{max_connections: {LIVE + 1000}}}"
CHANCE = np.random.default_rng(5)


@dataclass(frozen=True)
class Case:
    """``rows``: lines of output that there must be at least. ``goal_sec``: what it may take of a processor."""

    name: str
    words: Sequence[str]
    rows: int
    goal_sec: float
    command: str = "connections"


CASES = (
    Case("status", (), 5, 8, command="status"),
    Case("drain", ("192.0.2.1:8080", "--proxy", "web"), 2, 6, command="drain"),
    Case("undrain", ("192.0.2.1:8080",), 2, 5, command="undrain"),
    Case("count", ("--count",), 1, 4),
    Case("the 20 with most bytes", ("--limit", "20", "--sort", "bytes"), 20, 5),
    Case("of one client", ("--client", "10.0.7.7"), 16, 3),
    Case("of a network, counted", ("--client", "10.0.0.0/17", "--count"), 1, 4),
    Case("to one target, 20", ("--target", "192.0.2.3:8080", "--limit", "20"), 20, 3),
    Case("all, as JSON", ("--output", "json"), LIVE, 15),
    Case("all, as a table", (), LIVE, 45),
    Case("flush of one client", ("flush", "--client", "10.0.7.7"), 1, 5),
    Case("flush of a proxy", ("flush", "--proxy", "web"), 1, 20),
)
WITHIN_SEC = 0.7
"""So long after its start a command is at what takes it long."""
END_SEC = 3.0
POLL_SEC = 0.02


@dataclass(frozen=True)
class Figure:
    """``cpu_sec``: of a processor, for client and daemon. ``daemon_mb``: the daemon's memory at its peak so far;
    ``client_mb``: the client's. ``edit_sec``: how long the daemon took meanwhile until an edited file was live."""

    case: str
    cpu_sec: float
    seconds: float
    goal_sec: float
    output_mb: float
    daemon_mb: float
    client_mb: float
    edit_sec: float
    failed: str = ""


def run(_cells: Sequence[str] = ()) -> tuple[str, list[dict[str, object]]]:
    """Measure; text and figures."""
    with Lab(offload=False, xdp_peers=True) as lab, Instance(lab) as instance:
        instance.write(web("192.0.2.1:8080", settings=SETTINGS))
        daemon = instance.start_daemon()
        # In another process: the memory of this one would count as that of each command it starts.
        assert in_child(lambda: fill(instance.bpffs_dir)) == 0
        instance.ctl("plan")  # so that the daemon knows how many there are
        figures = [measure(instance, case, daemon.pid) for case in CASES]
        assert in_child(lambda: fill(instance.bpffs_dir)) == 0
        figures.append(end_during(instance, lab.directory / "out"))
    lines = [
        f"{'case':26} {'CPU s':>6} {'goal':>5} {'s':>6} {'MB out':>7} {'daemon MB':>9} {'client MB':>9} {'edit s':>6}"
    ]
    lines += [
        f"{each.case:26} {each.cpu_sec:6.2f} {each.goal_sec:5g} {each.seconds:6.2f} {each.output_mb:7.1f} "
        f"{each.daemon_mb:9.0f} {each.client_mb:9.0f} {each.edit_sec:6.2f} {each.failed}"
        for each in figures
    ]
    return "\n".join(lines), [asdict(each) for each in figures]


def measure(instance: Instance, case: Case, daemon: int) -> Figure:
    """One command, into a file; and then once more, with an edit meanwhile."""
    out = instance.lab.directory / "out"
    command = instance.lab.proxy.command(PROGRAMS / "revproxyctl", case.command, *case.words)
    with out.open("wb") as stream:
        before, started = cpu_sec(daemon), time.monotonic()
        process = subprocess.Popen(command, env=instance.env, stdout=stream)
        # (Its ru_maxrss would count what this process has.)
        client = 0.0
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            client = max(client, peak_mb(process.pid))
            time.sleep(POLL_SEC)
        _, status, used = ended
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
        spent = cpu_sec(daemon) - before + used.ru_utime + used.ru_stime
    with out.open("rb") as stream:
        lines = sum(1 for _ in stream)
    failed = "" if process.returncode == 0 and lines >= case.rows else f"status {process.returncode}, {lines} lines"
    if spent > case.goal_sec:
        failed = failed or f"more than {case.goal_sec:g} s"
    peak = peak_mb(daemon)
    edited = edit_during(instance, command)
    size = out.stat().st_size / 1e6
    return Figure(case.name, spent, seconds, case.goal_sec, size, peak, client, edited, failed)


def peak_mb(process: int) -> float:
    """Its memory at its peak so far; 0 of one that has ended."""
    said = Path(f"/proc/{process}/status").read_text().partition("VmHWM:")[2].split()
    return int(said[0]) / 1024 if said else 0.0


def cpu_sec(process: int) -> float:
    """What it and its children that have ended have had of processors so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def edit_during(instance: Instance, command: Sequence[str | Path]) -> float:
    """While the command is at work again, how long from an edit of the files until packets see it."""
    control = eventring.open_map(Maps(instance.bpffs_dir).directory, "control", Gateway())

    def active() -> int:
        return int(control.items()[1][0]["active"])

    process = subprocess.Popen(command, env=instance.env, stdout=subprocess.DEVNULL)
    time.sleep(WITHIN_SEC)
    before, started = active(), time.monotonic()
    instance.write(web("192.0.2.1:8080", f"192.0.2.2:{CHANCE.integers(1000, 60000)}", settings=SETTINGS))
    wait_for(lambda: active() != before, "the edit is live", timeout_sec=60)
    seconds = time.monotonic() - started
    process.wait()
    control.close()
    return seconds


def end_during(instance: Instance, out: Path) -> Figure:
    """How long the daemon takes to end while a list is on its way, and what the reader is told."""
    daemon = instance.daemon
    assert daemon is not None
    command = instance.lab.proxy.command(PROGRAMS / "revproxyctl", "connections", "--output", "json")
    with out.open("wb") as stream:
        process = subprocess.Popen(command, env=instance.env, stdout=stream, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: out.stat().st_size > 1_000_000, "some of the list")
        started = time.monotonic()
        daemon.send(signal.SIGTERM)
        peak = peak_mb(daemon.pid)
        daemon.wait(timeout_sec=60)
        seconds = time.monotonic() - started
        said = process.communicate()[1]
    failed = "" if process.returncode == 1 and "the list is cut off" in said else f"{process.returncode}: {said}"
    failed = failed or ("" if seconds < END_SEC else f"more than {END_SEC:g} s")
    return Figure("SIGTERM during all", 0, seconds, END_SEC, out.stat().st_size / 1e6, peak, 0, 0, failed)


def fill(bpffs_dir: Path, live: int = LIVE) -> None:
    """Write so many live connections into the table, both directions of each."""
    maps: Maps = Maps(bpffs_dir)
    maps.open()
    now = time.monotonic_ns()
    common = np.zeros(live, layout.connection4["c"])
    common["proxy"], common["target"], common["idle_sec"] = 1, 1, 3600
    common["created"] = (now - CHANCE.integers(0, 10**11, live)) >> layout.CREATED_SHIFT
    common["last_ns"] = now
    heard = layout.CONSTANTS["HEARD_ANY"] | layout.CONSTANTS["HEARD_SYN"]
    number = np.arange(live, dtype=np.uint64)
    client = address(np.uint64(10 << 24) + number // 16)
    ports = (1024 + number % 16 * 4001).astype(np.uint16)
    listen, target = address(np.full(live, 0xC6336401, np.uint64)), address(0xC0000200 + number % 7)
    for reply in (False, True):
        keys, values = np.zeros(live, layout.connection_key4), np.zeros(live, layout.connection4)
        values["c"] = common
        values["c"]["flags"] = layout.CONSTANTS["CONNECTION_REPLY"] if reply else 0
        plain = layout.CONSTANTS["HEARD_PLAIN"]
        values["c"]["own"], values["c"]["peer"] = (heard, heard | plain) if reply else (heard | plain, heard)
        values["c"]["packets"] = CHANCE.integers(1, 1000, live)
        values["c"]["bytes"] = CHANCE.integers(60, 10**9, live)
        for entry, source, source_port, to, to_port in (
            (keys, *((target, 8080, client, ports) if reply else (client, ports, listen, 80))),
            (values, *((listen, 80, client, ports) if reply else (client, ports, target, 8080))),
        ):
            entry["saddr_be"], entry["daddr_be"] = source, to
            entry["sport_be"], entry["dport_be"] = source_port, to_port
        keys["protocol"] = 6
        maps["connection4"].put_many(keys, values)
    maps.close()


def address(numbers: np.ndarray) -> np.ndarray:
    """IPv4 addresses as the tables have them."""
    return np.ascontiguousarray(numbers.astype(">u4")).view(np.uint8).reshape(len(numbers), 4)
