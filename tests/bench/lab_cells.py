"""The cells of the lab benchmark: what is measured, by one call for one contestant in one round."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from netlab import UDP_PORT, Lab
from tests.bench import lab_contestants as contestants
from tests.bench.lab_contestants import Contestant
from tests.bench.lab_tools import Tools
from tests.bench.lab_traffic import FAR_CPU, FIRST, PROXY_CPU, PacketPath, kept_awake

Figures = dict[str, float]

FLOWS, WARM_UP = 256, 128  # the latter: as many answers as wait while the proxy takes packets
PACKETS, NEW_FLOWS, SLOW_PACKETS = 200_000, 30_000, 60_000
WRK_SEC, BULK_SEC = 1, 0.6
REQUEST_CONNECTIONS = 32

_WRK_SCRIPT = """\
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\nJSON {"requests": %d, "us": %d, "p50": %d, "p99": %d, "errors": %d}\\n', summary.requests,
    summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""

_WEB_SERVER = """\
http {
access_log off; default_type text/plain; keepalive_requests 1000000000; client_body_temp_path body;
proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
server { listen %d backlog=4096; location / { return 200 "ok\\n"; } }
}
"""


@dataclass(frozen=True)
class Cell:
    """``figures``: what it measures, with units, the first one being what it is about; ``offload``: the kind of lab;
    ``needs``: programs without which it can't be."""

    name: str
    title: str
    figures: dict[str, str]
    kinds: tuple[type[Contestant], ...]
    rounds: int
    offload: bool = False
    needs: tuple[str, ...] = ()


_ALL = (
    contestants.RevproxyXdp,
    contestants.RevproxyTc,
    contestants.RevproxyFullnat,
    contestants.BareRedirect,
    contestants.Forwarding,
    contestants.Nftables,
    contestants.NginxStream,
    contestants.Haproxy,
)
_WRK = ("wrk", "nginx")
CELLS = {
    cell.name: cell
    for cell in (
        Cell(
            "pps",
            f"small UDP packets, established ({FLOWS} flows), one core",
            {"packets/s": "M"},
            tuple(kind for kind in _ALL if kind.udp),
            5,
        ),
        Cell(
            "new-flows",
            "UDP flows, all of them new, one core",
            {"flows/s": "k"},
            tuple(kind for kind in _ALL if kind.udp and kind.all_new),
            5,
        ),
        Cell(
            "requests",
            "requests on kept connections",
            {"requests/s": "k", "p50": "us", "p99": "us"},
            _ALL,
            len(_ALL),
            needs=_WRK,
        ),
        Cell("connections", "new connections", {"connections/s": "k"}, _ALL, len(_ALL), needs=_WRK),
        Cell(
            "latency",
            "one request at a time, CPUs awake",
            {"p50": "us", "p99": "us"},
            _ALL,
            3 * len(_ALL),  # of a round few requests are beyond the 99th percentile, mostly those that met a tick
            needs=_WRK,
        ),
        Cell(
            "bulk",
            "bulk, offloads on",
            {"throughput": "Gbit/s"},
            (
                contestants.RevproxyTc,
                contestants.RevproxyFullnatTc,
                contestants.Forwarding,
                contestants.Nftables,
                contestants.NginxStream,
                contestants.Haproxy,
            ),
            12,
            offload=True,
        ),
    )
}


def _on(cpu: int) -> tuple[str, ...]:
    """Before a command line: on this CPU, ahead of others."""
    return ("taskset", "-c", str(cpu), *FIRST)


def start_servers(lab: Lab, tools: Tools) -> None:
    """What the clients talk to, at the backends, on the second CPU."""
    backends = lab.backends[0].namespace
    if tools.has("nginx"):
        body = _WEB_SERVER % contestants.WEB_PORT
        command = contestants.nginx_command(lab, tools, "http", body, 1)
        lab.spawn(backends, *_on(PROXY_CPU), *command, env=tools.environment)
    bulk = Path(__file__).with_name("lab_bulk.py")
    lab.spawn(backends, *_on(PROXY_CPU), sys.executable, bulk, "serve", str(contestants.BULK_PORT)).wait_output("ready")


@contextlib.contextmanager
def prepared(cell: Cell, who: Contestant) -> Iterator[PacketPath | None]:
    """What has to stand while a cell is measured: for packets, their path; for latency, CPUs that don't sleep."""
    if cell.name == "latency":
        with kept_awake():
            yield None
        return
    if cell.name not in ("pps", "new-flows"):
        yield None
        return
    address, port = who.address(contestants.LISTEN_UDP, UDP_PORT)
    with PacketPath(who.lab, address, port, who.pids) as path:
        yield path


def measure(cell: Cell, who: Contestant, path: PacketPath | None, number: int, tools: Tools) -> Figures:
    """The cell's figures in round ``number``. AssertionError if packets were lost or took another way."""
    before = who.counters()
    if path:
        figures, packets = _packets(cell, who, path, number)
    elif cell.name == "bulk":
        figures, packets = _bulk(who)
    else:
        figures, packets = _requests(cell, who, tools)
    who.check({name: value - before[name] for name, value in who.counters().items()}, packets)
    return figures


def _packets(cell: Cell, who: Contestant, path: PacketPath, number: int) -> tuple[Figures, int]:
    count, flows, extra = PACKETS, FLOWS, 0
    if isinstance(who, contestants.NginxStream):
        count = SLOW_PACKETS
    if cell.name == "new-flows":
        count, flows = NEW_FLOWS, 0
    else:  # answered once before the clock runs, so that both sides have been heard
        for first in range(0, FLOWS, WARM_UP):
            extra += 2 * path.send(WARM_UP, WARM_UP, first=first, echo=True).delivered
    sent = path.send(count, flows, first=0 if flows else (number + 1) * NEW_FLOWS)
    lost = sent.sent - sent.delivered
    assert sent.sent == count, f"{who.name}: {sent.sent} of {count} packets sent"
    # A process loses some when its socket's buffer is full; what is in the kernel has no such excuse.
    assert lost <= count * (0.2 if who.pids else 0.001), f"{who.name}: {lost} of {count} packets lost"
    from_proxy = isinstance(who, contestants.NginxStream | contestants.RevproxyFullnat)
    assert (sent.from_proxy if from_proxy else sent.from_clients) == sent.delivered, f"{who.name}: {sent}"
    name = next(iter(cell.figures))
    return {name: sent.delivered * 1e9 / sent.busy_ns, "wall": sent.delivered * 1e9 / sent.wall_ns}, count + extra


def _requests(cell: Cell, who: Contestant, tools: Tools) -> tuple[Figures, int]:
    lab = who.lab
    script = lab.directory / "wrk.lua"
    script.write_text(_WRK_SCRIPT)
    address, port = who.address(contestants.LISTEN_WEB, contestants.WEB_PORT)
    connections = 1 if cell.name == "latency" else REQUEST_CONNECTIONS
    command = [tools.paths["wrk"], "-t1", f"-c{connections}", f"-d{WRK_SEC}s", "-s", script]
    if cell.name == "connections":
        command += ["-H", "Connection: close"]
    words = [*_on(FAR_CPU), *map(str, command), f"http://{address}:{port}/"]
    output = lab.client.run(*words, env=tools.environment).stdout
    said = json.loads(next(line for line in output.splitlines() if line.startswith("JSON")).removeprefix("JSON"))
    assert said["requests"] > 0, f"{who.name}: {said}"
    assert said["errors"] <= said["requests"] // 1000, f"{who.name}: {said}"
    rate = said["requests"] * 1e6 / said["us"]
    name = next(iter(cell.figures))
    # At least a request and its answer; with a connection, those of its beginning and end as well.
    packets = said["requests"] * (6 if cell.name == "connections" else 2)
    return {"p50": said["p50"], "p99": said["p99"]} | ({} if cell.name == "latency" else {name: rate}), packets


def _bulk(who: Contestant) -> tuple[Figures, int]:
    address, port = who.address(contestants.LISTEN_BULK, contestants.BULK_PORT)
    program = Path(__file__).with_name("lab_bulk.py")
    output = who.lab.client.run(
        *_on(FAR_CPU), sys.executable, program, "measure", address, str(port), str(BULK_SEC)
    ).stdout
    said = json.loads(output)
    # A segment has up to 64 KiB.
    return {"throughput": said["bytes"] * 8 / said["seconds"]}, int(said["total"] / 65536)
