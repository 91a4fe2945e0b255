"""Thousands of targets checked from one event loop, over real connections."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from netlab.namespace import Namespace
from netlab.process import Process

TARGETS = 2000
INTERVAL_MS = 2000

SERVER = """
import socket
listening = socket.socket()
listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listening.bind(("0.0.0.0", 8000))
listening.listen(4096)
print("ready", flush=True)
while True:
    taken, _ = listening.accept()
    try:
        taken.settimeout(1)
        if taken.recv(4096).startswith(b"GET /up HTTP/1.1"):
            taken.sendall(b"HTTP/1.1 204 No Content\\r\\nConnection: close\\r\\n\\r\\n")
    except OSError:
        pass
    taken.close()
"""

CHECKS = """
import json, sys, threading, time
from ipaddress import ip_address
from reconciler.config.healthcheck import CheckType, HealthCheck
from reconciler.runtime.health.checker import Checker
from reconciler.state.objects import Endpoint

number, interval_ms, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
check = HealthCheck(CheckType(kind), 8000, interval_ms, 1000, 2, 3, "/up", ((204, 204),), None, True)
ip = lambda n: ip_address(f"127.{1 + (n >> 16)}.{n >> 8 & 255}.{n & 255}")
targets = {(name, Endpoint(ip(n), 8000)): check for n in range(1, number + 1) for name in ("web", "api")}
seen, failed, done = [], [], threading.Event()

def observe(endpoint, _check, went_well, seconds):
    seen.append((time.monotonic(), str(endpoint.ip)))
    if not went_well:
        failed.append(str(endpoint.ip))
    if len(seen) >= 3 * number:
        done.set()

checker = Checker(lambda: None)
checker.observer = observe
checker.start()
started, busy = time.monotonic(), time.process_time()
checker.follow(targets, {})
done.wait(60)
seconds, busy = time.monotonic() - started, time.process_time() - busy
checker.stop()
first = [ip for at, ip in seen if at - started < interval_ms / 1000 + 1]
tenths = {}
for at, _ in seen:
    tenths[int((at - started) * 10)] = tenths.get(int((at - started) * 10), 0) + 1
conditions = checker.conditions()
print(json.dumps({
    "first": len(set(first)), "checks": len(seen), "failed": len(failed), "seconds": seconds, "busy_sec": busy,
    "most_in_a_tenth": max(tenths.values()), "healthy": sum(each.health == "healthy" for each in conditions.values()),
}))
"""


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace("rphealth-scale")
    made.create()
    try:
        made.ip("link set lo up")
        yield made
    finally:
        made.delete()


@pytest.mark.parametrize("kind", ["tcp", "http"])
def test_two_thousand_targets(namespace: Namespace, kind: str, tmp_path: object) -> None:
    """Each once per interval although two proxies have it, within half a core of two."""
    from pathlib import Path

    server = Process(namespace.command(sys.executable, "-c", SERVER), Path(str(tmp_path)) / "server.log")
    try:
        server.wait_output("ready")
        arguments = [sys.executable, "-c", CHECKS, str(TARGETS), str(INTERVAL_MS), kind]
        found = json.loads(namespace.run(*arguments, timeout_sec=90).stdout)
    finally:
        server.kill()
    assert found["first"] == TARGETS, found
    assert found["failed"] == 0, found
    assert found["healthy"] == 2 * TARGETS, found
    assert found["checks"] / found["seconds"] <= 1.1 * TARGETS / (INTERVAL_MS / 1000), found
    assert found["busy_sec"] / found["seconds"] < 0.5, found
