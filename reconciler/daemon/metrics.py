"""Metrics for Prometheus: what the kernel's counters say, read for each scrape, and what the daemon did.

Names and units follow https://prometheus.io/docs/practices/naming/. Reading is done on maps of our own, never on the
worker: a scrape is answered while that compiles or waits. Only :meth:`Metrics.text` reads; the rest notes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from reconciler import __version__
from reconciler.answers import Attempt, Stats, Sync, Traffic
from reconciler.kernel import connections, counters, groups
from reconciler.kernel.connections import Counts
from reconciler.kernel.conntable import VERSIONS
from reconciler.kernel.maps import Maps, opened
from reconciler.runtime.events import Events
from reconciler.runtime.health.condition import Condition, Health
from reconciler.state.objects import QUARTERS, Endpoint

Target = tuple[str, Endpoint]

_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_CHECK_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SYNC_OF: Final = {"applied": Sync.SYNCED, "unchanged": Sync.SYNCED, "held": Sync.DEGRADED, "failed": Sync.DEGRADED}
_NO_PACKETS: Final = ("reclaimed", "event_lost")
_COUNTED_MAPS: Final = ("listener4", "listener6", "route4", "route6", "group_member", "proxy_name", "blob")


class Metrics:
    """``bpffs_dir``: where the instance's pins are now. ``events``: from which drift that was repaired is counted."""

    def __init__(self, bpffs_dir: Callable[[], Path], events: Events) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("revproxy_build", "The running revproxyd.", registry=self.registry).info({"version": __version__})
        self._reconciles = Counter(
            "revproxy_reconciles", "Looks at files and kernel by result.", ["result"], registry=self.registry
        )
        self._durations = Histogram(
            "revproxy_reconcile_duration_seconds", "How long looks took.", buckets=_SECONDS, registry=self.registry
        )
        self._sync = Gauge(
            "revproxy_sync_state", "1 for the state that holds, 0 for the others.", ["state"], registry=self.registry
        )
        self._looked = Gauge(
            "revproxy_last_reconcile_timestamp_seconds", "When it looked last, since the epoch.", registry=self.registry
        )
        self._drift = Counter(
            "revproxy_drift_repaired", "Objects in the kernel that somebody else had changed.", registry=self.registry
        )
        self._kernel = _Kernel(bpffs_dir)
        self.registry.register(self._kernel)
        self._events, self._heard = events, events.last
        self._lock = threading.Lock()
        self.attempt: Attempt | None = None
        """What came of the latest look."""

    def note_look(self, attempt: Attempt | None, seconds: float, now_sec: float) -> None:
        """The worker has looked. ``attempt``: what came of it."""
        self._durations.observe(seconds)
        self._looked.set(now_sec)
        if attempt is None:
            return
        self.attempt = attempt
        self._reconciles.labels(attempt.result).inc()
        for state in Sync:
            self._sync.labels(state.value).set(state is _SYNC_OF.get(attempt.result, Sync.OUT_OF_SYNC))

    def health_checks(self) -> Callable[[str, bool, float], None]:
        """To be called with each check's type, whether it went well, and its seconds."""
        checks = Histogram(
            "revproxy_health_check_duration_seconds",
            "How long health checks took, by type and result.",
            ["type", "result"],
            buckets=_CHECK_SECONDS,
            registry=self.registry,
        )

        def observe(kind: str, passed: bool, seconds: float) -> None:
            checks.labels(kind, "pass" if passed else "fail").observe(seconds)

        return observe

    def health_states(self, conditions: Callable[[], Mapping[Target, Condition]]) -> None:
        """Have the health of targets told, of those that are checked."""
        self.registry.register(_Health(conditions))

    def revision(self) -> int:
        """Number of the configuration that packets see, 0 for none."""
        return self._kernel.revision()

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """Everything in the format that ``accept`` (the request's header) asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        with self._lock:
            self._count_drift()
            return encode(self.registry), content_type

    def _count_drift(self) -> None:
        for event in self._events.of_kind("drift_repaired", self._heard):
            objects = event.fields.get("objects", 1)
            self._drift.inc(len(objects) if isinstance(objects, (list, tuple)) else objects)
            self._heard = event.number


class _Health:
    """Collects what the health checker knows."""

    def __init__(self, conditions: Callable[[], Mapping[Target, Condition]]) -> None:
        self._conditions = conditions

    def describe(self) -> Iterator[Metric]:
        """Nothing in advance."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Of each target that is checked: whether it is up, and how much of its weight that leaves it."""
        labels = ["proxy", "target"]
        up = GaugeMetricFamily("revproxy_target_up", "Whether the checked target is not unhealthy.", labels=labels)
        share = GaugeMetricFamily(
            "revproxy_target_share_ratio", "How much of its weight a checked target gets, 0 to 1.", labels=labels
        )
        for (proxy, endpoint), condition in self._conditions().items():
            up.add_metric([proxy, str(endpoint)], int(condition.health is not Health.UNHEALTHY))
            share.add_metric([proxy, str(endpoint)], condition.quarters / QUARTERS)
        yield up
        yield share


class _Kernel:
    """Collects what the maps say."""

    def __init__(self, bpffs_dir: Callable[[], Path]) -> None:
        self._bpffs_dir = bpffs_dir
        self._counted: tuple[Any, dict[str, int]] = (None, {})

    def describe(self) -> Iterator[Metric]:
        """Nothing in advance: the kernel need not be asked to register this."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All of it, or just that nothing is loaded."""
        loaded = GaugeMetricFamily("revproxy_data_plane_loaded", "Whether programs and maps are there.")
        with opened(self._bpffs_dir()) as maps:
            loaded.add_metric([], int(maps is not None))
            yield loaded
            if maps is None:
                return
            counts = connections.count(maps)
            yield from _traffic(counters.read_stats(maps, counts=counts))
            yield from self._fill(maps, counts)
            number = GaugeMetricFamily("revproxy_revision", "Number of the configuration that packets see.")
            number.add_metric([], _revision(maps))
            yield number

    def revision(self) -> int:
        """Number of the configuration that packets see, 0 for none."""
        with opened(self._bpffs_dir()) as maps:
            return 0 if maps is None else _revision(maps)

    def _fill(self, maps: Maps, counts: Counts) -> Iterator[Metric]:
        used = GaugeMetricFamily("revproxy_map_entries", "Entries in use, by map.", labels=["map"])
        room = GaugeMetricFamily("revproxy_map_max_entries", "How many entries a map has room for.", labels=["map"])
        levels = {f"connection{version}": counts.held.get(version, 0) for version in VERSIONS}
        levels.update(self._levels(maps))
        for name, level in levels.items():
            used.add_metric([name], level)
            room.add_metric([name], maps[name].max_entries)
        yield used
        yield room

    def _levels(self, maps: Maps) -> Mapping[str, int]:
        """Of maps that only commits change: counted again after one."""
        mark = (_active(maps), maps["revision"].items()[1].tobytes(), maps.root)
        if self._counted[0] != mark:
            levels = {name: len(maps[name].items()[0]) for name in _COUNTED_MAPS}
            levels["target"] = int(np.count_nonzero(maps["target"].items()[1]["family"]))
            levels["group"] = len(groups.used_groups(maps))
            self._counted = (mark, levels)
        return self._counted[1]


def _active(maps: Maps) -> int:
    return int(maps["control"].items()[1][0]["active"]) & 1


def _revision(maps: Maps) -> int:
    return int(maps["revision"].items()[1][0]["slot"][_active(maps)]["number"])


def _traffic(stats: Stats) -> Iterator[Metric]:
    """Counters per proxy and target, and packets by what became of them."""
    labels = ["proxy", "target"]
    live = GaugeMetricFamily("revproxy_connections", "Live connections.", labels=labels)
    opened = CounterMetricFamily("revproxy_connections_opened", "Connections opened.", labels=labels)
    packets = CounterMetricFamily("revproxy_packets", "Packets forwarded.", labels=[*labels, "direction"])
    octets = CounterMetricFamily(
        "revproxy_bytes", "Bytes forwarded, from the IP header on.", labels=[*labels, "direction"]
    )
    for proxy, of_proxy in stats.proxies.items():
        for target, traffic in of_proxy.targets.items():
            live.add_metric([proxy, target], traffic.connections)
            opened.add_metric([proxy, target], traffic.opened)
            for direction, count, size in _directions(traffic):
                packets.add_metric([proxy, target, direction], count)
                octets.add_metric([proxy, target, direction], size)
    yield from (live, opened, packets, octets)
    dropped = CounterMetricFamily("revproxy_dropped_packets", "Packets dropped, by reason.", labels=["reason"])
    for reason, count in stats.drops.items():
        dropped.add_metric([reason], count)
    yield dropped
    handled = CounterMetricFamily("revproxy_handled_packets", "Packets forwarded, by way.", labels=["outcome"])
    for outcome, count in stats.outcomes.items():
        if outcome not in _NO_PACKETS:
            handled.add_metric([outcome], count)
    yield handled
    for name, text, outcome in (
        ("revproxy_reclaimed_connections", "Entries removed to make room in a full table.", "reclaimed"),
        ("revproxy_events_lost", "Connection events that the ring buffer had no room for.", "event_lost"),
    ):
        family = CounterMetricFamily(name, text)
        family.add_metric([], stats.outcomes[outcome])
        yield family


def _directions(traffic: Traffic) -> tuple[tuple[str, int, int], ...]:
    return (
        ("forward", traffic.packets_forward, traffic.bytes_forward),
        ("reverse", traffic.packets_reverse, traffic.bytes_reverse),
    )
