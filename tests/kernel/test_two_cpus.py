"""Two CPUs that begin connections at the same moment: the same ones, and others with the same ports to choose from."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from reconciler.kernel import bpf, layout
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.maps import map_of
from tests.bench.wrapper import Wrapper
from tests.kernel.dataplane import DataPlane, dest
from tests.kernel.packets import Flow, frame

pytestmark = pytest.mark.root

LISTEN, PACKETS, VARIED = "10.0.1.1", 60_000, 26
EVERY_PACKET_ANOTHER = 0xFFFFFFFF


@pytest.fixture
def plane() -> Iterator[DataPlane]:
    made = DataPlane(f"rpcpu-{os.getpid()}", connections=2 * PACKETS)
    try:
        made.device("srv")
        made.device("cli")
        made.listener("cli", LISTEN, 80, 6, 1)
        for number in (1, 2, 3):
            made.target(number, f"10.9.0.{number}", 8080, source="10.0.2.1")
        made.group(1, [1, 2, 3])
        made.settings(ports=(1024, 65535))
        yield made
    finally:
        made.close()


def begin(plane: DataPlane) -> None:
    """Two CPUs send a SYN from one client after the other, each from the next one that neither has sent from; and now
    and then both from the same, since they don't wait for each other when they count."""
    processors = sorted(os.sched_getaffinity(0))[:2]
    packet = frame(Flow("20.0.0.0", LISTEN, 4000, 80), "S", bytes(10))
    context = np.array([0, 64, 0, plane.ifindex("cli"), 0, 0], "<u4").tobytes()
    wrapper = Wrapper(VARIED, 64)
    wrapper.prepare(packet, plane.programs["xdp_ingress"], EVERY_PACKET_ANOTHER)

    def run(number: int) -> None:
        os.sched_setaffinity(0, {processors[number]})
        plane.namespace._enter()
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # both run now, whatever else does
        bpf.prog_test_run(wrapper.fd, packet, context, PACKETS)

    workers = [threading.Thread(target=run, args=(number,)) for number in range(len(processors))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    wrapper.close()


def assert_whole(plane: DataPlane) -> None:
    """Each connection has an entry for both directions that name each other, there is nothing besides, and each is
    counted once."""
    table = map_of(layout.MAPS["connection4"], os.dup(plane.fds["connection4"]), Gateway())
    try:
        keys, values = table.items()
    finally:
        table.close()
    opened = sum(plane.get("target_stats", number)["connections"] for number in (1, 2, 3))  # type: ignore[index]
    assert min(opened[sorted(os.sched_getaffinity(0))[:2]]) > PACKETS // 10, f"one CPU did it all: {opened}"
    assert np.isin(_packed(values, answered=True), _packed(keys)).all()
    assert len(keys) == 2 * opened.sum()


def _packed(ends: np.ndarray, *, answered: bool = False) -> np.ndarray:
    """Addresses and ports as one value; those of an answer."""
    names = ["saddr_be", "daddr_be", "sport_be", "dport_be"]
    if answered:
        names = ["daddr_be", "saddr_be", "dport_be", "sport_be"]
    columns = [np.ascontiguousarray(ends[name]).view("u1").reshape(len(ends), -1) for name in names]
    return np.ascontiguousarray(np.hstack(columns)).view("S12").ravel()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two CPUs")
@pytest.mark.parametrize("mode", ["DNAT", "FULLNAT"])
def test_connections_begun_at_once(plane: DataPlane, mode: str) -> None:
    """Of one that both begin one choice holds, though each draws its own, and the other leaves nothing; two that draw
    the same port don't both get it."""
    random = layout.CONSTANTS["BALANCE_RANDOM"]
    plane.proxy(1, mode=layout.CONSTANTS[f"MODE_{mode}"], balance=random, dest4=dest("GROUP", 1))
    begin(plane)
    assert_whole(plane)
