"""What the programs tell through the ring buffer, and who reads it: each connection opened once and closed once."""

from __future__ import annotations

import ctypes
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from reconciler.daemon.accesslog import AccessLog
from reconciler.daemon.connlog import CLOSED, OPENED, ConnectionBatch
from reconciler.daemon.recorder import Recorder
from reconciler.kernel import bpf, eventring, layout
from reconciler.kernel.conntable import endpoint
from reconciler.kernel.eventring import EventRing
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.maps import Map, map_of
from reconciler.runtime.events import Events
from tests.bench.wrapper import _VALUE, Wrapper
from tests.kernel.dataplane import DataPlane, dest
from tests.kernel.packets import Flow, frame

pytestmark = pytest.mark.root

C = layout.CONSTANTS
LISTEN = {4: "10.0.1.1", 6: "fd00:1::1"}
CLIENT = {4: "192.168.7.7", 6: "fd77::7"}
TARGET = {4: "10.9.0.1", 6: "fd09::1"}
PAGE = 4096
families = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])
hooks = pytest.mark.parametrize("hook", ["xdp", "tc"])
_ports = iter(range(1024, 65000))


def configure(plane: DataPlane) -> None:
    for ifname in ("cli", "srv"):
        plane.device(ifname)
    for version in (4, 6):
        for protocol in (6, 17):
            plane.listener("cli", LISTEN[version], 80, protocol, 1)
    plane.proxy(1, dest4=dest("TARGET", 1), dest6=dest("TARGET", 2))
    plane.target(1, TARGET[4], 8080)
    plane.target(2, TARGET[6], 8080)


@pytest.fixture(scope="module")
def _plane() -> Iterator[DataPlane]:
    with closing(DataPlane(f"rpev-{os.getpid()}", connections=1000)) as plane:
        configure(plane)
        yield plane


@pytest.fixture
def plane(_plane: DataPlane) -> DataPlane:
    _plane.settings(stats=True)
    return _plane


def holder(plane: DataPlane) -> Map:
    return map_of(layout.MAPS["event_ring"], plane.fds["event_ring"], Gateway())


@pytest.fixture
def ring(plane: DataPlane) -> Iterator[EventRing]:
    made = eventring.provide(holder(plane), 16 * PAGE)
    yield made
    made.close()
    eventring.remove(holder(plane))


def flow(version: int, protocol: int = 6) -> Flow:
    return Flow(CLIENT[version], LISTEN[version], next(_ports), 80, protocol)


def answer(asked: Flow) -> Flow:
    """The target's side of it."""
    return Flow(TARGET[asked.version], asked.src, 8080, asked.sport, asked.protocol)


def send(plane: DataPlane, hook: str, asked: Flow, *steps: str) -> list[int]:
    """Packets of a connection, those of the target's side written ``<FLAGS``; the IP length of each."""
    sizes = []
    for step in steps:
        back = step.startswith("<")
        side = answer(asked) if back else asked
        data = frame(side, step.lstrip("<"), towards="srv" if back else "cli")
        sizes.append(len(data) - 14)
        (plane.xdp if hook == "xdp" else plane.tc)(data, "srv" if back else "cli")
    return sizes


@families
@hooks
@pytest.mark.parametrize(
    ("last", "kind"),
    [(("FA", "<FA"), "EVENT_FIN"), (("<FA", "A", "FA"), "EVENT_FIN"), (("R",), "EVENT_RST"), (("<R",), "EVENT_RST")],
    ids=["fin", "fin-from-target", "rst", "rst-from-target"],
)
def test_a_connection_is_told_when_it_opens_and_when_it_ends(
    plane: DataPlane, ring: EventRing, version: int, hook: str, last: tuple[str, ...], kind: str
) -> None:
    asked = flow(version)
    steps = ("S", "<SA", "A", "<A", *last)
    sizes = send(plane, hook, asked, *steps)
    opened, closed = ring.read()
    assert (int(opened["kind"]), int(closed["kind"])) == (C["EVENT_OPENED"], C[kind])
    for event in (opened, closed):
        assert [str(endpoint(event, name).ip) for name in ("client", "listen", "target")] == [
            asked.src, asked.dst, TARGET[version],
        ]  # fmt: skip
        assert [endpoint(event, name).port for name in ("client", "listen", "target")] == [asked.sport, 80, 8080]
        assert (int(event["proxy"]), int(event["target"])) == (1, 1 if version == 4 else 2)
        assert (int(event["family"]), int(event["protocol"])) == (version, 6)
    assert int(opened["created_ns"]) == int(closed["created_ns"]) <= int(closed["time_ns"])
    for direction, back in (("forward", False), ("reverse", True)):
        told = [size for size, step in zip(sizes, steps, strict=True) if step.startswith("<") is back]
        assert (int(closed[f"packets_{direction}"]), int(closed[f"bytes_{direction}"])) == (len(told), sum(told))
        assert (int(opened[f"packets_{direction}"]), int(opened[f"bytes_{direction}"])) == (0, 0)
    send(plane, hook, asked, "A", "<FA", "R", "<R")  # what follows the end is not another end
    assert len(ring.read()) == 0


@families
def test_one_that_began_by_the_clock_of_a_cpu_that_is_ahead(plane: DataPlane, ring: EventRing, version: int) -> None:
    asked, name, ahead = flow(version), f"connection{version}", 8
    send(plane, "xdp", asked, "S", "<SA", "A")
    table = map_of(layout.MAPS[name], plane.fds[name], Gateway())
    keys, values = table.items()
    values["c"]["created"] += np.uint32(ahead)
    table.put_many(keys, values)
    send(plane, "xdp", asked, "R")
    opened, closed = ring.read()
    assert int(closed["created_ns"]) - int(opened["created_ns"]) == ahead << layout.CREATED_SHIFT


@families
@hooks
def test_a_port_used_again_is_another_connection(plane: DataPlane, ring: EventRing, version: int, hook: str) -> None:
    asked = flow(version)
    send(plane, hook, asked, "S", "<SA", "R", "S", "<SA")
    assert ring.read()["kind"].tolist() == [C["EVENT_OPENED"], C["EVENT_RST"], C["EVENT_OPENED"]]


@families
def test_one_that_is_idle_ends_when_its_place_is_taken(plane: DataPlane, ring: EventRing, version: int) -> None:
    asked = flow(version, 17)
    plane.settings(stats=True, unanswered_sec=0)  # so that it is over at once, but for the clock's second
    send(plane, "xdp", asked, "")
    for key in _keys(plane, version):
        value = plane.get(f"connection{version}", key).copy()  # type: ignore[union-attr]
        value["c"]["last_ns"] -= 5_000_000_000
        plane.put(f"connection{version}", key, value.tobytes())
    send(plane, "xdp", asked, "")
    kinds = ring.read()["kind"].tolist()
    assert kinds == [C["EVENT_OPENED"], C["EVENT_UNANSWERED"], C["EVENT_OPENED"]]


def _keys(plane: DataPlane, version: int) -> list[bytes]:
    table = map_of(layout.MAPS[f"connection{version}"], plane.fds[f"connection{version}"], Gateway())
    return [key.tobytes() for key in table.items()[0]]


def test_nothing_is_told_unless_it_is_wanted(plane: DataPlane, ring: EventRing) -> None:
    plane.settings(stats=False)
    send(plane, "xdp", flow(4), "S", "<SA", "R")
    assert len(ring.read()) == 0
    before = plane.outcomes().get("event_lost", 0)
    eventring.remove(holder(plane))
    plane.settings(stats=True)
    send(plane, "xdp", flow(4), "S", "<SA", "R")
    assert len(ring.read()) == 0
    assert plane.outcomes().get("event_lost", 0) == before


def test_what_the_ring_has_no_room_for_is_counted(plane: DataPlane) -> None:
    eventring.remove(holder(plane))
    with closing(eventring.provide(holder(plane), PAGE)) as ring:
        room, more = PAGE // 128, 20
        before = plane.outcomes().get("event_lost", 0)
        flows = [flow(4) for _ in range(room + more)]
        for asked in flows:
            send(plane, "xdp", asked, "S")
        lost = plane.outcomes()["event_lost"] - before
        events = ring.read()
        assert lost >= more
        assert len(events) + lost == room + more
        assert len(ring.read()) == 0
        send(plane, "xdp", flows[0], "<SA", "R")  # and there is room again
        assert ring.read()["kind"].tolist() == [C["EVENT_RST"]]
    eventring.remove(holder(plane))


def test_an_end_that_found_the_ring_full_is_told_by_the_sweep(plane: DataPlane) -> None:
    eventring.remove(holder(plane))
    asked = flow(4)
    with closing(eventring.provide(holder(plane), PAGE)) as ring:
        send(plane, "xdp", asked, "S", "<SA")
        for _ in range(PAGE // 128):
            send(plane, "xdp", flow(4), "S")
        before = plane.outcomes().get("event_lost", 0)
        send(plane, "xdp", asked, "R")
        assert plane.outcomes().get("event_lost", 0) == before
        ring.read()
        send(plane, "xdp", asked, "R")  # heard before: nothing new
        assert len(ring.read()) == 0
    key = next(key for key in _keys(plane, 4) if int.from_bytes(key[8:10], "big") == asked.sport)
    flags = int(plane.get("connection4", key)["c"]["flags"][0])  # type: ignore[index]
    assert flags & C["CONNECTION_TOLD"]
    eventring.remove(holder(plane))


class Paced:
    """Runs packets of ever new clients through ``xdp_ingress``, so many in one call."""

    def __init__(self, plane: DataPlane) -> None:
        self.plane, self.wrapper = plane, Wrapper(26, 64)
        self.context = np.array([0, 64, 0, plane.ifindex("cli"), 0, 0], "<u4").tobytes()
        self.packets = {flags: frame(Flow("20.0.0.0", LISTEN[4], 4000, 80), flags, bytes(10)) for flags in ("S", "R")}
        for packet in self.packets.values():
            self.wrapper.prepare(packet, plane.programs["xdp_ingress"], 0xFFFFFFFF)

    def run(self, flags: str, first: int, count: int) -> None:
        packet = self.packets[flags]
        value = ctypes.create_string_buffer(_VALUE.pack(packet[:64], first, 0xFFFFFFFF))
        key = ctypes.c_uint32(0)
        bpf.map_update(self.wrapper.state, ctypes.addressof(key), ctypes.addressof(value))
        self.plane.namespace.run(bpf.prog_test_run, self.wrapper.fd, packet, self.context, count)


def test_fifty_thousand_connections_a_second_are_told_without_loss(tmp_path: Any) -> None:
    """Two seconds of it, as real time goes; each connection is opened and reset. The access log has them all."""
    per_second, at_once, total = 50_000, 2_500, 100_000
    with closing(DataPlane(f"rpev-fast-{os.getpid()}", connections=total + 50_000)) as plane:
        configure(plane)
        plane.settings(stats=True)
        maps = {name: map_of(layout.MAPS[name], os.dup(plane.fds[name]), Gateway()) for name in layout.MAPS}
        events = Events(batched_memory=10 * total)
        recorder = Recorder(lambda: tmp_path, events)
        recorder._open = lambda: recorder._maps.update(maps)  # type: ignore[method-assign]  # these are not pinned
        recorder._close_maps = lambda: None  # type: ignore[method-assign]
        recorder.align()
        recorder.start()
        log = AccessLog(str(tmp_path / "access.log"), events)
        log.start()
        paced = Paced(plane)
        started = time.monotonic()
        for first in range(0, total, at_once):
            paced.run("S", first, at_once)
            paced.run("R", first, at_once)
            time.sleep(max(0.0, started + (first + at_once) / per_second - time.monotonic()))
        seconds = time.monotonic() - started
        recorder.stop()
        log.stop()
        paced.wrapper.close()
        for each in maps.values():
            each.close()
        outcomes = plane.outcomes()
    assert seconds < 4 * total / per_second  # else it says nothing
    assert "event_lost" not in outcomes
    # One checksum in 65,536 looks unfinished: such a packet is TC's.
    assert outcomes["redirect_xdp"] >= 2 * total * 0.9999
    found = [row for _, batch in events._batches for row in batch.rows(0, len(batch))]
    clients = {kind: Counter(row["client"] for _, each, row in found if each == kind) for kind in (OPENED, CLOSED)}
    assert len(clients[OPENED]) >= total * 0.9999
    assert len(clients[OPENED].keys() - clients[CLOSED].keys()) <= total * 0.0001
    assert max(clients[OPENED].values()) == max(clients[CLOSED].values()) == 1
    lines = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]
    assert [line["client"] for line in lines] == [row["client"] for _, each, row in found if each == CLOSED]


def test_nothing_is_asked_of_the_kernel_before_somebody_has_looked(tmp_path: Any) -> None:
    asked = []

    def directory() -> Any:
        asked.append(tmp_path)
        return tmp_path  # where nothing is pinned

    recorder = Recorder(directory, Events())
    recorder.align()
    recorder.align()
    assert len(asked) == 1
    recorder.note_look()
    recorder.align()
    recorder.align()
    assert len(asked) == 2


def test_an_end_told_twice_is_published_once(tmp_path: Any) -> None:
    events = Events()
    recorder = Recorder(lambda: tmp_path, events)
    rows = np.zeros(3, layout.connection_event)
    rows["kind"] = [C["EVENT_OPENED"], C["EVENT_FIN"], C["EVENT_IDLE"]]
    rows["family"], rows["protocol"], rows["created_ns"] = 4, 6, 77
    recorder.publish(rows)
    recorder.publish(rows[1:])
    rows["created_ns"] = 78  # another one between the same ends
    recorder.publish(rows[:2])
    found, lost = events.after(0)
    assert [event.kind for event in found] == [OPENED, CLOSED, OPENED, CLOSED]
    assert (found[1].fields["reason"], lost) == ("fin", 0)


def test_counters_are_right_when_both_cpus_count(plane: DataPlane) -> None:
    """Every packet is counted once: in its connection, for its target, and by what became of it."""
    plane.settings()
    each, threads = 20_000, 2
    flows = [flow(4) for _ in range(threads)]
    for asked in flows:
        send(plane, "xdp", asked, "S", "<SA", "A")
    before = {"outcome": plane.outcomes()["redirect_xdp"], "target": plane.get("target_stats", 1).copy()}  # type: ignore[union-attr]
    tables = {asked: [_entry(plane, asked), _entry(plane, answer(asked))] for asked in flows}
    context = np.array([0, 64, 0, plane.ifindex("cli"), 0, 0], "<u4").tobytes()
    wrapper = [Wrapper(26, 64) for _ in flows]
    packets = [frame(asked, "A", bytes(10)) for asked in flows]
    for one, packet in zip(wrapper, packets, strict=True):
        one.prepare(packet, plane.programs["xdp_ingress"], 0)

    processors = sorted(os.sched_getaffinity(0))

    def run(number: int) -> None:
        # All threads send packets of all connections, so that entries and counters are shared.
        os.sched_setaffinity(0, {processors[number % len(processors)]})
        plane.namespace._enter()
        for packet, one in zip(packets, wrapper, strict=True):
            bpf.prog_test_run(one.fd, packet, context, each)

    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for one in wrapper:
        one.close()
    sent, size = each * threads, len(packets[0]) - 14
    stats = plane.get("target_stats", 1)
    assert stats is not None
    for name, per_packet in (("packets_forward", 1), ("bytes_forward", size)):
        assert int(stats[name].sum() - before["target"][name].sum()) == sent * threads * per_packet
    assert plane.outcomes()["redirect_xdp"] - before["outcome"] == sent * threads
    for asked, (forward, _) in tables.items():
        assert _entry(plane, asked)[0] - forward[0] == sent
        assert _entry(plane, asked)[1] - forward[1] == sent * size


def _entry(plane: DataPlane, side: Flow) -> tuple[int, int]:
    """Packets and bytes of one direction."""
    key = np.zeros(1, layout.connection_key4)
    key["saddr_be"], key["daddr_be"] = ([int(b) for b in text.split(".")] for text in (side.src, side.dst))
    key["sport_be"], key["dport_be"], key["protocol"] = side.sport, side.dport, side.protocol
    value = plane.get("connection4", key.tobytes())
    assert value is not None
    return int(value["c"]["packets"][0]), int(value["c"]["bytes"][0])


def test_batches_are_rendered_in_parts() -> None:
    rows = np.zeros(3, layout.connection_event)
    rows["family"], rows["client_port_be"] = [4, 6, 4], [1, 2, 3]
    rows["client_be"][1, 15] = 1
    batch = ConnectionBatch(rows, {0: "web"})
    assert [row["client"] for _, _, row in batch.rows(1, 3)] == ["[::1]:2", "0.0.0.0:3"]
