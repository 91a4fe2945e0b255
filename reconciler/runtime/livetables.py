"""Live connections and counters of one instance, as the engine wants them.

Maps are opened anew for each question: pins that somebody removed or exchanged must not stay hidden behind an open
descriptor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from reconciler import answers
from reconciler.kernel import connections, connlines, counters
from reconciler.kernel.arrays import Array
from reconciler.kernel.busy import busy
from reconciler.kernel.connections import Connection, Ended
from reconciler.kernel.conntable import VERSIONS
from reconciler.kernel.flushing import Flusher
from reconciler.kernel.maps import Maps
from reconciler.kernel.resets import Resetter
from reconciler.kernel.sweep import Sweeper
from reconciler.kernel.targets import LiveTarget, live_targets
from reconciler.runtime import needed
from reconciler.runtime.needs import Needs
from reconciler.state.facts import RuntimeFacts
from reconciler.state.objects import Observed
from reconciler.state.selection import Query
from reconciler.state.totals import Totals


class LiveTables:
    """The tables that packets write, below ``maps``."""

    def __init__(self, maps: Maps) -> None:
        self._counted: Totals | None = None
        self.ended: Callable[[Array], None] = lambda _: None
        """Told of connections that a sweep or a flush ended, if their ends are to be told."""
        self.renaming: Callable[[], None] = lambda: None
        """Told before numbers of proxies that are gone may be given to others."""
        self.committed: Callable[[], None] = lambda: None
        """Told once a commit holds, before anybody else hears of it."""
        self._take(maps)

    def _take(self, maps: Maps) -> None:
        """From now on these are the maps."""
        self.maps, self._sweeper, self._needs = maps, Sweeper(), Needs()

    def close(self) -> None:
        """Give all descriptors back."""
        self.maps.close()

    def _open(self) -> bool:
        """The maps are open, if there are any."""
        if not self.maps.is_open and self.maps.exists:
            self.maps.open()
        return self.maps.is_open

    def _reopened(self) -> bool:
        self.close()
        return self._open()

    # -- what they need ------------------------------------------------------------------------------------

    def runtime(self, observed: Observed, *, anew: bool = False) -> RuntimeFacts:
        """What live connections need; where there are very many, no less than that, unless ``anew``: see
        :mod:`reconciler.runtime.needs`."""
        if not self._open():
            return RuntimeFacts()
        known = None if anew else self._needs.known(observed)
        return self._needs.learn(*needed.read(self.maps, observed)) if known is None else known

    def busy_interfaces(self) -> frozenset[int]:
        """Interfaces by which live connections come or go, see :func:`reconciler.runtime.needed.interfaces`."""
        return needed.interfaces(self.maps, busy(self.maps))

    # -- connections and counters --------------------------------------------------------------------------

    @contextmanager
    def interruptible(self, wanted: Callable[[], bool]) -> Iterator[None]:
        """Where very many connections are read, :class:`InterruptedReading` is raised as soon as ``wanted``; but not
        if they were not read for long."""
        if self._needs.recent:
            self.maps.wanted = wanted
        try:
            yield
        finally:
            self.maps.wanted = None

    @property
    def many_connections(self) -> bool:
        """There are so many that to read them takes long. From any thread."""
        return self._needs.many

    def maps_directory(self) -> Path:
        """Where the maps are pinned, if they are."""
        return self.maps.directory

    def connections(self, query: Query, sort: str = "age", limit: int | None = None) -> Iterator[list[str]]:
        """The live connections that are meant, as JSON, some of them with each step."""
        if not self._reopened():
            return iter(())
        return connlines.lines(connections.listing(self.maps, query, sort=sort, limit=limit))

    def seen(self, proxy: str) -> list[Connection]:
        """The live connections of a proxy."""
        return connections.connections(self.maps, Query(proxy=proxy)) if self._reopened() else []

    def use(self) -> tuple[Mapping[int, int], answers.TableUse]:
        """Live connections by target id, and how full the tables are."""
        if not self._open():
            return {}, answers.TableUse()
        totals = self._totals()
        full = any(self.maps.connections(version).blocks.is_full for version in VERSIONS)
        return totals.targets, answers.TableUse(totals.entries, self.maps.max_connections, full)

    @contextmanager
    def counted(self, totals: Totals) -> Iterator[None]:
        """Within it these count as the live connections that there are: somebody has just counted them."""
        self._counted = totals
        try:
            yield
        finally:
            self._counted = None

    def _totals(self) -> Totals:
        if self._counted is not None:
            return self._counted
        counts = connections.count(self.maps)
        return Totals(counts.targets, counts.entries)

    def reset(self, resetter: Resetter) -> bool:
        """Have some more of these connections answered with RST; whether there are more of them."""
        return self._reopened() and resetter.step(self.maps)

    def targets(self) -> list[LiveTarget]:
        """Every target there is, retired ones included."""
        return live_targets(self.maps, self._totals().targets) if self._reopened() else []

    def connection_count(self, query: Query) -> int:
        """How many :meth:`connections` would give."""
        return connections.count(self.maps, query).total if self._reopened() else 0

    def flush(self, flusher: Flusher) -> int | None:
        """Forget some of these connections; how many. None: all are."""
        ended = flusher.step(self.maps) if self._reopened() else None
        return None if ended is None else self._ended(ended)

    def stats(self) -> answers.Stats:
        """Counters; all zero where nothing is loaded."""
        if not self._reopened():
            return answers.Stats()
        return counters.read_stats(self.maps)

    def sweep(self) -> int:
        """Delete expired connections, of large tables those in one part; how many."""
        if connections.none_at_all(self.maps) or not self._reopened():
            return 0
        return self._ended(self._sweeper.sweep(self.maps))

    def _ended(self, ended: Ended) -> int:
        if len(ended.told):
            self.ended(ended.told)
        return ended.count

    def forget_ways(self) -> None:
        """Make every way out that a connection remembers invalid: routes or neighbours have changed."""
        if self._reopened():
            value = self.maps["control"].items()[1]
            value["generation"] += 1
            self.maps["control"].put(0, value)
