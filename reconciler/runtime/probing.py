"""Packets put to the real programs: the tests of the files, the check of a commit before its switch, ``explain``.

The programs' answer is compared with what the configuration means (``state/decide.py``). Before the switch they read
the standby slot, at other times the active one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from reconciler.config.model import PacketTest
from reconciler.errors import KernelError, ProbeError, Problem, RevproxyError, TestsFailedError
from reconciler.kernel.frames import Packet, faults
from reconciler.kernel.host import hardware_address
from reconciler.kernel.probe import Sent
from reconciler.runtime.logger import Logger
from reconciler.state.decide import Decision, Trial, decide, is_martian, spread, trials
from reconciler.state.facts import Interface
from reconciler.state.objects import Destination, Endpoint, KernelState, ListenerKey, Mode, Protocol, XdpMode
from reconciler.state.operations import PutProxyName

if TYPE_CHECKING:
    from reconciler.runtime.live import Live
    from reconciler.runtime.view import View
    from reconciler.state.plan import Plan

MAX_PACKETS: Final = 400
"""So many packets the check of one commit sends at most; of a larger change it takes samples, evenly spread."""
_ONE_GROUP: Final = 48  # packets until each target of a group has been met
FIRST_PORT: Final = 40000  # of the clients that try a commit
_MOST_FAILURES: Final = 5

_log = Logger("probe")

_DROPS: Final = {
    "drop_denied": "denied",
    "drop_no_target": "no target can take it",
    "drop_conflict": "its answers could not be told from another connection's",
    "drop_no_port": "no source port or address of this host is free towards the target",
    "drop_table_full": "the connection table is full",
    "drop_flood": "a flood of SYNs fills the connection table: the next SYN of this connection is taken",
    "drop_error": "a helper of the kernel failed",
    "drop_loopback": "a loopback address does not come from outside",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A packet, what came of it, and what the configuration says about it."""

    packet: Packet
    sent: Sent
    decision: Decision
    proxy: str | None
    faults: tuple[str, ...] = ()

    @property
    def target(self) -> Endpoint | None:
        """Where it was forwarded to."""
        return self.sent.leaves[1] if self.sent.leaves else None

    @property
    def passed(self) -> bool:
        """It is none of ours."""
        return self.sent.verdict == "pass" and not self.sent.outcome

    @property
    def rule(self) -> str | None:
        """What of the proxy decided: a source route's prefix or ``default_target``."""
        if self.decision.proxy is None or self.passed:
            return None
        return str(self.decision.rule) if self.decision.rule is not None else "default_target"

    def __str__(self) -> str:
        by = f" (proxy {self.proxy}, {self.rule})" if self.proxy else ""
        if self.target is not None:
            wrong = "".join(f", but {each}" for each in self.faults)
            return f"target {self.target}{by}{wrong}"
        if self.passed:
            return "pass"
        drop = _DROPS.get(self.sent.outcome, self.sent.outcome or "no reason counted")
        return ("deny" if self.sent.outcome == "drop_denied" else f"dropped: {drop}") + by


class Prober:
    """Puts packets to the programs that read ``slot``, which holds ``state``. ``names``: proxies by id."""

    def __init__(
        self, live: Live, state: KernelState, interfaces: Mapping[str, Interface], names: Mapping[int, str], slot: int
    ) -> None:
        self._live, self._state, self._names, self._slot = live, state, names, slot
        self._interfaces = interfaces
        self._by_index = {each.ifindex: each for each in interfaces.values()}
        self._macs: dict[str, bytes] = {}
        self.packets = 0

    def ask(
        self, interface: Interface, source: Endpoint, destination: Endpoint, protocol: Protocol, **more: object
    ) -> Answer:
        """Send one packet. ``more``: ``opens`` and ``entries`` of :class:`Packet` and :meth:`Probe.send`."""
        entries = more.pop("entries", ())
        packet = Packet(interface.ifindex, self._mac(interface.name), source, destination, protocol, **more)  # type: ignore[arg-type]
        attachment = self._state.attachments.get(interface.ifindex)
        xdp = attachment is not None and attachment.xdp is not XdpMode.OFF
        sent = self._live.probe.send(packet, slot=self._slot, xdp=xdp, entries=entries)  # type: ignore[arg-type]
        self.packets += 1
        key = ListenerKey(interface.ifindex, destination.ip, protocol, destination.port)
        decision = decide(self._state, key, source.ip)
        wrong = tuple(faults(packet, sent.frame, *sent.leaves)) if sent.leaves else ()
        proxy = self._names.get(sent.proxy) if sent.proxy else None
        if proxy is None and sent.verdict == "drop":
            proxy = decision.proxy
        return Answer(packet, sent, decision, proxy, wrong)

    def _mac(self, name: str) -> bytes:
        if name not in self._macs:
            self._macs[name] = hardware_address(name)
        return self._macs[name]

    def interface(self, name: str | None, destination: Endpoint, protocol: Protocol) -> Interface:
        """By which a packet comes in: that of this name, else the only one that listens for it, else the only one that
        has the address. Raises :class:`RevproxyError` if there is none or are several."""
        if name is not None:
            if name not in self._interfaces:
                raise RevproxyError(f"there is no interface {name} on this host")
            return self._interfaces[name]
        ends = (destination.ip, protocol, destination.port)
        found = {key.ifindex for key in self._state.listeners if (key.ip, key.protocol, key.port) == ends}
        owners = {
            each.ifindex
            for each in self._interfaces.values()
            if any(address.ip == destination.ip for address in each.addresses)
        }
        for candidates in (found, found & owners, set() if found else owners):
            if len(candidates) == 1 and candidates <= self._by_index.keys():
                return self._by_index[next(iter(candidates))]
        if len(found) > 1:
            which = ", ".join(sorted(self._by_index[each].name for each in found if each in self._by_index))
            raise RevproxyError(f"it may come in by several interfaces ({which}): name one")
        raise RevproxyError(f"nothing listens on {destination}/{protocol}: name the interface it comes in by")

    def by_index(self, ifindex: int | None) -> Interface | None:
        """The interface with that number."""
        return self._by_index.get(ifindex) if ifindex is not None else None

    def may_enter(self, interface: Interface, destination: Endpoint, protocol: Protocol) -> bool:
        """Whether it is one of several that listen for such a packet, or nobody does."""
        ends = (destination.ip, protocol, destination.port)
        found = {key.ifindex for key in self._state.listeners if (key.ip, key.protocol, key.port) == ends}
        return not found or interface.ifindex in found

    # -- tests of the files --------------------------------------------------------------------------------

    def test(self, test: PacketTest) -> Answer:
        """What the packet of a test meets. Raises :class:`RevproxyError` if it can't be sent here."""
        interface = self.interface(test.interface, test.destination, test.protocol)
        return self.ask(interface, test.source, test.destination, test.protocol)

    def taken_out(self, test: PacketTest, answer: Answer) -> bool:
        """Whether the target that a test is for, or all of a proxy's, may be out for another reason than what the files
        say: health and drains have a say in where a packet goes, and none in whether a change is right."""
        decision, expect = answer.decision, test.expect
        if expect.target is not None:
            wanted, port = expect.target, test.destination.port
            return any(
                each.ip == wanted.ip and wanted.port in (0, each.port or port)
                for each, _ in _members(decision.destination)
                if (decision.proxy, each) in self._state.shares
            )
        meant = expect.proxy is not None and expect.proxy == decision.proxy
        return meant and answer.sent.outcome == "drop_no_target" and self._may_drop(decision, answer.sent.outcome)

    # -- a commit's changes --------------------------------------------------------------------------------

    def check(self, trial: Trial) -> str | None:
        """What is wrong with what a packet that a change concerns meets; None if nothing is. Of a group, packets are
        sent until each of its targets has been met, or some number of them."""
        interface = self._by_index.get(trial.listener.ifindex)
        if interface is None or trial.listener.ifindex not in self._state.attachments:
            return None
        wanted = trial.decision.targets(trial.listener.port)
        met: set[Endpoint] = set()
        for number in range(_ONE_GROUP):
            destination = Endpoint(trial.listener.ip, trial.listener.port)
            source = Endpoint(trial.source, FIRST_PORT + number)
            answer = self.ask(interface, source, destination, trial.listener.protocol)
            wrong = self._wrong(trial, answer)
            if wrong is not None:
                return f"{answer.packet} on {interface.name}: expected {self._expected(trial)}, got {wrong}"
            if answer.target is not None:
                met.add(answer.target)
            if len(wanted) < 2 or met >= wanted or answer.target is None or self.packets >= MAX_PACKETS:
                break
        return None

    def _expected(self, trial: Trial) -> str:
        destination = trial.decision.destination
        proxy = f" (proxy {trial.decision.proxy})"
        if destination is not None and destination.deny:
            return "deny" + proxy
        targets = sorted(map(str, trial.decision.targets(trial.listener.port)))
        some = ", ".join(targets[:4]) + (f" and {len(targets) - 4} more" if len(targets) > 4 else "")
        return (
            f"target {' or '.join(targets)}" if len(targets) < 3 else f"one of {some}" if targets else "a drop"
        ) + proxy

    def _wrong(self, trial: Trial, answer: Answer) -> str | None:
        decision, outcome = trial.decision, answer.sent.outcome
        if decision.destination is not None and decision.destination.deny:
            return None if outcome == "drop_denied" else str(answer)
        wanted = decision.targets(trial.listener.port)
        if answer.target is None:
            return None if self._may_drop(decision, outcome) else str(answer)
        if answer.target not in wanted or answer.proxy != decision.proxy or answer.faults:
            return str(answer)
        return self._wrong_source(decision, answer)

    def _may_drop(self, decision: Decision, outcome: str) -> bool:
        """Drops that the configuration, its targets' health or the host is the cause of."""
        members = [each for each, weight in decision.destination.members if weight] if decision.destination else []
        if outcome == "drop_no_target":
            return not members or any((decision.proxy, each) in self._state.shares for each in members)
        if outcome == "drop_no_port" and self._state.proxies[str(decision.proxy)].mode is Mode.FULLNAT:
            return any((decision.proxy, each) not in self._state.sources for each in members)
        return False

    def _wrong_source(self, decision: Decision, answer: Answer) -> str | None:
        """With dnat the target sees the client, with fullnat this host."""
        source, proxy = answer.sent.leaves[0] if answer.sent.leaves else None, self._state.proxies[str(decision.proxy)]
        if proxy.mode is Mode.DNAT:
            return None if source == answer.packet.source else f"{answer}, but from {source}"
        own = {self._state.sources.get((proxy.name, each)) for each, _ in _members(decision.destination)}
        return None if source is not None and source.ip in own else f"{answer}, but from {source}"


def _members(destination: Destination | None) -> tuple[tuple[Endpoint, int], ...]:
    return destination.members if destination else ()


# -- before a switch ---------------------------------------------------------------------------------------------


class Verification:
    """What is to be seen to before the switch of one commit; :meth:`__call__` is for ``Context.verify``."""

    def __init__(self, live: Live, view: View, plan: Plan) -> None:
        self._live, self._view, self._plan = live, view, plan
        self.trials = self.tried = self.packets = 0

    def __call__(self, slot: int) -> None:
        """Raise :class:`TestsFailedError` or :class:`ProbeError` if the standby slot is not what the files ask for."""
        started = time.monotonic()
        view = self._view
        self._live.use_probe(self._live.tag)
        names = {number: name for name, number in view.observed.allocation.proxies.items()}
        names |= {each.id: each.name for each in self._plan.stage if isinstance(each, PutProxyName)}
        wanted = view.desired.state
        # Of addresses towards targets that have no way any more a commit lets go behind the switch.
        there = replace(wanted, sources={**view.observed.allocation.sources, **wanted.sources})
        prober = Prober(self._live, there, view.facts.interfaces, names, slot)
        if not view.origin.stored:  # what was in force once may come back whatever its tests say by now
            run_tests(prober, view, then="; rolled back")
        found = list(trials(wanted, self._plan.stage, names, MAX_PACKETS))
        self.trials = len(found)
        wrong: list[str] = []
        for trial in spread(found, MAX_PACKETS):
            if prober.packets >= MAX_PACKETS + len(view.config.tests) or len(wrong) >= _MOST_FAILURES:
                break
            wrong += _checked(prober, trial)
            self.tried += 1
        self.packets = prober.packets
        _log.debug(
            "commit_probed",
            packets=self.packets,
            trials=self.trials,
            tried=self.tried,
            duration_sec=round(time.monotonic() - started, 3),
        )
        if wrong:
            raise ProbeError(wrong)


def _checked(prober: Prober, trial: Trial) -> list[str]:
    """What is wrong. That a device takes no test runs at all is not."""
    try:
        wrong = prober.check(trial)
    except KernelError as error:
        if error.operation != "test run":
            raise
        _log.warning("probe_impossible", listener=str(trial.listener), error=str(error))
        return []
    return [wrong] if wrong else []


def run_tests(prober: Prober, view: View, *, then: str = "") -> None:
    """Raise :class:`TestsFailedError` with every test of the files that does not hold; ``then``: what is done about it.
    One for an interface that is waited for, or for a target that health or a drain has taken out, is put off."""
    waiting = set(view.desired.waiting)
    problems = [
        Problem(test.place.file, test.place.line, test.place.column, test.path, result.sentence + then)
        for test, result in results(prober, view.config.tests, waiting)
        if not result.holds and not result.waits
    ]
    if problems:
        raise TestsFailedError(problems)


@dataclass(frozen=True, slots=True)
class Result:
    """Of one test. ``answer`` None: it could not be run, for the reason ``why``. ``waits``: its interface is not there
    yet, or it is for a target that health or a drain leaves less than its share."""

    test: PacketTest
    answer: Answer | None
    why: str = ""
    waits: bool = False

    @property
    def holds(self) -> bool:
        answer, expect = self.answer, self.test.expect
        if answer is None or answer.faults:
            return False
        if expect.action is not None:
            return answer.passed if expect.action == "pass" else answer.sent.outcome == "drop_denied"
        if answer.target is None:
            return False
        if expect.proxy is not None:
            return answer.proxy == expect.proxy
        wanted = expect.target
        return wanted is not None and wanted.ip == answer.target.ip and wanted.port in (0, answer.target.port)

    @property
    def actual(self) -> str:
        return str(self.answer) if self.answer is not None else f"not run: {self.why}"

    @property
    def sentence(self) -> str:
        test = self.test
        on = f" on {test.interface}" if test.interface else ""
        what = f"{test.protocol} {test.source} -> {test.destination}{on}"
        return f"the test fails: {what}: expected {test.expect}, got {self.actual}"


def results(
    prober: Prober, tests: Iterable[PacketTest], waiting: set[str] | frozenset[str]
) -> Iterator[tuple[PacketTest, Result]]:
    """Run tests, one after the other."""
    for test in tests:
        try:
            answer = prober.test(test)
            yield test, Result(test, answer, waits=prober.taken_out(test, answer))
        except RevproxyError as error:
            # Without an interface of its own it may be meant for the one that is waited for.
            yield test, Result(test, None, str(error), waits=bool(waiting) and test.interface in (None, *waiting))


def why_passed(state: KernelState, interface: Interface, packet: Packet) -> str:
    """Why a packet is none of ours, in words."""
    where = f"{packet.destination}/{packet.protocol}"
    key = ListenerKey(interface.ifindex, packet.destination.ip, packet.protocol, packet.destination.port)
    if key not in state.listeners:
        near = [each for each in state.listeners if (each.ip, each.protocol) == (key.ip, key.protocol)]
        others = sorted(f"{Endpoint(each.ip, each.port)}{_of(state, each, interface)}" for each in near)
        return f"no proxy listens on {where} of {interface.name}" + (
            f" (but on {', '.join(others[:4])})" if others else ""
        )
    if is_martian(packet.source.ip):
        return f"{packet.source.ip} is no address that a packet from outside has: left to the host"
    return f"the programs left it alone, although proxy {state.listeners[key]} listens on {where}"


def _of(state: KernelState, listener: ListenerKey, interface: Interface) -> str:
    """On which interface it is, if that is another one."""
    attachment = state.attachments.get(listener.ifindex)
    return "" if listener.ifindex == interface.ifindex or attachment is None else f" of {attachment.name}"


def drop_reason(outcome: str) -> str:
    """A drop counter in words, after its name in ``stats``."""
    name = outcome.removeprefix("drop_")
    words = _DROPS.get(outcome, "")
    return f"{name}: {words}" if words and words != name else name


__all__ = [
    "MAX_PACKETS",
    "Answer",
    "Prober",
    "Result",
    "Verification",
    "drop_reason",
    "results",
    "run_tests",
    "why_passed",
]
