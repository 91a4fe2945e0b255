"""Full NAT: source ports, answers, and the way through lo."""

from __future__ import annotations

import pytest

from tests.kernel.dataplane import (
    TC_REDIRECT,
    TC_UNSPEC,
    XDP_DROP,
    XDP_PASS,
    DataPlane,
)
from tests.kernel.flowing import (
    DROP,
    REDIRECT,
    SOURCE,
    TARGET,
    by_lo,
    families,
    hooks,
    new_flow,
    protocols,
    send,
    sent,
    use_fullnat,
)
from tests.kernel.packets import frame, rewritten, to_client, to_server

pytestmark = pytest.mark.root


@families
@protocols
@hooks
def test_fullnat_hides_the_client_and_brings_the_answer_back(
    plane: DataPlane, version: int, protocol: int, hook: str
) -> None:
    use_fullnat(plane, version)
    flow = new_flow(version, protocol)
    request = frame(flow, payload=b"who is there?")
    verdict, after = send(plane, hook, request)
    leaves = sent(after, protocol)
    assert (leaves.src, leaves.dst, leaves.dport) == (SOURCE[version], TARGET[version], 8080)
    assert 10000 <= leaves.sport <= 32767
    assert (verdict, after) == (REDIRECT[hook], to_server(request, leaves))
    again = frame(flow, "A", b"once more")
    assert send(plane, hook, again)[1] == to_server(again, leaves)
    reply = frame(leaves.reply(), "SA", b"me", towards="srv")
    assert send(plane, hook, reply, "srv") == (REDIRECT[hook], to_client(reply, flow.reply()))


@families
@protocols
def test_fullnat_source_ports_do_not_collide_and_exhaustion_is_refused(
    plane: DataPlane, version: int, protocol: int
) -> None:
    base = 40000 + 16 * protocol + version
    use_fullnat(plane, version, (base, base + 3))
    taken: set[int] = set()
    refused = 0
    before = plane.outcomes().get("drop_no_port", 0)
    for _ in range(40):
        verdict, after = plane.xdp(frame(new_flow(version, protocol)))
        if verdict == XDP_DROP:
            refused += 1
        else:
            port = sent(after, protocol).sport
            assert port not in taken
            taken.add(port)
    assert taken == set(range(base, base + 4))
    assert refused == 36
    assert plane.outcomes()["drop_no_port"] == before + 36


@hooks
def test_fullnat_without_a_source_address_is_refused(plane: DataPlane, hook: str) -> None:
    use_fullnat(plane, 4)
    plane.target(1, TARGET[4], 8080)
    assert send(plane, hook, frame(new_flow(4, 6)))[0] == DROP[hook]


@families
@protocols
def test_fullnat_goes_to_the_stack_through_lo_both_ways(plane: DataPlane, version: int, protocol: int) -> None:
    """It has an address of this host as its source, which the stack takes from no other interface."""
    use_fullnat(plane, version)
    plane.settings(fast_path=False)
    flow = new_flow(version, protocol)
    request = frame(flow)
    assert plane.xdp(request) == (XDP_PASS, request)
    verdict, after = plane.tc(request)
    leaves = sent(after, protocol)
    assert (leaves.src, leaves.dst) == (SOURCE[version], TARGET[version])
    assert (verdict, after) == (TC_REDIRECT, by_lo(rewritten(request, leaves, hops=0)))
    assert plane.tc(after, "lo") == (TC_UNSPEC, after), "come in by lo, it is nobody's any more"
    reply = frame(leaves.reply(), "SA", towards="srv")
    assert plane.tc(reply, "srv") == (TC_REDIRECT, by_lo(rewritten(reply, flow.reply(), hops=0)))
    assert plane.tc(reply, egress=True) == (TC_UNSPEC, reply), "on its way to lo from a target on this host"
    # From there it comes in by lo, and goes there again.
    again = by_lo(reply)
    assert plane.tc(again, "lo") == (TC_REDIRECT, rewritten(again, flow.reply(), hops=1))
    last = by_lo(frame(leaves.reply(), "A", towards="srv", ttl=1))
    assert plane.tc(last, "lo") == (TC_UNSPEC, last), "but not for ever"


@hooks
def test_a_source_address_of_zeros_but_for_its_end_is_one(plane: DataPlane, hook: str) -> None:
    use_fullnat(plane, 6)
    plane.target(2, TARGET[6], 8080, source="::1")
    assert send(plane, hook, frame(new_flow(6, 6)))[0] != DROP[hook]
