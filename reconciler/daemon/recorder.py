"""Connections opened and closed, from the kernel's ring buffer to whoever follows events: :class:`Recorder`.

Level-triggered like everything else: :meth:`Recorder.align` looks whether packets tell of connections now
(``stats_enabled`` is live), and sees to it that the ring is there or not. A thread empties it many times a second.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from reconciler.daemon.connlog import ConnectionBatch, marks
from reconciler.errors import KernelError
from reconciler.kernel import eventring, layout
from reconciler.kernel.arrays import Array
from reconciler.kernel.codec import C
from reconciler.kernel.eventring import EventRing
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.maps import Map
from reconciler.runtime.events import Events
from reconciler.runtime.logger import Logger

POLL_SEC: Final = 0.05
_REMEMBERED: Final = 100_000  # closed connections, so that none is told of twice
_MAPS: Final = ("event_ring", "control", "settings", "proxy_name", "outcome")

_log = Logger("recorder")


class Recorder:
    """Publishes to ``events``. ``directory``: where the maps are pinned now. :meth:`align` and :meth:`publish` are
    called on the worker."""

    def __init__(self, directory: Callable[[], Path], events: Events, gateway: Gateway | None = None) -> None:
        self._directory, self._events, self._gateway = directory, events, gateway or Gateway()
        self._lock = threading.Lock()
        self._ring: EventRing | None = None
        self._maps: dict[str, Map] = {}
        self._names: dict[int, str] = {}
        self._looked = True
        self._lost = 0
        self._seen: set[int] = set()
        self._in_order: deque[int] = deque()
        self._end, self._reading = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        """Begin to empty the ring, whenever there is one."""
        self._thread.start()

    def stop(self) -> None:
        """End. The ring stays, and takes what happens until the next daemon reads it."""
        self._end.set()
        self._reading.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            self._drain()
            self._close()

    def note_look(self) -> None:
        """The worker has looked, and may have changed the settings. Before that there is nothing to align: nobody else
        does."""
        self._looked = True

    @property
    def may_differ(self) -> bool:
        """:meth:`align` may find something to do."""
        return self._looked or self._ring is not None

    def align(self) -> None:
        """Have the ring there if connections are to be told of, and only then. Costs nothing while none are and nothing
        has happened. Raises :class:`KernelError`."""
        if not self.may_differ:
            return
        self._align()
        self._looked = False

    def commit_holds(self) -> None:
        """The same now, rather than with the timer: what is opened once a commit is told of is to be told of, too."""
        self._looked = True
        with suppress(KernelError):  # tried again by the timer, which tells
            self.align()

    def _align(self) -> None:
        with self._lock:
            try:
                self._open()
            except KernelError as error:
                self._close()
                if error.errno != errno.ENOENT:  # nothing is loaded
                    raise
                return
            holder, wanted = self._maps["event_ring"], self._is_wanted()
            there = eventring.hanging(holder)
            if self._ring is not None and (not wanted or there != self._ring.id):
                self._drain()
                self._ring.close()
                self._ring = None
            if wanted and self._ring is None:
                self._lost = self._count_lost()
                self._ring = eventring.provide(holder)
                self._reading.set()
                self._read_names()
                _log.info("recording_started")
            elif not wanted and there is not None:
                eventring.remove(holder)
                _log.info("recording_ended")
            elif wanted:
                self._tell_lost()
            if not wanted:
                self._close_maps()

    def publish(self, events: Array) -> None:
        """Tell of connections that were ended from user space."""
        with self._lock:
            self._drain()  # their openings first
            self._publish(events)

    def renew_names(self) -> None:
        """Tell what has happened so far by the names that there are, and read them anew: a commit is about to begin,
        and may give the number of a proxy that is gone to another one. (Not of one that goes with this commit, nor
        while a connection has it.)"""
        with self._lock:
            try:
                self._drain()
                self._names = {}  # those of what is told already stay as they are
                if self._maps:
                    self._read_names()
            except KernelError as error:
                _log.warning("names_not_read", error=str(error))

    # -- with the lock -------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Open the maps anew: pins that somebody exchanged must not stay hidden behind open descriptors."""
        self._close_maps()
        directory = self._directory()
        for name in _MAPS:
            self._maps[name] = eventring.open_map(directory, name, self._gateway)

    def _close_maps(self) -> None:
        for each in self._maps.values():
            each.close()
        self._maps = {}

    def _close(self) -> None:
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        self._close_maps()

    def _is_wanted(self) -> bool:
        active = int(self._maps["control"].items()[1][0]["active"]) & 1
        settings = self._maps["settings"].items()[1][0]["slot"][active]
        return bool(int(settings["flags"]) & C["SETTING_STATS_EVENTS"])

    def _read_names(self) -> None:
        """Between two commits names are only added: the last events of a proxy come when its name is gone already."""
        ids, names = self._maps["proxy_name"].items()
        for number, name in zip(ids.tolist(), names["name"].tolist(), strict=True):
            self._names[number] = name.decode(errors="replace")

    def _count_lost(self) -> int:
        value = self._maps["outcome"].get(layout.OUTCOMES.index("event_lost"))
        return 0 if value is None else int(value.sum())

    def _tell_lost(self) -> None:
        before, self._lost = self._lost, self._count_lost()
        if self._lost > before:
            _log.warning("events_lost", lost=self._lost - before)
            self._events.publish("events_lost", lost=self._lost - before, reason="ring_full")

    def _drain(self) -> None:
        if self._ring is not None:
            self._publish(self._ring.read())

    def _publish(self, events: Array) -> None:
        events = events[self._not_told_yet(events)]
        if not len(events):
            return
        if self._maps and not self._names.keys() >= set(np.unique(events["proxy"]).tolist()):
            self._read_names()
        self._events.publish_batch(ConnectionBatch(events, self._names))

    def _not_told_yet(self, events: Array) -> list[int]:
        """Two CPUs that hear a connection's last packets at once may both tell of its end, and so may a sweep."""
        chosen = []
        for place, (kind, mark) in enumerate(zip(events["kind"].tolist(), marks(events), strict=True)):
            if kind != C["EVENT_OPENED"]:
                if mark in self._seen:
                    continue
                self._seen.add(mark)
                self._in_order.append(mark)
            chosen.append(place)
        while len(self._in_order) > _REMEMBERED:
            self._seen.discard(self._in_order.popleft())
        return chosen

    def _run(self) -> None:
        while self._reading.wait() and not self._end.wait(POLL_SEC):
            with self._lock:
                if self._ring is None:
                    self._reading.clear()
                    continue
                try:
                    self._drain()
                except KernelError as error:
                    _log.warning("names_not_read", error=str(error))
