"""Connections opened and closed as JSON, some thousands at a time: three microseconds each, column by column. By way of
an object for each it were five times that, and 50,000 a second are to be written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Final

import numpy as np

from reconciler.kernel.arrays import Array
from reconciler.kernel.codec import PROTOCOLS, C
from reconciler.kernel.conntable import proxy_name

OPENED: Final = "connection_opened"
CLOSED: Final = "connection_closed"
REASONS: Final = {
    C["EVENT_FIN"]: "fin",
    C["EVENT_RST"]: "rst",
    C["EVENT_IDLE"]: "idle",
    C["EVENT_UNANSWERED"]: "unanswered",
    C["EVENT_FLUSHED"]: "flushed",
    C["EVENT_EVICTED"]: "evicted",
}
COUNTERS: Final = ("packets_forward", "bytes_forward", "packets_reverse", "bytes_reverse")
ENDS: Final = ("client", "listen", "target")

_OPENED: Final = '"proxy": %s, "protocol": "%s", "client": "%s", "listen": "%s", "target": "%s"}\n'
_CLOSED: Final = (
    _OPENED.removesuffix("}\n")
    + ', "reason": "%s", "duration_sec": %s, "packets_forward": %d, "bytes_forward": %d, "packets_reverse": %d, '
    '"bytes_reverse": %d}\n'
)


def closed_lines(events: Array, names: Mapping[int, str], epoch_ns: int) -> list[str]:
    """A line of JSON for each of the records ``layout.connection_event`` that tells of an end. ``names``: of proxies;
    ``epoch_ns``: when the clock of the records was zero."""
    events = events[events["kind"] != C["EVENT_OPENED"]]
    return [
        f'{{"time": "{time}+00:00", {fields}'
        for time, fields in zip(_times(events, epoch_ns), _closed(events, names), strict=True)
    ]


def event_lines(
    events: Array, names: Mapping[int, str], epoch_ns: int, first: int, kinds: frozenset[str], proxy: str | None
) -> list[str]:
    """Each record as an event, numbered from ``first`` on, but only of these kinds (none: all) and this proxy (None:
    all)."""
    opened = events["kind"] == C["EVENT_OPENED"]
    wanted = np.ones(len(events), np.bool_)
    for kind, those in ((OPENED, opened), (CLOSED, ~opened)):
        if kinds and kind not in kinds:
            wanted &= ~those
    if proxy is not None:
        ids = [number for number in np.unique(events["proxy"]).tolist() if proxy_name(names, number) == proxy]
        wanted &= np.isin(events["proxy"], ids)
    lines: list[tuple[int, str]] = []
    for kind, those, fields in ((OPENED, opened, _opened), (CLOSED, ~opened, _closed)):
        here = np.flatnonzero(wanted & those)
        some = events[here]
        lines += [
            (place, f'{{"number": {first + place}, "time": "{time}+00:00", "kind": "{kind}", {each}')
            for place, time, each in zip(here.tolist(), _times(some, epoch_ns), fields(some, names), strict=True)
        ]
    return [line for _, line in sorted(lines)]


def _opened(events: Array, names: Mapping[int, str]) -> list[str]:
    return [_OPENED % values for values in zip(*_common(events, names), strict=True)]


def _closed(events: Array, names: Mapping[int, str]) -> list[str]:
    milliseconds = (_durations_ns(events) + 500_000) // 1_000_000
    return [
        _CLOSED % values
        for values in zip(
            *_common(events, names),
            [REASONS.get(kind, str(kind)) for kind in events["kind"].tolist()],
            (milliseconds / 1000).tolist(),
            *(events[name].tolist() for name in COUNTERS),
            strict=True,
        )
    ]


def _common(events: Array, names: Mapping[int, str]) -> list[list[str]]:
    proxies = {
        number: json.dumps(proxy_name(names, number), ensure_ascii=False)
        for number in np.unique(events["proxy"]).tolist()
    }
    return [
        [proxies[number] for number in events["proxy"].tolist()],
        [str(PROTOCOLS.get(number, "tcp")) for number in events["protocol"].tolist()],
        *(endpoints(events, name) for name in ENDS),
    ]


def endpoints(events: Array, name: str) -> list[str]:
    """``IP:PORT`` of each."""
    whole = np.ascontiguousarray(events[f"{name}_be"]).view("V16").ravel().tolist()
    return [
        f"{inet_ntop(AF_INET, each[:4])}:{port}" if family == 4 else f"[{inet_ntop(AF_INET6, each)}]:{port}"
        for family, each, port in zip(events["family"].tolist(), whole, events[f"{name}_port_be"].tolist(), strict=True)
    ]


def _durations_ns(events: Array) -> Array:
    return np.maximum(events["time_ns"].astype(np.int64) - events["created_ns"].astype(np.int64), 0)


def _times(events: Array, epoch_ns: int) -> list[str]:
    """UTC, to the millisecond."""
    milliseconds = (events["time_ns"].astype(np.int64) + epoch_ns) // 1_000_000
    texts: list[str] = np.datetime_as_string(milliseconds.astype("datetime64[ms]")).tolist()
    return texts
