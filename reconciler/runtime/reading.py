"""Questions about connections and counters, answered beside the worker: a table of a million connections takes seconds
to read, in which commits go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Unpack

from reconciler import answers, selection
from reconciler.kernel import connections, connlines, counters
from reconciler.kernel.maps import opened
from reconciler.selection import Filters, Listing
from reconciler.state.totals import Totals


class Reading:
    """Reads the maps below the directory that ``bpffs_dir`` gives, by descriptors of its own. From any thread; each
    method raises :class:`KernelError`, and :class:`UsageError` for what can't be meant."""

    def __init__(self, bpffs_dir: Callable[[], Path]) -> None:
        self._bpffs_dir = bpffs_dir

    def connections(self, **how: Unpack[Listing]) -> Iterator[list[str]]:
        """As :meth:`~reconciler.engine.Engine.connections`."""
        query, sort, limit = selection.listing(how)
        with opened(self._bpffs_dir()) as maps:
            if maps is None:
                return iter(())
            return connlines.lines(connections.listing(maps, query, sort=sort, limit=limit))

    def connection_count(self, **filters: Unpack[Filters]) -> int:
        """As :meth:`~reconciler.engine.Engine.connection_count`."""
        query = selection.query(filters)
        with opened(self._bpffs_dir()) as maps:
            return 0 if maps is None else connections.count(maps, query).total

    def totals(self) -> Totals:
        """How many there are, by target."""
        with opened(self._bpffs_dir()) as maps:
            if maps is None:
                return Totals()
            counts = connections.count(maps)
            return Totals(counts.targets, counts.entries)

    def stats(self) -> answers.Stats:
        """As :meth:`~reconciler.engine.Engine.stats`."""
        with opened(self._bpffs_dir()) as maps:
            return answers.Stats() if maps is None else counters.read_stats(maps)
