"""The daemon's process: watcher, netlink, timers, signals and the API all give the one worker reasons to look or calls
to answer. Ending it leaves the data plane as it is."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from reconciler import __version__
from reconciler.config.model import Metrics as MetricsSettings
from reconciler.daemon import memory
from reconciler.daemon.commands import DaemonCommands
from reconciler.errors import KernelError, RevproxyError
from reconciler.places import Places, instance_lock
from reconciler.runtime.logger import Logger

if TYPE_CHECKING:
    from reconciler.api.server import Server
    from reconciler.daemon.accesslog import AccessLog
    from reconciler.daemon.loop import Loop
    from reconciler.daemon.recorder import Recorder
    from reconciler.daemon.resync import Resync
    from reconciler.daemon.worker import Timer, Worker
    from reconciler.engine import Engine

RESYNC_SEC: Final = 30.0
"""How often it is looked, without any reason, whether anything has changed."""
SWEEP_SEC: Final = 5.0
RECORD_SEC: Final = 1.0
"""How long it may take until connections are recorded after `stats_enabled` went live."""
_LOCK_WAIT_SEC: Final = 10.0  # a command at work ends within that
_PULSE_SEC: Final = 5.0  # a sixth of the unit's WatchdogSec
_STUCK_SEC: Final = 180.0  # a compilation may take two minutes; systemd is not told of a life longer than this

_log = Logger("daemon")


class _EndingError(RevproxyError):
    """The daemon was told to end while it waited for something."""


class Daemon:
    """One running ``revproxyd``. :meth:`run` returns when it was told to end."""

    def __init__(
        self,
        places: Places,
        *,
        command_line: bool = False,
        detach_on_exit: bool = False,
        resync_sec: float = RESYNC_SEC,
        access_log: str | None = None,
        read_group: int | None = None,
    ) -> None:
        self._places, self._command_line, self._detach_on_exit = places, command_line, detach_on_exit
        self._resync_sec, self._read_group = resync_sec, read_group
        self._access_log_target = access_log
        self._access_log: AccessLog | None = None
        self._end = threading.Event()
        self._no_socket = ""

    def run(self) -> None:
        """Take the lock, reconcile, serve. Raises :class:`RevproxyError` if it can't start or can't detach."""
        import structlog

        log = structlog.get_logger("daemon")
        with instance_lock(self._places, wait_sec=_LOCK_WAIT_SEC):
            self._catch_signals()
            with self._pid_file(), contextlib.ExitStack() as parts:
                engine, loop = self._start(parts)
                log.info(
                    "daemon_started",
                    version=__version__,
                    config_dir=str(self._places.config_dir),
                    run_dir=str(self._places.run_dir),
                )
                while not self._end.wait(_PULSE_SEC):
                    if self._worker.busy_sec < _STUCK_SEC:
                        self._notifier.alive()
                    self._tend_sockets()
                log.info("daemon_stopping")
                self._notifier.stopping()
            # Everything that could give the worker a reason has ended, and the worker has.
            if self._detach_on_exit and not loop.suspended:
                removed = engine.down()
                log.info("data_plane_removed", removed=len(removed.removed))
            elif not loop.suspended:
                log.info("data_plane_left", hint="it goes on forwarding; `revproxyctl down` takes it off")

    # -- parts ---------------------------------------------------------------------------------------------

    def _start(self, parts: contextlib.ExitStack) -> tuple[Engine, Loop]:
        """Start everything; ``parts`` ends it in reverse order."""
        from reconciler.daemon.exporter import Exporter
        from reconciler.daemon.loop import Loop
        from reconciler.daemon.metrics import Metrics
        from reconciler.daemon.recorder import Recorder
        from reconciler.daemon.resync import Resync
        from reconciler.daemon.systemd import Notifier
        from reconciler.daemon.worker import Worker
        from reconciler.engine import Engine
        from reconciler.kernel.glance import Glance

        self._notifier = Notifier.from_environment()
        engine = Engine(self._places, sleep=self._sleep)
        parts.callback(engine.close)
        with contextlib.suppress(KernelError, OSError):  # what can't be reached is told by each look, and tried again
            engine.live.hold(wait_sec=_LOCK_WAIT_SEC)
        # A key that signed the files may expire without anything else changing: that takes whole looks.
        glance = None if self._places.require_signed else Glance(lambda: engine.live.maps)
        resync = Resync(glance)
        loop = Loop(engine, told=self._notifier.status, resync=resync)
        recorder = Recorder(engine.live.maps_directory, engine.events)
        engine.live.ended, engine.live.renaming = recorder.publish, recorder.renew_names
        engine.live.committed = recorder.commit_holds
        self._worker: Worker = Worker(self._looking(engine, loop, recorder), self._timers(engine, recorder, resync))
        loop.wanted = lambda: self._worker.wanted
        self._metrics = Metrics(lambda: engine.live.maps.root.parent, engine.events)
        self._exporter = Exporter(self._metrics, self._alive, self._ready)
        parts.callback(self._exporter.stop)
        engine.standing.beside = lambda: self._exporter.problem
        self._log_connections(parts, engine)
        loop.hold.released = lambda: self._worker.wake("edit")
        self._follow_files(parts, engine)
        self._follow_network(parts, engine)
        self._check_health(parts, engine)
        self._api = server = self._server(engine, loop)
        self._worker.wake("start")
        self._worker.start()
        parts.callback(self._worker.stop)
        recorder.start()
        parts.callback(recorder.stop)
        server.start()
        parts.callback(server.stop)
        return engine, loop

    def _timers(self, engine: Engine, recorder: Recorder, resync: Resync) -> tuple[Timer, ...]:
        """What comes again and again."""
        from reconciler.daemon.worker import Timer

        return (
            Timer("sweep", SWEEP_SEC, engine.sweep),
            Timer("record", RECORD_SEC, recorder.align, lambda: recorder.may_differ),
            Timer(
                "access_log", RECORD_SEC, lambda: self._note_access_log(engine), lambda: self._access_log is not None
            ),
            Timer(
                "metrics",
                RECORD_SEC,
                lambda: self._exporter.align(_metrics_settings(engine)),
                lambda: self._exporter.differs(_metrics_settings(engine)),
            ),
            Timer("resync", self._resync_sec, lambda: self._worker.wake("resync"), rest_sec=resync.rest_sec),
        )

    def _tend_sockets(self) -> None:
        """Told once, not every few seconds, if one can't be made again."""
        try:
            self._api.tend()
            self._no_socket = ""
        except RevproxyError as error:
            if str(error) != self._no_socket:
                self._no_socket = str(error)
                _log.error("socket_not_made_again", error=str(error))

    def _server(self, engine: Engine, loop: Loop) -> Server:
        """Of the API, not started yet."""
        from reconciler.answers import Instance
        from reconciler.api.server import Server

        instance = Instance(
            os.getpid(),
            __version__,
            None if self._command_line else str(self._places.config_dir),
            str(self._places.bpffs_dir),
            tuple(map(str, self._places.require_signed)),
        )
        commands = DaemonCommands(engine, loop, self._end, self._worker.wake)
        return Server(
            self._places.socket,
            commands,
            self._worker.submit,
            instance,
            engine.events,
            read_group=self._read_group,
        )

    def _follow_files(self, parts: contextlib.ExitStack, engine: Engine) -> None:
        """Have changes of the files looked at; see :mod:`reconciler.daemon.watcher`."""
        from reconciler.daemon.watcher import Watcher

        watcher = Watcher(
            self._places.config_dir, lambda: self._worker.wake("files"), head=bool(self._places.require_signed)
        )
        engine.files.fingerprints.beside = watcher.fingerprints  # it has read what it tells of
        watcher.start()
        parts.callback(watcher.stop)

    def _log_connections(self, parts: contextlib.ExitStack, engine: Engine) -> None:
        """The access log, if there is to be one. It ends after what feeds it."""
        if self._access_log_target is None:
            return
        from reconciler.daemon.accesslog import AccessLog

        self._access_log = AccessLog(self._access_log_target, engine.events)
        self._access_log.start()
        parts.callback(self._access_log.stop)

    def _note_access_log(self, engine: Engine) -> None:
        if self._access_log is not None and engine.settings is not None:
            self._access_log.note_settings(engine.settings.stats_enabled)

    def _alive(self) -> str | None:
        """What keeps this process from doing its work."""
        busy_sec = self._worker.busy_sec
        return None if busy_sec < _STUCK_SEC else f"the worker has been at one thing for {busy_sec:.0f} s"

    def _ready(self) -> str | None:
        """Why packets are not served as they should be yet."""
        attempt = self._metrics.attempt
        if attempt is None:
            return "the first reconcile has not finished"
        if attempt.result in ("held", "failed") and not self._metrics.revision():
            return f"no configuration is live: {attempt.message}"
        return None

    def _looking(self, engine: Engine, loop: Loop, recorder: Recorder) -> Any:
        """The loop's look, with systemd told when the first one, or a reload, has finished."""
        first, changed = True, False

        def look(reasons: frozenset[str]) -> float | None:
            nonlocal first, changed
            if "reload" in reasons:
                self._notifier.reloading()
            started, before = time.monotonic(), engine.attempt
            try:
                return loop.look(reasons)
            except _EndingError:
                return None
            finally:
                attempt = engine.attempt if engine.attempt is not before else None
                recorder.note_look()
                self._metrics.note_look(attempt, time.monotonic() - started, time.time())
                changed |= attempt is not None and attempt.result != "unchanged"
                if first or (changed and "resync" in reasons):
                    changed = False
                    memory.give_back()  # the first reading takes ten times what stays of it
                if first or "reload" in reasons:
                    first = False
                    self._notifier.ready(f"following {self._places.config_dir}")

        return look

    def _follow_network(self, parts: contextlib.ExitStack, engine: Engine) -> None:
        """Have what changes in the network namespace looked at; see :mod:`reconciler.daemon.network`."""
        from reconciler.daemon.network import Follower

        follower = Follower(self._worker, engine.forget_ways)
        follower.start()
        parts.callback(follower.stop)

    def _check_health(self, parts: contextlib.ExitStack, engine: Engine) -> None:
        """Have targets checked, and what comes of it looked at."""
        from reconciler.runtime.health.checker import Checker

        checker = Checker(lambda: self._worker.wake("health"), engine.steering.health_changed)
        engine.steering.checker = checker
        observe = self._metrics.health_checks()
        checker.observer = lambda _target, check, passed, seconds: observe(str(check.type), passed, seconds)
        self._metrics.health_states(checker.conditions)
        checker.start()
        parts.callback(checker.stop)

    # -- the process ---------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        def end(_number: int, _frame: FrameType | None) -> None:
            self._end.set()

        def reload(_number: int, _frame: FrameType | None) -> None:
            worker = getattr(self, "_worker", None)
            if worker is not None:
                worker.wake("reload")
            if self._access_log is not None:
                self._access_log.reopen()

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        signal.signal(signal.SIGHUP, reload)

    def _sleep(self, seconds: float) -> None:
        """Wait while files are written; a daemon that is to end does not wait."""
        if self._end.wait(seconds):
            raise _EndingError("revproxyd is ending")

    @contextlib.contextmanager
    def _pid_file(self) -> Iterator[None]:
        try:
            self._places.pid.write_text(f"{os.getpid()}\n")
        except OSError as error:  # a full disk shows in writing, which does not know the file's name
            error.filename = str(self._places.pid)
            raise
        try:
            yield
        finally:
            self._places.pid.unlink(missing_ok=True)


def _metrics_settings(engine: Engine) -> MetricsSettings:
    """What is in force says of metrics; none are served before that is known."""
    return engine.settings.metrics if engine.settings else MetricsSettings()
