"""Checks any number of targets from one event loop in a thread of its own.

Each distinct check of an address is made once per interval, however many proxies have it; beginnings are spread over
the interval. Results make a :class:`Condition` per check; whoever wants to act on them is told that one has changed, at
most every tenth of a second.
"""

from __future__ import annotations

import asyncio
import resource
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from reconciler.config.healthcheck import HealthCheck, OnUnhealthy
from reconciler.runtime.health import condition as conditions
from reconciler.runtime.health.condition import Condition
from reconciler.runtime.health.probe import probe
from reconciler.runtime.logger import Logger
from reconciler.state.objects import Endpoint, IPAddress

Target = tuple[str, Endpoint]
"""A target as proxies have it: (proxy name, endpoint)."""

Observer = Callable[[Endpoint, HealthCheck, bool, float], None]
"""Told of each check that was made: (address and port, check, whether it went well, how long it took in seconds)."""

Changed = Callable[[Target, Condition, Condition], None]
"""Told of each target whose health or share has changed: (target, before, after)."""

Probe = Callable[[IPAddress, int, HealthCheck], Awaitable[str | None]]
"""Makes one check: None if it went well, else why not."""

_GATHER_SEC: Final = 0.1
_GOLDEN: Final = 0.6180339887498949  # its multiples, modulo 1, are evenly spread however many there are
_DESCRIPTORS: Final = 65536
_SPARE_DESCRIPTORS: Final = 256

_log = Logger("health")


@dataclass(frozen=True, slots=True)
class _Key:
    """What makes two checks one."""

    ip: IPAddress
    port: int
    check: HealthCheck


@dataclass(slots=True, eq=False)
class _Watch:
    key: _Key
    condition: Condition
    targets: set[Target] = field(default_factory=set)
    due: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None


class Checker:
    """:meth:`follow` says what to check, :meth:`conditions` what came of it. Thread-safe but for the callbacks, which
    run in the checker's thread and must not wait: ``wake`` when facts have changed, ``changed`` for each change,
    :attr:`observer` after each check. ``probe`` makes one check; ``loop`` is what it all runs on.
    """

    def __init__(
        self,
        wake: Callable[[], None],
        changed: Changed = lambda *_: None,
        *,
        probe: Probe = probe,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.observer: Observer | None = None
        self._wake, self._changed, self._probe = wake, changed, probe
        self._watches: dict[_Key, _Watch] = {}
        self._by_target: dict[Target, _Watch] = {}
        self._lock = threading.Lock()
        self._wanted: Mapping[Target, HealthCheck] = {}
        self._started = 0
        self._told: asyncio.TimerHandle | None = None
        self._room = asyncio.Semaphore(_SPARE_DESCRIPTORS)
        self._loop = loop or asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._room = asyncio.Semaphore(_descriptors())
        self._thread.start()

    def stop(self) -> None:
        """End all checks. Conditions stay as they are."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def follow(self, checks: Mapping[Target, HealthCheck], known: Mapping[Target, int]) -> None:
        """Check these targets from now on, and no others. ``known``: the quarters that a target not checked before has
        of its weight; one checked before keeps its condition, however it is checked now."""
        if checks != self._wanted:
            self._wanted = dict(checks)
            self._loop.call_soon_threadsafe(self._follow, self._wanted, dict(known))

    def conditions(self) -> dict[Target, Condition]:
        """Of every target that is checked."""
        with self._lock:
            return {target: watch.condition for target, watch in self._by_target.items()}

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

    def _follow(self, checks: Mapping[Target, HealthCheck], known: Mapping[Target, int]) -> None:
        before = self._by_target
        watches: dict[_Key, _Watch] = {}
        by_target: dict[Target, _Watch] = {}
        for target, check in checks.items():
            key = _Key(target[1].ip, check.port or target[1].port, replace(check, on_unhealthy=OnUnhealthy.KEEP))
            watch = watches.get(key) or self._watches.get(key)
            if watch is None:
                was = before.get(target)
                watch = _Watch(key, was.condition if was else conditions.remembered(known.get(target, 4)))
            if key not in watches:
                watch.targets = set()
                watches[key] = watch
            watch.targets.add(target)
            by_target[target] = watch
        gone = [watch for key, watch in self._watches.items() if key not in watches]
        with self._lock:
            self._watches, self._by_target = watches, by_target
        for watch in gone:
            for handle in (watch.due, watch.task):
                if handle is not None:
                    handle.cancel()
        for watch in watches.values():
            if watch.due is None and watch.task is None:
                self._started += 1
                interval = watch.key.check.interval_ms / 1000
                self._schedule(watch, self._loop.time() + self._started * _GOLDEN % 1 * interval)

    def _schedule(self, watch: _Watch, at: float) -> None:
        watch.due = self._loop.call_at(at, self._begin, watch, at)

    def _begin(self, watch: _Watch, at: float) -> None:
        watch.due = None
        watch.task = self._loop.create_task(self._check(watch, at))

    async def _check(self, watch: _Watch, at: float) -> None:
        key = watch.key
        async with self._room:
            began = time.monotonic()
            try:
                reason = await self._probe(key.ip, key.port, key.check)
            except Exception as error:  # a mistake of ours is no reason to take a target out, nor to stop checking it
                _log.exception("check_failed", address=str(key.ip), port=key.port)
                reason = None if watch.condition.quarters else f"internal error ({error})"
            seconds = time.monotonic() - began
        watch.task = None
        interval = key.check.interval_ms / 1000
        behind = max(0.0, self._loop.time() - at)
        self._schedule(watch, at + max(1, -(-behind // interval)) * interval)
        if self.observer is not None:
            self.observer(Endpoint(key.ip, key.port), key.check, reason is None, seconds)
        self._note(watch, reason)

    def _note(self, watch: _Watch, reason: str | None) -> None:
        before, watch.condition = watch.condition, conditions.after(watch.condition, watch.key.check, reason)
        now = watch.condition
        if (before.health, before.quarters) == (now.health, now.quarters):
            return
        for target in sorted(watch.targets, key=lambda each: (each[0], str(each[1]))):
            self._changed(target, before, now)
        if before.quarters != now.quarters and self._told is None:
            self._told = self._loop.call_later(_GATHER_SEC, self._tell)

    def _tell(self) -> None:
        self._told = None
        self._wake()


def _descriptors() -> int:
    """How many checks may run at once. Each takes a file descriptor: have as many as we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    return max(16, (most if soft == resource.RLIM_INFINITY else soft) - _SPARE_DESCRIPTORS)
