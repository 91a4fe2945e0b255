"""A view brought into the kernel, by whoever it is for, and what became of the last attempt."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reconciler.answers import Applied, Attempt
from reconciler.errors import ConfigError, KernelError, RevproxyError, TestsFailedError, UnfinishedError
from reconciler.runtime import clock, empty
from reconciler.runtime.control import ControlFile
from reconciler.runtime.logger import Logger

if TYPE_CHECKING:
    from reconciler.places import Places
    from reconciler.runtime.commits import Commits
    from reconciler.runtime.view import View
    from reconciler.runtime.views import Views

_log = Logger("engine")


class Attempts:
    """Makes commits of views, and remembers what ``status`` has to say of the last one: ``latest``, and in ``failure``
    the view and the error if it came to nothing. ``blind``: why the daemon's latest look did not come to a view."""

    def __init__(self, views: Views, commits: Commits, places: Places) -> None:
        self._views, self._commits, self._places = views, commits, places
        self._control = ControlFile(places.control)
        self.latest: Attempt | None = None
        self.failure: tuple[View, RevproxyError] | None = None
        self.blind: RevproxyError | None = None

    def commit(self, view: View, *, allow_empty: bool = False) -> Applied:
        """Make the kernel what a view just taken asks for, all or nothing. Raises :class:`HeldError` for files without
        a proxy while some are live (unless ``allow_empty``), :class:`TransactionError` or :class:`KernelError` if it
        did not work; the kernel is then as it was."""
        try:
            view = self._cleared_up(view)
            if not allow_empty:
                self.hold(view)
            applied = self._commits.run(view)
        except RevproxyError as error:
            self.note(error, view)
            raise
        self._views.live.committed()
        self.failure = self.blind = None
        self.latest = Attempt(
            clock.now(), "applied" if applied.changes else "unchanged", revision=applied.revision, commit=applied.commit
        )
        return applied

    def repair(self, view: View) -> None:
        """The same for a view of what is applied already: it is told of only if it fails. Raises
        :class:`RevproxyError`."""
        try:
            view = self._cleared_up(view)
            self._commits.run(view)
        except RevproxyError as error:
            self.failure = (view, error)
            raise

    def _cleared_up(self, view: View) -> View:
        return self._views.take(view.config, view.origin) if self._commits.recover(view.observed) else view

    def hold(self, view: View) -> None:
        """Raise :class:`HeldError` for a view that would take everything away, or what an emptied file held."""
        empty.hold(view, self._views.live.manifest(view.observed.revision), self._places.config_dir)
        if not self._control.read().down:
            empty.hold_at_boot(view, self._places)

    def note(self, error: RevproxyError, view: View | None = None, cause: str = "apply") -> None:
        """Remember an attempt that came to nothing, or not to its end."""
        result = "held" if isinstance(error, ConfigError) else "failed"
        if isinstance(error, UnfinishedError):
            self.latest = Attempt(clock.now(), "applied", str(error), error.revision)
        else:
            try:
                entry = self._commits.note_refused(error, view, view.origin.cause if view else cause)
                self.latest = Attempt(clock.now(), result, str(error), entry.number, entry.commit)
            except KernelError as unreadable:  # then the history can't say which revision that would have been
                _log.warning("history_not_written", error=str(unreadable))
                self.latest = Attempt(clock.now(), result, str(error))
        self.failure = (view, error) if view else None

    def forget(self) -> None:
        """There is nothing left that an attempt could be about."""
        self.latest = self.failure = self.blind = None

    def standing_failure(self, view: View) -> RevproxyError | None:
        """The error of the last commit, if nothing has changed since and something is still to be done."""
        if not self.failure:
            return None
        failed, error = self.failure
        if not view.changes and not isinstance(error, TestsFailedError):
            return None
        if failed.origin.stored:  # it was not about these files
            view = replace(view, config=failed.config)
        return error if view.same_situation(failed) else None
