"""What was observed last: what the maps hold unchanged is not put into words again, nor read if it was seen whole."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.kernel.store import Seen
from reconciler.state.objects import (
    Allocation,
    Destination,
    Endpoint,
    IPAddress,
    KernelState,
    ListenerKey,
    ProxyState,
    Share,
)
from reconciler.state.routes import Routes

Words = dict[tuple[int, int], tuple[str, Destination]]
"""(proxy id, destination word) -> proxy's name, destination."""


@dataclass(slots=True)
class InWords:
    """What was observed, as far as it takes long to put into words. ``digest``: of what it was made from."""

    digest: bytes
    proxies: dict[str, ProxyState]
    listeners: dict[ListenerKey, str]
    routes: Routes
    sources: dict[tuple[str, Endpoint], IPAddress]
    shares: dict[tuple[str, Endpoint], Share]
    wrong_tables: frozenset[tuple[str, Destination]]
    allocation: Allocation


class RouteMemory:
    """What was observed last. As long as the maps hold the same it is not put into words again, and of routes only
    those that have changed since."""

    def __init__(self) -> None:
        self.routes: Routes | None = None
        self.words: Words = {}
        self.active = 0
        self.present: frozenset[int] = frozenset()  # proxies by number: routes of others don't count
        self.last: InWords | None = None
        self.blobs = Seen()

    def adopt(self, state: KernelState) -> None:
        """Its routes are equal to those that were observed, and the rest may be: have the next ones be of the same
        objects, so that comparing the two costs little."""
        if self.routes is not None and isinstance(state.routes, Routes):
            self.routes = state.routes
            if self.last is not None:
                self.last.routes = state.routes
                if self.last.proxies == state.proxies:
                    self.last.proxies = state.proxies
                if self.last.listeners == state.listeners:
                    self.last.listeners = state.listeners
