"""The configuration and surroundings that the packet model and the programs are both given, as plain values that can be
written as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Literal


@dataclass(frozen=True)
class Way:
    """How the kernel's routing table would send a packet on. ``stack``: to this host, or nowhere; ``neighbour``: the
    next hop's hardware address is not known yet; ``router``: its sender is to be told that it can't go on."""

    kind: Literal["out", "neighbour", "stack", "router"]
    interface: str = ""
    destination_mac: bytes = b""
    source_mac: bytes = b""
    mtu: int = 0


@dataclass(frozen=True)
class Surroundings:
    """Interfaces with their hardware addresses, and routes, the longest prefix first."""

    macs: dict[str, bytes]
    routes: list[tuple[str, Way]]
    _known: dict[bytes, Way] = field(default_factory=dict)

    def way(self, destination: bytes) -> Way:
        """Where packets to this address go."""
        found = self._known.get(destination)
        if found is None:
            address = ip_address(destination)
            found = next((way for prefix, way in self.routes if address in ip_network(prefix)), Way("stack"))
            self._known[destination] = found
        return found


@dataclass(frozen=True)
class Target:
    """``port`` 0 keeps the client's; ``source``: this host's address towards it, for fullnat."""

    ip: str
    port: int
    source: str = ""
    drained: bool = False


@dataclass(frozen=True)
class Proxy:
    """Destinations are ``target:N``, ``group:N``, ``deny`` or nothing. ``routes``: source prefix -> destination."""

    mode: str = "dnat"
    balance: str = "maglev"
    idle_sec: int = 300
    dest4: str = ""
    dest6: str = ""
    routes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Listener:
    interface: str
    ip: str
    protocol: int
    port: int
    proxy: int


@dataclass(frozen=True)
class Slot:
    """One configuration."""

    listeners: list[Listener]
    proxies: dict[int, Proxy]
    fast_path: bool = True
    unanswered_sec: int = 30
    closing_sec: int = 10
    ports: tuple[int, int] = (10000, 32767)


@dataclass(frozen=True)
class Setting:
    """Two configurations, of which one is active, and what they share. ``xdp``: interfaces that take frames redirected
    by XDP; ``drop_loopback``: those where frames with an address of 127.0.0.0/8 are dropped; ``no_tx``: those where
    what XDP sends back is lost."""

    slots: tuple[Slot, Slot]
    targets: dict[int, Target]
    groups: dict[int, list[int]]
    xdp: list[str]
    drop_loopback: list[str] = field(default_factory=list)
    no_tx: list[str] = field(default_factory=list)

    def takes(self, came: str, leaves: str) -> bool:
        """Whether XDP has a way from one interface to another."""
        return leaves in self.xdp or self.verdict(came, leaves) == "tx"

    def verdict(self, came: str, leaves: str) -> str:
        """XDP's for a packet that it sends on."""
        return "tx" if came == leaves and leaves not in self.no_tx else "redirect"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Setting:
        def slot(one: dict[str, Any]) -> Slot:
            proxies = {int(number): Proxy(**proxy) for number, proxy in one["proxies"].items()}
            listeners = [Listener(**listener) for listener in one["listeners"]]
            return Slot(**{**one, "proxies": proxies, "listeners": listeners, "ports": tuple(one["ports"])})

        first, second = value["slots"]
        return cls(
            (slot(first), slot(second)),
            {int(number): Target(**target) for number, target in value["targets"].items()},
            {int(number): table for number, table in value["groups"].items()},
            value["xdp"],
            value["drop_loopback"],
            value.get("no_tx", []),
        )
