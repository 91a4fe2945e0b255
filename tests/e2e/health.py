"""A lab whose backends have their health apart from their service, so that one can fail without the other."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import netlab
from netlab import HTTP_PORT, Lab, wait_for
from netlab.clients import http_connection
from netlab.process import Process
from tests.e2e.instance import Instance

SERVERS = Path(netlab.__file__).with_name("servers.py")
HEALTH_PORT = 8099
CHECK = "{type: http, port: 8099, interval_ms: 200, timeout_ms: 500, healthy_threshold: 2, unhealthy_threshold: 2}"


class Healthy:
    """The health servers of a lab's backends, each a process of its own."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.servers: dict[str, Process] = {}
        for number in range(len(lab.backends)):
            self.start(number)

    def start(self, number: int) -> None:
        """Let backend ``number``, from 0, be well."""
        backend = self.lab.backends[number]
        at = f"{backend.name}={backend.ip4},{backend.ip6}"
        server = self.lab.spawn(backend.namespace, sys.executable, str(SERVERS), "--at", at, "--http", str(HEALTH_PORT))
        server.wait_output("ready")
        self.servers[backend.name] = server

    def stop(self, number: int) -> None:
        """Let it be ill. It goes on serving."""
        self.servers[self.lab.backends[number].name].kill()


def checked(lab: Lab, *weights: int, check: str = CHECK, extra: str = "") -> str:
    """A file with one proxy over all backends, with weights (1 where none is given) and a health check."""
    lines = ["apiVersion: revproxy/v1", "proxies:", "  - name: web", "    listen: {interfaces: [eth0], port: 80}"]
    if check:
        lines.append(f"    health_check: {check}")
    lines += [f"    {line}" for line in extra.splitlines()]
    lines.append("    default_target:")
    for number, backend in enumerate(lab.backends):
        weight = weights[number] if number < len(weights) else 1
        lines.append(f"      - {{ip: {backend.ip4}, port: {HTTP_PORT}, weight: {weight}}}")
    return "\n".join(lines) + "\n"


def targets(instance: Instance) -> dict[str, Any]:
    """The targets of all proxies in ``status``, by ip."""
    status = instance.json("status")
    return {each["address"].rpartition(":")[0]: each for proxy in status["proxies"] for each in proxy["targets"]}


def wait_health(instance: Instance, backend: netlab.Backend, health: str, timeout_sec: float = 20) -> None:
    """Until ``status`` says so of the backend's target."""
    wait_for(
        lambda: targets(instance)[str(backend.ip4)]["health"] == health,
        f"{backend.name} {health}",
        timeout_sec=timeout_sec,
    )


def shares(lab: Lab, number: int, sources: Callable[[int], tuple[str, int]] | None = None) -> Counter[str]:
    """Which backends answer so many new connections; every one must be answered."""
    found: Counter[str] = Counter()
    for index in range(number):
        connection = http_connection(
            lab.client, (lab.proxy4, 80), source=sources(index) if sources else None, timeout_sec=3
        )
        try:
            connection.request("GET", "/")
            found[connection.getresponse().read().decode().split()[0]] += 1
        finally:
            connection.close()
    return found
