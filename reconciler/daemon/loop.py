"""What the daemon does when it has a reason to look: bring the kernel to what the files say, or say why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reconciler.daemon.hold import Hold
from reconciler.daemon.resync import Resync
from reconciler.errors import ConfigError, KernelError, RevproxyError, TransactionError
from reconciler.runtime.logger import Logger
from reconciler.runtime.view import Origin
from reconciler.trouble import EXPLAINED, explained

if TYPE_CHECKING:
    from reconciler.answers import Applied
    from reconciler.engine import Engine
    from reconciler.runtime.view import View

_FIRST_RETRY_SEC: Final = 1.0
_LAST_RETRY_SEC: Final = 60.0
_EXPIRE_RETRY_SEC: Final = 5.0

_OF_FILES: Final = frozenset({"files", "edit"})
"""Reasons that say nothing of the kernel: then its hundred thousand routes need not be read again."""

_THOROUGH: Final = frozenset({"resync", "reload"})
"""Reasons for which a million connections are read, but not while there is an edit."""

_ASKED: Final = frozenset({"reload"})
_ASKED_OR_LATER: Final = frozenset({"reload", "resync"})

_log = Logger("reconciler")


class Loop:
    """:meth:`look` is called on the worker, whatever the reason, and does the same every time.

    A transient failure is tried again after a growing while; a permanent one only when the files, the host or the
    kernel's state are different from what failed, or when somebody asks for it (SIGHUP). What an interface refused is
    tried at each resync: its driver's reasons (the peer's MTU, offloads, queues) are not all to be seen. Files that are
    broken, or that are not to be applied by themselves, don't keep it from holding what is applied in force.
    """

    def __init__(
        self, engine: Engine, *, told: Callable[[str], None] = lambda _: None, resync: Resync | None = None
    ) -> None:
        self._engine, self._told, self._resync = engine, told, resync or Resync()
        self._delay_sec = _FIRST_RETRY_SEC
        self._failed: View | None = None
        self._again = _ASKED  # reasons to try once more what failed
        self._said = ""
        self._first = True
        self.suspended = False
        self.hold = Hold()
        self.wanted: Callable[[], bool] = lambda: False
        """Whether something waits until a look has come to its end."""

    def look(self, reasons: frozenset[str]) -> float | None:
        """Reconcile once. Returns after how many seconds to try again without any other reason, None for never."""
        if self.suspended:
            return None
        expire_sec = self._expire()
        again_sec = self._steer(reasons) if "health" in reasons or self._engine.steering.to_reset else None
        if self._engine.steering.to_reset and reasons == {"retry"}:
            return _sooner(again_sec, self._until_expiry(expire_sec))  # whatever else waits has its turn in between
        if held_sec := self.hold.remaining_sec:
            return _sooner(_sooner(again_sec, held_sec), self._until_expiry(expire_sec))
        if self._engine.revisions.control.suspended:
            if self._first:
                self._adopt()
            self._told("Suspended")
        else:
            again_sec = _sooner(again_sec, self._reconcile(reasons))
        return _sooner(again_sec, self._until_expiry(expire_sec))

    def _expire(self) -> float | None:
        """Roll an unconfirmed commit back when its time is up, also while suspended."""
        try:
            self._engine.revisions.expire()
        except EXPLAINED as error:
            _log.error("commit_not_expired", error=str(explained(error)), retry_sec=_EXPIRE_RETRY_SEC)
            return _EXPIRE_RETRY_SEC
        return None

    def _until_expiry(self, retry_sec: float | None) -> float | None:
        """When an unconfirmed commit is to be rolled back: at once if its time ran out during this look, but after
        ``retry_sec`` if that was tried and did not work."""
        return self._engine.revisions.left_sec() if retry_sec is None else retry_sec

    def _steer(self, reasons: frozenset[str]) -> float | None:
        """Health holds for what is applied, whatever the files say and whether or not they are followed."""
        steering = self._engine.steering
        try:
            if "health" in reasons:
                self._engine.steer()
            else:
                steering.reset_some()
        except EXPLAINED as error:
            _log.error("shares_not_changed", error=str(explained(error)), retry_sec=_FIRST_RETRY_SEC)
            return _FIRST_RETRY_SEC
        return 0.0 if steering.to_reset else None

    def _adopt(self) -> None:
        """What is applied was so before this process, which is not to follow the files: its targets are checked."""
        try:
            self._engine.adopt()
        except EXPLAINED as error:
            _log.error("checks_not_adopted", error=str(explained(error)))

    def _reconcile(self, reasons: frozenset[str]) -> float | None:
        if self._resync.needless(reasons):
            return None
        first, self._first = self._first, False
        view: View | None = None
        try:
            self._engine.live.hold()  # of a directory that was made since
            if first:  # also when the files turn out to be broken
                self._engine.take_up()
            thorough = bool(reasons & _THOROUGH) and not reasons & _OF_FILES
            view = self._thoroughly() if thorough else None
            view = view or self._engine.view(routes_as_known=not first and reasons <= _OF_FILES)
            self._engine.tend(view.observed)
            waiting = self._engine.revisions.waiting(view)
            if waiting:
                return self._wait(view, waiting, first)
            if view.same_situation(self._failed) and not reasons & self._again:
                return None
            view = replace(view, origin=Origin("files"))
            applied = self._engine.commit(view)
            self._engine.revisions.released()
        except EXPLAINED as raised:
            error = explained(raised)
            if view is None:
                self._engine.note(error, cause="files")
            again_sec = self._after(error, view)
            if isinstance(error, ConfigError):
                self._hold_in_force(first)
            return again_sec
        self._delay_sec, self._failed = _FIRST_RETRY_SEC, None
        self._say_applied(applied, reasons, first)
        if not view.changes:
            self._resync.found_nothing(view)
        self._engine.track(replace(view, changes=()), None)
        self._told(f"Synced, revision {applied.revision}")
        return None

    def _thoroughly(self) -> View | None:
        """Both sides with all connections read; None if somebody waits for us who should not wait so long."""
        from reconciler.kernel.maps import InterruptedReading  # only here: it needs bcc

        try:
            with self._engine.live.interruptible(self.wanted):
                view = self._engine.view(connections_anew=True)
                # What is to be freed is read anew for that as well.
                return self._engine.view() if self._engine.recover(view.observed) else view
        except InterruptedReading:
            return None

    def _say_applied(self, applied: Applied, reasons: frozenset[str], first: bool) -> None:
        if applied.changes:
            _log.info(
                "commit_applied",
                revision=applied.revision,
                commit=applied.commit,
                changes=len(applied.changes),
                operations=applied.operations,
                reasons=sorted(reasons),
            )
            for change in applied.changes:
                _log.debug("object_changed", action=change.action, object=change.object, name=change.name)
        elif self._said:
            _log.info("sync_regained", revision=applied.revision)
        elif first:
            _log.info("state_adopted", revision=applied.revision)
        self._said = ""
        for warning in applied.warnings:
            _log.debug("warning_found", text=str(warning))

    def _wait(self, view: View, waiting: str, first: bool) -> float | None:
        """The files are not applied by themselves."""
        self._engine.track(view, None)
        if waiting != self._said:
            self._said = waiting
            _log.info("files_waiting", reason=waiting, differences=len(view.changes))
        self._hold_in_force(first)
        self._told(f"{'OutOfSync' if view.changes else 'Synced'}: {waiting}")
        return None

    def _hold_in_force(self, first: bool) -> None:
        """The files are not to be applied: put right what differs from what is applied. If nothing is, as after a start
        of the machine, the last good configuration is better than none."""
        try:
            if self._engine.keep_in_force() or not first or self._engine.revisions.control.down:
                return
            if not self._engine.observe().state.proxies:
                applied = self._engine.apply_last_good()
                if applied and applied.changes:
                    _log.warning("last_good_applied", revision=applied.revision)
        except EXPLAINED as error:
            _log.error("last_good_failed", error=str(explained(error)))  # its text says all

    def _after(self, error: RevproxyError, view: View | None) -> float | None:
        """Log what is new about a failure; when to try again."""
        again_sec = None
        if error.transient:
            again_sec, self._delay_sec = self._delay_sec, min(self._delay_sec * 2, _LAST_RETRY_SEC)
        else:
            self._failed = view
            self._again = _ASKED_OR_LATER if _refused_by_interface(error) else _ASKED
        self._engine.track(view, error)
        text = str(error)
        if text != self._said:
            self._said = text
            if isinstance(error, ConfigError):
                for problem in error.problems:
                    _log.error("config_held", problem=str(problem))
            else:
                _log.error("commit_failed", error=text, retry_sec=again_sec)
        self._told("Degraded: " + text.splitlines()[0])
        return again_sec


def _refused_by_interface(error: RevproxyError) -> bool:
    cause = error.cause if isinstance(error, TransactionError) else None
    return isinstance(cause, KernelError) and cause.operation.startswith("attach ")


def _sooner(one: float | None, other: float | None) -> float | None:
    return min((each for each in (one, other) if each is not None), default=None)
