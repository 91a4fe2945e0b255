"""The digest that says whether the kernel is still what a plan was made from."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from reconciler.state.fingerprint import of_operations, of_state
from reconciler.state.objects import (
    DENY,
    Allocation,
    Attachment,
    Balance,
    DataPlaneSettings,
    Destination,
    Endpoint,
    KernelState,
    ListenerKey,
    Mode,
    Observed,
    ProgramState,
    Protocol,
    ProxyState,
    Revision,
    RouteKey,
    XdpMode,
)
from reconciler.state.operations import FreeTarget, PutProxyName, StageRevision, Switch

ONE = Destination(((Endpoint(ip_address("10.0.0.1"), 80), 1),))
STATE = KernelState(
    program=ProgramState("tag", 1000),
    settings=DataPlaneSettings(),
    proxies={"web": ProxyState("web", Mode.DNAT, Balance.MAGLEV, 300, ONE, None)},
    listeners={ListenerKey(2, ip_address("192.0.2.1"), Protocol.TCP, 80): "web"},
    routes={
        RouteKey("web", ip_network("10.1.0.0/16")): ONE,
        RouteKey("web", ip_network("2001:db8::/32")): DENY,
    },
    attachments={2: Attachment(2, "eth0", XdpMode.NATIVE)},
    sysctls={"net/ipv4/conf/lo/forwarding": "1"},
    devices=frozenset({2, 3}),
    guarded=frozenset({2}),
    no_tx=frozenset({2, 3}),
    sources={("web", Endpoint(ip_address("10.0.0.1"), 80)): ip_address("10.0.0.254")},
)
OBSERVED = Observed(STATE, Allocation(), revision=Revision(3, 17, b"m" * 16), exists=True)


@pytest.mark.parametrize(
    "change",
    [
        {"program": ProgramState("other", 1000)},
        {"settings": DataPlaneSettings(fast_path=False)},
        {"proxies": {"web": replace(STATE.proxies["web"], idle_sec=301)}},
        {"listeners": {}},
        {"listeners": dict.fromkeys(STATE.listeners, "other")},
        {"routes": dict.fromkeys(STATE.routes, DENY)},
        {"routes": {RouteKey("web", ip_network("10.1.0.0/17")): ONE}},
        {"attachments": {2: Attachment(2, "eth0", XdpMode.OFF)}},
        {"sysctls": {"net/ipv4/conf/lo/forwarding": "0"}},
        {"devices": frozenset({2})},
        {"guarded": frozenset()},
        {"no_tx": frozenset({2})},
        {"sources": {}},
    ],
)
def test_whatever_packets_can_tell_apart_counts(change: dict[str, object]) -> None:
    moved = replace(OBSERVED, state=replace(STATE, **change))  # type: ignore[arg-type]
    assert of_state(moved) != of_state(OBSERVED)


def test_the_revision_counts_and_numbers_in_maps_do_not() -> None:
    assert of_state(replace(OBSERVED, revision=Revision(4, 17, b"m" * 16))) != of_state(OBSERVED)
    assert of_state(replace(OBSERVED, active=1, allocation=Allocation({"web": 7}))) == of_state(OBSERVED)


def test_the_order_in_which_it_was_read_does_not_count() -> None:
    turned = replace(STATE, routes=dict(reversed(STATE.routes.items())), devices=frozenset([3, 2]))
    assert of_state(replace(OBSERVED, state=turned)) == of_state(OBSERVED)


def test_of_operations_only_what_comes_and_goes_by_itself_does_not_count() -> None:
    work = (PutProxyName(1, "web"), StageRevision(Revision(1), Revision(2, 5)), Switch(0, 1), FreeTarget(3))
    assert of_operations(work) == of_operations((PutProxyName(1, "web"), Switch(1, 0)))
    assert of_operations(work) != of_operations((PutProxyName(2, "web"), Switch(0, 1)))
