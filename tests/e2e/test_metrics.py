"""Metrics as a real scrape gives them: well-formed, equal to the statistics, never going down; and the dashboard asks
for nothing else."""

from __future__ import annotations

import json
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from netlab import TCP_PORT, Lab, wait_for
from netlab.clients import connect, echo_tcp
from netlab.namespace import Namespace
from tests.e2e.instance import Instance, web

DASHBOARD = Path(__file__).parents[2] / "packaging/grafana/revproxy.json"
PORT = 9377
METRICS = f"{{enabled: true, listen: '127.0.0.1:{PORT}'}}"
LINE = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


def get(namespace: Namespace, path: str, port: int = PORT) -> tuple[int, str]:
    """Status and body."""
    result = namespace.run(
        "curl", "-s", "-m", "20", "-w", "\n%{http_code}", f"http://127.0.0.1:{port}{path}", check=False
    )
    body, _, status = result.stdout.rpartition("\n")
    return int(status or 0), body


def scrape(lab: Lab) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by name and labels, through prometheus_client's parser."""
    status, body = get(lab.proxy, "/metrics")
    assert status == 200, body
    families = text_string_to_metric_families(body)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def sample(found: Any, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def config(lab: Lab, *numbers: int, metrics: str = METRICS) -> str:
    targets = [f"{lab.backends[number].ip4}:{TCP_PORT}" for number in numbers]
    return web(*targets, port=7, settings=f"{{metrics: {metrics}}}")


@pytest.fixture
def measured(lab: Lab, instance: Instance) -> Instance:
    instance.write(config(lab, 0, 1))
    instance.start_daemon()
    wait_for(lambda: get(lab.proxy, "/readyz")[0] == 200, "metrics", timeout_sec=30)
    return instance


def test_metrics_are_what_the_statistics_say(lab: Lab, measured: Instance) -> None:
    for number in range(10):
        assert echo_tcp(lab.client, (lab.proxy4, 7), 3000, seed=number).intact
    stats: Any = None

    def equal() -> bool:
        nonlocal stats
        stats, found, after = measured.json("stats"), scrape(lab), measured.json("stats")
        if stats != after:
            return False  # the last acknowledgements are still under way
        for address, counted in stats["proxies"]["web"]["targets"].items():
            of = {"proxy": "web", "target": address}
            assert sample(found, "revproxy_connections_opened_total", **of) == counted["opened"]
            assert sample(found, "revproxy_connections", **of) == counted["connections"]
            for direction in ("forward", "reverse"):
                for unit in ("packets", "bytes"):
                    value = sample(found, f"revproxy_{unit}_total", **of, direction=direction)
                    assert value == counted[f"{unit}_{direction}"], (unit, direction)
        for reason, count in stats["drops"].items():
            assert sample(found, "revproxy_dropped_packets_total", reason=reason) == count
        handled = sum(v for (name, _), v in found.items() if name == "revproxy_handled_packets_total")
        assert handled == stats["packets_forward"] + stats["packets_reverse"]  # every packet counted once
        assert sample(found, "revproxy_revision") == measured.json("status")["revision"]
        assert sample(found, "revproxy_sync_state", state="Synced") == 1
        assert sample(found, "revproxy_map_entries", map="target") == 2
        assert sample(found, "revproxy_map_max_entries", map="connection4") == 200_000
        assert sample(found, "revproxy_reconciles_total", result="applied") == 1
        return True

    wait_for(equal, "a quiet moment", timeout_sec=30)
    assert sum(t["opened"] for t in stats["proxies"]["web"]["targets"].values()) == 10


def test_totals_never_go_down(lab: Lab, measured: Instance) -> None:
    """Not when targets go, not when the daemon is another one."""
    totals = ("opened", "packets_forward", "bytes_forward", "packets_reverse", "bytes_reverse")

    def counted() -> list[int]:
        stats = measured.json("stats")
        assert [stats[name] for name in totals] == [stats["proxies"]["web"][name] for name in totals]
        return [stats[name] for name in totals]

    for number in range(12):
        echo_tcp(lab.client, (lab.proxy4, 7), 1000, seed=number)
    before: list[int] = []

    def quiet() -> bool:
        before[:] = counted()
        return before == counted()

    wait_for(quiet, "a quiet moment")
    measured.write(config(lab, 1))
    measured.ctl("connections", "flush", "--all")
    gone = f"{lab.backends[0].ip4}:{TCP_PORT}"

    def is_gone() -> bool:
        return gone not in measured.json("stats")["proxies"]["web"]["targets"]

    wait_for(is_gone, "the target to go", timeout_sec=60)
    assert counted() == before
    assert before[0] == 12
    measured.stop_daemon(signal.SIGKILL)
    measured.start_daemon()
    assert counted() == before


def test_metrics_follow_the_files_and_a_port_in_use_is_told(lab: Lab, measured: Instance) -> None:
    taken = lab.proxy.socket(socket.AF_INET)
    with taken:
        taken.bind(("127.0.0.1", PORT + 1))
        taken.listen()
        measured.write(config(lab, 0, metrics=METRICS.replace(str(PORT), str(PORT + 1))))
        wait_for(lambda: get(lab.proxy, "/healthz")[0] == 0, "the old port to close", timeout_sec=30)
        status = wait_for(lambda: measured.json("status")["errors"] and measured.json("status"), "the error")
        assert status["sync"] == "Degraded"
        assert (
            f"metrics can't be served at 127.0.0.1:{PORT + 1}: Address already in use" in status["errors"][0]["message"]
        )
        with connect(lab.client, (lab.proxy4, 7)) as client:  # and nothing else is wrong
            client.sendall(b"x")
            assert client.recv(1) == b"x"
    wait_for(lambda: get(lab.proxy, "/healthz", PORT + 1)[0] == 200, "the port, once it is free", timeout_sec=30)
    measured.wait_synced()
    measured.write(config(lab, 0, metrics="{}"))
    wait_for(lambda: get(lab.proxy, "/healthz", PORT + 1)[0] == 0, "metrics to end", timeout_sec=30)


def test_the_dashboard_asks_only_for_metrics_that_there_are(lab: Lab, measured: Instance) -> None:
    del measured
    names = {name for name, _ in scrape(lab)}
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    queries += [
        variable["query"]["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"
    ]
    asked = {word for query in queries for word in LINE.findall(query) if word.startswith(("revproxy_", "process_"))}
    assert asked - names == set()
    assert len(asked) > 10
    assert all(panel["targets"] for panel in panels)
