"""Putting right what an interrupted commit left, by looking at the kernel alone.

:func:`repairs` compares a snapshot with what it would be had the last commit been completed or never begun:
:func:`recover` carries them out. Nothing of it is visible to packets, all of it can be interrupted and repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from reconciler.kernel import groups, layout, snapshot
from reconciler.kernel.arrays import Array
from reconciler.kernel.codec import C
from reconciler.kernel.counters import retire_proxies, retire_targets
from reconciler.kernel.maps import Maps
from reconciler.kernel.snapshot import LISTENERS, ROUTES, Snapshot

_NO_KEYS = np.zeros(0, layout.u32)


@dataclass(frozen=True)
class Repair:
    """Entries of one map to write and to delete; for the map ``group`` the ids in ``delete`` lose their tables."""

    map: str
    put: tuple[Array, Array] | None = None
    delete: Array = field(default_factory=lambda: _NO_KEYS)

    @property
    def routine(self) -> bool:
        """It only frees what was kept for connections that have ended since; no commit need have been interrupted."""
        return self.map in ("target", "proxy_name", "port")

    def __str__(self) -> str:
        written = len(self.put[0]) if self.put else 0
        return f"map {self.map}: {written} entries to level, {len(self.delete)} to free"


def recover(maps: Maps) -> list[str]:
    """Carry out :func:`recover_all`; what was done, in words."""
    return [str(repair) for repair in recover_all(maps)]


def recover_all(maps: Maps) -> list[Repair]:
    """Level every two-slot entry to the active slot, delete what is not in the active configuration, free what
    nothing names. Returns what was done; nothing for a kernel in order. Raises :class:`KernelError`.
    """
    found = list(repairs(snapshot.take(maps)))
    if found:
        # Packets that still read the slot that is about to be levelled may open connections: look again after them.
        groups.wait_for_packets(maps)
        found = list(repairs(snapshot.take(maps)))
    for repair in found:
        apply(maps, repair)
    return found


def apply(maps: Maps, repair: Repair) -> None:
    """Carry out one repair."""
    if repair.map == "group":
        groups.free_groups(maps, repair.delete.tolist())
        return
    if repair.map == "target" and repair.put is not None:  # the next one of that id counts from zero
        keys = repair.put[0]
        retire_targets(maps, keys)
        maps["target_stats"].put_many(keys, maps["target_stats"].values_array(len(keys)))
    if repair.map == "proxy_name":
        retire_proxies(maps, repair.delete)
    if repair.put is not None:
        maps[repair.map].put_many(*repair.put)
    if len(repair.delete):
        maps[repair.map].delete_many(repair.delete)


def repairs(taken: Snapshot) -> Iterator[Repair]:
    """What is to be done, in an order in which nothing is freed while something still names it."""
    active = taken.active
    if taken.control != active:
        value = np.zeros(1, layout.control)
        value["active"] = active
        value["generation"] = taken.generation
        yield Repair("control", (np.zeros(1, layout.u32), value))
    for version, name in LISTENERS.items():
        yield from _slots(name, *taken.listeners[version], taken.present_listeners(version), "proxy", active)
    for version, name in ROUTES.items():
        yield from _slots(name, *taken.routes[version], taken.present_routes(version), "slot", active)
    yield from _proxies(taken)
    for name, values in (("settings", taken.settings), ("revision", taken.revision)):
        yield from _slots(name, np.zeros(1, layout.u32), values, np.ones(1, np.bool_), "slot", active)
    yield from _groups(taken)
    yield from _targets(taken)
    yield from _names(taken)
    yield from _ports(taken)
    orphans = [keys for digest, keys in sorted(taken.blobs.items()) if digest not in taken.manifest]
    if orphans and (taken.manifest or not taken.present_proxies.any()):  # else somebody may know what they are of
        yield Repair("blob", delete=np.concatenate(orphans))


def _slots(name: str, keys: Array, values: Array, present: Array, slots: str, active: int) -> Iterator[Repair]:
    """Level what is present, delete what is not."""
    uneven = present & _differ(values[slots])
    put = None
    if uneven.any():
        level = values[uneven]
        level[slots][:, 1 - active] = level[slots][:, active]
        put = keys[uneven], level
    if put or not present.all():
        yield Repair(name, put, keys[~present])


def _differ(pairs: Array) -> Array:
    """In which rows the two slots are not the same. A hundred thousand are compared as numbers where they can be."""
    size = pairs.dtype.itemsize
    kind = np.dtype(f"u{size}") if size in (4, 8) else np.dtype((np.void, size))
    slots = np.ascontiguousarray(pairs).view(kind).reshape(-1, 2)
    return np.asarray(slots[:, 0] != slots[:, 1])


def _rows(values: Array) -> Array:
    """Each row's bytes, to be compared as a whole."""
    return np.ascontiguousarray(values).view(np.dtype((np.void, values.dtype.itemsize))).reshape(-1)


def _proxies(taken: Snapshot) -> Iterator[Repair]:
    """Absent ones are zero in both slots; whether one has routes follows from the routes."""
    active = taken.active
    level = taken.proxies.copy()
    level[~taken.present_proxies] = np.zeros((), layout.proxy_slots)
    flags = level["slot"]["flags"]
    for version, bit in ((4, C["PROXY_ROUTES4"]), (6, C["PROXY_ROUTES6"])):
        having = np.zeros(len(level), np.bool_)
        having[taken.routes[version][0]["proxy"][taken.present_routes(version)]] = True
        flags[:, active] = np.where(having, flags[:, active] | bit, flags[:, active] & ~np.uint8(bit))
    level["slot"][:, 1 - active] = level["slot"][:, active]
    uneven = np.flatnonzero(_rows(level) != _rows(taken.proxies))
    if len(uneven):
        yield Repair("proxy", (uneven.astype(layout.u32), level[uneven]))


def _groups(taken: Snapshot) -> Iterator[Repair]:
    """The tables first: as long as its members are there, a group is known."""
    orphans = np.setdiff1d(taken.tables, taken.used_groups)
    if len(orphans):
        yield Repair("group", delete=orphans)
    keys, _ = taken.members
    gone = ~np.isin(keys["group"], taken.used_groups)
    if gone.any():
        yield Repair("group_member", delete=keys[gone])


def _targets(taken: Snapshot) -> Iterator[Repair]:
    """Free what neither a destination nor a connection names, and what is no target."""
    blank = np.zeros(1, layout.target)
    idle = np.flatnonzero((_rows(taken.targets) != _rows(blank)) & ~taken.used_targets)
    if len(idle):
        idle = idle[~np.isin(idle, list(taken.busy().targets))]
    if len(idle):
        keys = idle.astype(layout.u32)
        yield Repair("target", (keys, np.zeros(len(keys), layout.target)))


def _names(taken: Snapshot) -> Iterator[Repair]:
    """Names of proxies that neither the configuration nor a connection nor a busy target knows."""
    keys, _ = taken.names
    idle = (keys >= len(taken.proxies)) | ~taken.present_proxies[np.minimum(keys, len(taken.proxies) - 1)]
    if idle.any():
        busy = taken.busy()
        targets = np.asarray([each for each in busy.targets if each < len(taken.targets)], np.int64)
        idle &= ~np.isin(keys, [*busy.proxies, *taken.targets["proxy"][targets].tolist()])
    if idle.any():
        yield Repair("proxy_name", delete=keys[idle])


def _ports(taken: Snapshot) -> Iterator[Repair]:
    """Clear bits that nothing needs. Missing ones are a difference, for a plan to see."""
    needed = needed_ports(taken)
    surplus = taken.ports & ~needed != 0
    if surplus.any():
        for port, bits in taken.busy().ports.items():
            needed[port] |= bits
        surplus = taken.ports & ~needed != 0
    if surplus.any():
        keys = np.flatnonzero(surplus)
        yield Repair("port", (keys.astype(layout.u32), (taken.ports & needed)[keys]))


def needed_ports(taken: Snapshot) -> Array:
    """By port: the bits that the active configuration needs."""
    needed = np.zeros(len(taken.ports), layout.u8)
    ports_of: dict[int, set[int]] = {}
    for version, (keys, values) in taken.listeners.items():
        chosen = taken.present_listeners(version)
        ports = keys["port_be"][chosen].tolist()
        for port, proxy in zip(ports, values["proxy"][chosen, taken.active].tolist(), strict=True):
            needed[port] |= C["PORT_LISTEN"]
            ports_of.setdefault(proxy, set()).add(port)
    targets = taken.targets[taken.used_targets]
    fixed = targets["port_be"] != 0
    needed[np.unique(targets["port_be"][fixed])] |= C["PORT_TARGET"]
    for proxy in np.unique(targets["proxy"][~fixed]).tolist():  # those keep the client's port
        needed[list(ports_of.get(proxy, ()))] |= C["PORT_TARGET"]
    return needed
