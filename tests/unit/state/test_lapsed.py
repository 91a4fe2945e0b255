"""What only connections needed that have ended is no difference, and is given back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.config.files import parse_sources
from reconciler.kernel.store import Manifest, ManifestFile
from reconciler.runtime.view import View
from reconciler.state.carried import Carried
from reconciler.state.desired import Desired, desired
from reconciler.state.diff import diff
from reconciler.state.facts import HostFacts, RuntimeFacts
from reconciler.state.lapsed import keep, lapsed, without
from reconciler.state.objects import Mode, Observed
from reconciler.state.operations import Detach, PutDevice, RestoreSysctl
from reconciler.state.plan import giving_back
from tests.unit.state.build import FORWARDING, applied, config, host, interface, proxy

LO, ETH0, ETH1 = 1, 2, 3
ACCEPT_LOCAL = "net/ipv4/conf/all/accept_local"
LOCALNET = "net/ipv4/conf/eth0/route_localnet"


@pytest.fixture
def machine() -> HostFacts:
    """With a way to targets by an interface that takes XDP frames."""
    return host(
        interface(LO, "lo", "127.0.0.1/8", kind="loopback"),
        interface(ETH0, "eth0", "192.0.2.1/24"),
        interface(ETH1, "eth1", "10.0.0.254/24", xdp_transmit=True),
        ways={"10.0.0.1": ETH0},
        sysctls={**FORWARDING, ACCEPT_LOCAL: "0", LOCALNET: "0", "net/ipv4/conf/lo/accept_local": "0"},
    )


BUSY = RuntimeFacts(
    busy_interfaces=frozenset({ETH1}),
    carried=Carried(frozenset({4, 6}), frozenset({4}), guarded=frozenset({ETH0})),
)
"""Connections of a proxy that is gone: with full NAT, by another interface, to 127.0.0.1."""


@pytest.fixture
def both(machine: HostFacts) -> tuple[Desired, Desired, Observed]:
    """What is wanted while connections need more, what once they have ended, and a kernel that is as the first says."""
    files = config(proxy(mode=Mode.DNAT))
    during, after = (desired(files, machine, facts, tag="tag") for facts in (BUSY, RuntimeFacts()))
    remembered = {name: ("0", value) for name, value in during.state.sysctls.items()}
    return during, after, replace(applied(during), remembered=remembered)


def test_it_is_a_difference_only_as_something_to_be_given_back(both: tuple[Desired, Desired, Observed]) -> None:
    during, after, observed = both
    assert diff(during, observed) == ()
    kinds = {(each.object, each.action) for each in diff(after, observed)}
    assert kinds == {("interface", "detach"), ("interface", "update"), ("setting", "delete")}
    found = lapsed(after, observed)
    assert found.attachments.keys() == {LO, ETH1}
    assert {LOCALNET, "net/ipv6/conf/lo/forwarding"} <= set(found.sysctls)
    assert found.guarded == {ETH0}
    kept = keep(after, observed, found)
    assert diff(kept, observed) == ()
    assert without(kept, found) == after


def test_giving_it_back_leaves_what_is_asked_for(both: tuple[Desired, Desired, Observed]) -> None:
    _, after, observed = both
    operations = giving_back(after, observed)
    assert {each.before.ifindex for each in operations if isinstance(each, Detach)} == {LO, ETH1}
    restored = {each.name for each in operations if isinstance(each, RestoreSysctl)}
    assert restored == observed.remembered.keys() - after.state.sysctls.keys()
    order = [each.ifindex for each in operations if isinstance(each, PutDevice)]
    assert order == [ETH1, ETH0], "no frames are sent to an interface that is let go; the guard goes last"
    assert operations.index(next(each for each in operations if isinstance(each, Detach))) > 0
    assert giving_back(after, applied(after)) == ()


def test_what_somebody_has_done_stays_a_difference(both: tuple[Desired, Desired, Observed]) -> None:
    _, after, observed = both
    name = "net/ipv4/conf/lo/forwarding"
    state = replace(observed.state, sysctls={**observed.state.sysctls, name: "0"})
    changed = replace(observed, state=state)
    kept = keep(after, changed, lapsed(after, changed))
    assert [each.name for each in diff(kept, changed)] == [name]
    lost = replace(observed, forgotten=frozenset({LOCALNET}))
    assert LOCALNET not in lapsed(after, lost).sysctls


def test_files_that_are_not_in_force_take_things_away(
    both: tuple[Desired, Desired, Observed], machine: HostFacts
) -> None:
    _, after, observed = both
    files = parse_sources({"web.yaml": b"apiVersion: revproxy/v1\n"})
    view = View(files, machine, RuntimeFacts(), observed, after, ())
    in_force = Manifest((ManifestFile("web.yaml", files.files[0].digest),))
    assert view.with_lapsed(in_force).lapsed
    assert view.with_lapsed(in_force).exact == after
    others = Manifest((ManifestFile("web.yaml", b"x" * 16),))
    assert not view.with_lapsed(others).lapsed
    assert diff(view.with_lapsed(others).desired, observed)


def test_nothing_has_lapsed_where_nothing_is_left(both: tuple[Desired, Desired, Observed]) -> None:
    during, after, observed = both
    assert not lapsed(during, observed)
    assert not lapsed(after, applied(after))
