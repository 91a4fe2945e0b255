"""The language in which desired and observed state are written down and compared.

Plain frozen values without behaviour. A :class:`KernelState` says what packets see; an :class:`Allocation` says
under which numbers the kernel's maps hold it. Two kernel states are equal when no packet could tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"

    @property
    def number(self) -> int:
        """IANA protocol number."""
        return {"tcp": 6, "udp": 17}[self.value]


class Mode(StrEnum):
    DNAT = "dnat"
    FULLNAT = "fullnat"


class Balance(StrEnum):
    MAGLEV = "maglev"
    SOURCE = "source"
    RANDOM = "random"


class XdpMode(StrEnum):
    """How XDP runs on one interface. ``off``: TC only."""

    NATIVE = "native"
    GENERIC = "generic"
    OFF = "off"


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """A target's address. ``port`` 0 keeps the port the client used."""

    ip: IPAddress
    port: int

    def __hash__(self) -> int:
        return hash((int(self.ip), self.port))  # an address's own takes ten times as long

    def __str__(self) -> str:
        host = f"[{self.ip}]" if self.ip.version == 6 else str(self.ip)
        return f"{host}:{self.port}" if self.port else str(self.ip)


@lru_cache(1 << 14)
def address(packed: bytes) -> IPAddress:
    """An address of 4 or 16 bytes; mostly the same object for the same one, since a few stand for many."""
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


@lru_cache(1 << 14)
def endpoint(packed: bytes, port: int) -> Endpoint:
    """An endpoint by its address's bytes, likewise: then files and kernel have the same, which are compared at once."""
    return Endpoint(address(packed), port)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a default or a source route leads: weighted endpoints of one address family, or nowhere.

    ``members`` is sorted by endpoint and holds each endpoint once. A weight of 0 keeps the endpoint listed
    but out of the table. ``deny`` has no members.
    """

    members: tuple[tuple[Endpoint, int], ...] = ()
    deny: bool = False

    @property
    def single(self) -> Endpoint | None:
        """The only endpoint that can be chosen, if there is just one."""
        usable = [endpoint for endpoint, weight in self.members if weight]
        return usable[0] if len(usable) == 1 and len(self.members) == 1 else None

    def __str__(self) -> str:
        if self.deny:
            return "deny"
        return ", ".join(f"{e} weight {w}" if w != 1 else str(e) for e, w in self.members) or "none"


DENY = Destination(deny=True)


QUARTERS: Final = 4


@dataclass(frozen=True, slots=True)
class Share:
    """What a target has of its weight for now. ``quarters``: what its health leaves, 0 (unhealthy) to 4. ``drained``:
    an operator wants no new connections there, whatever its health."""

    quarters: int = QUARTERS
    drained: bool = False

    def __str__(self) -> str:
        health = f"{self.quarters}/{QUARTERS}"
        if not self.drained:
            return health
        return "drained" if self.quarters == QUARTERS else f"drained, {health}"


FULL: Final = Share()


@dataclass(frozen=True, slots=True)
class ProxyState:
    """One proxy as packets see it. ``idle_sec``: idle limit of its established connections. ``default4`` and
    ``default6``: where clients of that family go that no source route names; None where it has no target."""

    name: str
    mode: Mode
    balance: Balance
    idle_sec: int
    default4: Destination | None
    default6: Destination | None


@dataclass(frozen=True, slots=True)
class ListenerKey:
    ifindex: int
    ip: IPAddress
    protocol: Protocol
    port: int

    def __hash__(self) -> int:
        return hash((self.ifindex, int(self.ip), self.port))  # as an endpoint's


class RouteKey(tuple[str, int, int, int]):
    """``RouteKey(proxy, source)``: a client prefix within a proxy.

    A tuple of numbers underneath, since a hundred thousand of them are hashed and compared at each look:
    (proxy name, IP version, network address as a number, prefix length). :meth:`of_numbers` makes one without the
    detour through an ``ip_network``.
    """

    __slots__ = ()

    def __new__(cls, proxy: str, source: IPNetwork) -> RouteKey:
        return tuple.__new__(cls, (proxy, source.version, int(source.network_address), source.prefixlen))

    @classmethod
    def of_numbers(cls, proxy: str, version: int, network: int, prefixlen: int) -> RouteKey:
        """The same key from numbers; host bits of ``network`` must be zero."""
        return tuple.__new__(cls, (proxy, version, network, prefixlen))

    @property
    def proxy(self) -> str:
        return self[0]

    @property
    def version(self) -> int:
        """4 or 6."""
        return self[1]

    @property
    def source(self) -> IPNetwork:
        """The prefix, built at each call."""
        return (IPv4Network if self[1] == 4 else IPv6Network)((self[2], self[3]))

    def __reduce__(self) -> tuple[Callable[..., RouteKey], tuple[str, int, int, int]]:
        return RouteKey.of_numbers, (self[0], self[1], self[2], self[3])

    def __repr__(self) -> str:
        return f"RouteKey({self[0]!r}, {str(self.source)!r})"


@dataclass(frozen=True, slots=True)
class DataPlaneSettings:
    """What ``settings:`` means to packets."""

    fast_path: bool = True
    stats_enabled: bool = False
    unanswered_sec: int = 30
    closing_sec: int = 10
    source_port_first: int = 10000  # towards targets of fullnat proxies
    source_port_last: int = 32767


@dataclass(frozen=True, slots=True)
class TakenOver:
    """Somebody else's XDP program whose place ours has, or is to have: it is put back, in its own ``mode`` (native or
    generic), once ours goes. ``id``, ``name`` and ``tag`` as the kernel tells them."""

    mode: str
    id: int
    name: str = ""
    tag: str = ""

    def __str__(self) -> str:
        return f"{self.mode} program {self.id} ({self.name or 'unnamed'}, tag {self.tag or 'unknown'})"


@dataclass(frozen=True, slots=True)
class Attachment:
    """Our programs on one interface. TC is on every interface we serve; XDP where it pays. ``taken_over``: the foreign
    program that is kept to be put back when our XDP program goes."""

    ifindex: int
    name: str
    xdp: XdpMode
    tc: bool = True
    taken_over: TakenOver | None = None


@dataclass(frozen=True, slots=True)
class ProgramState:
    """The loaded programs. ``tag``: digest of source, defines and map layout; ``max_connections``: capacity of
    the connection tables they were loaded with."""

    tag: str
    max_connections: int


@dataclass(frozen=True, slots=True)
class KernelState:
    """Everything that decides what happens to packets."""

    program: ProgramState | None = None
    settings: DataPlaneSettings | None = None
    proxies: dict[str, ProxyState] = field(default_factory=dict)
    listeners: dict[ListenerKey, str] = field(default_factory=dict)  # -> proxy name
    routes: dict[RouteKey, Destination] = field(default_factory=dict)
    attachments: dict[int, Attachment] = field(default_factory=dict)  # by ifindex
    sysctls: dict[str, str] = field(default_factory=dict)  # "net/ipv4/conf/lo/forwarding" -> value
    devices: frozenset[int] = frozenset()  # ifindexes that take frames redirected by XDP (DEVICE_XDP_REDIRECT)
    guarded: frozenset[int] = frozenset()  # ifindexes where loopback addresses are dropped (DEVICE_DROP_LOOPBACK)
    no_tx: frozenset[int] = frozenset()  # ifindexes where XDP_TX is lost (DEVICE_NO_TX)
    sources: dict[tuple[str, Endpoint], IPAddress] = field(default_factory=dict)  # this host's address towards it
    shares: dict[tuple[str, Endpoint], Share] = field(default_factory=dict)  # of targets that have not all of theirs
    wrong_tables: frozenset[tuple[str, Destination]] = frozenset()  # groups whose table is not what follows from that


@dataclass(frozen=True, slots=True)
class Allocation:
    """Which numbers the maps use: every entry of the maps ``proxy_name``, ``target`` and ``group``.

    ``retired_targets`` are the ids of ``targets`` that no destination of the active configuration names any more
    (live connections may); ``retired_proxies`` the ids of ``proxies`` that are not in it. A target or proxy that
    comes back takes up its retired id again."""

    proxies: dict[str, int] = field(default_factory=dict)
    targets: dict[tuple[str, Endpoint], int] = field(default_factory=dict)  # (proxy name, endpoint) -> id
    groups: dict[tuple[str, Destination], int] = field(default_factory=dict)  # (proxy name, destination) -> id
    retired_targets: frozenset[int] = frozenset()
    retired_proxies: frozenset[int] = frozenset()
    sources: dict[tuple[str, Endpoint], IPAddress] = field(default_factory=dict)  # in the entries of ``targets``
    shares: dict[tuple[str, Endpoint], Share] = field(default_factory=dict)  # likewise


@dataclass(frozen=True, slots=True)
class Revision:
    """What is applied: ``number`` counts commits from 1; ``manifest`` is the digest of the manifest blob."""

    number: int = 0
    applied_ns: int = 0
    manifest: bytes = b""


@dataclass(frozen=True, slots=True)
class Observed:
    """What was read from the kernel. ``unfinished``: slots differ or something is orphaned, so that a clean-up
    is due (a commit was interrupted). ``exists``: there are pinned maps at all.

    ``ports`` is the port map's bytes other than 0 by port; ``blobs`` the digests of what is whole in the blob map;
    ``files_lost``: something of what ``revision`` was made from is not;
    ``revision_said``: what stands in the revision map if that is not ``revision``, which is known from elsewhere;
    ``remembered`` our sysctl map: name -> (what stood there before us, what we set), and what it has lost of that, or
    says wrongly, as far as it is known from elsewhere, ``forgotten``. ``state.sysctls`` holds live values, at least of
    those remembered. ``hidden``: sentences about programs of others that may keep packets from ours. ``others``: what
    there is of others' in TC, to be compared with what there was."""

    state: KernelState
    allocation: Allocation
    active: int = 0
    revision: Revision = Revision()
    unfinished: bool = False
    exists: bool = False
    ports: dict[int, int] = field(default_factory=dict)
    blobs: frozenset[bytes] = frozenset()
    files_lost: bool = False
    revision_said: Revision | None = None
    remembered: dict[str, tuple[str, str]] = field(default_factory=dict)
    forgotten: frozenset[str] = frozenset()
    hidden: tuple[str, ...] = ()
    others: tuple[object, ...] = ()
