"""What the daemon does when it has a reason to look: bring the kernel to what the files say, or say why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog

from reconciler.errors import ConfigError, RevproxyError
from reconciler.runtime.hold import Hold

if TYPE_CHECKING:
    from reconciler.engine import Engine, View

_FIRST_RETRY_SEC: Final = 1.0
_LAST_RETRY_SEC: Final = 60.0

_log = structlog.get_logger("reconciler")


class Loop:
    """:meth:`look` is called on the worker, whatever the reason, and does the same every time.

    A transient failure is tried again after a growing while; a permanent one only when the files, the host or the
    kernel's state are different from what failed, or when somebody asks for it (SIGHUP).
    """

    def __init__(self, engine: Engine, *, told: Callable[[str], None] = lambda _: None) -> None:
        self._engine, self._told = engine, told
        self._delay_sec = _FIRST_RETRY_SEC
        self._failed: View | None = None
        self._said = ""
        self._first = True
        self.suspended = False
        self.hold = Hold()

    def look(self, reasons: frozenset[str]) -> float | None:
        """Reconcile once. Returns after how many seconds to try again without any other reason, None for never."""
        if self.suspended:
            return None
        if held_sec := self.hold.remaining_sec:
            return held_sec
        first, self._first = self._first, False
        view: View | None = None
        try:
            if first:  # also when the files turn out to be broken
                self._engine.recover(self._engine.observe())
            elif "health" in reasons:  # likewise
                self._engine.steer()
            view = self._engine.view()
            if view.same_situation(self._failed) and "reload" not in reasons:
                return None
            applied = self._engine.commit(view)
        except RevproxyError as error:
            if view is None:
                self._engine.note(error)
            again_sec = self._after(error, view)
            if first and isinstance(error, ConfigError):
                self._fall_back()
            return again_sec
        self._delay_sec, self._failed = _FIRST_RETRY_SEC, None
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
        self._told(f"Synced, revision {applied.revision}")
        return None

    def _after(self, error: RevproxyError, view: View | None) -> float | None:
        """Log what is new about a failure; when to try again."""
        again_sec = None
        if error.transient:
            again_sec, self._delay_sec = self._delay_sec, min(self._delay_sec * 2, _LAST_RETRY_SEC)
        else:
            self._failed = view
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

    def _fall_back(self) -> None:
        """The files are broken, and nothing was live before: better the last good configuration than none."""
        try:
            if self._engine.observe().state.proxies:
                self._engine.adopt()
                return
            applied = self._engine.apply_last_good()
        except RevproxyError as error:
            _log.error("last_good_failed", error=str(error))  # its text says all
            return
        if applied and applied.changes:
            _log.warning("last_good_applied", revision=applied.revision)
