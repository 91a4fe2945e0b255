"""Commits to and fro between two configurations, and what is to be found in the kernel before and after each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from itertools import chain, count
from typing import Any

from reconciler.errors import RevproxyError
from reconciler.kernel.gateway import FaultGateway
from reconciler.state.objects import KernelState, ListenerKey, Protocol
from reconciler.state.plan import housekeeping
from tests.e2e.attempts import GONE, Attempt, chosen, parse
from tests.e2e.proxyhost import Decision, Packet, ProxyHost, address, entries_of_others_targets
from tests.kernel.kernelmaps import configuration
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
LEAVE_OUT = (
    "connection4",
    "connection6",
    "target_stats",
    "outcome",
    "scratch",
    "control",
    "revision",
    "hardware",
    "retired_stats",
    "way",
)


@dataclass
class Commits:
    """Commits on one host, to and fro between configurations, and what is to be found before and after each."""

    host: ProxyHost
    states: dict[str, KernelState] = field(default_factory=dict)
    shapes: dict[str, Any] = field(default_factory=dict)
    calls: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    sport: int = 2000
    opening: bool = True  # the programs open connections

    def settle(self, text: str) -> None:
        """Commit without trouble, and remember what the kernel is then."""
        self.go(text)
        with self.host.engine() as engine:
            self.states[text] = engine.observe().state
        self.shapes[text] = shape(self.host.snapshot())

    def go(self, text: str, connection: tuple[Packet, Decision] | None = None) -> None:
        """What a fresh process does: recover if need be, and commit. Then nothing may differ, the connection has to go
        where it went, and everybody else be known by the right number. In the end all connections are over."""
        with self.host.engine() as engine:
            if text == GONE:
                engine.down()
                return
            engine.commit(engine.view(parse(text)), allow_empty=True)
            if connection:
                packet, before = connection
                after = self.host.decisions((replace(packet, syn=False),))[0]
                assert after.same(before), f"{packet} went to {before}, now to {after}"
            assert entries_of_others_targets(self.host) == []
            assert not engine.observe().unfinished
            engine.flush()
            view = engine.view(parse(text))
            if view.changes or view.lapsed:  # the interfaces over which connections ran
                engine.commit(view, allow_empty=True)
                view = engine.view(view.config)
            assert view.changes == ()
            found = housekeeping(view.desired, view.observed, limits=engine.live.limits, runtime=view.runtime)
            engine.live.free(found)

    def complete(self, text: str, connection: tuple[Packet, Decision] | None, where: str) -> None:
        """:meth:`go`; afterwards the kernel is what it would be had nothing happened."""
        try:
            self.go(text, connection)
        except RevproxyError as error:
            raise AssertionError(where) from error
        assert difference(shape(self.host.snapshot()), self.shapes[text]) == [], where

    def round_trip(self, one: str, other: str) -> Iterator[tuple[str, str, Attempt]]:
        """The configuration in force, the one to come, and a commit from the one to the other with trouble ahead, until
        the operations have had their turn and one meets none; the same back. The block has to bring the kernel to the
        one to come, unless the attempt was rolled back."""
        for text in (one, other, one):
            self.settle(text)
        turns: dict[str, Iterator[int]] = {}
        for old, new in ((one, other), (other, one)):
            self.open_connection(old)
            recording = FaultGateway()
            assert Attempt(self.host, new, 0).carry_out(recording) is None
            assert len(recording.calls) > 10
            self.go(new)
            turns[new] = chain(chosen(recording.calls, 16 if self.opening else 40), count(len(recording.calls) + 1))
        here, there = one, other
        done: set[str] = set()
        while len(done) < 2:
            if there in done:
                self.go(there)
            else:
                attempt = Attempt(self.host, there, next(turns[there]))
                yield here, there, attempt
                if attempt.rolled_back:
                    continue
                if attempt.beyond_the_end:
                    done.add(there)
            here, there = there, here

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

    def open_connection(self, text: str) -> tuple[Packet, Decision] | None:
        """One that this configuration, which is in force, forwards, if there is one."""
        for packet in self.packets():
            expected = self.expected(text, packet)
            if expected.target is not None:
                if self.opening:
                    return packet, self.host.decisions((packet,))[0]
                with self.host.engine() as engine:
                    numbers = engine.observe().allocation
                proxy = self.states[text].listeners[
                    ListenerKey(self.host.ifindex[packet.interface], packet.dst, packet.protocol, packet.dport)
                ]
                target_id = numbers.targets[proxy, expected.target]
                self.host.insert_connection(packet, expected.target, numbers.proxies[proxy], target_id)
                return packet, expected
        return None

    def seen(self, old: str, new: str, where: str) -> tuple[str, tuple[Packet, Decision] | None]:
        """Which of the two configurations packets meet, all of them the same, and a connection of that one."""
        with self.host.engine() as engine:
            found = configuration(engine.observe())
        # Before the first switch the settings say nothing.
        skip = int(GONE in (old, new))
        wholly = [each for each in (old, new) if found[skip:] == configuration(self.states[each])[skip:]]
        assert wholly, f"{where}: neither nor: {found}"
        if not self.opening:
            return wholly[0], self.open_connection(wholly[0])
        packets = self.packets()
        decisions = self.host.decisions(packets)
        assert self.differing(wholly[0], packets, decisions) == [], where
        pairs = zip(packets, decisions, strict=True)
        return wholly[0], next((pair for pair in pairs if pair[1].kind == "forward"), None)


def shape(snapshot: dict[str, Any]) -> dict[str, Any]:
    """What two kernels with the same configuration have in common: not the ids of programs and maps, nor under which
    numbers the maps hold things, but how many."""
    maps = snapshot["maps"]
    return {
        "maps": maps and {name: len(content) for name, content in maps.items() if name not in LEAVE_OUT},
        "pins": {pin: None for pin in snapshot["pins"] if "/probe" not in pin},  # only ever spares time
        "xdp": {name: sorted(programs) for name, programs in snapshot["xdp"].items()},
        "filters": {
            name: [(*each[:5], each[5] and each[5].tag) for each in filters]
            for name, filters in snapshot["filters"].items()
        },
        "qdiscs": snapshot["qdiscs"],
        "sysctls": snapshot["sysctls"],
    }


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Where two snapshots differ."""
    lines = []
    for part, was in wanted.items():
        there, expected = found[part] or {}, was or {}
        for key in there.keys() | expected.keys():
            if (key in there, there.get(key)) != (key in expected, expected.get(key)):
                was_and_is = f"{there.get(key, 'nothing')!r} instead of {expected.get(key, 'nothing')!r}"
                lines.append(f"{part} {key}: {was_and_is}")
    return lines
