"""What a commit does to the kernel, as data. One executor (``kernel/transaction.py``) interprets them.

Operations are grouped by when they run: ``stage`` before the switch, invisible to packets; the switch; ``finish``
after it, repeatable. Each is a frozen value that a plan can print, count, save and load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from reconciler.state.objects import (
    FULL,
    Attachment,
    Balance,
    DataPlaneSettings,
    Endpoint,
    IPAddress,
    IPNetwork,
    ListenerKey,
    Mode,
    ProgramState,
    Revision,
    Share,
)

# The numbers of ``bpf/types.h`` that plans are made of; a test holds them equal to ``kernel/layout.py``.
DEST_NONE: Final = 0
DEST_TARGET: Final = 1
DEST_GROUP: Final = 2
DEST_DENY: Final = 3
PORT_LISTEN: Final = 1
PORT_TARGET: Final = 2
DEVICE_XDP_REDIRECT: Final = 1
DEVICE_DROP_LOOPBACK: Final = 2
DEVICE_NO_TX: Final = 4


@dataclass(frozen=True, slots=True)
class Operation:
    """Base. ``map`` names the map it writes, or the place in the kernel ("xdp", "tc", "sysctl", "program")."""

    map: ClassVar[str] = ""


# -- values as they stand in one slot ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dest:
    """A destination in numbers: kind is DEST_NONE, DEST_TARGET, DEST_GROUP or DEST_DENY."""

    kind: int = 0
    id: int = 0


@dataclass(frozen=True, slots=True)
class ProxySlot:
    mode: Mode
    balance: Balance
    idle_sec: int
    dest4: Dest
    dest6: Dest
    routes4: bool
    routes6: bool


@dataclass(frozen=True, slots=True)
class RouteSlot:
    """``present`` False: the entry is not in this configuration; ``dest`` is then what the covering prefix of the
    same proxy says in this configuration (DEST_NONE without one)."""

    dest: Dest
    present: bool


# -- stage: not versioned, harmless until a slot refers to it; undone by removing -----------------------------


@dataclass(frozen=True, slots=True)
class LoadProgram(Operation):
    """Compile and load the programs (and make the maps where there are none). ``before`` None: first time."""

    map: ClassVar[str] = "program"
    before: ProgramState | None
    after: ProgramState


@dataclass(frozen=True, slots=True)
class SetSysctl(Operation):
    """``name`` like net/ipv4/conf/lo/forwarding. ``before`` is remembered in the sysctl map and restored by
    RestoreSysctl; ``original`` in its place where the map has lost what stood there before us, or says it wrongly."""

    map: ClassVar[str] = "sysctl"
    name: str
    before: str
    after: str
    original: str = ""


@dataclass(frozen=True, slots=True)
class PutProxyName(Operation):
    map: ClassVar[str] = "proxy_name"
    id: int
    name: str


@dataclass(frozen=True, slots=True)
class PutTarget(Operation):
    """``source``: this host's address towards it, for full NAT; None: there is none, or none is needed. ``share``:
    what it has of its weight from the first."""

    map: ClassVar[str] = "target"
    id: int
    proxy_id: int
    endpoint: Endpoint
    source: IPAddress | None = None
    share: Share = FULL


@dataclass(frozen=True, slots=True)
class SetSource(Operation):
    """Another source address for a target that is there: for connections that come, those that are keep theirs. Before
    the switch an address, after it none: so no packet that needs one is without."""

    map: ClassVar[str] = "target"
    id: int
    before: IPAddress | None
    after: IPAddress | None


@dataclass(frozen=True, slots=True)
class PutGroup(Operation):
    """``members``: (target id, weight) with every member, weight 0 included; the executor computes the Maglev
    table from it with :func:`reconciler.state.share.table` (``keys`` are the endpoints' texts, in order).
    ``effective``: the weights, in quarters, that health and drains leave; empty: all of them."""

    map: ClassVar[str] = "group"
    id: int
    members: tuple[tuple[int, int], ...]
    keys: tuple[str, ...]
    effective: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SwapTable(Operation):
    """Another table for a group that stays what it is: its targets' shares have changed, or the table was wrong. Both
    slots see it at once. Fields as in :class:`PutGroup`. Can be repeated."""

    map: ClassVar[str] = "group"
    id: int
    members: tuple[tuple[int, int], ...]
    keys: tuple[str, ...]
    effective: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SetShare(Operation):
    """What a target that is there has of its weight from now on. Before the switch only for a retired one that comes
    back, which no packet's configuration names yet."""

    map: ClassVar[str] = "target"
    id: int
    before: Share
    after: Share


@dataclass(frozen=True, slots=True)
class OpenPort(Operation):
    """Set bits in the port map; ``before`` and ``after`` are the whole byte (PORT_LISTEN | PORT_TARGET)."""

    map: ClassVar[str] = "port"
    port: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class PutDevice(Operation):
    """Flags of one interface; None for no entry. DEVICE_XDP_REDIRECT, what it can do: changed before the switch, a lost
    ability first of all, a gained one after the interfaces were attached. DEVICE_DROP_LOOPBACK, a guard: set before
    and taken away after the sysctl that makes it needed. DEVICE_NO_TX: set before and taken away after the switch. Undo
    writes ``before``."""

    map: ClassVar[str] = "device"
    ifindex: int
    before: int | None
    after: int | None


@dataclass(frozen=True, slots=True)
class PutBlob(Operation):
    """Store content (an applied file, the manifest) under its digest."""

    map: ClassVar[str] = "blob"
    digest: bytes
    content: bytes


# -- stage: two-slot values; None means absent in that configuration ------------------------------------------


@dataclass(frozen=True, slots=True)
class StageSettings(Operation):
    map: ClassVar[str] = "settings"
    before: DataPlaneSettings | None
    after: DataPlaneSettings


@dataclass(frozen=True, slots=True)
class StageListener(Operation):
    """Proxy ids; 0 for no listener."""

    map: ClassVar[str] = "listener"
    key: ListenerKey
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class StageProxy(Operation):
    map: ClassVar[str] = "proxy"
    id: int
    before: ProxySlot | None
    after: ProxySlot | None


@dataclass(frozen=True, slots=True)
class StageRoute(Operation):
    """``exists``: the trie holds the entry now. Not ``after.present``: it is deleted after the switch."""

    map: ClassVar[str] = "route"
    proxy_id: int
    source: IPNetwork
    before: RouteSlot
    after: RouteSlot


@dataclass(frozen=True, slots=True)
class StageRevision(Operation):
    map: ClassVar[str] = "revision"
    before: Revision
    after: Revision


# -- attach (after staging, before the switch) ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attach(Operation):
    """Bring an interface from ``before`` (None: nothing of ours on it) to ``after``. Undo goes back."""

    map: ClassVar[str] = "interface"
    before: Attachment | None
    after: Attachment


@dataclass(frozen=True, slots=True)
class Switch(Operation):
    """The one write after which packets see the new configuration."""

    map: ClassVar[str] = "control"
    before: int
    after: int


# -- finish (after the switch; each may be repeated) ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Detach(Operation):
    map: ClassVar[str] = "interface"
    before: Attachment


@dataclass(frozen=True, slots=True)
class RestoreSysctl(Operation):
    """``before``: the live value; ``after``: what stood there before we set it (equal where someone else has changed
    it since: then only our memory of it goes)."""

    map: ClassVar[str] = "sysctl"
    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class FreeGroup(Operation):
    map: ClassVar[str] = "group"
    id: int
    members: tuple[int, ...]  # target ids


@dataclass(frozen=True, slots=True)
class FreeTarget(Operation):
    """Only for ids that no connection names. A connection may have come up between the plan and the switch: the
    executor looks again after the switch and leaves the target (retired) where one did."""

    map: ClassVar[str] = "target"
    id: int


@dataclass(frozen=True, slots=True)
class FreeProxyName(Operation):
    """Like FreeTarget: only for ids that no connection and no target names."""

    map: ClassVar[str] = "proxy_name"
    id: int


@dataclass(frozen=True, slots=True)
class ClosePort(Operation):
    """Clear bits in the port map, once nothing uses the port; looked at again after the switch like FreeTarget."""

    map: ClassVar[str] = "port"
    port: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class FreeBlob(Operation):
    map: ClassVar[str] = "blob"
    digest: bytes
