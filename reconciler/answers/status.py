"""What ``status`` answers: sync state, conditions, interfaces, proxies and their targets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from reconciler.errors import Problem


class Sync(StrEnum):
    """Whether packets see what the files say. ``Degraded``: something is wrong and the last good state is held."""

    SYNCED = "Synced"
    OUT_OF_SYNC = "OutOfSync"
    DEGRADED = "Degraded"


@dataclass(frozen=True, slots=True)
class InterfaceStatus:
    """``mode`` is how XDP runs now: native, generic, or off (TC only). ``note``: why it is not as one would expect."""

    name: str
    mode: str
    attached: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """``state``: active; off (weight 0); draining: no new connections, and there are some yet; drained: none are left.
    One that the files no longer name is draining while it has connections. ``health``: unchecked, healthy, unhealthy,
    or recovering (it gets its weight back by quarters)."""

    address: str
    weight: int
    health: str
    state: str
    connections: int


@dataclass(frozen=True, slots=True)
class ProxyStatus:
    """``listen``: like 203.0.113.10:80/tcp. ``targets``: of the default and of every source route, each once."""

    name: str
    listen: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()
    targets: tuple[TargetStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Attempt:
    """The last time somebody tried to bring the kernel to what the files say. ``result``: applied, unchanged, held (the
    files can't be applied) or failed. ``revision``: the number it got, or would have got; ``commit``: the git commit
    of the files. Times are ISO 8601 in UTC."""

    time: str
    result: str
    message: str = ""
    revision: int | None = None
    commit: str | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that is so or not. ``type``: Synced, Degraded, Progressing; ``status``: True, False, Unknown;
    ``reason``: a word for programs, ``message``: for people; ``last_transition``: since when the status is this one,
    ISO 8601 in UTC; the time of the question if no daemon has seen it become so."""

    type: str
    status: str
    reason: str
    message: str
    last_transition: str


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """An applied revision that is rolled back to ``previous`` unless it is confirmed until ``deadline`` (ISO 8601 in
    UTC), in ``left_sec`` seconds. ``previous`` 0: to nothing."""

    revision: int
    previous: int
    deadline: str
    left_sec: float


@dataclass(frozen=True, slots=True)
class TableUse:
    """The connection table of the family that has more in it: connections it holds, those that are over and only linger
    included, and how many it has room for. ``full``: it took no entry lately, so that each new connection first
    makes room (see ``reclaimed``, ``table_full`` and ``flood`` in the statistics)."""

    used: int = 0
    max: int = 0
    full: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """``revision``: number of the applied configuration, 0 for none; ``commit``: the git commit that says so, that is
    the one checked out if its files say what is in force, else the one that the applied files were of.
    ``differences``: how many objects differ from the files. ``pid``: the daemon's, None without one. ``policy``: what
    the files say of ``sync``, auto or manual; ``waiting``: why they are not applied by themselves, empty if they are;
    ``suspended``: since when reconciling is, None if it is not. ``drift_repaired``: how many objects the daemon has put
    right since it started."""

    sync: Sync
    revision: int = 0
    commit: str | None = None
    applied: str | None = None
    differences: int = 0
    interfaces: tuple[InterfaceStatus, ...] = ()
    proxies: tuple[ProxyStatus, ...] = ()
    errors: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    attempt: Attempt | None = None
    pid: int | None = None
    conditions: tuple[Condition, ...] = ()
    policy: str = "auto"
    waiting: str = ""
    suspended: str | None = None
    unconfirmed: Unconfirmed | None = None
    drift_repaired: int = 0
    connections: TableUse = TableUse()
