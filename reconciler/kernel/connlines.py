"""Connections as JSON, an object a line, made so many at a time: a list of a million is some 290 MB of text, which is
never there as a whole. Three microseconds each; by way of an object for each it were fifteen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_address
from socket import AF_INET, inet_ntop
from typing import Final

import numpy as np

from reconciler.kernel.arrays import Array
from reconciler.kernel.codec import PROTOCOLS
from reconciler.kernel.connections import Found
from reconciler.kernel.conntable import proxy_name
from reconciler.state.selection import STATES

AT_ONCE: Final = 2000

_LINE: Final = (
    '{"proxy": %s, "protocol": "%s", "client": "%s:%d", "listen": "%s:%d", "target": "%s:%d", "state": "%s", '
    '"packets_forward": %d, "bytes_forward": %d, "packets_reverse": %d, "bytes_reverse": %d, '
    '"age_sec": %.1f, "idle_sec": %.1f}'
)
_NS: Final = 1e9


def lines(found: Found) -> Iterator[list[str]]:
    """The connections in their order, some of them with each step: each an
    :class:`~reconciler.answers.Connection` as JSON."""
    for start in range(0, len(found.order), AT_ONCE):
        yield _lines(found.rows[found.order[start : start + AT_ONCE]], found.names, found.now_ns)


def _lines(rows: Array, names: Mapping[int, str], now_ns: int) -> list[str]:
    proxies = {
        number: json.dumps(proxy_name(names, number), ensure_ascii=False) for number in set(rows["proxy"].tolist())
    }
    ends = [(_addresses(rows, name), rows[f"{name}_port_be"].tolist()) for name in ("client", "listen", "target")]
    return [
        _LINE % values
        for values in zip(
            map(proxies.__getitem__, rows["proxy"].tolist()),
            [str(PROTOCOLS.get(number, "tcp")) for number in rows["protocol"].tolist()],
            *(column for end in ends for column in end),
            map(STATES.__getitem__, rows["kind"].tolist()),
            *(rows[f"{what}_{way}"].tolist() for way in ("forward", "reverse") for what in ("packets", "bytes")),
            *(_since(rows[name], now_ns).tolist() for name in ("created_ns", "time_ns")),
            strict=True,
        )
    ]


def _since(times_ns: Array, now_ns: int) -> Array:
    """Seconds since then; clocks of other CPUs may be ahead."""
    return np.asarray(np.maximum(now_ns - times_ns.astype(np.int64), 0) / _NS)


def _addresses(rows: Array, name: str) -> list[str]:
    """As they stand before a port."""
    whole = np.ascontiguousarray(rows[f"{name}_be"]).view("V16").ravel().tolist()
    return [
        inet_ntop(AF_INET, each[:4]) if family == 4 else _address6(each)
        for family, each in zip(rows["family"].tolist(), whole, strict=True)
    ]


@lru_cache(4096)
def _address6(packed: bytes) -> str:
    return f"[{ip_address(packed)}]"
