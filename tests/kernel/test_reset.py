"""Connections to a dead target: what comes of them is answered with RST, byte for byte as RFC 9293 has it."""

from __future__ import annotations

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from reconciler.kernel import layout
from tests.kernel.dataplane import TC_REDIRECT, TC_SHOT, XDP_PASS, DataPlane
from tests.kernel.flowing import families, new_flow, send, translated
from tests.kernel.packets import Flow, frame


def mark(plane: DataPlane, flow: Flow) -> None:
    """As user space does when the target is found dead: this direction's entry."""
    name = f"connection{flow.version}"
    key = np.zeros(1, layout.connection_key4 if flow.version == 4 else layout.connection_key6)
    packet = Ether(frame(flow))
    network = packet[IP] if flow.version == 4 else packet[IPv6]
    raw = bytes(network)
    half = 4 if flow.version == 4 else 16
    start = 12 if flow.version == 4 else 8
    key["saddr_be"] = np.frombuffer(raw[start : start + half], "u1")
    key["daddr_be"] = np.frombuffer(raw[start + half : start + 2 * half], "u1")
    key["sport_be"], key["dport_be"], key["protocol"] = flow.sport, flow.dport, 6
    value = plane.get(name, key.tobytes())
    assert value is not None
    value = value.copy()
    value["c"]["flags"] |= layout.CONSTANTS["CONNECTION_RESET"]
    plane.put(name, key.tobytes(), value.tobytes())


def answer(request: bytes, **tcp: object) -> bytes:
    """The RST to a request, made from nothing."""
    asked = Ether(request)
    version4 = IP in asked
    network = asked[IP] if version4 else asked[IPv6]
    made = (
        IP(src=network.dst, dst=network.src, ttl=64, id=network.id)
        if version4
        else IPv6(src=network.dst, dst=network.src, hlim=64)
    )
    header = TCP(sport=asked[TCP].dport, dport=asked[TCP].sport, window=0, **tcp)
    return bytes(Ether(src=asked.dst, dst=asked.src) / made / header)


CASES = {
    "data": ("PA", b"x" * 501, {"seq": 1000, "ack": 2000}, {"flags": "R", "seq": 2000}),
    "acknowledgement": ("A", b"", {"seq": 1000, "ack": 0xFFFFFFFF}, {"flags": "R", "seq": 0xFFFFFFFF}),
    "options": ("A", b"y" * 77, {"ack": 5, "options": [("Timestamp", (1, 2))]}, {"flags": "R", "seq": 5}),
    "end": ("FA", b"", {"seq": 7, "ack": 9}, {"flags": "R", "seq": 9}),
    "no acknowledgement": ("F", b"abc", {"seq": 0xFFFFFFFE}, {"flags": "RA", "seq": 0, "ack": 2}),
    "first once more": ("S", b"", {"seq": 70}, {"flags": "RA", "seq": 0, "ack": 71}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("side", ["cli", "srv"])
@families
def test_answered_with_rst(plane: DataPlane, version: int, side: str, case: str) -> None:
    flags, payload, fields, expected = CASES[case]
    flow = new_flow(version, 6)
    send(plane, "tc", frame(flow))
    asked = flow if side == "cli" else translated(flow).reply()
    mark(plane, asked)
    request = frame(asked, flags, payload, towards=side, **fields)
    before = plane.outcomes().get("reset", 0)
    assert send(plane, "xdp", request, side) == (XDP_PASS, request), "TC's"
    assert send(plane, "tc", request, side) == (TC_REDIRECT, answer(request, **expected))
    assert plane.outcomes()["reset"] == before + 1
    assert send(plane, "tc", frame(asked, "A", b"late", towards=side, ack=3), side)[0] == TC_REDIRECT


@families
def test_a_reset_is_not_answered(plane: DataPlane, version: int) -> None:
    flow = new_flow(version, 6)
    send(plane, "tc", frame(flow))
    mark(plane, flow)
    assert send(plane, "tc", frame(flow, "RA"))[0] == TC_SHOT


@families
def test_after_it_the_port_can_be_used_again(plane: DataPlane, version: int) -> None:
    flow = new_flow(version, 6)
    send(plane, "tc", frame(flow))
    mark(plane, flow)
    assert send(plane, "tc", frame(flow, "A", b"x"))[0] == TC_REDIRECT
    verdict, sent = send(plane, "tc", frame(flow, "S"))
    assert verdict == TC_REDIRECT
    assert Ether(sent)[TCP].flags == "S", "on its way to a target"


@families
def test_others_go_on(plane: DataPlane, version: int) -> None:
    one, other = new_flow(version, 6), new_flow(version, 6)
    for flow in (one, other):
        send(plane, "tc", frame(flow))
    mark(plane, one)
    assert Ether(send(plane, "tc", frame(other, "A", b"x"))[1])[TCP].flags == "A"
