"""Between the values of ``state/`` and the structures of ``layout.py``: packing and unpacking, nothing else."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from reconciler.errors import KernelError
from reconciler.kernel import layout
from reconciler.kernel.arrays import Array
from reconciler.state import objects
from reconciler.state.objects import (
    FULL,
    QUARTERS,
    Balance,
    DataPlaneSettings,
    Endpoint,
    IPAddress,
    IPNetwork,
    ListenerKey,
    Mode,
    Protocol,
    Share,
)
from reconciler.state.operations import Dest, ProxySlot, RouteSlot

C: Final = layout.CONSTANTS
ID_MASK: Final = (1 << C["DEST_KIND_SHIFT"]) - 1
MODES: Final = {Mode.DNAT: C["MODE_DNAT"], Mode.FULLNAT: C["MODE_FULLNAT"]}
BALANCES: Final = {
    Balance.MAGLEV: C["BALANCE_MAGLEV"],
    Balance.SOURCE: C["BALANCE_SOURCE"],
    Balance.RANDOM: C["BALANCE_RANDOM"],
}
PROTOCOLS: Final = {protocol.number: protocol for protocol in Protocol}


def pack_dest(dest: Dest) -> int:
    """A destination as the one word that packets read."""
    return dest.kind << C["DEST_KIND_SHIFT"] | dest.id


def pack_address(ip: IPAddress) -> Array:
    """An address in network byte order."""
    return np.frombuffer(ip.packed, np.uint8)


def unpack_address(value: bytes) -> IPAddress:
    """An address of 4 or 16 bytes."""
    return objects.address(value)


def pack_listener_keys(keys: Sequence[ListenerKey], version: int) -> Array:
    """Keys of the map listener4 or listener6; all of ``keys`` must be of that family."""
    packed = np.zeros(len(keys), layout.listener_key4 if version == 4 else layout.listener_key6)
    packed["ifindex"] = [key.ifindex for key in keys]
    packed["addr_be"] = _addresses([key.ip.packed for key in keys], version)
    packed["port_be"] = [key.port for key in keys]
    packed["protocol"] = [key.protocol.number for key in keys]
    return packed


def pack_route_keys(routes: Sequence[tuple[int, IPNetwork]], version: int) -> Array:
    """Keys of the map route4 or route6 from (proxy id, source)."""
    packed = np.zeros(len(routes), layout.route_key4 if version == 4 else layout.route_key6)
    packed["prefixlen"] = [32 + source.prefixlen for _, source in routes]
    packed["proxy"] = [proxy for proxy, _ in routes]
    packed["addr_be"] = _addresses([source.network_address.packed for _, source in routes], version)
    return packed


def _addresses(packed: Sequence[bytes], version: int) -> Array:
    return np.frombuffer(b"".join(packed), np.uint8).reshape(-1, 4 if version == 4 else 16)


def pack_routes(slots: Sequence[RouteSlot]) -> Array:
    """One slot's value of each route."""
    packed = np.zeros(len(slots), layout.route)
    packed["dest"] = [pack_dest(slot.dest) for slot in slots]
    packed["flags"] = [C["ROUTE_PRESENT"] if slot.present else 0 for slot in slots]
    return packed


def pack_proxies(slots: Sequence[ProxySlot | None]) -> Array:
    """One slot's value of each proxy; zero for None."""
    packed = np.zeros(len(slots), layout.proxy)
    for row, slot in zip(packed, slots, strict=True):
        if slot is not None:
            row["flags"] = (
                C["PROXY_PRESENT"]
                | (C["PROXY_ROUTES4"] if slot.routes4 else 0)
                | (C["PROXY_ROUTES6"] if slot.routes6 else 0)
            )
            row["mode"], row["balance"], row["idle_sec"] = MODES[slot.mode], BALANCES[slot.balance], slot.idle_sec
            row["dest4"], row["dest6"] = pack_dest(slot.dest4), pack_dest(slot.dest6)
    return packed


def pack_settings(settings: DataPlaneSettings | None) -> Array:
    """One slot's settings, as an array of one; zero for None."""
    packed = np.zeros(1, layout.settings)
    if settings is not None:
        packed["flags"] = (C["SETTING_FAST_PATH"] if settings.fast_path else 0) | (
            C["SETTING_STATS_EVENTS"] if settings.stats_enabled else 0
        )
        packed["unanswered_sec"], packed["closing_sec"] = settings.unanswered_sec, settings.closing_sec
        packed["port_first"], packed["port_last"] = settings.source_port_first, settings.source_port_last
    return packed


def unpack_settings(value: Any) -> DataPlaneSettings | None:
    """The inverse of :func:`pack_settings`. A structure without limits is none: no packet was meant to see it."""
    flags, unanswered_sec, closing_sec = int(value["flags"]), int(value["unanswered_sec"]), int(value["closing_sec"])
    if not (flags or unanswered_sec or closing_sec):
        return None
    return DataPlaneSettings(
        fast_path=bool(flags & C["SETTING_FAST_PATH"]),
        stats_enabled=bool(flags & C["SETTING_STATS_EVENTS"]),
        unanswered_sec=unanswered_sec,
        closing_sec=closing_sec,
        source_port_first=int(value["port_first"]),
        source_port_last=int(value["port_last"]),
    )


def pack_target(endpoint: Endpoint, proxy_id: int, source: IPAddress | None = None, share: Share = FULL) -> Array:
    """A target, as an array of one."""
    packed = np.zeros(1, layout.target)
    address = pack_address(endpoint.ip)
    packed[0]["addr_be"][: len(address)] = address
    packed["source_be"] = pack_source(source)
    packed["port_be"], packed["family"], packed["proxy"] = endpoint.port, endpoint.ip.version, proxy_id
    packed["flags"] = pack_share(share)
    return packed


def pack_share(share: Share) -> int:
    """The field ``flags`` of a target."""
    return (C["TARGET_DRAINED"] if share.drained else 0) | (QUARTERS - share.quarters) << C["TARGET_MISSING_SHIFT"]


def unpack_share(flags: int) -> Share:
    """The inverse of :func:`pack_share`; more than all missing counts as all."""
    missing = min(flags >> C["TARGET_MISSING_SHIFT"], QUARTERS)
    return Share(QUARTERS - missing, bool(flags & C["TARGET_DRAINED"]))


def pack_source(source: IPAddress | None) -> Array:
    """One place of the field ``source_be`` of a target; zero for None."""
    return np.frombuffer((source.packed if source else b"").ljust(16, b"\0"), np.uint8)


def change_sources(values: Array, sources: Sequence[IPAddress | None]) -> tuple[Array, Array]:
    """What to write, one after the other, to give targets other addresses: first into the place that does not hold,
    then the word that says which one does. A packet at the same time sees the old one or the new one."""
    filled = values.copy()
    for row, source in zip(filled, sources, strict=True):
        row["source_be"][1 - (int(row["source"]) & 1)] = pack_source(source)
    exchanged = filled.copy()
    exchanged["source"] ^= 1
    # An entry of which no packet wants an address any more is as it was before it had one.
    without = np.asarray([source is None for source in sources])
    exchanged["source_be"][without], exchanged["source"][without] = 0, 0
    return filled, exchanged


def unpack_source(value: Any) -> IPAddress | None:
    """This host's address towards a target; None if it has none."""
    place = int(value["source"]) & 1
    source = bytes(value["source_be"][place][: 4 if int(value["family"]) == 4 else 16])
    return unpack_address(source) if any(source) else None


def unpack_endpoint(value: Any) -> Endpoint | None:
    """The endpoint of a target; None if the entry is free or no target."""
    family = int(value["family"])
    if family not in (4, 6):
        return None
    return objects.endpoint(value["addr_be"][: 4 if family == 4 else 16].tobytes(), int(value["port_be"]))


def pack_text(text: str, dtype: np.dtype[Any]) -> bytes:
    """Text for a fixed field. Raises :class:`KernelError` if it does not fit: cut off, it would be another."""
    encoded = text.encode()
    if len(encoded) >= dtype.itemsize or b"\0" in encoded:
        raise KernelError("store", repr(text), errno.ENAMETOOLONG, f"a map holds {dtype.itemsize - 1} bytes of it")
    return encoded


def pack_sysctl_key(name: str) -> Array:
    """Key of the sysctl map, as an array of one."""
    packed = np.zeros(1, layout.sysctl_key)
    packed["name"] = pack_text(name, layout.sysctl_key["name"])
    return packed
