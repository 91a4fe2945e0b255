"""Connections brought into a table of another size: which of them, where there is not room for all."""

from __future__ import annotations

from typing import Any

import numpy as np

from reconciler.errors import CrowdedError
from reconciler.kernel.arrays import Array
from reconciler.kernel.conntable import (
    Indexes,
    Table,
    active_settings,
    established,
    expired_entries,
    over,
    read_table,
)
from reconciler.kernel.maps import Map, Maps
from reconciler.kernelclock import monotonic_ns


def entries_for(maps: Maps, version: int, room: int) -> tuple[Array, Array]:
    """One family's entries, as far as a table of ``room`` entries has to take them over.

    Raises :class:`CrowdedError` if there is not room for those of connections that are established: they stay.
    """
    keys, values = maps.connections(version).items()
    if len(keys) <= room:
        return keys, values
    table = read_table(maps, version)
    chosen = worth_carrying(table, room, active_settings(maps), monotonic_ns())
    return table.keys[chosen], table.values[chosen]


def worth_carrying(table: Table, room: int, settings: Any, now_ns: int) -> Indexes:
    """The entries to be taken over where there is not room for all: those of established connections, and of those that
    are not established yet as many as fit, both directions together. What has expired is absent anyway; what is over
    would only be in the way of new connections (they remove it from a full table, but a few at a time).

    Raises :class:`CrowdedError`, as :func:`entries_for`.
    """
    going_on = ~expired_entries(table, settings, now_ns) & ~over(table.values["c"])
    stays = going_on & established(table.values["c"])
    paired = table.peer >= 0
    stays[table.peer[paired & stays]] = True
    needed = np.flatnonzero(stays)
    if len(needed) > room:
        count = int((stays & table.one_each).sum())
        raise CrowdedError(
            f"max_connections: {count} IPv{table.version} connections are established, more than that; they stay,"
            " so wait for some to end or flush some"
        )
    others = np.flatnonzero(going_on & ~stays & table.one_each)
    fitting = others[np.cumsum(1 + paired[others]) <= room - len(needed)]
    return np.unique(np.concatenate([needed, fitting, table.peer[fitting[paired[fitting]]]]))


def carry_over(source: Map, destination: Map) -> None:
    """Put entries that only ``source`` has into ``destination`` too. Where there is not room for all, none that is
    over, and those of established connections first. The next packet of one that is left out makes its entries anew."""
    keys, values = source.items()
    known = destination.keys()
    late = np.flatnonzero(~np.isin(_as_bytes(keys), _as_bytes(known)))
    room = max(0, destination.max_entries - len(known))
    if len(late) > room:
        late = late[~over(values["c"][late])]
        late = late[np.argsort(~established(values["c"][late]), kind="stable")][:room]
    destination.put_many(keys[late], values[late])


def _as_bytes(array: Array) -> Array:
    return np.ascontiguousarray(array).view(np.dtype((np.void, array.dtype.itemsize)))
