"""A kernel made of dicts: two-slot maps, a prefix trie by longest match, and an executor for operations.

It knows nothing of how plans are made; it checks what an executor and the kernel rely on (a number is free before it
is taken, a ``before`` is what is there, nothing that a connection names is freed).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from reconciler.state.objects import (
    DENY,
    Allocation,
    Attachment,
    DataPlaneSettings,
    Destination,
    Endpoint,
    IPAddress,
    IPNetwork,
    KernelState,
    ListenerKey,
    Observed,
    ProgramState,
    Protocol,
    ProxyState,
    Revision,
    RouteKey,
)
from reconciler.state.operations import (
    DEST_DENY,
    DEST_GROUP,
    DEST_NONE,
    DEST_TARGET,
    DEVICE_DROP_LOOPBACK,
    DEVICE_NO_TX,
    DEVICE_XDP_REDIRECT,
    PORT_LISTEN,
    Attach,
    ClosePort,
    Dest,
    Detach,
    FreeBlob,
    FreeGroup,
    FreeProxyName,
    FreeTarget,
    LoadProgram,
    OpenPort,
    Operation,
    ProxySlot,
    PutBlob,
    PutDevice,
    PutGroup,
    PutProxyName,
    PutTarget,
    RestoreSysctl,
    RouteSlot,
    SetSource,
    SetSysctl,
    StageListener,
    StageProxy,
    StageRevision,
    StageRoute,
    StageSettings,
    Switch,
)


@dataclass
class Store:
    active: int = 0
    program: ProgramState | None = None
    settings: list[DataPlaneSettings | None] = field(default_factory=lambda: [None, None])
    revision: list[Revision] = field(default_factory=lambda: [Revision(), Revision()])
    listeners: dict[ListenerKey, list[int]] = field(default_factory=dict)
    proxies: dict[int, list[ProxySlot | None]] = field(default_factory=dict)
    routes: dict[tuple[int, IPNetwork], list[RouteSlot]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    targets: dict[int, tuple[int, Endpoint]] = field(default_factory=dict)
    sources: dict[int, IPAddress] = field(default_factory=dict)
    groups: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    ports: dict[int, int] = field(default_factory=dict)
    devices: dict[int, int] = field(default_factory=dict)
    blobs: dict[bytes, bytes] = field(default_factory=dict)
    attachments: dict[int, Attachment] = field(default_factory=dict)
    sysctls: dict[str, str] = field(default_factory=dict)
    remembered: dict[str, tuple[str, str]] = field(default_factory=dict)
    busy_targets: frozenset[int] = frozenset()

    # -- operations ------------------------------------------------------------------------------------------------

    def do(self, operation: Operation) -> None:
        """Carry out one operation."""
        standby = 1 - self.active
        match operation:
            case LoadProgram(before, after):
                assert self.program == before
                self.program = after
            case SetSysctl(name, before_value, after_value, original):
                assert self.sysctls[name] == before_value
                self.remembered.setdefault(name, (original or before_value, after_value))
                self.sysctls[name] = after_value
            case RestoreSysctl(name, before_value, after_value):
                assert self.sysctls[name] == before_value
                self.sysctls[name] = after_value
                del self.remembered[name]
            case PutProxyName(number, name):
                assert number > 0
                assert number not in self.names
                self.names[number] = name
            case PutTarget(number, proxy_id, endpoint, source):
                assert number > 0
                assert number not in self.targets
                assert number not in self.busy_targets
                assert proxy_id in self.names
                self.targets[number] = (proxy_id, endpoint)
                assert number not in self.sources
                self._put(self.sources, number, source)
            case SetSource(number, before_source, after_source):
                assert number in self.targets
                assert self.sources.get(number) == before_source
                self._put(self.sources, number, after_source)
            case PutGroup(number, members, keys):
                assert number > 0
                assert number not in self.groups
                assert [str(self.targets[target][1]) for target, _ in members] == list(keys)
                self.groups[number] = members
            case OpenPort(port, before_bits, after_bits) | ClosePort(port, before_bits, after_bits):
                assert self.ports.get(port, 0) == before_bits
                self._put(self.ports, port, after_bits or None)
            case PutDevice(ifindex, before_flags, after_flags):
                assert self.devices.get(ifindex) == before_flags
                self._put(self.devices, ifindex, after_flags)
            case PutBlob(digest, content):
                assert digest not in self.blobs
                self.blobs[digest] = content
            case FreeBlob(digest):
                del self.blobs[digest]
            case Attach(before_attachment, after_attachment):
                assert self.attachments.get(after_attachment.ifindex) == before_attachment
                self.attachments[after_attachment.ifindex] = after_attachment
            case Detach(before_attachment):
                assert self.attachments.pop(before_attachment.ifindex) == before_attachment
            case Switch(before_active, after_active):
                assert self.active == before_active
                self.active = after_active
            case FreeGroup(number, member_ids):
                assert {target for target, _ in self.groups.pop(number)} == set(member_ids)
            case FreeTarget(number):
                assert number not in self.busy_targets
                del self.targets[number]
                self.sources.pop(number, None)
            case FreeProxyName(number):
                assert all(proxy_id != number for proxy_id, _ in self.targets.values())
                del self.names[number]
            case _:
                slots, before_slot, after_slot = self._slots(operation)
                assert slots[self.active] == before_slot, operation
                assert slots[standby] == before_slot, operation
                slots[standby] = after_slot

    def undo(self, operation: Operation) -> None:
        """Take back one operation of the phases before the switch."""
        match operation:
            case LoadProgram(before=before_program):
                self.program = before_program
            case SetSysctl(name, before_value, after_value):
                self.sysctls[name] = before_value
                if self.remembered[name] == (before_value, after_value):
                    del self.remembered[name]
            case PutProxyName(number):
                del self.names[number]
            case PutTarget(number):
                del self.targets[number]
                self.sources.pop(number, None)
            case SetSource(number, before_source):
                self._put(self.sources, number, before_source)
            case PutGroup(number):
                del self.groups[number]
            case OpenPort(port, before_bits):
                self._put(self.ports, port, before_bits or None)
            case PutDevice(ifindex, before_flags):
                self._put(self.devices, ifindex, before_flags)
            case PutBlob(digest):
                del self.blobs[digest]
            case Attach(before_attachment, after_attachment):
                self._put(self.attachments, after_attachment.ifindex, before_attachment)
            case _:
                slots, before_slot, _ = self._slots(operation)
                slots[1 - self.active] = before_slot
                self._delete_absent()

    def level(self, operation: Operation) -> None:
        """After the switch: the standby slot of a staged entry becomes what the active one is; absent ones go."""
        if isinstance(operation, StageSettings | StageRevision | StageListener | StageProxy | StageRoute):
            slots, _, _ = self._slots(operation)
            slots[1 - self.active] = slots[self.active]
            self._delete_absent()

    @staticmethod
    def _put(entries: dict[Any, Any], key: Any, value: Any) -> None:
        entries.pop(key, None)
        if value is not None:
            entries[key] = value

    def _slots(self, operation: Operation) -> tuple[list[Any], Any, Any]:
        match operation:
            case StageSettings(before, after):
                return self.settings, before, after
            case StageRevision(before_revision, after_revision):
                return self.revision, before_revision, after_revision
            case StageListener(key, before_id, after_id):
                return self.listeners.setdefault(key, [0, 0]), before_id, after_id
            case StageProxy(number, before_proxy, after_proxy):
                return self.proxies.setdefault(number, [None, None]), before_proxy, after_proxy
            case StageRoute(proxy_id, source, before_route, after_route):
                fresh = [before_route, before_route]
                return self.routes.setdefault((proxy_id, source), fresh), before_route, after_route
        raise AssertionError(f"unknown operation {operation}")

    def _delete_absent(self) -> None:
        self.listeners = {key: slots for key, slots in self.listeners.items() if any(slots)}
        self.proxies = {key: slots for key, slots in self.proxies.items() if any(slots)}
        self.routes = {key: slots for key, slots in self.routes.items() if any(slot.present for slot in slots)}

    # -- what a packet sees ----------------------------------------------------------------------------------------

    def decide(
        self, ifindex: int, src: IPAddress, dst: IPAddress, protocol: Protocol, dport: int
    ) -> tuple[str, str, frozenset[Endpoint]]:
        """(verdict, proxy, targets) as the programs find it, with the active slot."""
        if not self.ports.get(dport, 0) & PORT_LISTEN:
            return ("pass", "", frozenset())
        proxy_id = self.listeners.get(ListenerKey(ifindex, dst, protocol, dport), [0, 0])[self.active]
        if not proxy_id:
            return ("pass", "", frozenset())
        proxy = self.proxies[proxy_id][self.active]
        assert proxy is not None
        dest = Dest()
        if proxy.routes4 if src.version == 4 else proxy.routes6:
            matching = [
                (source.prefixlen, slots)
                for (owner, source), slots in self.routes.items()
                if owner == proxy_id and source.version == src.version and src in source
            ]
            if matching:
                dest = max(matching, key=lambda each: each[0])[1][self.active].dest
        if dest.kind == DEST_NONE:
            dest = proxy.dest4 if src.version == 4 else proxy.dest6
        name = self.names[proxy_id]
        if dest.kind == DEST_DENY:
            return ("drop", name, frozenset())
        targets = [target for target, weight in self._members(dest) if weight]
        found = {self.targets[target] for target in targets}
        assert all(owner == proxy_id for owner, _ in found)
        endpoints = frozenset(Endpoint(endpoint.ip, endpoint.port or dport) for _, endpoint in found)
        return ("forward" if endpoints else "drop", name, endpoints)

    def _members(self, dest: Dest) -> tuple[tuple[int, int], ...]:
        if dest.kind == DEST_TARGET:
            return ((dest.id, 1),)
        return self.groups[dest.id] if dest.kind == DEST_GROUP else ()

    # -- observing -------------------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> bool:
        """Some entry's slots differ."""
        both = [self.settings, self.revision, *self.listeners.values(), *self.proxies.values(), *self.routes.values()]
        return any(slots[0] != slots[1] for slots in both)

    def observe(self) -> Observed:
        """The state and the numbers, as ``kernel/observe.py`` reads them."""
        slot = self.active
        proxies = {self.names[i]: s[slot] for i, s in self.proxies.items() if s[slot] is not None}
        state = KernelState(
            program=self.program,
            settings=self.settings[slot],
            proxies={name: self._proxy(name, value) for name, value in proxies.items() if value},
            listeners={key: self.names[s[slot]] for key, s in self.listeners.items() if s[slot]},
            routes={
                RouteKey(self.names[owner], source): destination
                for (owner, source), s in self.routes.items()
                if s[slot].present and (destination := self._destination(s[slot].dest)) is not None
            },
            attachments=dict(self.attachments),
            sysctls=dict(self.sysctls),
            devices=frozenset(i for i, flags in self.devices.items() if flags & DEVICE_XDP_REDIRECT),
            guarded=frozenset(i for i, flags in self.devices.items() if flags & DEVICE_DROP_LOOPBACK),
            no_tx=frozenset(i for i, flags in self.devices.items() if flags & DEVICE_NO_TX),
        )
        used = {target for d in self._dests() for target, _ in self._members(d)}
        sources = {
            number: ((self.names[owner], endpoint), self.sources[number])
            for number, (owner, endpoint) in self.targets.items()
            if number in self.sources
        }
        state.sources.update(pair for number, pair in sources.items() if number in used)
        allocation = Allocation(
            proxies={name: number for number, name in self.names.items()},
            targets={(self.names[owner], endpoint): i for i, (owner, endpoint) in self.targets.items()},
            groups={
                (self.names[self.targets[members[0][0]][0]], self._destination(Dest(DEST_GROUP, i)) or DENY): i
                for i, members in self.groups.items()
            },
            retired_targets=frozenset(self.targets.keys() - used),
            sources=dict(sources.values()),
            retired_proxies=frozenset(i for i, name in self.names.items() if name not in proxies),
        )
        return Observed(
            state,
            allocation,
            active=slot,
            revision=self.revision[slot],
            unfinished=self.unfinished,
            exists=True,
            ports=dict(self.ports),
            blobs=frozenset(self.blobs),
            remembered=dict(self.remembered),
        )

    def _dests(self) -> list[Dest]:
        proxies = [slots[self.active] for slots in self.proxies.values()]
        found = [dest for proxy in proxies if proxy for dest in (proxy.dest4, proxy.dest6)]
        return found + [slots[self.active].dest for slots in self.routes.values()]

    def _proxy(self, name: str, slot: ProxySlot) -> ProxyState:
        defaults = self._destination(slot.dest4), self._destination(slot.dest6)
        return ProxyState(name, slot.mode, slot.balance, slot.idle_sec, *defaults)

    def _destination(self, dest: Dest) -> Destination | None:
        if dest.kind == DEST_NONE:
            return None
        if dest.kind == DEST_DENY:
            return DENY
        return Destination(tuple(sorted((self.targets[i][1], weight) for i, weight in self._members(dest))))


def with_sysctls(state: KernelState, sysctls: dict[str, str]) -> KernelState:
    """A state to be compared with one that was wanted: only the sysctls that one speaks of."""
    return replace(state, sysctls={name: value for name, value in state.sysctls.items() if name in sysctls})
