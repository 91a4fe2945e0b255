"""Live state in the words of ``answers``: pure functions from what was read to what is said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from reconciler import answers
from reconciler.errors import Problem
from reconciler.state import share
from reconciler.state.desired import listen_text
from reconciler.state.diff import endpoint_order
from reconciler.state.objects import FULL, Attachment, Destination, Endpoint, Observed, XdpMode

if TYPE_CHECKING:
    from reconciler.state.desired import Desired
    from reconciler.state.diff import Change
    from reconciler.state.operations import Operation
    from reconciler.state.plan import Plan

_LONGEST_STEP: Final = 200
_RETIRED: Final = -1  # instead of a weight: the files no longer name the target
_NEARLY_FULL: Final = 0.9


def table_warnings(use: answers.TableUse) -> Iterator[Problem]:
    """What a person should know about how full the connection tables are."""
    held = f"{use.used} of max_connections {use.max}"
    if use.full:
        text = f"the connection table is full ({held}): connections that are not established make room for new ones;"
        yield Problem("", 0, 0, "", f"{text} `revproxyctl stats` counts reclaimed, table_full and flood")
    elif use.used > use.max * _NEARLY_FULL:
        yield Problem("", 0, 0, "", f"the connection table is nearly full: {held}")


def changes(found: Iterable[Change]) -> tuple[answers.Change, ...]:
    """Differences as answers."""
    return tuple(
        answers.Change(each.action, each.object, each.name, each.before, each.after, str(each.place or ""))
        for each in found
    )


def plan(found: Plan, warnings: tuple[Problem, ...]) -> answers.PlanAnswer:
    """A plan as an answer."""
    return answers.PlanAnswer(
        changes=changes(found.changes),
        operations=len(found.operations),
        steps=tuple(step(operation) for operation in found.operations),
        counts=found.counts,
        connections=tuple(
            answers.Touched(each.proxy, each.target, each.connections, each.fate) for each in found.touched
        ),
        revision=found.revision.number if found.revision else None,
        warnings=warnings,
    )


def step(operation: Operation) -> str:
    """One operation on one line: what is done and, where there is one, from which value to which."""
    name = type(operation).__name__
    values = {each.name: getattr(operation, each.name) for each in fields(operation)}
    before, after = values.pop("before", None), values.pop("after", None)
    words = [f"{key}={_text(value)}" for key, value in values.items()]
    if "before" in (each.name for each in fields(operation)):
        if hasattr(operation, "after"):
            words.append(f"{_text(before)} -> {_text(after)}")
        else:
            words.append(_text(before))
    text = f"{name} {' '.join(words)}"
    return text if len(text) <= _LONGEST_STEP else text[: _LONGEST_STEP - 3] + "..."


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bytes):
        return value.hex() if len(value) == 16 else f"{len(value)} bytes"
    if isinstance(value, Attachment):
        taken = f", instead of {value.taken_over}" if value.taken_over else ""
        return f"{value.name}(xdp {value.xdp.value}, tc {'on' if value.tc else 'off'}{taken})"
    if isinstance(value, tuple):
        return "(" + ", ".join(_text(each) for each in value) + ")"
    if hasattr(value, "ip") and hasattr(value, "ifindex"):
        return f"{listen_text(value)} on interface {value.ifindex}"
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, Endpoint):
        return "(" + ", ".join(f"{each.name} {_text(getattr(value, each.name))}" for each in fields(value)) + ")"
    return str(value)


def interfaces(observed: Observed, desired: Desired | None) -> tuple[answers.InterfaceStatus, ...]:
    """Every interface that is attached or should be, by name."""
    found: dict[str, answers.InterfaceStatus] = {}
    wanted = desired.state.attachments if desired else {}
    for ifindex, there in observed.state.attachments.items():
        note = taken_over_note(there) if desired is None or wanted.get(ifindex) == there else "to be put right"
        found[there.name] = answers.InterfaceStatus(there.name, there.xdp.value, there.tc, note)
    for ifindex, attachment in wanted.items():
        if ifindex not in observed.state.attachments:
            found[attachment.name] = answers.InterfaceStatus(
                attachment.name, XdpMode.OFF.value, False, "to be attached"
            )
    for name in desired.waiting if desired else ():
        found[name] = answers.InterfaceStatus(name, XdpMode.OFF.value, False, "waiting for it to appear")
    return tuple(found[name] for name in sorted(found))


def taken_over_note(attachment: Attachment) -> str:
    """Whose place our XDP program has; empty where it was free."""
    taken = attachment.taken_over
    return f"taken over from {taken}, which `down` puts back" if taken else ""


def proxies(
    observed: Observed, connections: Mapping[int, int], health: Mapping[tuple[str, Endpoint], str] | None = None
) -> tuple[answers.ProxyStatus, ...]:
    """Every live proxy, by name. ``connections``: live ones by target id; ``health``: of targets of which it is
    known."""
    state = observed.state
    names = {ifindex: attachment.name for ifindex, attachment in state.attachments.items()}
    listens: dict[str, set[str]] = {name: set() for name in state.proxies}
    devices: dict[str, set[str]] = {name: set() for name in state.proxies}
    for key, name in state.listeners.items():
        listens.setdefault(name, set()).add(listen_text(key))
        devices.setdefault(name, set()).add(names.get(key.ifindex, str(key.ifindex)))
    weights: dict[str, dict[Endpoint, int]] = {name: {} for name in state.proxies}
    for name, proxy in state.proxies.items():
        for destination in (proxy.default4, proxy.default6):
            _add_weights(weights[name], destination)
    for route, destination in state.routes.items():
        _add_weights(weights.setdefault(route.proxy, {}), destination)
    allocation = observed.allocation
    for (owner, target), number in allocation.targets.items():
        if number in allocation.retired_targets and connections.get(number) and owner in weights:
            weights[owner].setdefault(target, _RETIRED)

    def status(name: str, target: Endpoint, weight: int) -> answers.TargetStatus:
        count = connections.get(allocation.targets.get((name, target), 0), 0)
        drained = weight == _RETIRED or state.shares.get((name, target), FULL).drained
        return answers.TargetStatus(
            address=str(target),
            weight=max(weight, 0),
            health=(health or {}).get((name, target), "unchecked"),
            state=("draining" if count else "drained") if drained else "active" if weight else "off",
            connections=count,
        )

    return tuple(
        answers.ProxyStatus(
            name=name,
            listen=tuple(sorted(listens[name])),
            interfaces=tuple(sorted(devices[name])),
            targets=tuple(
                status(name, target, weight)
                for target, weight in sorted(weights[name].items(), key=lambda item: endpoint_order(item[0]))
            ),
        )
        for name in sorted(state.proxies)
    )


def hidden_warnings(observed: Observed) -> tuple[Problem, ...]:
    """Programs of others that may keep packets from ours."""
    return tuple(Problem("", 0, 0, "", text) for text in observed.hidden)


def share_warnings(observed: Observed) -> tuple[Problem, ...]:
    """Destinations that health or drains leave without a target."""
    state, texts = observed.state, []
    if not state.shares:
        return ()
    named = [(route.proxy, f"route {route.source}", each) for route, each in state.routes.items()]
    for name, proxy in state.proxies.items():
        named += [(name, "default target", each) for each in (proxy.default4, proxy.default6) if each]
    for name, what, destination in named:
        if share.fails_open(name, destination, state.shares):
            texts.append(f"{name}, {what}: no target is healthy, so all are used by their weights (fail open)")
        elif share.nobody_left(name, destination, state.shares):
            texts.append(f"{name}, {what}: every target is drained, so new connections are dropped (no_target)")
    return tuple(Problem("", 0, 0, "", text) for text in sorted(set(texts)))


def _add_weights(weights: dict[Endpoint, int], destination: Destination | None) -> None:
    """A target that several destinations name is listed with its largest weight."""
    for target, weight in destination.members if destination else ():
        weights[target] = max(weight, weights.get(target, 0))
