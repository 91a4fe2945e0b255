"""What very many connections need, as far as it is known without reading them: never less than they do."""

from __future__ import annotations

from dataclasses import replace

from reconciler.runtime.needs import LARGE, OLD_SEC, Needs, widened
from reconciler.state.carried import Carried
from reconciler.state.desired import desired
from reconciler.state.diff import diff
from reconciler.state.facts import HostFacts, RuntimeFacts
from reconciler.state.objects import Mode
from reconciler.state.operations import ClosePort, Detach, FreeProxyName, FreeTarget, RestoreSysctl
from tests.unit.state.build import FORWARDING, applied, config, host, interface, plan, proxy, targets

LO, ETH0, ETH1 = 1, 2, 3
FULLNAT = proxy("full", interfaces=["eth1"], ports=[81], mode=Mode.FULLNAT, to=targets("127.0.0.1:8080"))
LOCAL = proxy("local", ports=[82], to=targets("127.0.0.1:8082"))
WEB = proxy()


def machine() -> HostFacts:
    names = (
        *FORWARDING,
        "net/ipv4/conf/lo/accept_local",
        "net/ipv4/conf/lo/route_localnet",
        "net/ipv4/conf/eth0/route_localnet",
    )
    return host(
        interface(LO, "lo", "127.0.0.1/8", kind="loopback"),
        interface(ETH0, "eth0", "192.0.2.1/24", "2001:db8::1/64"),
        interface(ETH1, "eth1", "198.51.100.1/24"),
        ways={"10.0.0.1": ETH0, "127.0.0.1": LO},
        sysctls=dict.fromkeys(names, "0"),
    )


def test_few_are_read_each_time_and_many_now_and_then() -> None:
    now = [0.0]
    needs, observed = Needs(lambda: now[0]), applied(desired(config(WEB), machine(), tag="tag"))
    assert needs.known(observed) is None
    needs.learn(RuntimeFacts(), LARGE - 1)
    assert needs.known(observed) is None
    assert not needs.many
    needs.learn(RuntimeFacts(), LARGE)
    assert needs.known(observed) is not None
    assert needs.many
    assert needs.recent
    now[0] = OLD_SEC + 1
    assert needs.known(observed) is not None, "too much, but no edit is to wait"
    assert not needs.recent
    needs.learn(RuntimeFacts(), 0)
    assert needs.known(observed) is None
    assert not needs.many


def test_all_that_was_in_force_counts_as_needed() -> None:
    """Nothing is asked for that is not there, and nothing is taken away that connections may go through."""
    before = desired(config(WEB, FULLNAT, LOCAL), machine(), tag="tag")
    remembered = {name: ("0", value) for name, value in before.state.sysctls.items()}
    observed = replace(applied(before), remembered=remembered)
    facts = widened(RuntimeFacts(), observed)
    again = desired(config(WEB, FULLNAT, LOCAL), machine(), facts, tag="tag")
    assert diff(again, observed) == ()
    fewer = plan(desired(config(WEB), machine(), facts, tag="tag"), observed, runtime=facts)
    assert {each.name for each in fewer.changes if each.object == "proxy"} == {"full", "local"}
    taken = (ClosePort, Detach, FreeProxyName, FreeTarget, RestoreSysctl)
    assert not [each for each in fewer.operations if isinstance(each, taken)]
    exact = plan(desired(config(WEB), machine(), tag="tag"), observed)
    assert {type(each) for each in exact.operations} >= set(taken)


def test_what_was_read_and_what_was_in_force_since_add_up() -> None:
    needs = Needs(lambda: 0.0)
    read = RuntimeFacts(
        busy_targets=frozenset({77}),
        busy_ports={80: 2, 9: 1},
        busy_interfaces=frozenset({9}),
        carried=Carried(frozenset({6}), frozenset({6}), guarded=frozenset({5})),
        connections={("web", "10.0.0.1:8080"): LARGE},
    )
    needs.learn(read, LARGE)
    first, second = (applied(desired(config(each), machine(), tag="tag")) for each in (FULLNAT, WEB))
    needs.known(first)
    found = needs.known(second)
    assert found is not None
    assert found.busy_targets >= {77, *first.allocation.targets.values(), *second.allocation.targets.values()}
    assert found.busy_ports[80] == 3
    assert found.busy_ports.keys() >= {9, 80, 81, 8080}
    assert found.busy_interfaces >= {9, ETH0, ETH1}
    assert found.carried == Carried(frozenset({4, 6}), frozenset({4, 6}), lo_local=True, guarded=frozenset({5}))
    assert found.connections == read.connections
