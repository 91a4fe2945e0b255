"""Brings what netlink tells to the worker: what to look at again, and that remembered ways out are not to be used."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from reconciler.daemon.worker import Worker
from reconciler.kernel.monitor import Monitor, Subject
from reconciler.runtime.logger import Logger

_PAUSE_SEC: Final = 0.2
"""Events after the first are gathered for that long: a host that starts containers is looked at five times a second,
not a thousand times."""

_LOOK: Final = frozenset({Subject.LINK, Subject.ADDRESS, Subject.ROUTE, Subject.TC, Subject.SYSCTL, Subject.EVERYTHING})
_WAYS: Final = frozenset({Subject.LINK, Subject.ROUTE, Subject.NEIGHBOUR, Subject.EVERYTHING})

_log = Logger("network")


class Follower:
    """Follows the network namespace of the thread that makes it, in a thread of its own."""

    def __init__(self, worker: Worker, forget_ways: Callable[[], None]) -> None:
        self._worker, self._forget_ways = worker, forget_ways
        self._monitor = Monitor()
        self._stopping = threading.Event()
        self._forgetting = threading.Event()
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and close the subscription."""
        self._stopping.set()
        self._monitor.close()
        self._thread.join()

    def _run(self) -> None:
        try:
            while (events := self._monitor.read()) is not None:
                self._tell({event.subject for event in events})
                if events and not self._stopping.wait(_PAUSE_SEC):
                    self._tell(self._gathered())
        except OSError as error:
            # Resync finds the same, later.
            _log.error("monitor_failed", error=str(error))
        finally:
            self._monitor.release()

    def _gathered(self) -> set[Subject]:
        """Everything that has come meanwhile."""
        subjects: set[Subject] = set()
        while events := self._monitor.read(0):
            subjects |= {event.subject for event in events}
        return subjects

    def _tell(self, subjects: set[Subject]) -> None:
        if subjects & _WAYS and not self._forgetting.is_set():
            self._forgetting.set()
            self._worker.submit(self._forget)
        for subject in sorted(subjects & _LOOK):
            self._worker.wake(f"network: {subject.value}")

    def _forget(self) -> None:
        self._forgetting.clear()  # before, so that what comes meanwhile counts anew
        try:
            self._forget_ways()
        except Exception as error:  # nobody waits for the result; the way out is looked up anew after a second anyway
            _log.error("ways_not_forgotten", error=str(error))
