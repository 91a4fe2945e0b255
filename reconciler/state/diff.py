"""What differs between the desired and the observed state, in the files' own words.

:func:`compare` finds it, in time proportional to the size but cheaply; :func:`changes_of` says it as
:class:`Change` values, in time proportional to the difference.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from reconciler.state.desired import Desired, listen_text
from reconciler.state.objects import (
    Attachment,
    DataPlaneSettings,
    Destination,
    Endpoint,
    IPAddress,
    KernelState,
    ListenerKey,
    Observed,
    ProgramState,
    ProxyState,
    RouteKey,
    Share,
)
from reconciler.state.operations import PORT_LISTEN, PORT_TARGET
from reconciler.state.routes import reached, uncommon, uses

if TYPE_CHECKING:
    from reconciler.config.place import Place

Action = Literal["create", "update", "delete", "attach", "detach", "replace"]
Kind = Literal["program", "setting", "interface", "proxy", "target", "route"]
Json = dict[str, Any]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Pair = tuple[V | None, V | None]
"""Before and after; None: not there."""


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. ``before`` is live, ``after`` is what the files want; each a JSON value, None for "not there".
    ``place``: where in the files the object stands, if it does."""

    action: Action
    object: Kind
    name: str
    before: Any
    after: Any
    place: Place | None = None


def diff(desired: Desired, observed: Observed) -> tuple[Change, ...]:
    """Every difference, in a fixed order: programs, settings, interfaces, proxies, targets, routes, each by name."""
    return changes_of(compare(desired, observed), desired, observed)


# -- comparing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Delta:
    """Only what differs, by key. ``sysctls`` pairs the live value with the one to be; ``originals`` are of those that
    are right, but whose values before us the map has lost. ``ports``: bits the port map
    lacks; ``lost_ports`` those among them that the observed state needs as well. ``shares``: None for all of it."""

    program: Pair[ProgramState] | None
    settings: Pair[DataPlaneSettings] | None
    proxies: dict[str, Pair[ProxyState]]
    listeners: dict[ListenerKey, Pair[str]]
    routes: dict[RouteKey, Pair[Destination]]
    attachments: dict[int, Pair[Attachment]]
    devices: dict[int, tuple[bool, bool]]
    guarded: dict[int, tuple[bool, bool]]
    no_tx: dict[int, tuple[bool, bool]]
    sources: dict[tuple[str, Endpoint], Pair[IPAddress]]
    shares: dict[tuple[str, Endpoint], Pair[Share]]
    wrong_tables: frozenset[tuple[str, Destination]]
    sysctls: dict[str, tuple[str, str]]
    forgotten_sysctls: dict[str, tuple[str, str]]
    originals: dict[str, str]
    ports: dict[int, int]
    lost_ports: dict[int, int]


def _flag(old: frozenset[int], new: frozenset[int]) -> dict[int, tuple[bool, bool]]:
    return {ifindex: (ifindex in old, ifindex in new) for ifindex in sorted(old ^ new)}


def compare(desired: Desired, observed: Observed) -> Delta:
    """What :class:`Delta` says. A hundred thousand equal routes take some tens of milliseconds."""
    old, new = observed.state, desired.state
    ports = _lacking(wanted_ports(new), observed.ports)
    lost = _lacking(wanted_ports(old), observed.ports) if ports else {}
    return Delta(
        program=None if old.program == new.program else (old.program, new.program),
        settings=None if old.settings == new.settings else (old.settings, new.settings),
        proxies=difference(old.proxies, new.proxies),
        listeners=difference(old.listeners, new.listeners),
        routes=difference(old.routes, new.routes),
        attachments=difference(old.attachments, new.attachments),
        devices=_flag(old.devices, new.devices),
        guarded=_flag(old.guarded, new.guarded),
        no_tx=_flag(old.no_tx, new.no_tx),
        sources=difference(old.sources, new.sources),
        shares=difference(old.shares, new.shares),
        wrong_tables=old.wrong_tables,
        sysctls=_sysctls_to_set(desired, observed),
        forgotten_sysctls=_sysctls_to_restore(desired, observed),
        originals={
            name: observed.remembered[name][0]
            for name in sorted(observed.forgotten, key=_sysctl_order)
            if desired.state.sysctls.get(name) == observed.state.sysctls.get(name)
        },
        ports=ports,
        lost_ports={port: bits & ports.get(port, 0) for port, bits in lost.items() if bits & ports.get(port, 0)},
    )


def difference(old: Mapping[K, V], new: Mapping[K, V]) -> dict[K, Pair[V]]:
    """The keys whose values differ, with both values. Values are compared once per pair of objects, since a few
    objects usually stand for many keys."""
    if old is new:
        return {}
    old, new = uncommon(old, new)
    found: dict[K, Pair[V]] = {}
    verdicts: dict[tuple[int, int], bool] = {}
    added = 0
    for key, after in new.items():
        before = old.get(key)
        if before is after:
            continue
        if before is None:
            added += 1
        else:
            pair = (id(before), id(after))
            equal = verdicts.get(pair)
            if equal is None:
                equal = verdicts[pair] = before == after
            if equal:
                continue
        found[key] = (before, after)
    if len(old) + added != len(new):
        for key, value in old.items():
            if key not in new:
                found[key] = (value, None)
    return found


def destinations(state: KernelState) -> dict[tuple[str, int], Destination]:
    """Every destination of a state once per proxy and object, by (proxy name, identity)."""
    found = {(use[0], use[2]): destination for use, (destination, _) in uses(state.routes).items()}
    for proxy in state.proxies.values():
        for destination in (proxy.default4, proxy.default6):
            if destination is not None:
                found[proxy.name, id(destination)] = destination
    return found


def wanted_ports(state: KernelState) -> dict[int, int]:
    """The bits the port map needs for a state: every listener's port, every target's port; for a target that keeps
    the client's port, those of its proxy's listeners."""
    wanted = {key.port: PORT_LISTEN for key in state.listeners}
    ports: set[int] = set()
    keeping: set[str] = set()  # proxies with such a target
    for name, reach in reached(state):
        ports |= reach.ports
        if 0 in reach.ports:
            keeping.add(name)
    if keeping:
        ports.update(key.port for key, name in state.listeners.items() if name in keeping)
    for port in ports - {0}:
        wanted[port] = wanted.get(port, 0) | PORT_TARGET
    return wanted


def _lacking(wanted: Mapping[int, int], there: Mapping[int, int]) -> dict[int, int]:
    return {port: bits & ~there.get(port, 0) for port, bits in sorted(wanted.items()) if bits & ~there.get(port, 0)}


def _sysctls_to_set(desired: Desired, observed: Observed) -> dict[str, tuple[str, str]]:
    """accept_ra comes first: an interface that forwards IPv6 with accept_ra 1 drops what it has learnt. The one for all
    interfaces comes last: it sets every one of them, and what stood there is to be remembered before."""
    live = dict(desired.live_sysctls) | observed.state.sysctls
    wanted = desired.state.sysctls
    names = sorted(wanted, key=_sysctl_order)
    return {name: (live.get(name, ""), wanted[name]) for name in names if live.get(name, "") != wanted[name]}


def _sysctl_order(name: str) -> tuple[bool, bool, str]:
    return "/all/" in name, not name.endswith("/accept_ra"), name


def _sysctls_to_restore(desired: Desired, observed: Observed) -> dict[str, tuple[str, str]]:
    """The other way round. What somebody else has changed since stays as it is, and where nobody knows any more what
    stood there."""
    found = {}
    for name in sorted(observed.remembered, key=_sysctl_order, reverse=True):
        original, ours = observed.remembered[name]
        live = observed.state.sysctls.get(name, "")
        if not original:
            found[name] = (live, live)
        elif name not in desired.state.sysctls:
            found[name] = (live, original if live == ours else live)
    return found


# -- in the files' words -------------------------------------------------------------------------------------------


def changes_of(delta: Delta, desired: Desired, observed: Observed) -> tuple[Change, ...]:
    """The differences as changes; empty exactly when nothing is to be done."""
    found = [
        *_program(delta),
        *_settings(delta, observed),
        *_interfaces(delta, desired),
        *_proxies(delta, desired, observed),
        *_targets(delta, desired, observed),
        *_tables(delta),
        *_routes(delta),
    ]
    place = desired.causes.place
    return tuple(
        Change(each.action, each.object, each.name, each.before, each.after, place(each.object, each.name))
        for each in found
    )


def _change(kind: Kind, name: str, before: Any, after: Any) -> Change:
    action: Action = "create" if before is None else "delete" if after is None else "update"
    return Change(action, kind, name, before, after)


def _program(delta: Delta) -> Iterator[Change]:
    if delta.program:
        before, after = (program and asdict(program) for program in delta.program)
        yield Change("create" if before is None else "replace", "program", "revproxy", before, after)


def _settings(delta: Delta, observed: Observed) -> Iterator[Change]:
    if delta.settings:
        before, after = (asdict(settings) if settings else {} for settings in delta.settings)
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                yield _change("setting", name, before.get(name), after.get(name))
    for name, (live, wanted) in sorted(delta.sysctls.items()):
        yield Change("update" if name in observed.remembered else "create", "setting", name, live, wanted)
    for name, (live, original) in sorted(delta.forgotten_sysctls.items()):
        if observed.remembered[name][0]:
            yield Change("delete", "setting", name, live, original)
        else:
            found = f"{live}; what stood there before us is not known any more"
            yield Change("update", "setting", name, found, f"{live}, also after `down`")
    for name, original in delta.originals.items():
        found = f"{original}, before us"
        lost = "lost from the kernel, or changed there"
        yield Change("update", "setting", name, f"{found}: {lost}", f"{found}: kept in the kernel")
    for port, bits in delta.lost_ports.items():
        there = observed.ports.get(port, 0)
        yield Change("update", "setting", f"port/{port}", _port_uses(there), _port_uses(there | bits))
    if observed.revision_said is not None:
        was, will = (f"number {each.number}" for each in (observed.revision_said, observed.revision))
        will = will if observed.revision.number else "a new one, since the last is not known any more"
        yield Change("update", "setting", "revision in force", f"{was}: not what was committed", will)
    if observed.files_lost:
        yield Change("update", "setting", "files in force", "lost from the kernel", "kept in the kernel")


def _port_uses(bits: int) -> list[str]:
    return [word for bit, word in ((PORT_LISTEN, "listen"), (PORT_TARGET, "target")) if bits & bit]


def _interfaces(delta: Delta, desired: Desired) -> Iterator[Change]:
    found = []
    flags = (("xdp_redirect", delta.devices), ("drop_loopback", delta.guarded), ("xdp_tx_lost", delta.no_tx))
    for ifindex in delta.attachments.keys() | {index for _, differing in flags for index in differing}:
        before, after = delta.attachments.get(ifindex, (None, None))
        known = before or after
        name = known.name if known else desired.names.get(ifindex, f"if{ifindex}")
        was, will = (_attachment(each) for each in (before, after))
        for flag, differing in flags:
            if ifindex in differing:
                flag_was, flag_will = differing[ifindex]
                was = was if was is None and after else (was or {}) | {flag: flag_was}
                will = will if will is None and before else (will or {}) | {flag: flag_will}
        action: Action = "update"
        if known:
            action = "attach" if before is None else "detach" if after is None else "replace"
        found.append(Change(action, "interface", name, was, will))
    yield from sorted(found, key=lambda change: change.name)


def _attachment(attachment: Attachment | None) -> Json | None:
    if attachment is None:
        return None
    taken = {"taken_over": str(attachment.taken_over)} if attachment.taken_over else {}
    return {"xdp": str(attachment.xdp), "tc": attachment.tc, **taken}


def _proxies(delta: Delta, desired: Desired, observed: Observed) -> Iterator[Change]:
    names = set(delta.proxies)
    for pair in delta.listeners.values():
        names.update(name for name in pair if name is not None)
    if not names:
        return
    before, after = (_listens(state, names, desired.names) for state in (observed.state, desired.state))
    for name in sorted(names):
        was = _proxy(observed.state.proxies.get(name), before.get(name))
        will = _proxy(desired.state.proxies.get(name), after.get(name))
        if was != will:
            yield _change("proxy", name, was, will)


def _listens(state: KernelState, names: set[str], interfaces: Mapping[int, str]) -> dict[str, list[str]]:
    """Per proxy, what it listens on: "eth0 192.0.2.1:80/tcp"."""
    found: dict[str, list[ListenerKey]] = {}
    for key, name in state.listeners.items():
        if name in names:
            found.setdefault(name, []).append(key)
    return {
        name: [
            f"{interfaces.get(key.ifindex, f'if{key.ifindex}')} {listen_text(key)}"
            for key in sorted(keys, key=listener_order)
        ]
        for name, keys in found.items()
    }


def listener_order(key: ListenerKey) -> tuple[int, int, int, str, int]:
    """Sorts listeners: by interface, address, protocol, port."""
    return key.ifindex, key.ip.version, int(key.ip), key.protocol, key.port


def endpoint_order(endpoint: Endpoint) -> tuple[int, int, int]:
    """Sorts endpoints of both families."""
    return endpoint.ip.version, int(endpoint.ip), endpoint.port


def _proxy(proxy: ProxyState | None, listens: list[str] | None) -> Json | None:
    if proxy is None:
        return {"listen": listens} if listens else None
    return {
        "listen": listens or [],
        "mode": str(proxy.mode),
        "balance": str(proxy.balance),
        "connection_timeout_sec": proxy.idle_sec,
        **{
            f"default_ipv{version}": str(default)  # written by somebody else: no file asks for that
            for version, default in ((4, proxy.default4), (6, proxy.default6))
            if default is not None and {endpoint.ip.version for endpoint, _ in default.members} != {version}
        },
    }


def _targets(delta: Delta, desired: Desired, observed: Observed) -> Iterator[Change]:
    """Of the defaults, and whatever else has another source address or share."""
    states = (observed.state, desired.state)
    elsewhere = {name for name, _ in (*delta.sources, *delta.shares)}
    listed = [_endpoints(state, elsewhere) for state in states]
    for name in sorted({*delta.proxies, *elsewhere}):
        was, will = (_default_targets(state.proxies.get(name)) for state in states)
        moved = {endpoint for proxy, endpoint in (*delta.sources, *delta.shares) if proxy == name}
        for endpoint in sorted(was.keys() | will.keys() | moved, key=endpoint_order):
            if endpoint in was or endpoint in will:
                pair = [each[endpoint].copy() if endpoint in each else None for each in (was, will)]
            elif all((name, endpoint) in each for each in listed):
                pair = [{}, {}]
            else:
                continue  # of a route that comes or goes
            for value, state in zip(pair, states, strict=True):
                if value is not None and endpoint in moved and (name, endpoint) in state.sources:
                    value["source"] = str(state.sources[name, endpoint])
                if value is not None and endpoint in moved and (name, endpoint) in state.shares:
                    value["share"] = str(state.shares[name, endpoint])
            if pair[0] != pair[1]:
                yield _change("target", f"{name}/{endpoint}", *pair)


def _tables(delta: Delta) -> Iterator[Change]:
    """Groups whose table is not what follows from weights and shares."""
    for name, destination in sorted(delta.wrong_tables, key=lambda each: (each[0], str(each[1]))):
        members = {"target": [str(endpoint) for endpoint, _ in destination.members]}
        yield _change("proxy", name, {"table": "wrong", **members}, {"table": "by weight", **members})


def _endpoints(state: KernelState, names: set[str]) -> set[tuple[str, Endpoint]]:
    """Every target of these proxies."""
    if not names:
        return set()
    return {
        (name, endpoint)
        for (name, _), destination in destinations(state).items()
        if name in names
        for endpoint, _weight in destination.members
    }


def _default_targets(proxy: ProxyState | None) -> dict[Endpoint, Json]:
    if proxy is None:
        return {}
    return {
        endpoint: {"weight": weight}
        for destination in (proxy.default4, proxy.default6)
        if destination is not None
        for endpoint, weight in destination.members
    }


def _routes(delta: Delta) -> Iterator[Change]:
    for key, (before, after) in sorted(delta.routes.items(), key=lambda item: item[0]):
        yield _change("route", f"{key.proxy}/{key.source}", _destination(before), _destination(after))


def _destination(destination: Destination | None) -> Json | None:
    if destination is None:
        return None
    if destination.deny:
        return {"action": "deny"}
    return {"target": [{"address": str(endpoint), "weight": weight} for endpoint, weight in destination.members]}
