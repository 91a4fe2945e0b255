"""When a resync need not look at everything: :class:`Resync`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from reconciler.runtime.view import View

WHOLE_SEC: Final = 300.0
"""Everything is looked at this often, whatever a glance finds."""
BUSY_SHARE: Final = 1 / 100
"""Of a CPU's time that whole looks may take while connections live: with a million of them one takes a second."""

_SHARE: Final = 1 / 2000
"""Of a CPU's time that glances may take for routes: beyond it the next one has to wait."""

_RESYNC: Final = frozenset({"resync"})


class _Glance(Protocol):
    @property
    def routes_sec(self) -> float: ...
    def take(self) -> bytes: ...
    def same(self, taken: bytes) -> bool: ...
    def remember(self, taken: bytes, names: Collection[str]) -> None: ...


class Resync:
    """While all is well and nobody has a reason to look, a glance at the kernel stands for a whole look.

    The one before has found nothing to do, and the kernel holds what it held then: see :mod:`reconciler.kernel.glance`.
    While connections live there may be something to take away when they end; then whole looks come as often as a share
    of a CPU's time allows, each time for all but very many of them.
    """

    def __init__(
        self,
        glance: _Glance | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._glance, self._clock, self._cpu_clock = glance, clock, cpu_clock
        self._taken = b""
        self._whole_at: float | None = None  # when such a look was made
        self._holds_sec = 0.0  # for how long that is enough
        self._began = 0.0  # by the CPU's clock

    def needless(self, reasons: frozenset[str]) -> bool:
        """Another look for these reasons would find nothing."""
        self._taken = b""
        if self._glance is None or reasons != _RESYNC:
            self._whole_at = None
            return False
        self._taken = self._glance.take()
        self._began = self._cpu_clock()
        whole_at, self._whole_at = self._whole_at, None
        if whole_at is None or self._clock() - whole_at >= self._holds_sec or not self._glance.same(self._taken):
            return False
        self._whole_at = whole_at
        return True

    def rest_sec(self) -> float:
        """How long to wait at least from one glance to the next, for the sake of very many routes."""
        return min(self._glance.routes_sec / _SHARE, WHOLE_SEC) if self._glance else 0.0

    def found_nothing(self, view: View) -> None:
        """A whole look has come to its end, with nothing that was to be done."""
        if self._glance is None:
            return
        runtime, allocation = view.runtime, view.observed.allocation
        busy = runtime.connections or runtime.busy_targets or runtime.busy_proxies or runtime.busy_interfaces
        took_sec = self._cpu_clock() - self._began
        kept = busy or allocation.retired_targets or allocation.retired_proxies
        self._holds_sec = min(took_sec / BUSY_SHARE, WHOLE_SEC) if kept else WHOLE_SEC
        self._glance.remember(self._taken, view.facts.sysctls)
        self._whole_at = self._clock()
