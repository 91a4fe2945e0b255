"""The one thread that changes the kernel. Everybody else leaves a reason to look again, or a call to be answered.

Level-triggered: ten reasons that come while it works are one look afterwards.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from reconciler.errors import DaemonError
from reconciler.runtime.logger import Logger
from reconciler.trouble import EXPLAINED, explained

_log = Logger("worker")


@dataclass(frozen=True, slots=True)
class Timer:
    """``run`` is called on the worker every ``interval_sec``, or after ``rest_sec()`` if that is longer, while there is
    a ``need`` for it; only looks, calls and timers may bring one about."""

    name: str
    interval_sec: float
    run: Callable[[], object]
    need: Callable[[], bool] = lambda: True
    rest_sec: Callable[[], float] = lambda: 0.0


class Worker:
    """Runs ``look`` with the reasons that gathered, calls in the order they came, and timers.

    ``look`` returns after how many seconds it wants to be called again, or None. No exception ends the thread: one
    that comes out of ``look`` or a timer is logged, one that comes out of a call is the call's result.
    """

    def __init__(
        self,
        look: Callable[[frozenset[str]], float | None],
        timers: Sequence[Timer] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look, self._clock = look, clock
        self._due = [(clock() + timer.interval_sec, timer) for timer in timers]
        self._reasons: set[str] = set()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._retry_at: float | None = None
        self._changed = threading.Condition()
        self._stopping = False
        self._busy_since: float | None = None
        self._said: dict[str, str] = {}  # what timers failed for last
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self, reason: str) -> None:
        """Have the world looked at again. From any thread."""
        with self._changed:
            self._reasons.add(reason)
            self._changed.notify()

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Have ``function`` run on the worker; its result or exception comes in the future. From any thread."""
        future: Future[Any] = Future()
        with self._changed:
            if self._stopping:
                future.set_exception(DaemonError("revproxyd is ending"))
            else:
                self._calls.append((function, future))
                self._changed.notify()
        return future

    @property
    def stopping(self) -> bool:
        """:meth:`stop` was called: long waits should end."""
        return self._stopping

    @property
    def wanted(self) -> bool:
        """Something waits until what is being done has come to its end."""
        return bool(self._reasons or self._calls)

    @property
    def busy_sec(self) -> float:
        """For how long it has been at what it is doing; 0 while it waits."""
        since = self._busy_since
        return 0.0 if since is None else self._clock() - since

    def stop(self) -> None:
        """Finish what is being done, refuse the rest, end. Not from the worker itself."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        for _, future in self._calls:
            future.set_exception(DaemonError("revproxyd is ending"))
        self._calls.clear()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._stopping or self._reasons or self._calls):
                    timeout = self._until_due()
                    if timeout <= 0:
                        break
                    self._changed.wait(timeout)
                if self._stopping:
                    return
                call = self._calls.popleft() if self._calls else None
                reasons = self._gather()
            self._busy_since = self._clock()
            if call:
                _answer(*call)
            if reasons:
                self._look_now(reasons)
            self._run_timers()
            self._busy_since = None

    def _gather(self) -> frozenset[str]:
        if self._retry_at is not None and self._clock() >= self._retry_at:
            self._reasons.add("retry")
        reasons = frozenset(self._reasons)
        self._reasons.clear()
        return reasons

    def _until_due(self) -> float:
        times = [at for at, timer in self._due if timer.need()] + (
            [self._retry_at] if self._retry_at is not None else []
        )
        return min(times, default=self._clock() + 3600.0) - self._clock()

    def _look_now(self, reasons: frozenset[str]) -> None:
        self._retry_at = None
        try:
            again_sec = self._look(reasons)
        except Exception:  # a mistake of ours; the data plane goes on, and the next reason is a new chance
            _log.exception("look_failed", reasons=sorted(reasons))
            return
        if again_sec is not None:
            self._retry_at = self._clock() + again_sec

    def _run_timers(self) -> None:
        now = self._clock()
        for index, (at, timer) in enumerate(self._due):
            if at <= now and timer.need():
                self._due[index] = (now + max(timer.interval_sec, timer.rest_sec()), timer)
                try:
                    timer.run()
                    self._said.pop(timer.name, None)
                except EXPLAINED as error:  # the host's trouble; the next time is a new chance
                    text = str(explained(error))
                    if self._said.get(timer.name) != text:  # and not a new line each second
                        self._said[timer.name] = text
                        _log.error("timer_failed", timer=timer.name, error=text)
                except Exception:  # as above
                    _log.exception("timer_failed", timer=timer.name)


def _answer(function: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:  # whoever waits for the future deals with it
        future.set_exception(error)
