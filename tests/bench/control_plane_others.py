"""What others take for a change of their configuration: nftables' sets, reloads of HAProxy and nginx."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from netlab import Lab, wait_for
from netlab.process import Process
from tests.bench.lab_tools import Tools

FILES_EACH = 4
"""Open files that a listener takes while one set of workers is exchanged for the next. Where so many may not be opened
as there would be listeners, HAProxy and nginx are left out."""
_TIMEOUT_SEC = 60.0
_SIGNALS = 6
_RESTING = ("ep_poll", "do_epoll_wait")

Row = tuple[str, str, str, float]  # who, what, unit, value


def measure(lab: Lab, tools: Tools, elements: int, source: Callable[[int], str]) -> Iterator[Row]:
    """Of all that are there."""
    if tools.has("nft"):
        yield from _nftables(lab, tools, elements, source)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if FILES_EACH * elements + 1024 > hard:
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        if tools.has("haproxy"):
            yield _haproxy(lab, tools, elements, hard)
        if tools.has("nginx", "ngx_stream_module.so"):
            yield _nginx(lab, tools, elements)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _nftables(lab: Lab, tools: Tools, elements: int, source: Callable[[int], str]) -> Iterator[Row]:
    """A map from source prefixes to targets, as source routes are."""
    path = lab.directory / "bench.nft"
    lines = ",\n".join(f"{source(number)} : {lab.backends[0].ip4}" for number in range(elements))
    path.write_text(
        "table ip bench {\nmap routes {\ntype ipv4_addr : ipv4_addr\nflags interval\nelements = {\n"
        f"{lines}\n}}\n}}\nchain prerouting {{\ntype nat hook prerouting priority dstnat\n"
        "tcp dport 80 dnat to ip saddr map @routes\n}\n}\n"
    )

    def timed(*words: str) -> float:
        started = time.monotonic()
        lab.proxy.run(tools.paths["nft"], *words, timeout_sec=_TIMEOUT_SEC, env=tools.environment)
        return time.monotonic() - started

    yield "nftables", "nft -f from nothing", "s", timed("-f", str(path))
    element = f"{{ 198.51.100.0/24 : {lab.backends[0].ip4} }}"
    yield "nftables", "nft add element", "ms", timed("add", "element", "ip", "bench", "routes", element) * 1e3
    lab.proxy.run(tools.paths["nft"], "delete", "table", "ip", "bench", env=tools.environment)


def _addresses(number: int) -> str:
    """Each listener's own: every address has room for many ports."""
    return f"127.0.{number // 1000}.1:{10000 + number % 1000}"


def _haproxy(lab: Lab, tools: Tools, listeners: int, files: int) -> Row:
    sections = "".join(
        f"listen l{number}\n  bind {_addresses(number)}\n  server s {lab.backends[0].ip4}:8080\n"
        for number in range(listeners)
    )
    defaults = "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
    path = lab.directory / "haproxy.cfg"
    path.write_text(f"global\n  maxconn 100\n  ulimit-n {files}\n{defaults}{sections}")
    process = lab.spawn(lab.proxy, tools.paths["haproxy"], "-W", "-db", "-f", path, env=tools.environment)
    took = _reload(process, "SIGUSR2", 1)
    process.stop()
    return "haproxy", "reload with as many listeners", "ms", took * 1e3


def _nginx(lab: Lab, tools: Tools, listeners: int) -> Row:
    servers = "".join(
        f"server {{ listen {_addresses(number)}; proxy_pass {lab.backends[0].ip4}:8080; }}\n"
        for number in range(listeners)
    )
    path = lab.directory / "nginx.conf"
    path.write_text(
        f"load_module {tools.paths['ngx_stream_module.so']};\nuser root;\ndaemon off;\nworker_processes 2;\n"
        f"error_log stderr;\npid {lab.directory}/nginx.pid;\n"
        f"events {{ worker_connections {3 * listeners + 100}; }}\nstream {{\n{servers}}}\n"
    )
    process = lab.spawn(
        lab.proxy, tools.paths["nginx"], "-p", lab.directory, "-c", path, "-e", "stderr", env=tools.environment
    )
    took = _reload(process, "SIGHUP", 2)
    process.stop()
    return "nginx", "reload with as many listeners", "ms", took * 1e3


def _sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def _reload(process: Process, name: str, workers: int) -> float:
    """Seconds from the signal until a whole set of new workers is there and has come to rest."""
    import signal

    def children() -> set[int]:
        return set(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))

    def at_work() -> bool:
        return len(children()) >= workers and resting(children()) and _sleeps(process.pid)

    def resting(pids: set[int]) -> bool:
        try:
            return all(Path(f"/proc/{pid}/wchan").read_text() in _RESTING for pid in pids)
        except OSError:
            return False

    wait_for(
        lambda: process.status is not None or at_work(),
        f"{process.argv} at work",
        timeout_sec=_TIMEOUT_SEC,
    )
    assert process.status is None, process.output()
    before = children()
    for _ in range(_SIGNALS):
        started = time.monotonic()
        process.send(getattr(signal, name))
        try:  # HAProxy's master is at rest a moment before it hears signals
            wait_for(lambda: children() - before, "a new worker", timeout_sec=_TIMEOUT_SEC / _SIGNALS)
            break
        except TimeoutError:
            continue
    try:
        wait_for(
            lambda: len(children() - before) >= workers and resting(children() - before),
            "new workers",
            timeout_sec=_TIMEOUT_SEC,
        )
    except TimeoutError as error:
        raise AssertionError(f"{error}\n{process.output()[-2000:]}") from error
    return time.monotonic() - started
