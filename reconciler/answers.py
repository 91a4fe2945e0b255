"""What commands answer, as values: the same from the daemon, from the kernel directly, and in Python.

The field names are the keys of the JSON that scripts rely on. :func:`to_json` and :func:`from_json` go there and back.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from reconciler.errors import Problem

T = TypeVar("T")
Json = Any  # what json.loads gives: any tighter recursive type only moves the casts elsewhere


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
    files can't be applied), waiting (they are not to be applied by themselves) or failed. ``revision``: the number it
    got, or would have got; ``commit``: the git commit of the files. Times are ISO 8601 in UTC."""

    time: str
    result: str
    message: str = ""
    revision: int | None = None
    commit: str | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that is so or not. ``type``: Synced, Degraded, Progressing; ``status``: True, False, Unknown;
    ``reason``: a word for programs, ``message``: for people; ``last_transition``: since when the status is this one,
    ISO 8601 in UTC."""

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
    makes room (see ``reclaimed`` and ``table_full`` in the statistics)."""

    used: int = 0
    max: int = 0
    full: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """``revision``: number of the applied configuration, 0 for none; ``commit``: the git commit its files were of.
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


@dataclass(frozen=True, slots=True)
class Change:
    """One object that differs. ``action``: create, update, delete, attach, detach, replace. ``object``: interface,
    proxy, route, target, setting, program. ``before`` and ``after`` are JSON values, None for absent. ``place``:
    FILE:LINE:COLUMN of what the files say about it, if they do."""

    action: str
    object: str
    name: str
    before: Json = None
    after: Json = None
    place: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """Files against kernel. ``operations``: how many steps in the kernel an apply would take."""

    changes: tuple[Change, ...] = ()
    operations: int = 0
    warnings: tuple[Problem, ...] = ()

    @property
    def empty(self) -> bool:
        """Nothing differs."""
        return not self.changes


@dataclass(frozen=True, slots=True)
class Touched:
    """Live connections of a target that a plan takes something away from, and what becomes of them."""

    proxy: str
    target: str
    connections: int
    fate: str


@dataclass(frozen=True, slots=True)
class PlanAnswer:
    """What an apply would do. ``steps``: the operations in order, as text; ``counts``: how many of them per map or
    other place in the kernel; ``connections``: live ones that the changes touch; ``revision``: what would be applied
    then, None if only something is repaired."""

    changes: tuple[Change, ...] = ()
    operations: int = 0
    steps: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    connections: tuple[Touched, ...] = ()
    revision: int | None = None
    warnings: tuple[Problem, ...] = ()

    @property
    def empty(self) -> bool:
        """There is nothing to do."""
        return not self.changes


@dataclass(frozen=True, slots=True)
class Applied:
    """What an apply did. ``changes`` empty: there was nothing to do. ``unconfirmed``: it is taken back unless it is
    confirmed in time."""

    revision: int
    changes: tuple[Change, ...] = ()
    operations: int = 0
    commit: str | None = None
    warnings: tuple[Problem, ...] = ()
    unconfirmed: Unconfirmed | None = None


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The revision that stays."""

    revision: int


@dataclass(frozen=True, slots=True)
class Suspension:
    """Whether reconciling is suspended, and since when (ISO 8601 in UTC)."""

    suspended: bool
    since: str | None = None


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One revision that was applied or refused. ``number``: of a refused one, that which it would have got.
    ``result``: applied, refused (the files can't be applied) or failed (and rolled back). ``cause``: apply, files (the
    daemon saw them change), plan, rollback, expired (not confirmed in time), last-good. ``files``: names of those that
    differ from the revision before. ``of``: the revision gone back to. ``error``: why it was refused or failed.
    ``current``: this is what is applied now. Times are ISO 8601 in UTC."""

    number: int
    time: str
    result: str
    cause: str = "apply"
    commit: str | None = None
    author: str | None = None
    message: str | None = None
    files: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    operations: int = 0
    duration_sec: float = 0.0
    of: int | None = None
    error: str = ""
    current: bool = False


@dataclass(frozen=True, slots=True)
class PlanFile:
    """A file that a saved plan was made of; ``content`` is Base64."""

    name: str
    content: str


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """A plan to be applied as it is, or not at all. ``version`` and ``tag`` name the program that made it; ``state`` is
    a digest of the kernel's state it was made from, ``work`` one of what it would do. ``commit``, ``author`` and
    ``message`` are those of the files' git commit."""

    format: str
    version: str
    tag: str
    made: str
    state: str
    work: str
    plan: PlanAnswer
    files: tuple[PlanFile, ...] = ()
    commit: str | None = None
    author: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """A BPF program of somebody else's. ``tag``: 16 hex digits, the kernel's digest of its instructions."""

    id: int
    name: str = ""
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Something of somebody else's where ours is or would go. ``where``: xdp native, xdp generic, tc ingress or
    tc egress. ``program`` None: it is no BPF program. ``effect``: what it does to ours; ``remedy``: the command that
    removes it; ``blocks``: ours can't be attached; ``gives_way``: ours takes its place when the files are applied."""

    where: str
    what: str
    program: Program | None
    effect: str
    remedy: str = ""
    blocks: bool = False
    gives_way: bool = False


@dataclass(frozen=True, slots=True)
class InterfaceDetail:
    """One interface. ``asked``: settings.xdp_mode; ``wanted``: what that comes to here, None where nothing of ours
    is to be; ``mode``: how our XDP program runs now (native, generic, off); ``attached``: our TC programs are in
    force. ``xdp_native``: the driver has native XDP; ``listens``: the proxies that listen here. ``ifindex`` 0: it
    does not exist. ``taken_over``: somebody else's XDP program whose place ours has, kept to be put back."""

    name: str
    ifindex: int = 0
    kind: str = ""
    driver: str = ""
    mtu: int = 0
    up: bool = False
    xdp_native: bool = False
    asked: str = ""
    wanted: str | None = None
    mode: str = "off"
    attached: bool = False
    listens: tuple[str, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    note: str = ""
    taken_over: Program | None = None


class Level(StrEnum):
    """How bad a finding is. ``error``: what is configured will not work."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that ``doctor`` looked at. ``check``: its name, e.g. kernel.version or target.route; ``subject``: an
    interface, a target or the like; ``remedy``: the command that mends it. ``checked`` False: it could not be looked
    at, and ``message`` says why."""

    check: str
    level: Level
    message: str
    subject: str = ""
    remedy: str = ""
    checked: bool = True


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything ``doctor`` found. ``fine``: no errors."""

    fine: bool
    errors: int
    warnings: int
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Edited:
    """What an edit of the files did. ``files``: those that were written, made or removed; none if they said so already.
    ``applied``: what applying them gave, None if that was not wanted."""

    edit: str
    files: tuple[str, ...] = ()
    applied: Applied | None = None


@dataclass(frozen=True, slots=True)
class EditHold:
    """``token``: what the daemon gives the right to edit files under, while it does not follow them."""

    token: str


@dataclass(frozen=True, slots=True)
class ConfiguredTarget:
    """A target as the files have it."""

    address: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class ConfiguredRoute:
    """A source route as the files have it. ``action``: deny, or forward to ``targets``."""

    source: str
    action: str = "forward"
    targets: tuple[ConfiguredTarget, ...] = ()


@dataclass(frozen=True, slots=True)
class ConfiguredProxy:
    """A proxy as the files have it, defaults filled in. ``addresses`` empty: the interfaces' own. ``file``, ``line``,
    ``column``: where it stands."""

    name: str
    interfaces: tuple[str, ...]
    addresses: tuple[str, ...]
    ports: tuple[int, ...]
    protocol: str
    mode: str
    balance: str
    default_target: tuple[ConfiguredTarget, ...]
    source_routes: tuple[ConfiguredRoute, ...]
    connection_timeout_sec: int | None
    file: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Connection:
    """One live connection. ``listen`` is the address the client talks to."""

    proxy: str
    protocol: str
    client: str
    listen: str
    target: str
    state: str
    packets_forward: int
    bytes_forward: int
    packets_reverse: int
    bytes_reverse: int
    age_sec: float
    idle_sec: float


@dataclass(frozen=True, slots=True)
class TargetStats:
    """Since the target's first use. ``connections``: live ones; ``opened``: all there ever were."""

    connections: int = 0
    opened: int = 0
    packets_forward: int = 0
    bytes_forward: int = 0
    packets_reverse: int = 0
    bytes_reverse: int = 0


@dataclass(frozen=True, slots=True)
class ProxyStats:
    """Sums over the proxy's targets."""

    connections: int = 0
    opened: int = 0
    packets_forward: int = 0
    bytes_forward: int = 0
    packets_reverse: int = 0
    bytes_reverse: int = 0
    targets: dict[str, TargetStats] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stats:
    """Totals, and the same per proxy and target. ``drops``: packets by reason; ``outcomes``: packets by what became
    of them otherwise."""

    connections: int = 0
    opened: int = 0
    packets_forward: int = 0
    bytes_forward: int = 0
    packets_reverse: int = 0
    bytes_reverse: int = 0
    drops: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    proxies: dict[str, ProxyStats] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Flushed:
    """How many connections were forgotten."""

    flushed: int


@dataclass(frozen=True, slots=True)
class DrainingTarget:
    """A target of one proxy. ``state``: draining, drained, or active if it takes new connections."""

    proxy: str
    target: str
    state: str
    connections: int


@dataclass(frozen=True, slots=True)
class Draining:
    """How far a drain is. ``connections``: live ones of all its targets."""

    targets: tuple[DrainingTarget, ...] = ()
    connections: int = 0

    @property
    def done(self) -> bool:
        """No connection is left, and none comes."""
        return all(each.state == "drained" for each in self.targets)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. ``number`` counts from the daemon's start on; ``time`` is ISO 8601 in UTC; ``fields``
    differ for each kind. In JSON they stand beside the others."""

    number: int
    time: str
    kind: str
    fields: dict[str, Json] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """One flat object."""
        return {"number": self.number, "time": self.time, "kind": self.kind, **self.fields}

    @staticmethod
    def from_json(data: Mapping[str, Json]) -> Event:
        """The inverse of :meth:`to_json`."""
        fields = {key: value for key, value in data.items() if key not in ("number", "time", "kind")}
        return Event(data["number"], data["time"], data["kind"], fields)


@dataclass(frozen=True, slots=True)
class TestResult:
    """One of the files' tests. ``source`` is the key ``from`` of the files; ``actual``: what the packet met."""

    __test__ = False  # no test itself, whatever pytest thinks of the name

    file: str
    line: int
    column: int
    source: str
    to: str
    protocol: str
    interface: str | None
    expected: str
    actual: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Tested:
    """The files' tests, run on what packets see now: ``revision``, which is what the files say if ``sync`` is Synced.
    ``failed``: how many of the tests do not hold."""

    sync: Sync
    revision: int
    differences: int = 0
    tests: tuple[TestResult, ...] = ()
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Explanation:
    """What becomes of a packet now. ``verdict``: redirect, tx, drop or pass. ``rule``: a source route's prefix,
    ``default_target``, or ``connection`` for a packet of a live connection, whose state is then ``connection``.
    ``program``: the one that decided. ``place``: FILE:LINE:COLUMN of what the files say about the rule."""

    verdict: str
    proxy: str | None = None
    rule: str | None = None
    target: str | None = None
    reason: str = ""
    interface: str | None = None
    program: str | None = None
    connection: str | None = None
    place: str = ""


@dataclass(frozen=True, slots=True)
class TakenDown:
    """What ``down`` removed, as text; empty if there was nothing of this instance in the kernel."""

    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Instance:
    """The daemon that answers. ``config_dir`` None: it was started with a target on its command line."""

    pid: int
    version: str
    config_dir: str | None
    bpffs_dir: str


def to_json(value: object) -> Json:
    """A dataclass (or tuples, mappings of them) as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: to_json(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(each) for each in value]
    if isinstance(value, StrEnum):
        return value.value
    return value


def from_json(kind: type[T], data: Json) -> T:
    """The value of dataclass ``kind`` that :func:`to_json` made ``data`` of. Unknown keys are ignored, so that a
    newer daemon may say more. Raises :class:`ValueError` if it does not fit."""
    try:
        result: T = _decode(kind, data)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error
    return result


def _decode(kind: Any, data: Json) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        names = [each.name for each in dataclasses.fields(kind) if each.name in data]
        return kind(**{name: _decode(hints[name], data[name]) for name in names})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(_decode(arguments[0], each) for each in data)
    if origin is dict:
        return {key: _decode(arguments[1], each) for key, each in data.items()}
    if origin in (typing.Union, types.UnionType):
        inner = [each for each in arguments if each is not type(None)]
        return None if data is None else _decode(inner[0], data)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(data)
    return data
