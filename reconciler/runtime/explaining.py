"""What ``test`` and ``explain`` answer: packets put to the programs that are in force, said in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import numpy as np

from reconciler import answers
from reconciler.errors import RevproxyError, UsageError
from reconciler.kernel import connections, conntable, host
from reconciler.kernel.arrays import join
from reconciler.kernel.frames import Packet
from reconciler.kernel.maps import Maps
from reconciler.kernel.probe import Entry, connection_key
from reconciler.kernelclock import monotonic_ns
from reconciler.runtime.probing import Answer, Prober, drop_reason, results, why_passed
from reconciler.state.desired import Causes
from reconciler.state.facts import Interface
from reconciler.state.objects import Endpoint, Observed, Protocol

if TYPE_CHECKING:
    from reconciler.runtime.live import Live
    from reconciler.runtime.view import View

ANY_PORT = 40000
"""The client's port where none is said."""

_HOW = {
    "redirect_xdp": "forwarded by XDP, past the host's stack",
    "redirect_tc": "forwarded by TC, past the host's stack",
    "stack": "rewritten, then handed to the host's stack",
    "reset": "answered with RST, since its target is dead",
}


def active_prober(live: Live, observed: Observed, interfaces: Mapping[str, Interface]) -> Prober:
    """A prober of what packets see now. Raises :class:`RevproxyError` where nothing is loaded."""
    if not observed.exists or not live.use_probe(live.tag_in_force):
        raise RevproxyError("nothing of this instance is in the kernel: there is nothing to try packets on")
    names = {number: name for name, number in observed.allocation.proxies.items()}
    return Prober(live, observed.state, interfaces, names, observed.active)


# -- test ----------------------------------------------------------------------------------------------------


def test(live: Live, view: View) -> answers.Tested:
    """Run the tests of the files on what packets see now."""
    synced = not view.changes
    found: list[answers.TestResult] = []
    if view.config.tests:
        prober = active_prober(live, view.observed, view.facts.interfaces)
        for each, result in results(prober, view.config.tests, set(view.desired.waiting)):
            found.append(
                answers.TestResult(
                    file=each.place.file,
                    line=each.place.line,
                    column=each.place.column,
                    source=str(each.source),
                    to=str(each.destination),
                    protocol=str(each.protocol),
                    interface=each.interface,
                    expected=str(each.expect),
                    actual=result.actual,
                    holds=result.holds,
                )
            )
    return answers.Tested(
        sync=answers.Sync.SYNCED if synced else answers.Sync.OUT_OF_SYNC,
        revision=view.observed.revision.number,
        differences=len(view.changes),
        tests=tuple(found),
        failed=sum(not each.holds for each in found),
    )


test.__test__ = False  # type: ignore[attr-defined]  # no test itself, whatever pytest thinks of the name


# -- explain -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """A packet somebody asks about. ``source.port`` 0: any; ``interface`` None: the one it would come in by."""

    source: Endpoint
    destination: Endpoint
    protocol: Protocol = Protocol.TCP
    interface: str | None = None


def question(source: str, to: str, protocol: str, interface: str | None) -> Question:
    """From what was typed. Raises :class:`UsageError` saying what is wrong."""
    ends = []
    for option, text in (("from", source), ("to", to)):
        try:
            ends.append(_endpoint(text))
        except ValueError as error:
            raise UsageError(f"--{option}: {error}") from error
    if ends[0].ip.version != ends[1].ip.version:
        raise UsageError(f"--from is IPv{ends[0].ip.version}, --to is IPv{ends[1].ip.version}")
    if not ends[1].port:
        raise UsageError(f"--to: {to!r} lacks a port: IP:PORT, or [IPv6]:PORT")
    try:
        return Question(ends[0], ends[1], Protocol(protocol), interface or None)
    except ValueError:
        raise UsageError(f"--protocol: {protocol!r} is neither tcp nor udp") from None


def _endpoint(text: str) -> Endpoint:
    from reconciler.config.oneline import parse_target

    parsed = parse_target(text)
    return Endpoint(ip_address(parsed["ip"]), parsed.get("port", 0))


def explain(live: Live, asked: Question, observed: Observed, causes: Causes) -> answers.Explanation:
    """What the data plane does with such a packet now, from a run of the programs. Raises :class:`RevproxyError`
    if it is not clear by which interface it comes in."""
    if not observed.exists:
        return answers.Explanation("pass", reason="nothing of this instance is in the kernel")
    prober = active_prober(live, observed, host.host_facts().interfaces)
    entries, connection = _live_connection(live.maps, asked)
    interface = _interface(prober, asked, bool(entries))
    if interface.ifindex not in observed.state.attachments:
        reason = f"revproxy serves nothing by {interface.name}: its programs are not attached there"
        return answers.Explanation("pass", reason=reason, interface=interface.name)
    source = asked.source if asked.source.port else Endpoint(asked.source.ip, ANY_PORT)
    answer = prober.ask(
        interface, source, asked.destination, asked.protocol, opens=not entries, entries=entries if entries else ()
    )
    said = _explanation(answer, observed, interface, causes)
    return said if connection is None else _of_connection(said, connection, answer)


def _interface(prober: Prober, asked: Question, connected: bool) -> Interface:
    """If nothing else says which: the one by which this host would send to the source."""
    try:
        return prober.interface(asked.interface, asked.destination, asked.protocol)
    except RevproxyError:
        found = prober.by_index(host.route_to(asked.source.ip).ifindex) if asked.interface is None else None
        if found is None or not (connected or prober.may_enter(found, asked.destination, asked.protocol)):
            raise
        return found


def _explanation(answer: Answer, observed: Observed, interface: Interface, causes: Causes) -> answers.Explanation:
    sent = answer.sent
    rule = answer.rule
    place = None
    if answer.proxy is not None and rule is not None:
        route = answer.decision.rule is not None
        place = causes.place("route" if route else "proxy", f"{answer.proxy}/{rule}" if route else answer.proxy)
    if answer.passed:
        reason = why_passed(observed.state, interface, answer.packet)
    elif sent.verdict == "drop":
        reason = drop_reason(sent.outcome) if sent.outcome else "dropped"
        reason += f" ({_rule_text(answer)})" if answer.proxy else ""
    else:
        reason = f"{_rule_text(answer)}; {_HOW.get(sent.outcome, sent.outcome)}"
        reason += "".join(f"; but {each}" for each in answer.faults)
    return answers.Explanation(
        verdict=sent.verdict,
        proxy=answer.proxy,
        rule=rule if answer.proxy else None,
        target=str(answer.target) if answer.target else None,
        reason=reason,
        interface=interface.name,
        program=f"{sent.hook}_ingress",
        place=str(place or ""),
    )


def _rule_text(answer: Answer) -> str:
    destination = answer.decision.destination
    which = f"source route {answer.decision.rule}" if answer.decision.rule is not None else "default_target"
    if destination is None:
        return f"{which} has nothing for IPv{answer.packet.version}"
    if destination.deny:
        return f"{which} says deny"
    usable = sum(1 for _, weight in destination.members if weight)
    return which if usable == 1 else f"{which}: one of {usable} targets"


# -- live connections ----------------------------------------------------------------------------------------


def _live_connection(maps: Maps, asked: Question) -> tuple[tuple[Entry, ...], Any]:
    """The entries of the live connection this packet belongs to, and the connection; nothing if there is none."""
    if not asked.source.port:
        return (), None
    version = asked.source.ip.version
    table = maps.connections(version)
    key = connection_key(Packet(0, b"", asked.source, asked.destination, asked.protocol))
    value = table.get(key)
    if value is None:
        return (), None
    pairs = [(key, value)]
    reverse = conntable.reverse_keys(key, value)
    other = table.get(reverse)
    if other is not None:
        pairs.append((reverse, other))
    keys, values = join([each for each, _ in pairs], key), join([each for _, each in pairs], value)
    peer = np.asarray([1, 0] if len(pairs) == 2 else [-1], np.int64)
    found = conntable.Table(version, keys, values, peer)
    now_ns = monotonic_ns()
    if conntable.expired_entries(found, conntable.active_settings(maps), now_ns).any():
        return (), None
    return tuple(pairs), connections.connection(found, 0, conntable.proxy_names(maps), now_ns)


def _of_connection(said: answers.Explanation, connection: Any, answer: Answer) -> answers.Explanation:
    """A packet of a connection goes where that goes, whatever the configuration says by now."""
    back = answer.packet.source == connection.target
    state = f"{connection.state}, {connection.age_sec:.0f} s old"
    if back:
        reason = f"an answer of {connection.target} to {connection.client}, on a live connection ({state})"
    else:
        reason = f"it goes where its connection goes ({state}), whatever the files say by now"
    if answer.sent.outcome in _HOW:
        reason += f"; {_HOW[answer.sent.outcome]}"
    return answers.Explanation(
        verdict=said.verdict,
        proxy=connection.proxy,
        rule="connection",
        target=str(connection.target),
        reason=reason,
        interface=said.interface,
        program=said.program,
        connection=connection.state,
    )
