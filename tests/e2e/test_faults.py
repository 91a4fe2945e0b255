"""Every kernel operation made to fail, and the process killed before and after it, with everything real: programs,
interfaces, filters, sysctls, maps.

What the operations are is found out by recording a commit that succeeds, so a new one can't be forgotten. A process
killed after operation n and one killed before n+1 leave the same kernel, as long as nothing changes it but by way of
the gateway, which :func:`test_nothing_changes_the_kernel_but_by_the_gateway` sees to; so each is killed once.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

import pytest

from reconciler.config.files import parse_sources
from reconciler.config.model import Config
from reconciler.engine import View
from reconciler.errors import KernelError, TransactionError
from reconciler.kernel import layout
from reconciler.kernel.gateway import KILLED_STATUS, FaultGateway, Gateway
from reconciler.state.objects import KernelState, Protocol
from reconciler.state.plan import housekeeping
from tests.e2e.proxyhost import Decision, Packet, ProxyHost, address, entries_of_others_targets
from tests.kernel.kernelmaps import configuration, small_arrays
from tests.model import decide

BASE = """\
apiVersion: revproxy/v1
settings: {xdp_mode: native, max_connections: 1000}
proxies:
  - name: web
    listen: {interfaces: [cli], port: 80, protocol: tcp}
    default_target: [{ip: 10.9.0.1, port: 8080, weight: 2}, {ip: 10.9.0.2, port: 8080}, {ip: "fd09::1", port: 8080}]
    source_routes:
      - {source: 20.0.0.0/8, target: [{ip: 10.9.0.3, port: 8080}, {ip: 10.9.0.4, port: 8080}]}
      - {source: 20.1.0.0/16, action: deny}
  - name: old
    listen: {interfaces: [ext], addresses: [10.0.3.1], port: 53, protocol: udp}
    default_target: {ip: 10.9.0.9, port: 53}
"""
EDIT = """\
apiVersion: revproxy/v1
settings: {xdp_mode: native, max_connections: 1000}
proxies:
  - name: web
    listen: {interfaces: [cli], port: 443, protocol: tcp}
    default_target: [{ip: 10.9.0.5, port: 8080}, {ip: "fd09::1", port: 8080}]
    balance: source
    source_routes:
      - {source: 20.1.0.0/16, target: [{ip: 10.9.0.3, port: 8080}, {ip: 10.9.0.6, port: 8080}]}
      - {source: "2001:db8::/32", action: deny}
  - name: new
    listen: {interfaces: [dmz], port: 53, protocol: udp}
    default_target: {ip: 10.9.0.8, port: 5353}
"""
EXCHANGE = BASE.replace(
    "{xdp_mode: native, max_connections: 1000}", "{xdp_mode: off, fast_path: false, max_connections: 1500}"
).replace("10.9.0.2", "10.9.0.7")
NOTHING = "apiVersion: revproxy/v1\nproxies: []\n"
ROUND_TRIPS = {
    "edit": (BASE, EDIT),
    "programs exchanged": (BASE, EXCHANGE),
    "all proxies": (BASE, NOTHING),
}

LEAVE_OUT = ("connection4", "connection6", "target_stats", "outcome", "scratch", "control", "revision")


def parse(text: str) -> Config:
    return parse_sources({"all.yaml": text.encode()})


def in_child(function: Callable[[], object]) -> int:
    """The exit status of a forked child that runs this."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def host() -> Iterator[ProxyHost]:
    with small_arrays(), ProxyHost() as made:
        yield made


@dataclass
class Commits:
    """Commits on one host, to and fro between configurations, and what is to be found before and after each."""

    host: ProxyHost
    states: dict[str, KernelState] = field(default_factory=dict)
    shapes: dict[str, Any] = field(default_factory=dict)
    calls: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    sport: int = 2000

    def settle(self, text: str) -> list[tuple[str, str]]:
        """Commit without trouble, and remember what the kernel is then; the calls it took."""
        gateway = FaultGateway()
        view = self.host.apply(parse(text), gateway)
        self.states[text] = view.observed.state
        self.housekeep(view)
        self.shapes[text] = shape(self.host.snapshot())
        return gateway.calls

    def housekeep(self, view: View) -> None:
        """End all connections, and free what only they used."""
        with self.host.engine() as engine:
            engine.flush()
            view = engine.view(view.config)
            if view.changes:  # an interface over which a connection ran
                engine.commit(view, allow_empty=True)
                view = engine.view(view.config)
            found = housekeeping(view.desired, view.observed, limits=engine.live.limits, runtime=view.runtime)
            engine.live.free(found)

    def packets(self) -> tuple[Packet, ...]:
        """First packets of new connections: to each listener of any configuration, from clients of every route."""
        self.sport += 1
        web = [
            Packet("cli", ip_address(src), address("cli", ip_address(src).version), self.sport, port)
            for src in ("30.0.0.1", "20.0.0.1", "20.1.0.1", "2001:db8::1", "2001:db9::1")
            for port in (80, 443)
        ]
        datagrams = [
            Packet(name, ip_address("30.0.0.1"), address(name, 4), self.sport, 53, Protocol.UDP)
            for name in ("ext", "dmz")
        ]
        return (*web, *datagrams)

    def round_trip(self, one: str, other: str) -> Iterator[tuple[str, str, int, str]]:
        """For every call of the commit from ``one`` to ``other``, and then of the one back: the configuration in force,
        the one to come, the call's number, and which it is. Each finds the configuration in force whatever the one
        before it did."""
        self.settle(one)
        self.calls = {other: self.settle(other), one: self.settle(one)}
        for old, new in ((one, other), (other, one)):
            for number, call in enumerate(self.calls[new], 1):
                with self.host.engine() as engine:
                    view = engine.view(parse(old))
                    if view.changes:
                        engine.commit(view, allow_empty=True)
                yield old, new, number, f"call {number} of {len(self.calls[new])}: {call}"
            self.host.apply(parse(new))

    def switched(self, new: str, number: int) -> bool:
        """Whether the switch comes before the call of that number."""
        return ("update", "map control") in self.calls[new][: number - 1]

    def differing(self, text: str, packets: tuple[Packet, ...], decisions: tuple[Decision, ...]) -> list[str]:
        """Packets that did not meet this configuration."""
        return [
            f"{packet}: {decision} instead of {self.expected(text, packet)}"
            for packet, decision in zip(packets, decisions, strict=True)
            if not decision.same(self.expected(text, packet))
        ]

    def expected(self, text: str, packet: Packet) -> Decision:
        ifindex = self.host.ifindex[packet.interface]
        ends = (packet.src, packet.dst, packet.protocol, packet.dport, packet.sport)
        verdict = decide(self.states[text], ifindex, *ends)
        return Decision(verdict.kind, next(iter(verdict.targets), None))

    def complete(self, text: str, where: str, connection: tuple[Packet, Decision] | None) -> None:
        """What the next start does; afterwards the kernel is what it would be had nothing happened, and the connection
        goes where it went."""
        view = self.host.apply(parse(text))
        if connection:
            packet, before = connection
            assert self.host.decisions((replace(packet, syn=False),))[0].same(before), where
        assert entries_of_others_targets(self.host) == [], where
        self.housekeep(view)
        assert difference(shape(self.host.snapshot()), self.shapes[text]) == [], where
        with self.host.engine() as engine:
            assert engine.observe().state == self.states[text], where

    def attempt(self, text: str, gateway: Gateway) -> TransactionError | KernelError | None:
        """Commit, and no more; the error that it came to."""
        with self.host.engine(gateway) as engine:
            try:
                engine.commit(engine.view(parse(text)), allow_empty=True)
            except (TransactionError, KernelError) as error:
                return error
        return None

    def open_connection(self, text: str) -> tuple[Packet, Decision] | None:
        """One that this configuration, which is in force, forwards, if there is one."""
        for packet in self.packets():
            if self.expected(text, packet).kind == "forward":
                return packet, self.host.decisions((packet,))[0]
        return None


def shape(snapshot: dict[str, Any]) -> dict[str, Any]:
    """What two kernels with the same configuration have in common: not the ids of programs and maps, nor under which
    numbers the maps hold things, but how many."""
    maps = snapshot["maps"]
    return {
        "maps": maps and {name: len(content) for name, content in maps.items() if name not in LEAVE_OUT},
        "pins": dict.fromkeys(snapshot["pins"]),
        "xdp": {name: sorted(programs) for name, programs in snapshot["xdp"].items()},
        "filters": {
            name: [(*each[:5], each[5] and each[5].tag) for each in filters]
            for name, filters in snapshot["filters"].items()
        },
        "qdiscs": snapshot["qdiscs"],
        "sysctls": snapshot["sysctls"],
    }


# -- commits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_each_operation_failing_leaves_before_or_after(host: ProxyHost, name: str) -> None:
    commits = Commits(host)
    for old, new, number, where in commits.round_trip(*ROUND_TRIPS[name]):
        connection = commits.open_connection(old)
        before = host.snapshot()
        error = commits.attempt(new, FaultGateway(fail_at=number))
        if isinstance(error, TransactionError):
            assert error.rolled_back, f"{where}: {error}"
            assert "made to fail" in str(error.cause), where
            assert difference(host.snapshot(), before) == [], where
            assert not commits.switched(new, number), where
        else:
            assert commits.switched(new, number), f"{where}: {error}"
            commits.complete(new, where, connection)


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_killed_at_each_operation_the_next_start_completes(host: ProxyHost, name: str) -> None:
    commits = Commits(host)
    for old, new, number, where in commits.round_trip(*ROUND_TRIPS[name]):
        commits.open_connection(old)
        gateway = FaultGateway(kill_after=number)
        assert in_child(lambda gateway=gateway, new=new: commits.attempt(new, gateway)) == KILLED_STATUS, where  # type: ignore[misc]
        packets = commits.packets()
        decisions = host.decisions(packets)
        seen = new if commits.switched(new, number + 1) else old
        assert commits.differing(seen, packets, decisions) == [], where
        with host.engine() as engine:
            assert configuration(engine.observe()) == configuration(commits.states[seen]), where
        kept = next((pair for pair in zip(packets, decisions, strict=True) if pair[1].kind == "forward"), None)
        commits.complete(new, where, kept)


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Where two snapshots differ."""
    lines = []
    for part, was in wanted.items():
        there, expected = found[part] or {}, was or {}
        for key in there.keys() | expected.keys():
            if (key in there, there.get(key)) != (key in expected, expected.get(key)):
                lines.append(f"{part} {key}: {there.get(key, 'nothing')!r} instead of {expected.get(key, 'nothing')!r}")
    return lines
