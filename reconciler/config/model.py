"""What the files say, as frozen values: Config, Proxy, Listen, PacketTest; and a Fragment of a Config, which is what
one file holds.

Every object carries its :class:`Place`. Places do not take part in comparisons: two configurations are equal when
they ask for the same, wherever in the files they do it.
"""

from __future__ import annotations

import hashlib
import zlib
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from reconciler.config.healthcheck import HealthCheck
from reconciler.config.place import NOWHERE, Place
from reconciler.config.sourceroutes import SourceRoutes, WeightedTarget
from reconciler.errors import Problem
from reconciler.state.objects import Balance, Endpoint, IPAddress, Mode, Protocol


class XdpChoice(StrEnum):
    """``settings.xdp_mode``. ``auto``: per interface, native where that is a gain; ``off``: TC only."""

    AUTO = "auto"
    NATIVE = "native"
    GENERIC = "generic"
    OFF = "off"


class SyncPolicy(StrEnum):
    """``settings.sync``. ``auto``: the daemon applies what the files say; ``manual``: it waits for ``apply``."""

    AUTO = "auto"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True)
class Listen:
    """What a proxy takes. No ``addresses``: the interfaces' own, of the families the proxy has targets for."""

    interfaces: tuple[str, ...]
    addresses: tuple[IPAddress, ...]
    ports: tuple[int, ...]
    protocol: Protocol
    place: Place = field(default=NOWHERE, compare=False)
    address_places: tuple[Place, ...] = field(default=(), compare=False)


# One object for each, since a thousand proxies have one.
_FAMILIES: Final = {
    (has4, has6): frozenset([4] * has4 + [6] * has6) for has4 in (False, True) for has6 in (False, True)
}


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy. ``connection_timeout_sec`` None: the setting holds. ``checks``: how each target that is checked is,
    with its port filled in; follows from the rest."""

    name: str
    listen: Listen
    mode: Mode
    balance: Balance
    default_target: tuple[WeightedTarget, ...]
    source_routes: SourceRoutes = field(default_factory=SourceRoutes)
    connection_timeout_sec: int | None = None
    place: Place = field(default=NOWHERE, compare=False)
    checks: tuple[tuple[Endpoint, HealthCheck], ...] = ()
    _endpoints: Mapping[Endpoint, int] | None = field(default=None, init=False, compare=False, repr=False)
    _families: frozenset[int] | None = field(default=None, init=False, compare=False, repr=False)

    @property
    def endpoints(self) -> Mapping[Endpoint, int]:
        """Where any target of the proxy is, and how many are there. Counted once: some endpoints stand for a hundred
        thousand routes."""
        if self._endpoints is None:
            found = Counter(target.endpoint for target in self.default_target)
            found.update(self.source_routes.endpoints())
            self.count_endpoints(found)
        assert self._endpoints is not None
        return self._endpoints

    def count_endpoints(self, found: Mapping[Endpoint, int]) -> None:
        """Say what :attr:`endpoints` is, for who knows already: it follows from the rest."""
        object.__setattr__(self, "_endpoints", found)

    @property
    def families(self) -> frozenset[int]:
        """The address families, 4 and 6, that any target of the proxy belongs to."""
        if self._families is None:
            found = {endpoint.ip.version for endpoint in self.endpoints}
            object.__setattr__(self, "_families", _FAMILIES[4 in found, 6 in found])
        assert self._families is not None
        return self._families


@dataclass(frozen=True, slots=True)
class SourcePorts:
    """``settings.source_ports``: both ends belong to it."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """``settings.metrics``: whether and where (``IP:PORT``) they are served."""

    enabled: bool = False
    listen: str = "127.0.0.1:9090"


@dataclass(frozen=True, slots=True)
class Settings:
    """``settings:`` with the schema's defaults filled in; :func:`reconciler.config.build.default_settings` makes
    the one that stands when no file has any."""

    connection_timeout_sec: int
    max_connections: int
    fast_path: bool
    xdp_mode: XdpChoice
    source_ports: SourcePorts
    sync: SyncPolicy = SyncPolicy.AUTO
    place: Place = field(default=NOWHERE, compare=False)
    stats_enabled: bool = False
    metrics: Metrics = Metrics()
    takeover: bool = False


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a packet should meet: one of these. ``target`` with port 0: at whatever port; ``action``: deny or pass."""

    target: Endpoint | None = None
    proxy: str | None = None
    action: str | None = None

    def __str__(self) -> str:
        return self.action or (f"proxy {self.proxy}" if self.proxy else f"target {self.target}")


@dataclass(frozen=True, slots=True)
class PacketTest:
    """One of ``tests:``. ``interface`` None: the one that listens on ``destination``, or has its address.
    ``path``: where in the document."""

    source: Endpoint
    destination: Endpoint
    protocol: Protocol
    interface: str | None
    expect: Expectation
    path: str = field(default="", compare=False)
    place: Place = field(default=NOWHERE, compare=False)
    interface_place: Place = field(default=NOWHERE, compare=False)
    expect_place: Place = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file that was read; :meth:`of` makes it. ``digest``: first 16 bytes of the SHA-256 of ``content``; ``size``:
    its bytes."""

    path: str
    digest: bytes
    size: int
    _stored: bytes = field(repr=False)

    @classmethod
    def of(cls, path: str, content: bytes) -> SourceFile:
        """With this content."""
        size = len(content)
        stored = zlib.compress(content, 1) if _is_compressed(size) else content
        return cls(path, hashlib.sha256(content).digest()[:16], size, stored)

    @property
    def content(self) -> bytes:
        """The file's bytes. Those of small files are kept compressed: of a thousand files an edit needs one."""
        return zlib.decompress(self._stored) if _is_compressed(self.size) else self._stored


def _is_compressed(size: int) -> bool:
    """A large file is what an edit needs, and takes long to compress."""
    return 256 < size < 64 << 10


@dataclass(frozen=True, slots=True)
class Config:
    """The desired state as the files say it: checked, with defaults. Proxies stand in the files' order."""

    settings: Settings
    proxies: tuple[Proxy, ...] = ()
    files: tuple[SourceFile, ...] = ()
    warnings: tuple[Problem, ...] = field(default=(), compare=False)
    tests: tuple[PacketTest, ...] = ()
    _target_ips: frozenset[IPAddress] | None = field(default=None, init=False, compare=False, repr=False)

    @property
    def target_ips(self) -> frozenset[IPAddress]:
        """The address of every target. Collected once: a thousand proxies have a few."""
        if self._target_ips is None:
            # By identity first: equal addresses are mostly the same object.
            found = {id(endpoint.ip): endpoint.ip for proxy in self.proxies for endpoint in proxy.endpoints}
            object.__setattr__(self, "_target_ips", frozenset(found.values()))
        assert self._target_ips is not None
        return self._target_ips


@dataclass(slots=True)
class Fragment:
    """What one file contributes; not changed once built. ``names``: every proxy's name with its place and path, also
    of those that are too wrong to be in ``proxies``; ``paths`` goes with ``proxies``; ``target_ips``: all of them, and
    maybe some that were. ``marks`` and ``plain`` are :mod:`reconciler.config.patch`'s: a number for the source of each
    route of the proxies that are right, and whether the text is of the kind that can be parsed in parts."""

    file: str
    settings: Settings | None = None
    settings_place: Place | None = None  # also of settings that are wrong
    proxies: list[Proxy] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    names: list[tuple[str, Place, str]] = field(default_factory=list)
    target_ips: set[IPAddress] = field(default_factory=set)
    tests: list[PacketTest] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    marks: dict[int, array[int]] = field(default_factory=dict)
    plain: bool | None = None
