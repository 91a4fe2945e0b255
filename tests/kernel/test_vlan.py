"""Tagged frames are none of ours, also where their tag has been taken off before the programs see them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.kernel import bpf
from tests.kernel.dataplane import DataPlane, dest
from tests.kernel.packets import Flow, frame

pytestmark = pytest.mark.root


@pytest.fixture
def plane() -> Iterator[DataPlane]:
    """``tc_ingress`` attached to ``cli``, where proxy 1 listens on port 80."""
    plane = DataPlane(f"rpvl-{os.getpid()}")
    pin = Path(f"/sys/fs/bpf/rpvl-{os.getpid()}")
    try:
        plane.listener("cli", "10.0.1.1", 80, 17, 1)
        plane.proxy(1, dest4=dest("TARGET", 1))
        plane.target(1, "10.9.0.1", 8080)
        bpf.obj_pin(plane.programs["tc_ingress"], str(pin))
        plane.namespace.command("tc qdisc add dev cli clsact")
        plane.namespace.command(f"tc filter add dev cli ingress bpf direct-action object-pinned {pin}")
        yield plane
    finally:
        pin.unlink(missing_ok=True)
        plane.close()


def send(plane: DataPlane, data: bytes) -> None:
    """On the far end of ``cli``."""

    def in_namespace() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("client", 0))
            raw.send(data)

    plane.namespace.run(in_namespace)


def test_tagged_frame_opens_no_connection(plane: DataPlane) -> None:
    untagged = frame(Flow("192.168.7.7", "10.0.1.1", 1000, 80, 17), payload=b"x")
    for tags in (b"\x81\0\0\x05", b"\x88\xa8\0\x05\x81\0\0\x06"):
        send(plane, untagged[:12] + tags + untagged[12:])
    send(plane, frame(Flow("192.168.7.7", "10.0.1.1", 1001, 80, 17), payload=b"y"))
    while not (outcomes := plane.outcomes()):  # frames stay in order: the tagged ones came before
        time.sleep(0.01)
    assert outcomes == {"redirect_tc": 1}
