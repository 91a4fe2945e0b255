"""The order in which connections are listed, of a few of which only so much is sorted as has to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from reconciler.kernel.arrays import Array
from reconciler.kernel.conntable import Indexes, proxy_name

_ADDRESSES: Final = ("client", "target")


def first_of(rows: Array, indexes: Indexes, sort: str, limit: int | None, names: Mapping[int, str]) -> Indexes:
    """The first ``limit`` of these rows' indexes in the order that ``sort`` names, one of
    :data:`~reconciler.state.selection.SORTS`; equal ones by age. ``rows``: as ``layout.connection_event``."""
    if limit is not None and limit < len(indexes):
        if not limit:
            return indexes[:0]
        first = _first_key(rows, sort, names)[indexes]
        indexes = indexes[first <= np.partition(first, limit - 1)[limit - 1]]
    keys = [rows["created_ns"][indexes], *(_as_numbers(rows, sort)[:, indexes] if sort in _ADDRESSES else ())]
    return indexes[np.lexsort((*keys, _first_key(rows, sort, names)[indexes]))[:limit]]


def _first_key(rows: Array, sort: str, names: Mapping[int, str]) -> Array:
    """What is looked at first: rows with less of it come before those with more."""
    if sort in ("bytes", "packets"):
        return np.asarray(-(rows[f"{sort}_forward"] + rows[f"{sort}_reverse"]).astype(np.int64))
    if sort in _ADDRESSES:
        return np.asarray((rows["family"].astype(np.int64) << 32) | _as_numbers(rows, sort)[-1])
    if sort == "proxy":
        return _ranks(rows["proxy"], names)
    column = {"age": "created_ns", "idle": "time_ns", "state": "kind"}[sort]
    return np.asarray(rows[column].astype(np.int64))


def _as_numbers(rows: Array, name: str) -> Array:
    """Ports, and addresses as four numbers each, the last of them the most significant."""
    words = np.ascontiguousarray(rows[f"{name}_be"]).view(">u4")
    columns = (rows[f"{name}_port_be"], words[:, 3], words[:, 2], words[:, 1], words[:, 0])
    return np.stack([each.astype(np.int64) for each in columns])


def _ranks(ids: Array, names: Mapping[int, str]) -> Array:
    """The place of each id's name among all names in order."""
    known, inverse = np.unique(ids, return_inverse=True)
    order = sorted(range(len(known)), key=lambda place: proxy_name(names, int(known[place])))
    ranks = np.empty(len(known), np.int64)
    ranks[order] = np.arange(len(known))
    return np.asarray(ranks[inverse])
