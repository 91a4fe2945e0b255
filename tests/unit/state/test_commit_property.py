"""Any sequence of configurations, committed to a kernel made of dicts: packets see one configuration at a time."""

from __future__ import annotations

import copy
from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.state.allocate import Limits
from reconciler.state.desired import Desired
from reconciler.state.diff import wanted_ports
from reconciler.state.facts import RuntimeFacts
from reconciler.state.local import route_localnet
from reconciler.state.objects import (
    DENY,
    Attachment,
    Balance,
    DataPlaneSettings,
    Destination,
    Endpoint,
    IPAddress,
    KernelState,
    ListenerKey,
    Mode,
    ProgramState,
    Protocol,
    ProxyState,
    Revision,
    RouteKey,
    XdpMode,
)
from reconciler.state.operations import DEVICE_DROP_LOOPBACK, PORT_TARGET, FreeTarget, Operation
from reconciler.state.plan import Plan, housekeeping, make_plan
from tests.model import decide
from tests.thorough import examples
from tests.unit.state.store import Store, with_sysctls

NAMES = ("api", "mail", "web")
ADDRESSES = (ip_address("192.0.2.1"), ip_address("192.0.2.2"), ip_address("2001:db8::1"))
PORTS = (80, 443)
NETWORKS = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.0/12",
        "10.1.0.0/16",
        "10.1.2.0/24",
        "10.1.2.3/32",
        "::/0",
        "2001:db8:a::/48",
        "2001:db8:a:b::/64",
    )
)
CLIENTS = tuple(
    ip_address(text)
    for text in (
        "172.16.0.1",
        "10.200.0.1",
        "10.2.0.1",
        "10.1.9.9",
        "10.1.2.9",
        "10.1.2.3",
        "2001:db8:f::1",
        "2001:db8:a::1",
        "2001:db8:a:b::1",
    )
)
SYSCTLS = ("net/ipv4/conf/lo/forwarding", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/eth0/accept_ra")
LIVE = dict.fromkeys([*SYSCTLS, *(route_localnet(f"eth{ifindex}") for ifindex in (2, 3, 4))], "0")
SOURCES = {4: ("10.9.0.254", "10.9.0.253"), 6: ("2001:db8:9::fe", "2001:db8:9::fd")}


def endpoints(version: int) -> st.SearchStrategy[Endpoint]:
    texts = ("10.9.0.1", "10.9.0.2", "10.9.0.3") if version == 4 else ("2001:db8:9::1", "2001:db8:9::2")
    return st.builds(Endpoint, st.sampled_from([ip_address(text) for text in texts]), st.sampled_from([0, 8080]))


def destination_of(weights: dict[Endpoint, int]) -> Destination:
    if len(weights) == 1:
        weights = {endpoint: min(weight, 1) for endpoint, weight in weights.items()}
    return Destination(tuple(sorted(weights.items())))


def destinations(version: int) -> st.SearchStrategy[Destination]:
    weights = st.dictionaries(endpoints(version), st.integers(0, 3), min_size=1, max_size=3)
    return weights.map(destination_of)


def proxies(name: str) -> st.SearchStrategy[ProxyState]:
    default4, default6 = (st.none() | destinations(version) for version in (4, 6))
    balance = st.sampled_from(list(Balance))
    return st.builds(
        ProxyState,
        st.just(name),
        st.sampled_from(list(Mode)),
        balance,
        st.sampled_from([60, 300]),
        default4,
        default6,
    )


@st.composite
def states(draw: st.DrawFn) -> KernelState:
    names = draw(st.sets(st.sampled_from(NAMES)))
    keys = st.builds(
        ListenerKey,
        st.sampled_from([2, 3]),
        st.sampled_from(ADDRESSES),
        st.sampled_from(list(Protocol)),
        st.sampled_from(PORTS),
    )
    listeners = draw(st.dictionaries(keys, st.sampled_from(sorted(names)), max_size=8)) if names else {}
    routes = {}
    for name in sorted(names):
        for network in draw(st.sets(st.sampled_from(NETWORKS))):
            routes[RouteKey(name, network)] = draw(st.just(DENY) | destinations(network.version))
    made = {name: draw(proxies(name)) for name in sorted(names)}
    sources = {}
    for name, destination in sorted(all_destinations(KernelState(proxies=made, routes=routes)), key=str):
        for endpoint, _weight in destination.members:
            if made[name].mode is Mode.FULLNAT and draw(st.booleans()):
                sources[name, endpoint] = ip_address(draw(st.sampled_from(SOURCES[endpoint.ip.version])))
    attached = sorted(draw(st.sets(st.sampled_from([2, 3, 4]))))
    guarded = draw(st.sets(st.sampled_from(attached))) if attached else set()
    return KernelState(
        program=draw(st.builds(ProgramState, st.sampled_from(["one", "two"]), st.sampled_from([100, 200]))),
        settings=DataPlaneSettings(fast_path=draw(st.booleans())),
        proxies=made,
        listeners=listeners,
        routes=routes,
        attachments={
            ifindex: Attachment(ifindex, f"eth{ifindex}", draw(st.sampled_from(list(XdpMode)))) for ifindex in attached
        },
        sysctls=dict.fromkeys(draw(st.sets(st.sampled_from(SYSCTLS))), "1")
        | {route_localnet(f"eth{ifindex}"): "1" for ifindex in guarded},
        devices=frozenset(draw(st.sets(st.sampled_from([2, 3, 4])))),
        guarded=frozenset(guarded),
        no_tx=frozenset(draw(st.sets(st.sampled_from(attached)))) if attached else frozenset(),
        sources=sources,
    )


Packet = tuple[int, IPAddress, IPAddress, Protocol, int]
Decisions = dict[Packet, tuple[str, str, frozenset[Endpoint]]]


def expected_decisions(state: KernelState) -> Decisions:
    """What the model says about each of a set of packets; without affinity, so that it names every target that may
    be chosen."""
    proxies = {name: replace(proxy, balance=Balance.MAGLEV) for name, proxy in state.proxies.items()}
    found: Decisions = {}
    for ifindex, dst, src, protocol, port in product((2, 3), ADDRESSES, CLIENTS, Protocol, PORTS):
        if src.version == dst.version:
            verdict = decide(replace(state, proxies=proxies), ifindex, src, dst, protocol, port)
            found[ifindex, src, dst, protocol, port] = (verdict.kind, verdict.proxy or "", verdict.targets)
    return found


class Commit:
    """One configuration brought into the store the way a transaction does it, with a look after each step."""

    def __init__(self, store: Store, wanted: KernelState, number: int) -> None:
        self.store, self.wanted = store, wanted
        observed = store.observe()
        self.before, self.after = expected_decisions(observed.state), expected_decisions(wanted)
        self.ports_before, self.ports_after = wanted_ports(observed.state), wanted_ports(wanted)
        self.sources_before, self.sources_after = set(observed.state.sources), set(wanted.sources)
        manifest = number.to_bytes(16, "big")
        self.blobs = {manifest: b"manifest", b"same in all": b"a file", b"f" + manifest: b"another"}
        self.revision = Revision(number, number, manifest)
        self.desired = Desired(wanted, live_sysctls=dict(store.sysctls))
        self.plan = make_plan(
            self.desired,
            observed,
            limits=Limits({}),
            runtime=self.runtime(),
            revision=self.revision,
            blobs=self.blobs,
        )

    def runtime(self) -> RuntimeFacts:
        store = self.store
        busy_ports = {store.targets[number][1].port: PORT_TARGET for number in store.busy_targets}
        busy_ports.pop(0, None)
        return RuntimeFacts(
            busy_targets=store.busy_targets,
            busy_proxies=frozenset(store.targets[number][0] for number in store.busy_targets),
            busy_ports=busy_ports,
        )

    def run(self) -> None:
        store, plan = self.store, self.plan
        self.sees_before()
        before = copy.deepcopy(store)
        for operation in (*plan.stage, *plan.attach):
            store.do(operation)
            self.sees_before()
        self.undone_is(before)
        if plan.switch:
            store.do(plan.switch)
        self.sees_after()
        for operation in plan.stage:
            store.level(operation)
            self.sees_after()
        for operation in plan.finish or self.housekeeping():
            store.do(operation)
            self.sees_after()
        self.nothing_is_left_over(plan)

    def housekeeping(self) -> tuple[Operation, ...]:
        return housekeeping(self.desired, self.store.observe(), limits=Limits({}), runtime=self.runtime())

    def sees_before(self) -> None:
        self._sees(self.before, self.ports_before, self.sources_before)

    def sees_after(self) -> None:
        self._sees(self.after, self.ports_after, self.sources_after)

    def _sees(self, decisions: Decisions, ports: dict[int, int], sources: set[tuple[str, Endpoint]]) -> None:
        """Every packet is decided by one state, the ports of its packets are recognised, targets that have a source
        address are never without, and nothing that needs a guard is without."""
        store = self.store
        there = {(store.names[owner], endpoint): number for number, (owner, endpoint) in store.targets.items()}
        assert {there[each] for each in sources} <= set(store.sources)
        for ifindex in (2, 3, 4):
            if store.sysctls[route_localnet(f"eth{ifindex}")] == "1":
                assert store.devices[ifindex] & DEVICE_DROP_LOOPBACK
                assert ifindex in store.attachments
        for packet, expected in decisions.items():
            assert self.store.decide(*packet) == expected
        for port, bits in (*ports.items(), *self.runtime().busy_ports.items()):
            assert bits & ~self.store.ports.get(port, 0) == 0

    def undone_is(self, before: Store) -> None:
        """Taking everything back in reverse order restores all of it. The store itself goes on."""
        trial = copy.deepcopy(self.store)
        for operation in reversed((*self.plan.stage, *self.plan.attach)):
            trial.undo(operation)
        assert trial == before

    def nothing_is_left_over(self, plan: Plan) -> None:
        store, observed = self.store, self.store.observe()
        assert not observed.unfinished
        assert with_sysctls(observed.state, self.wanted.sysctls) == self.wanted
        assert set(store.remembered) <= set(self.wanted.sysctls)
        unused = observed.allocation.retired_targets
        assert unused <= store.busy_targets
        names = {store.names[store.targets[number][0]] for number in store.busy_targets}
        assert set(observed.allocation.proxies) == {*self.wanted.proxies, *names}
        wanted = {each for each in all_destinations(self.wanted) if each[1].members and each[1].single is None}
        assert set(observed.allocation.groups) == wanted
        ports = wanted_ports(self.wanted)
        for port, bits in self.runtime().busy_ports.items():
            ports[port] = ports.get(port, 0) | bits
        assert store.ports == ports
        if plan.revision:
            assert observed.revision == self.revision
            assert store.blobs == self.blobs
        again = make_plan(
            self.desired,
            observed,
            limits=Limits({}),
            runtime=self.runtime(),
            revision=self.revision,
            blobs=self.blobs,
        )
        assert again.empty
        assert again.operations == ()


def all_destinations(state: KernelState) -> set[tuple[str, Destination]]:
    found = {(key.proxy, destination) for key, destination in state.routes.items()}
    for proxy in state.proxies.values():
        found |= {(proxy.name, each) for each in (proxy.default4, proxy.default6) if each is not None}
    return found


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(states(), min_size=2, max_size=4), st.data())
def test_commits_show_packets_one_configuration_at_a_time_and_leave_nothing(
    sequence: list[KernelState], data: st.DataObject
) -> None:
    store = Store(sysctls=dict(LIVE))
    for number, wanted in enumerate(sequence, start=1):
        commit = Commit(store, wanted, number)
        assert bool(commit.plan.changes) == bool(commit.plan.operations)
        commit.run()
        store.busy_targets = frozenset(data.draw(st.sets(st.sampled_from(sorted(store.targets) or [0]))) - {0})


@settings(max_examples=examples(60), deadline=None)
@given(states(), states(), st.data())
def test_housekeeping_frees_what_the_last_connection_has_left(
    first: KernelState, second: KernelState, data: st.DataObject
) -> None:
    store = Store(sysctls=dict(LIVE))
    Commit(store, first, 1).run()
    store.busy_targets = frozenset(data.draw(st.sets(st.sampled_from(sorted(store.targets) or [0]))) - {0})
    commit = Commit(store, second, 2)
    commit.run()
    held = {number: store.targets[number] for number in store.busy_targets}
    assert not any(isinstance(operation, FreeTarget) and operation.id in held for operation in commit.plan.finish)

    assert commit.housekeeping() == ()
    assert {number: store.targets[number] for number in held} == held
    store.busy_targets = frozenset()
    for operation in commit.housekeeping():
        store.do(operation)
    observed = store.observe()
    assert observed.allocation.retired_targets == frozenset()
    assert observed.allocation.retired_proxies == frozenset()
    assert store.ports == wanted_ports(second)
    commit.sees_after()


@settings(max_examples=examples(30), deadline=None)
@given(states())
def test_a_lost_port_bit_shows_and_is_put_back(state: KernelState) -> None:
    store = Store(sysctls=dict(LIVE))
    Commit(store, state, 1).run()
    wanted = dict(store.ports)
    store.ports.clear()
    commit = Commit(store, state, 1)
    assert bool(commit.plan.changes) == bool(wanted)
    for operation in commit.plan.operations:
        store.do(operation)
    assert store.ports == wanted
    assert commit.plan.switch is None
