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
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from netlab import TCP_PORT, Lab, wait_for
from netlab.clients import connect, echo_tcp
from netlab.namespace import Namespace
from reconciler import __version__
from reconciler.answers import Sync
from tests.e2e.instance import Instance, web

DASHBOARD = Path(__file__).parents[2] / "packaging/grafana/revproxy.json"
PORT = 9377
METRICS = f"{{enabled: true, listen: '127.0.0.1:{PORT}'}}"
LINE = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_FAMILY = re.compile(r"_(bucket|count|sum|created|total)$")


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


FAMILIES = {
    # connections, packets, bytes, drops
    "revproxy_connections": ("gauge", {"proxy", "target"}),
    "revproxy_connections_opened": ("counter", {"proxy", "target"}),
    "revproxy_packets": ("counter", {"proxy", "target", "direction"}),
    "revproxy_bytes": ("counter", {"proxy", "target", "direction"}),
    "revproxy_dropped_packets": ("counter", {"reason"}),
    "revproxy_handled_packets": ("counter", {"outcome"}),
    "revproxy_reclaimed_connections": ("counter", set()),
    "revproxy_events_lost": ("counter", set()),
    # target health and check latency
    "revproxy_target_up": ("gauge", {"proxy", "target"}),
    "revproxy_target_share_ratio": ("gauge", {"proxy", "target"}),
    "revproxy_health_check_duration_seconds": ("histogram", {"type", "result"}),
    # reconcile count, duration and result, drift repaired, sync state
    "revproxy_reconciles": ("counter", {"result"}),
    "revproxy_reconcile_duration_seconds": ("histogram", set()),
    "revproxy_last_reconcile_timestamp_seconds": ("gauge", set()),
    "revproxy_drift_repaired": ("counter", set()),
    "revproxy_sync_state": ("gauge", {"state"}),
    # revision and build, map fill levels
    "revproxy_revision": ("gauge", set()),
    "revproxy_build_info": ("gauge", {"version"}),
    "revproxy_data_plane_loaded": ("gauge", set()),
    "revproxy_map_entries": ("gauge", {"map"}),
    "revproxy_map_max_entries": ("gauge", {"map"}),
}
"""Every family with its type and its labels."""


def test_each_metric_by_its_name(lab: Lab, measured: Instance) -> None:
    """And with its type and labels, as the field names them: these and no others."""
    measured.write(config(lab, 0) + "    health_check: {type: tcp, interval_ms: 100, timeout_ms: 90}\n")
    of = {"type": "tcp", "result": "pass"}
    checked = ("revproxy_health_check_duration_seconds_count", frozenset(of.items()))
    wait_for(lambda: scrape(lab).get(checked, 0) > 0, "a check", timeout_sec=30)
    families = list(text_string_to_metric_families(get(lab.proxy, "/metrics")[1]))
    ours = {each.name: each for each in families if each.name.startswith("revproxy_")}
    created = {name for name in ours if name.endswith("_created")}  # when a counter began: of the library's
    kinds = {name: (each.type, _labels(each)) for name, each in ours.items() if name not in created}
    assert kinds == FAMILIES
    for name, each in ours.items():
        assert each.documentation.endswith("."), name
        units = {"packets", "bytes", "connections", "lost", "repaired", "reconciles", "opened"}
        assert each.type != "counter" or units & set(name.split("_")), name
        assert each.type != "counter" or {sample.name for sample in each.samples} <= {f"{name}_total"}, name
        assert len({(one.name, tuple(sorted(one.labels.items()))) for one in each.samples}) == len(each.samples)
    found = scrape(lab)
    address = f"{lab.backends[0].ip4}:{TCP_PORT}"
    assert sample(found, "revproxy_target_up", proxy="web", target=address) == 1
    assert sample(found, "revproxy_health_check_duration_seconds_bucket", **of, le="+Inf") >= 1
    assert sample(found, "revproxy_build_info", version=__version__) == 1
    assert sum(sample(found, "revproxy_sync_state", state=each.value) for each in Sync) == 1
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "process_open_fds"} <= {
        each.name for each in families
    }


def _labels(family: Metric) -> set[str]:
    return {label for each in family.samples for label in each.labels} - {"le"}


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
        told = {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}
        assert (told["Synced"], told["Degraded"]) == (("True", "InSync"), ("True", "MetricsNotServed"))
        with connect(lab.client, (lab.proxy4, 7)) as client:  # and nothing else is wrong
            client.sendall(b"x")
            assert client.recv(1) == b"x"
    wait_for(lambda: get(lab.proxy, "/healthz", PORT + 1)[0] == 200, "the port, once it is free", timeout_sec=30)
    measured.wait_synced()
    measured.write(config(lab, 0, metrics="{}"))
    wait_for(lambda: get(lab.proxy, "/healthz", PORT + 1)[0] == 0, "metrics to end", timeout_sec=30)


def test_the_dashboard_asks_for_all_metrics_that_there_are_and_no_other(lab: Lab, measured: Instance) -> None:
    measured.write(config(lab, 0) + "    health_check: {type: tcp, interval_ms: 100, timeout_ms: 90}\n")
    bucket = "revproxy_health_check_duration_seconds_bucket"
    names = wait_for(lambda: found if bucket in (found := {name for name, _ in scrape(lab)}) else None, "a check")
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    queries += [
        variable["query"]["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"
    ]
    asked = {word for query in queries for word in LINE.findall(query) if word.startswith(("revproxy_", "process_"))}
    assert asked - names == set()
    of_ours, shown = ({_FAMILY.sub("", name) for name in some} for some in (names, asked))
    assert {name for name in of_ours if name.startswith("revproxy_")} - shown == set()
    assert all(panel["targets"] for panel in panels)
