"""Everything the command line does, from Python: through the daemon where one runs, on the kernel where none does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack

from reconciler import answers, edits, selection
from reconciler.api.client import DaemonClient, DeniedError, NoDaemonError
from reconciler.edits import Edits
from reconciler.errors import DaemonError, EditError, LockedError, RevproxyError, UsageError
from reconciler.places import REQUIRE_SIGNED, VARIABLES, Places, instance_lock

if TYPE_CHECKING:
    from reconciler.config.edit import Edit
    from reconciler.engine import Engine
    from reconciler.selection import Filters, Listing

T = TypeVar("T")

_LOCK_WAIT_SEC: Final = 15.0  # a daemon that is starting, or another command at work, is done by then
_LOCK_LOOK_SEC: Final = 0.2
_DRAIN_LOOK_SEC: Final = 0.5
_EDIT_SEC: Final = 180  # longer than the daemon may take to apply an edit

PathLike = str | os.PathLike[str]


class Client(Edits):
    """One instance of revproxy on this host, named by its places (defaults as on the command line).

    ``require_signed``: where no daemon runs, files are applied only if they are those of a git commit that is signed by
    a key of these files (GnuPG keyrings, or ALLOWED SIGNERS of ssh-keygen(1)); a daemon has to require the same.

    Methods raise the exceptions of :mod:`reconciler.errors`. Without a daemon they act on the network namespace of
    the calling thread and need root.
    """

    def __init__(
        self,
        *,
        run_dir: PathLike | None = None,
        config_dir: PathLike | None = None,
        state_dir: PathLike | None = None,
        bpffs_dir: PathLike | None = None,
        require_signed: Sequence[PathLike] = (),
    ) -> None:
        given = {"run_dir": run_dir, "config_dir": config_dir, "state_dir": state_dir, "bpffs_dir": bpffs_dir}
        for name, value in given.items():
            if value is not None:
                _check_path(name, value)
        if not isinstance(require_signed, (list, tuple)):
            raise UsageError(f"require_signed: {require_signed!r} is no list of paths")
        for each in require_signed:
            _check_path("require_signed", each)
        options = {name: None if value is None else Path(value) for name, value in given.items()}
        self._places = Places.choose(options, require_signed=[Path(each) for each in require_signed])
        # Only what somebody asked for can contradict a running daemon; defaults give way to it.
        self._given = {name for name, value in options.items() if value}
        self._asked = self._given | {name for name, variable in VARIABLES.items() if os.environ.get(variable)}
        self._engine: Engine | None = None
        self.progress: Callable[[int, int], None] | None = None
        """Without a daemon: told how many bytes of the files' how many are read, while they are."""

    @property
    def places(self) -> Places:
        """Where the instance keeps its things."""
        return self._places

    def instance(self) -> answers.Instance | None:
        """The daemon that runs for this instance; None if none does."""
        try:
            return DaemonClient(self._places.socket).instance()
        except NoDaemonError:
            return None

    def status(self) -> answers.Status:
        """Whether packets see what the files say, and what there is."""
        return self._read(DaemonClient.status, lambda engine: engine.status(), files=True)

    def diff(self) -> answers.Difference:
        """What differs between the files and the kernel."""
        return self._read(DaemonClient.diff, lambda engine: engine.diff(), files=True, other_files=True)

    def plan(self) -> answers.PlanAnswer:
        """The operations that an apply would do."""
        return self._read(DaemonClient.plan, lambda engine: engine.plan(), files=True, other_files=True)

    def save_plan(self, path: PathLike) -> answers.PlanAnswer:
        """The same as :meth:`plan`, written to a file for :meth:`apply`."""
        saved = self._read(DaemonClient.saved_plan, lambda engine: engine.saved_plan(), files=True, other_files=True)
        try:
            Path(path).write_text(json.dumps(answers.to_json(saved), ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise RevproxyError(f"{path}: {error.strerror}") from error
        return saved.plan

    def apply(
        self,
        plan: PathLike | None = None,
        *,
        allow_empty: bool = False,
        confirm_within_sec: float | None = None,
    ) -> answers.Applied:
        """Bring the kernel to what the files say, all or nothing; with ``plan``, a file of :meth:`save_plan`, exactly
        to what that says, or :class:`StaleError` when the kernel has moved on.

        Without ``allow_empty``, files that hold no proxy are not applied while proxies are live. With
        ``confirm_within_sec`` it is rolled back unless :meth:`confirm` is called in time; without a daemon a process in
        the background sees to that.
        """
        selection.number("confirm_within_sec", confirm_within_sec, whole=False)
        saved = None
        if plan is not None:
            from reconciler.runtime import savedplan

            saved = savedplan.load(Path(plan))
        options: dict[str, Any] = {"allow_empty": allow_empty, "confirm_within_sec": confirm_within_sec, "plan": saved}

        def by_hand(engine: Engine) -> answers.Applied:
            done = engine.apply(**options)
            if done.unconfirmed:
                from reconciler import waiter

                waiter.start(self._places)
            return done

        return self._change(lambda daemon: daemon.apply(**options), by_hand, files=plan is None)

    def confirm(self) -> answers.Confirmed:
        """Keep a commit that was made with ``confirm_within_sec``. Raises :class:`RevproxyError` if none waits."""
        return self._change(DaemonClient.confirm, lambda engine: engine.revisions.confirm())

    def rollback(self, revision: int | None = None) -> answers.Applied:
        """Back to an earlier applied revision, by default to the one before. The files are then not applied until they
        change, or :meth:`apply` is called."""
        selection.number("revision", revision)
        return self._change(
            lambda daemon: daemon.rollback(revision), lambda engine: engine.revisions.rollback(revision)
        )

    def history(self) -> tuple[answers.HistoryEntry, ...]:
        """Revisions that were applied or refused, oldest first."""
        return self._read(DaemonClient.history, lambda engine: engine.revisions.history())

    def suspend(self) -> answers.Suspension:
        """Stop reconciling, until :meth:`resume`; also for a daemon that is started later."""
        return self._change(DaemonClient.suspend, lambda engine: engine.revisions.suspend())

    def resume(self) -> answers.Suspension:
        """Take reconciling up."""
        return self._change(DaemonClient.resume, lambda engine: engine.revisions.resume())

    def connections(self, **how: Unpack[Listing]) -> tuple[answers.Connection, ...]:
        """Live connections. ``how``, all of it optional: ``proxy``: only of this one; ``target``: only to this one
        (``IP[:PORT]``); ``client``: only from this one (``IP[:PORT]`` or a network); ``state``: only in this one (syn,
        unreplied, established, closing, closed). ``sort``: age, idle, bytes, packets (the largest first), client,
        target, proxy or state. ``limit``: at most so many, the first of that order."""
        return tuple(self.each_connection(**how))

    def each_connection(self, **how: Unpack[Listing]) -> Iterator[answers.Connection]:
        """The same one by one, as they are read: for so many that they are not to be held."""
        return map(answers.Connection.from_line, self.connection_lines(**how))

    def connection_lines(self, **how: Unpack[Listing]) -> Iterator[str]:
        """The same, each as an object of JSON, for those who only pass them on."""
        selection.listing(how)
        return self._read(
            lambda daemon: daemon.connections(**how),
            lambda engine: chain.from_iterable(engine.connections(**how)),
        )

    def connection_count(self, **filters: Unpack[Filters]) -> int:
        """How many :meth:`connections` would give; ``proxy``, ``target``, ``client``, ``state`` as there."""
        selection.query(filters)
        return self._read(
            lambda daemon: daemon.connection_count(**filters), lambda engine: engine.connection_count(**filters)
        )

    def flush_connections(self, **filters: Unpack[Filters]) -> int:
        """Forget live connections, chosen by ``proxy``, ``target``, ``client``, ``state`` as :meth:`connections` does:
        their next packets are decided anew. Returns how many."""
        selection.query(filters)
        return self._change(lambda daemon: daemon.flush(**filters), lambda engine: engine.flush(**filters))

    def events(
        self, *, follow: bool = True, kinds: Sequence[str] = (), proxy: str | None = None
    ) -> Iterator[answers.Event]:
        """Events as they happen, until the daemon ends; with ``follow`` False those that it remembers. ``kinds``: only
        these (connection_opened, connection_closed, config_applied, ...); ``proxy``: only of this one. Nothing that
        happens after the call is missed. Raises :class:`DaemonError` if no daemon runs: nobody else remembers."""
        kinds = sorted(selection.event_kinds(kinds))
        try:
            return self._daemon(files=False).events(follow=follow, kinds=kinds, proxy=proxy)
        except NoDaemonError as error:
            raise NoDaemonError(f"{error}: events are told by a running revproxyd only") from error

    def drain(
        self,
        target: str,
        *,
        proxy: str | None = None,
        wait: bool = False,
        timeout_sec: float | None = None,
        told: Callable[[answers.Draining], None] = lambda _: None,
    ) -> answers.Draining:
        """No new connections to a target (``IP:PORT``, or ``IP`` for each of its ports), in one proxy or in all, until
        :meth:`undrain`; those that are there go on.

        With ``wait``, returns once none is left, or after ``timeout_sec``: ``done`` of the answer tells which. The
        target stays drained then. ``told`` is called with each look meanwhile. Waiting goes on when the daemon is
        restarted.
        """
        selection.drain(target, proxy)
        found = self._change(
            lambda daemon: daemon.drain(target, proxy=proxy), lambda engine: engine.drain(target, proxy=proxy)
        )
        deadline, took = None if timeout_sec is None else time.monotonic() + timeout_sec, 0.0
        while wait:
            told(found)
            rest = max(_DRAIN_LOOK_SEC, 3 * took)  # with a million connections a look takes seconds
            left = rest if deadline is None else min(rest, deadline - time.monotonic())
            if found.done or left <= 0:
                break
            time.sleep(left)
            looked = time.monotonic()
            found = self.draining(target, proxy=proxy)
            took = time.monotonic() - looked
        return found

    def undrain(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        """Take :meth:`drain` back: new connections again."""
        selection.drain(target, proxy)
        return self._change(
            lambda daemon: daemon.undrain(target, proxy=proxy), lambda engine: engine.undrain(target, proxy=proxy)
        )

    def draining(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        """How far a drain is."""
        selection.drain(target, proxy)
        return self._read(
            lambda daemon: daemon.draining(target, proxy=proxy), lambda engine: engine.draining(target, proxy=proxy)
        )

    def stats(self) -> answers.Stats:
        """Totals, per proxy, per target, and dropped packets by reason."""
        return self._read(DaemonClient.stats, lambda engine: engine.stats())

    def connection_stats(self) -> answers.Stats:
        """The same as :meth:`stats`."""
        return self.stats()

    def interfaces(self) -> tuple[answers.InterfaceDetail, ...]:
        """Every interface of this network namespace: what is attached, how, and what of others' is in the way."""
        from reconciler.interfaces import interfaces

        return self._read(DaemonClient.interfaces, interfaces, files=True)

    def doctor(self) -> answers.Diagnosis:
        """What can keep it from working here. Looks by itself, from the calling thread's network namespace, whether a
        daemon runs or not; without root it says what it could not check."""
        from reconciler.doctor import diagnose
        from reconciler.doctor.look import look

        pid, trouble, failure = None, "", ""
        try:
            if instance := self.instance():
                pid = instance.pid
                failure = "; ".join(
                    each.message for each in DaemonClient(self._places.socket).status().errors if not each.file
                )
        except DaemonError as error:
            trouble = str(error)
        except RevproxyError as error:
            failure = str(error)
        return diagnose(look(self._places, pid, trouble, failure))

    def test(self) -> answers.Tested:
        """Run the ``tests:`` of the files in the kernel, by the real programs, on what packets see now. Where
        ``sync`` of the answer is not Synced, that is something else than what the files say."""
        return self._change(DaemonClient.test, lambda engine: engine.test(), files=True)

    def explain(
        self, source: str, to: str, *, protocol: str = "tcp", interface: str | None = None
    ) -> answers.Explanation:
        """What the data plane does now with a packet from ``source`` (``IP`` or ``IP:PORT``) to ``to`` (``IP:PORT``):
        by a run of the real programs. ``interface``: by which it comes in, if that is not clear."""
        selection.text("--from", source)
        selection.text("--to", to)
        return self._change(
            lambda daemon: daemon.explain(source, to, protocol=protocol, interface=interface),
            lambda engine: engine.explain(source, to, protocol=protocol, interface=interface),
        )

    def down(self) -> answers.TakenDown:
        """Detach and remove everything this instance put into the kernel; a running daemon ends."""
        return self._change(DaemonClient.down, lambda engine: engine.down())

    # -- editing the files ---------------------------------------------------------------------------------

    def _edit(self, wanted: Edit, *, apply: bool, allow_empty: bool = False) -> answers.Edited:
        from reconciler.runtime import editfiles

        if not apply:
            return edits.answer(wanted, editfiles.carry_out(self._config_dir(), wanted, None))
        return self._change(
            lambda daemon: self._edit_held(daemon, wanted, allow_empty),
            lambda engine: edits.answer(
                wanted,
                editfiles.carry_out(self._places.config_dir, wanted, lambda: engine.apply(allow_empty=allow_empty)),
            ),
            files=True,
        )

    def _edit_held(self, daemon: DaemonClient, wanted: Edit, allow_empty: bool) -> answers.Edited:
        from reconciler.runtime import editfiles

        directory = self._config_dir()
        with daemon.held(_EDIT_SEC, wait_sec=_LOCK_WAIT_SEC):
            done = editfiles.carry_out(directory, wanted, lambda: daemon.apply(allow_empty=allow_empty))
        return edits.answer(wanted, done)

    def _config_dir(self) -> Path:
        """The directory that counts: the running daemon's, if one runs. Raises :class:`EditError` if it has none."""
        instance = self.instance()
        if instance is None:
            return self._places.config_dir
        self._agree(instance, "config_dir", instance.config_dir)
        if instance.config_dir is None:
            raise EditError(f"revproxyd (process {instance.pid}) has its configuration on the command line: no file")
        return Path(instance.config_dir)

    def _files_dir(self) -> Path:
        try:
            return self._config_dir()
        except DeniedError:  # reading the files takes no root: then those at our own places
            return self._places.config_dir

    # -- which way -----------------------------------------------------------------------------------------

    def _read(
        self,
        by_daemon: Callable[[DaemonClient], T],
        by_hand: Callable[[Engine], T],
        *,
        files: bool = False,
        other_files: bool = False,
    ) -> T:
        """``other_files``: if the files that were named are not the daemon's, compare them with the kernel here."""
        try:
            if other_files and self._are_other_files(DaemonClient(self._places.socket).instance()):
                self._daemon(files=False)  # the kernel's side has to be the daemon's all the same
                return by_hand(self._direct())
            return by_daemon(self._daemon(files=files))
        except NoDaemonError:
            return by_hand(self._direct())

    def _change(
        self, by_daemon: Callable[[DaemonClient], T], by_hand: Callable[[Engine], T], *, files: bool = False
    ) -> T:
        try:
            return by_daemon(self._daemon(files=files))
        except NoDaemonError:
            pass
        engine = self._direct()  # before the lock, so that who may do nothing is told so
        until = time.monotonic() + _LOCK_WAIT_SEC
        with ExitStack() as lock:
            while True:
                try:
                    lock.enter_context(instance_lock(self._places, wait_sec=_LOCK_LOOK_SEC))
                    break
                except LockedError as locked:
                    # The holder may be a daemon that has come up meanwhile.
                    try:
                        return by_daemon(self._daemon(files=files))
                    except NoDaemonError:
                        if time.monotonic() >= until:
                            raise locked from None
            lock.callback(engine.live.let_go)
            engine.live.hold(wait_sec=_LOCK_WAIT_SEC)
            return by_hand(engine)

    def _daemon(self, *, files: bool) -> DaemonClient:
        """The daemon, if one runs. Raises :class:`DaemonError` if it is not of the places that were asked for;
        ``files``: that of the files matters too."""
        daemon = DaemonClient(self._places.socket)
        instance = daemon.instance()
        self._agree(instance, "bpffs_dir", instance.bpffs_dir)
        # A daemon with its configuration on the command line disregards REVPROXY_CONFIG_DIR, and so do we then.
        if files and (instance.config_dir is not None or "config_dir" in self._given):
            self._agree(instance, "config_dir", instance.config_dir)
        if files:
            self._agree_on_keys(instance)
        return daemon

    def _are_other_files(self, instance: answers.Instance) -> bool:
        theirs = instance.config_dir
        return "config_dir" in self._given and (theirs is None or not _same(Path(theirs), self._places.config_dir))

    def _agree(self, instance: answers.Instance, name: str, theirs: str | None) -> None:
        ours, option = getattr(self._places, name), "--" + name.replace("_", "-")
        if name in self._asked and (theirs is None or not _same(Path(theirs), ours)):
            raise DaemonError(
                f"revproxyd (process {instance.pid}) runs in {self._places.run_dir} with"
                f" {f'{option} {theirs}' if theirs else 'its configuration on the command line'}, not with {ours};"
                " for another instance, give its --run-dir"
            )

    def _agree_on_keys(self, instance: answers.Instance) -> None:
        ours, theirs = {os.path.realpath(each) for each in self._places.require_signed}, instance.require_signed
        if ours and ours != {os.path.realpath(each) for each in theirs}:
            keys = f"with --require-signed {' '.join(theirs)}" if theirs else "without --require-signed"
            raise DaemonError(
                f"revproxyd (process {instance.pid}) runs {keys}, not with that of the command line or {REQUIRE_SIGNED}"
            )

    def _direct(self) -> Engine:
        if self._engine is None:
            from reconciler.engine import Engine  # only now: it needs root, bcc and a kernel
            from reconciler.runtime.logger import when_used

            when_used(_quiet)
            self._engine = Engine(self._places)
            self._engine.files.show_progress(self.progress)
        return self._engine


def _quiet() -> None:
    from reconciler.runtime import logs

    logs.quiet()


def _same(one: Path, other: Path) -> bool:
    return one == other or os.path.realpath(one) == os.path.realpath(other)


def _check_path(name: str, value: object) -> None:
    if not isinstance(value, (str, os.PathLike)):
        raise UsageError(f"{name}: {value!r} is no path")
    if not os.fspath(value):
        raise UsageError(f"{name} is empty; leave it out for the default")
