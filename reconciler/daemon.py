"""``revproxyd``: follows the configuration directory and keeps the kernel equal to it.

Here the parts are put together: watcher, netlink, timers, signals and the API all give the one worker reasons to look
or calls to answer; see ``runtime/``. Ending it leaves the data plane as it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn, ParamSpec, TypeVar

import click

from reconciler import __version__, answers
from reconciler.answers import Sync
from reconciler.config.model import Metrics as MetricsSettings
from reconciler.errors import Problem, RevproxyError
from reconciler.places import READ_GROUP, READ_SOCKET, Places, instance_lock
from reconciler.runtime import logs, memory, oneline

if TYPE_CHECKING:
    from reconciler.engine import Engine
    from reconciler.runtime.accesslog import AccessLog
    from reconciler.runtime.exporter import Exporter
    from reconciler.runtime.loop import Loop
    from reconciler.runtime.recorder import Recorder
    from reconciler.runtime.worker import Worker

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")

RESYNC_SEC: Final = 30.0
"""How often it is looked, without any reason, whether anything has changed."""
SWEEP_SEC: Final = 5.0
RECORD_SEC: Final = 1.0
"""How long it may take until connections are recorded after `stats_enabled` went live."""
_LOCK_WAIT_SEC: Final = 10.0  # a command at work ends within that
_PULSE_SEC: Final = 5.0  # a sixth of the unit's WatchdogSec
_STUCK_SEC: Final = 180.0  # a compilation may take two minutes; systemd is not told of a life longer than this


class _EndingError(RevproxyError):
    """The daemon was told to end while it waited for something."""


def _then(wake: Callable[[str], None], command: Callable[P, R]) -> Callable[P, R]:
    """The command, and the loop woken behind it."""

    def run(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return command(*arguments, **options)
        finally:
            wake("command")

    return run


class DaemonCommands:
    """What the API offers: the engine's commands, plus what only a daemon can say or do."""

    def __init__(
        self, engine: Engine, loop: Loop, end: threading.Event, wake: Callable[[str], None] = lambda _: None
    ) -> None:
        from reconciler.runtime.reading import Reading

        self._engine, self._loop, self._end = engine, loop, end
        revisions = engine.revisions
        self.diff, self.plan, self.saved_plan = engine.diff, engine.plan, engine.saved_plan
        self.history = revisions.history
        # Whatever was said, the loop looks at what follows from it, and when it has to look again.
        self.apply, self.rollback = _then(wake, engine.apply), _then(wake, revisions.rollback)
        self.confirm = _then(wake, revisions.confirm)
        self.suspend, self.resume = _then(wake, revisions.suspend), _then(wake, revisions.resume)
        self._reading = reading = Reading(lambda: engine.live.maps.root.parent)
        self.connections, self.connection_count = reading.connections, reading.connection_count
        self.flush, self.stats = engine.flushing, reading.stats
        self.drain, self.undrain, self.draining = engine.drain, engine.undrain, engine.draining
        self.exporter: Exporter | None = None
        self.test, self.explain = engine.test, engine.explain

    def status(self) -> answers.Status:
        """The engine's status, with who answers and what only a daemon does."""
        found = replace(self._engine.status(), pid=os.getpid())
        if self.exporter is None or self.exporter.problem is None:
            return found
        errors = (*found.errors, Problem("", 0, 0, "", self.exporter.problem))
        return replace(found, sync=Sync.DEGRADED, errors=errors)

    def interfaces(self) -> tuple[answers.InterfaceDetail, ...]:
        """Every interface, with what is attached there."""
        from reconciler.interfaces import interfaces

        return interfaces(self._engine)

    def bequeathing(self) -> contextlib.AbstractContextManager[None]:
        """What is started meanwhile may read maps."""
        from reconciler.kernel import privilege

        return privilege.bequeathing()

    def list_command(self, how: Mapping[str, Any]) -> list[str] | None:
        """What lists connections where there are very many; None: :meth:`connections` does."""
        return self._reading.command(how) if self._engine.live.many_connections else None

    def begin_edit(self, seconds: int) -> answers.EditHold:
        """Don't follow the files until :meth:`end_edit`, or for so long."""
        return answers.EditHold(self._loop.hold.take(seconds))

    def end_edit(self, token: str) -> None:
        """Follow them again."""
        self._loop.hold.release(token)

    def down(self) -> answers.TakenDown:
        """Take the data plane off, and end: a daemon that goes on would put it back."""
        self._loop.suspended = True
        try:
            removed = self._engine.down()
        except RevproxyError:
            self._loop.suspended = False
            raise
        self._end.set()
        return removed


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
        from reconciler.answers import Instance
        from reconciler.api.server import Server
        from reconciler.engine import Engine
        from reconciler.kernel.glance import Glance
        from reconciler.runtime.exporter import Exporter
        from reconciler.runtime.loop import Loop
        from reconciler.runtime.metrics import Metrics
        from reconciler.runtime.recorder import Recorder
        from reconciler.runtime.resync import Resync
        from reconciler.runtime.systemd import Notifier
        from reconciler.runtime.watcher import Watcher
        from reconciler.runtime.worker import Timer, Worker

        self._notifier = Notifier.from_environment()
        engine = Engine(self._places, sleep=self._sleep)
        parts.callback(engine.close)
        # A key that signed the files may expire without anything else changing: that takes whole looks.
        glance = None if self._places.require_signed else Glance(lambda: engine.live.maps)
        loop = Loop(engine, told=self._notifier.status, resync=Resync(glance))
        recorder = Recorder(engine.live.maps_directory, engine.events)
        engine.live.ended = recorder.publish
        timers = (
            Timer("sweep", SWEEP_SEC, engine.sweep),
            Timer("record", RECORD_SEC, recorder.align),
            Timer("access_log", RECORD_SEC, lambda: self._note_access_log(engine)),
            Timer("metrics", RECORD_SEC, lambda: self._exporter.align(_metrics_settings(engine))),
            Timer("resync", self._resync_sec, lambda: self._worker.wake("resync")),
        )
        self._worker: Worker = Worker(self._looking(engine, loop, recorder), timers)
        loop.wanted = lambda: self._worker.wanted
        self._metrics = Metrics(lambda: engine.live.maps.root.parent, engine.events)
        self._exporter = Exporter(self._metrics, self._alive, self._ready)
        parts.callback(self._exporter.stop)
        self._log_connections(parts, engine)
        loop.hold.released = lambda: self._worker.wake("edit")
        watcher = Watcher(
            self._places.config_dir, lambda: self._worker.wake("files"), head=bool(self._places.require_signed)
        )
        engine.files.fingerprints.beside = watcher.fingerprints  # it has read what it tells of
        watcher.start()
        parts.callback(watcher.stop)
        self._follow_network(parts, engine)
        self._check_health(parts, engine)
        instance = Instance(
            os.getpid(),
            __version__,
            None if self._command_line else str(self._places.config_dir),
            str(self._places.bpffs_dir),
            tuple(map(str, self._places.require_signed)),
        )
        commands = DaemonCommands(engine, loop, self._end, self._worker.wake)
        commands.exporter = self._exporter
        server = Server(
            self._places.socket,
            commands,
            self._worker.submit,
            instance,
            engine.events,
            read_group=self._read_group,
        )
        self._worker.wake("start")
        self._worker.start()
        parts.callback(self._worker.stop)
        recorder.start()
        parts.callback(recorder.stop)
        server.start()
        parts.callback(server.stop)
        return engine, loop

    def _log_connections(self, parts: contextlib.ExitStack, engine: Engine) -> None:
        """The access log, if there is to be one. It ends after what feeds it."""
        if self._access_log_target is None:
            return
        from reconciler.runtime.accesslog import AccessLog

        self._access_log = AccessLog(self._access_log_target, engine.events)
        self._access_log.start()
        parts.callback(self._access_log.stop)

    def _note_access_log(self, engine: Engine) -> None:
        if self._access_log is not None and engine.config is not None:
            self._access_log.note_settings(engine.config.settings.stats_enabled)

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
        """Have what changes in the network namespace looked at; see :mod:`reconciler.runtime.network`."""
        from reconciler.runtime.network import Follower

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
        self._places.pid.write_text(f"{os.getpid()}\n")
        try:
            yield
        finally:
            self._places.pid.unlink(missing_ok=True)


def _metrics_settings(engine: Engine) -> MetricsSettings:
    """What the files say of metrics; none are served before they were read once."""
    return engine.config.settings.metrics if engine.config else MetricsSettings()


# -- the command line ----------------------------------------------------------------------------------------


def _check_target(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> Sequence[str]:
    for value in values:
        try:
            oneline.parse_target(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
    return values


def _place(name: str, variable: str, default: str, text: str) -> Callable[[F], F]:
    return click.option(
        name, type=click.Path(path_type=Path), metavar="DIR", help=f"{text}  [${variable}, else {default}]"
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@_place("--config-dir", "REVPROXY_CONFIG_DIR", "/etc/revproxy/config.d", "The desired state: YAML and JSON.")
@_place("--run-dir", "REVPROXY_RUN_DIR", "/run/revproxy", "Socket, lock, pid.")
@_place("--state-dir", "REVPROXY_STATE_DIR", "/var/lib/revproxy", "Last good config, history.")
@_place("--bpffs-dir", "REVPROXY_BPFFS_DIR", "/sys/fs/bpf/revproxy", "Pinned maps and programs.")
@click.option(
    "--require-signed",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="KEYRING",
    help="Apply files only if they are those of a git commit that is signed by a key of KEYRING: a GnuPG keyring or"
    " SSH's allowed signers (repeatable).  [$REVPROXY_REQUIRE_SIGNED]",
)
@click.option(
    "--read-group",
    metavar="GROUP",
    envvar=READ_GROUP,
    help=f"Members of GROUP may ask, and change nothing: they use {READ_SOCKET}.  [${READ_GROUP}]",
)
@click.option("--log-format", type=click.Choice(["console", "json"]), default="console", show_default=True)
@click.option("--log-level", type=click.Choice(logs.LEVELS), default="info", show_default=True)
@click.option("--detach-on-exit", is_flag=True, help="Take the data plane off when ending; else it goes on forwarding.")
@click.option(
    "--resync",
    type=click.FloatRange(1, 3600),
    default=RESYNC_SEC,
    show_default=True,
    metavar="SECONDS",
    help="Look that often, without any reason, whether anything was changed that nobody has told of.",
)
@click.option(
    "--access-log",
    metavar="FILE",
    help="A line of JSON for each connection that has ended, with `stats_enabled: true`; -: to stdout.",
)
@click.option("-i", "--interface", "interfaces", multiple=True, metavar="NAME", help="Listen there (repeatable).")
@click.option("-p", "--port", type=click.IntRange(1, 65535), help="Listen on this port.")
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    metavar="IP[:PORT]",
    callback=_check_target,
    help="Forward (repeatable).",
)
@click.option("--protocol", type=click.Choice(["tcp", "udp"]), help="Of -p.  [default: tcp]")
@click.option("--stats", is_flag=True, help="With -i, -p, -t: an event for each connection.")
@click.option("-v", "--verbose", is_flag=True, help="As --log-level debug.")
@click.version_option(__version__, prog_name="revproxyd")
def command(**options: Any) -> None:
    """Keep the kernel's reverse proxy equal to the files in the configuration directory.

    Or, for a first try, to what -i, -p and -t say. SIGHUP: look at the files now, and open the access log anew.
    SIGTERM: end; packets go on being forwarded.
    """
    places = Places.choose(options, require_signed=options["require_signed"])
    by_hand = _by_hand(options)
    if by_hand is not None:
        if places.require_signed:
            raise click.UsageError("-i, -p and -t are in no git commit: --require-signed excludes them")
        places = replace(places, config_dir=places.run_dir / "command-line.d")
    memory.settle()
    logs.set_up(options["log_format"], "debug" if options["verbose"] else options["log_level"])
    from reconciler.kernel import privilege
    from reconciler.runtime.live import check_privileges

    try:
        privilege.lower()
        check_privileges()
        places.prepare_run_dir()
        if by_hand is not None:
            oneline.write(places.config_dir, by_hand)
        Daemon(
            places,
            command_line=by_hand is not None,
            detach_on_exit=options["detach_on_exit"],
            resync_sec=options["resync"],
            access_log=options["access_log"],
            read_group=_group(options["read_group"]),
        ).run()
    except RevproxyError as error:
        _fail(error)


def _group(name: str | None) -> int | None:
    """The number of a group. Raises :class:`RevproxyError` if there is none of that name."""
    import grp

    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise RevproxyError(f"--read-group {name}: there is no such group") from None


def _by_hand(options: Mapping[str, Any]) -> str | None:
    """The configuration that -i, -p and -t make; None if none of them was given."""
    given = {name for name in ("interfaces", "port", "targets", "protocol") if options[name]}
    if not given:
        if options["stats"]:
            raise click.UsageError("--stats goes with -i, -p and -t; in files it is `stats_enabled: true`")
        return None
    if options["config_dir"]:
        raise click.UsageError("--config-dir and -i, -p, -t exclude each other")
    missing = [short for name, short in (("interfaces", "-i"), ("port", "-p"), ("targets", "-t")) if name not in given]
    if missing:
        raise click.UsageError(
            f"without a configuration directory it takes -i, -p and -t: {', '.join(missing)} missing"
        )
    protocol = options["protocol"] or "tcp"
    return oneline.document(
        options["interfaces"], options["port"], options["targets"], protocol, stats=options["stats"]
    )


def _fail(error: RevproxyError) -> NoReturn:
    import structlog

    structlog.get_logger("daemon").error("daemon_failed", error=str(error))
    raise SystemExit(1)


def main() -> NoReturn:
    """Entry point of ``revproxyd``."""
    try:
        command(prog_name="revproxyd")
    except Exception as error:  # a mistake of ours, at start or end: one line for a person, the rest in the log
        import structlog

        structlog.get_logger("daemon").exception("daemon_failed")
        click.echo(f"revproxyd: internal error ({type(error).__name__}: {error})", err=True)
        sys.exit(1)
    sys.exit(0)
