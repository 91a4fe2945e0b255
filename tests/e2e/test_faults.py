"""Every kernel operation made to fail, and the process killed before and after it, with everything real: programs,
interfaces, filters, sysctls, maps.

What the operations are is found out by recording a commit that succeeds, so a new one can't be forgotten. A process
killed after operation n and one killed before n+1 leave the same kernel, as long as nothing changes it but by way of
the gateway, which :func:`test_nothing_changes_the_kernel_but_by_the_gateway` sees to; so each is killed once.

Of operations that do the same in a row (eight sysctls, twenty pins) one in the middle has its turn;
``REVPROXY_TEST_THOROUGH=all`` gives it to every one. Unless it is ``each``, as CI has it, every 16th of those in the
middle is left to do (where programs are loaded each time, every 40th), and the switch with what follows it, and of the
two round trips that load programs each test has one.
"""

from __future__ import annotations

import os
import struct
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from ipaddress import ip_address
from itertools import chain, count, groupby
from pathlib import Path
from typing import Any, TypeVar

import pytest

from reconciler.config.files import parse_sources
from reconciler.config.model import Config
from reconciler.errors import RevproxyError, TransactionError, UnfinishedError
from reconciler.kernel import probe, program
from reconciler.kernel.compiler import ObjectCode, compile_programs
from reconciler.kernel.gateway import KILLED_STATUS, FaultGateway, Gateway
from reconciler.runtime import probing
from reconciler.state.objects import KernelState, ListenerKey, Protocol
from reconciler.state.plan import housekeeping
from tests.e2e.proxyhost import Decision, Packet, ProxyHost, address, entries_of_others_targets
from tests.kernel.kernelmaps import configuration, small_arrays
from tests.model import decide
from tests.thorough import EACH_KIND, EVERY_ONE

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
EXCHANGE = """\
apiVersion: revproxy/v1
settings: {xdp_mode: off, fast_path: false, max_connections: 1500}
proxies:
  - name: web
    listen: {interfaces: [cli], port: 80, protocol: tcp}
    default_target: [{ip: 10.9.0.1, port: 8080, weight: 2}, {ip: 10.9.0.7, port: 8080}, {ip: "fd09::1", port: 8080}]
"""
NO_PROXIES = """\
apiVersion: revproxy/v1
settings: {xdp_mode: native, max_connections: 1000}
proxies: []
"""
LOADING = ("programs exchanged", "first commit and down")
GONE = ""  # not a configuration: nothing of ours is there
ROUND_TRIPS = {
    "edit": (BASE, EDIT),
    "programs exchanged": (BASE, EXCHANGE),
    "all proxies": (BASE, NO_PROXIES),
    "first commit and down": (GONE, BASE),
}
# Where not each kind of operation has its turn, one of the two that load programs is enough.
FAILING, KILLED, UNDONE = (
    tuple(name for name in names if EACH_KIND or name != left_out)
    for names, left_out in (
        (ROUND_TRIPS, "first commit and down"),
        (ROUND_TRIPS, "programs exchanged"),
        (("edit", "first commit and down"), "first commit and down"),
    )
)

pytestmark = pytest.mark.timeout(1200)
T = TypeVar("T")
SWITCH = ("update", "map control")
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


@cache
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
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProxyHost]:
    monkeypatch.setattr(probing, "FIRST_PORT", 4000)  # the small port map ends at 10000
    with small_arrays(), ProxyHost() as made:
        yield made


@pytest.fixture
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a round trip. Where the programs are loaded in every commit, those that open connections, whose verification
    takes a second, are replaced with ones that let the packet pass; the probe's too, which is not asked then."""
    if request.param in LOADING:
        monkeypatch.setattr(program, "compile_programs", without_opening)
        monkeypatch.setattr(probe, "compile_programs", without_opening)
        monkeypatch.setattr(probing.Prober, "_wrong", lambda *_: None)
    return str(request.param)


@cache
def without_opening(source: Path) -> ObjectCode:
    code = compile_programs(source)
    passing = {"xdp": struct.pack("=BBhi", 0xB7, 0, 0, 2), "tc_": struct.pack("=BBhi", 0xB7, 0, 0, -1)}
    ending = struct.pack("=BBhi", 0x95, 0, 0, 0)
    opening = {each: passing[each[:3]] + ending for each in code.functions if "_open" in each}
    return replace(code, functions={**code.functions, **opening})


@dataclass
class Attempt:
    """One commit to ``text`` with trouble at the call of that number. ``where`` says which call that is."""

    host: ProxyHost
    text: str
    number: int
    beyond_the_end: bool = False  # there is no such call
    rolled_back: bool = False
    switched: bool = False  # the trouble was behind the switch
    where: str = ""

    def fail(self, *, and_all_after: bool = False) -> RevproxyError | None:
        """With that call made to fail: the error that the commit came to."""
        gateway = FaultGateway(fail_at=self.number, fail_on=and_all_after)
        error = self.carry_out(gateway)
        self.beyond_the_end = len(gateway.calls) < self.number
        self.rolled_back = isinstance(error, TransactionError) and error.rolled_back
        self.switched = SWITCH in gateway.calls[: self.number - 1]
        self.where = f"call {self.number}: {gateway.calls[min(self.number, len(gateway.calls)) - 1]}: {error}"
        return error

    def kill(self) -> None:
        """In a process that is killed after that call."""
        log = self.host.directory / "calls"
        status = in_child(lambda: self.carry_out(_Logging(log, kill_after=self.number)))
        self.beyond_the_end = status == 0
        calls = log.read_text().splitlines()
        self.switched = " ".join(SWITCH) in calls
        self.where = f"call {self.number}: {calls[-1]}"
        assert status in (0, KILLED_STATUS), self.where

    def interrupt(self, function: Callable[[], object]) -> None:
        """With something else that happens just before that call."""
        gateway = _Interrupted(self.number, function)
        assert self.carry_out(gateway) is None
        self.beyond_the_end = len(gateway.calls) < self.number
        self.where = f"before call {self.number}: {gateway.calls[min(self.number, len(gateway.calls)) - 1]}"

    def carry_out(self, gateway: Gateway) -> RevproxyError | None:
        with self.host.engine(gateway) as engine:
            try:
                if self.text == GONE:
                    engine.down()
                else:
                    engine.commit(engine.view(parse(self.text)), allow_empty=True)
            except RevproxyError as error:
                return error
        return None


def chosen(calls: list[tuple[str, str]], step: int = 3) -> list[int]:
    """Numbers of the calls that have their turn, from 1."""
    if EVERY_ONE:
        return list(range(1, len(calls) + 1))
    numbers: list[int] = []
    for _, run in groupby(enumerate(calls, 1), key=lambda each: kind_of(*each[1])):
        row = [number for number, _ in run]
        numbers.append(row[(len(row) - 1) // 2])
    if EACH_KIND or SWITCH not in calls:
        return numbers
    switch = calls.index(SWITCH) + 1
    return sorted({*numbers[::step], switch, switch + 1})


def kind_of(operation: str, subject: str) -> str:
    """What a call does: writes are told apart by map, everything else is not by what it is done to."""
    return f"{operation} {subject}" if operation.startswith(("update", "delete")) else operation


class _Interrupted(FaultGateway):
    def __init__(self, number: int, function: Callable[[], object]) -> None:
        super().__init__()
        self.number, self.function = number, function

    def call(self, operation: str, subject: str, function: Callable[[], T]) -> T:
        if len(self.calls) + 1 == self.number:
            self.function()
        return super().call(operation, subject, function)


class _Logging(FaultGateway):
    """Writes the calls into a file, for a process that will be killed."""

    def __init__(self, log: Path, **moment: int) -> None:
        super().__init__(**moment)
        self.log = log
        log.write_text("")

    def call(self, operation: str, subject: str, function: Callable[[], T]) -> T:
        with self.log.open("a") as file:
            file.write(f"{operation} {subject}\n")
        return super().call(operation, subject, function)


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


# -- commits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAILING, indirect=True)
def test_an_operation_that_fails_leaves_before_or_after(host: ProxyHost, name: str) -> None:
    commits, before, outcomes = Commits(host, opening=name not in LOADING), None, Outcomes()
    for old, new, attempt in commits.round_trip(*ROUND_TRIPS[name]):
        if before is None:
            connection = commits.open_connection(old)
            before = host.snapshot()
        error = attempt.fail()
        if isinstance(error, TransactionError):
            assert error.rolled_back, attempt.where
            assert difference(host.snapshot(), before) == [], attempt.where
        else:
            told = error is None or new == GONE or isinstance(error, UnfinishedError)
            assert told, attempt.where
            commits.complete(new, connection, attempt.where)
            before = None
        outcomes.add(old, new, attempt, attempt.rolled_back)
    outcomes.check()


@pytest.mark.parametrize("name", KILLED, indirect=True)
def test_killed_at_any_operation_the_next_start_completes(host: ProxyHost, name: str) -> None:
    commits, outcomes = Commits(host, opening=name not in LOADING), Outcomes()
    for old, new, attempt in commits.round_trip(*ROUND_TRIPS[name]):
        commits.open_connection(old)
        attempt.kill()
        seen, kept = (new, None) if new == GONE else commits.seen(old, new, attempt.where)
        commits.complete(new, kept, attempt.where)
        outcomes.add(old, new, attempt, seen == old)
    outcomes.check()


@pytest.mark.parametrize("name", UNDONE, indirect=True)
def test_an_undo_that_fails_too_is_told_and_the_next_start_repairs(host: ProxyHost, name: str) -> None:
    commits, told = Commits(host, opening=name not in LOADING), 0
    for old, new, attempt in commits.round_trip(*ROUND_TRIPS[name]):
        connection = commits.open_connection(old)
        before = host.snapshot()
        error = attempt.fail(and_all_after=True)
        if isinstance(error, TransactionError) and not error.rolled_back:
            assert error.residue, attempt.where
            assert "roll-back incomplete" in str(error), attempt.where
            told += 1
        elif isinstance(error, TransactionError):
            assert difference(host.snapshot(), before) == [], attempt.where
        attempt.rolled_back = False  # here it goes on either way
        commits.complete(new, connection, attempt.where)
    assert told


def test_a_connection_opened_during_a_commit_keeps_its_target(host: ProxyHost) -> None:
    """Whenever it is: its target's number is given to nobody else, and its interfaces go on being served."""
    commits = Commits(host)
    for _, new, attempt in commits.round_trip(BASE, EDIT):
        packets = commits.packets()
        opened: list[Decision] = []
        attempt.interrupt(lambda packets=packets, opened=opened: opened.extend(host.decisions(packets)))  # type: ignore[misc]
        for packet, before in zip(packets, opened, strict=False):
            if before.kind == "forward":
                after = host.decisions((replace(packet, syn=False),))[0]
                assert after.same(before), f"{attempt.where}: {packet} went to {before}, now to {after}"
        assert entries_of_others_targets(host) == [], attempt.where
        commits.complete(new, None, attempt.where)


@pytest.mark.parametrize("name", ["programs exchanged"], indirect=True)
def test_nothing_changes_the_kernel_but_by_the_gateway(host: ProxyHost, name: str) -> None:
    for text in (*ROUND_TRIPS[name], GONE):
        watching = _Watching(host)
        assert Attempt(host, text, 0).carry_out(watching) is None
        assert len(watching.calls) > 10
        watching.look()


class _Watching(FaultGateway):
    """Sees to it that the kernel is before each call what it was after the last one."""

    def __init__(self, host: ProxyHost) -> None:
        super().__init__()
        self.host, self.last = host, host.snapshot()

    def look(self) -> None:
        assert difference(self.host.snapshot(), self.last) == [], f"after {self.calls[-1:]}"

    def call(self, operation: str, subject: str, function: Callable[[], T]) -> T:
        self.look()
        result = super().call(operation, subject, function)
        self.last = self.host.snapshot()
        return result


@dataclass
class Outcomes:
    """Whether each commit was made: trouble up to the switch leaves what was before, and later trouble what comes
    after. (How many calls come before it depends on whether the programs of the probe are loaded already.)"""

    found: dict[tuple[str, str], set[bool]] = field(default_factory=dict)

    def add(self, old: str, new: str, attempt: Attempt, undone: bool) -> None:
        if new != GONE:
            assert undone != attempt.switched, attempt.where
            self.found.setdefault((old, new), set()).add(undone)

    def check(self) -> None:
        """There was trouble on both sides of the switch."""
        assert self.found
        assert all(outcomes == {True, False} for outcomes in self.found.values()), self.found


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
