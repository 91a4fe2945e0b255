"""What a person says about revisions: confirm one, go back to one, wait, suspend, resume; and what follows from it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reconciler import answers
from reconciler.config.files import parse_sources
from reconciler.errors import NothingToConfirmError, OverdueError, RevproxyError, UnfinishedError
from reconciler.runtime import clock
from reconciler.runtime.control import LONGEST_SEC, Control, ControlFile, Hold, Unconfirmed, boot_clock, boot_id
from reconciler.runtime.git import Commit
from reconciler.runtime.history import APPLIED
from reconciler.runtime.logger import Logger
from reconciler.runtime.view import Origin

if TYPE_CHECKING:
    from reconciler.places import Places
    from reconciler.runtime.attempts import Attempts
    from reconciler.runtime.commits import Commits
    from reconciler.runtime.history import History
    from reconciler.runtime.view import View
    from reconciler.runtime.views import Views
    from reconciler.state.objects import Observed

SHORTEST_SEC: Final = 1.0
_JUST_NOW_SEC: Final = 60.0
"""``apply --confirm-within`` takes over what the daemon has applied from the same files within that time."""
_CLOCK_SET_SEC: Final = 2.0
"""By more than that the clock on the wall differs from the one that only runs: it was set."""
_HELD: Final = ": the files are applied when they change, or by `apply`"

_log = Logger("revisions")


class Revisions:
    """Remembers what was said, over restarts, and does what follows from it."""

    def __init__(self, views: Views, commits: Commits, attempts: Attempts, places: Places, archive: History) -> None:
        self._views, self._live, self._archive = views, views.live, archive
        self._commits, self._attempts, self._places = commits, attempts, places
        self.file = ControlFile(places.control)

    @property
    def control(self) -> Control:
        """What was said."""
        return self.file.read()

    # -- what files are not applied by themselves ------------------------------------------------------------

    def waiting(self, view: View) -> str:
        """Why the files of ``view`` are not applied by themselves; empty if they are."""
        control = self.control
        hold = control.hold
        if hold and hold.once_beyond != view.observed.revision.number and hold.files == self._views.files.fingerprint():
            return hold.reason
        if view.repairs(self._live.manifest(view.observed.revision)):
            return ""
        unconfirmed = self.unconfirmed(view.observed)
        if unconfirmed:
            return f"revision {unconfirmed.revision} waits for `revproxyctl confirm`, until {unconfirmed.deadline}"
        if view.config.settings.sync == "manual":
            return "sync is manual: `revproxyctl apply` applies the files"
        return ""

    def applied_view(self) -> View | None:
        """Both sides with what is applied in place of the files; None if nothing is. Raises :class:`RevproxyError`."""
        observed = self._views.observe()
        number = observed.revision.number
        if not number:
            return None
        manifest = self._live.manifest(observed.revision)
        sources = self._live.sources(observed.revision)
        if sources is None:  # lost from the kernel
            return self._stored_view(number, "files")
        commit = Commit(manifest.commit, manifest.author or "", manifest.subject or "") if manifest.commit else None
        directory = self._places.revisions / str(number)
        config = parse_sources({str(directory / name): content for name, content in sources.items()})
        return self._views.take(config, Origin("files", stored=True, commit=commit))

    def _stored_view(self, number: int, cause: str) -> View:
        """Both sides with an applied revision's files. Raises :class:`RevproxyError` if they are not kept."""
        entry = self._archive.applied(number)
        commit = Commit(entry.commit, entry.author or "", entry.message or "") if entry.commit else None
        config = parse_sources(self._archive.sources(number))
        return self._views.take(config, Origin(cause, of=number, stored=True, commit=commit))

    def released(self, *, plan_files: bool = False, nothing: bool = False) -> None:
        """The files, or with ``plan_files`` those of a plan, were applied because somebody said so; ``nothing``: they
        hold no proxy, none is live, and that is meant. Raises :class:`RevproxyError` if what follows from it can't be
        remembered."""
        hold = None
        if plan_files:
            hold = Hold(self._views.files.fingerprint(), f"a saved plan with other files was applied{_HELD}")
        down = nothing or (self.control.down and not self._views.observe().exists)
        try:
            self.file.change(lambda now: replace(now, hold=hold, down=down))
        except RevproxyError as error:
            if hold or nothing:
                raise RevproxyError(f"it is applied, but not remembered: {error}") from error
            _log.warning("state_dir_not_written", error=str(error))  # it is applied, and stays so

    # -- going back ------------------------------------------------------------------------------------------

    def history(self) -> tuple[answers.HistoryEntry, ...]:
        """What was applied and refused, oldest first."""
        revision = self._views.observe().revision.number
        return tuple(
            replace(each, current=each.result == APPLIED and each.number == revision)
            for each in self._archive.entries()
        )

    def rollback(self, number: int | None = None) -> answers.Applied:
        """Apply the files of an earlier revision, by default of the one before. The files in the directory are then
        not applied until they change, or ``apply`` is called. Raises :class:`RevproxyError`."""
        self.expire()
        present = self._commits.take_up().revision.number
        if number is None:
            if not present:
                raise RevproxyError("nothing is applied: name the revision to go back to")
            number = self._archive.before(present)
        if number == present:
            raise RevproxyError(f"revision {number} is what is applied")
        view = self._stored_view(number, "rollback")
        self._views.files.signatures.check(view.config.files, view.origin.commit.id if view.origin.commit else "")
        done = self._back(view, f"rolled back to revision {number}")
        _log.info("rolled_back", revision=done.revision, to=number, changes=len(done.changes))
        return done

    def _back(self, view: View, why: str) -> answers.Applied:
        """Commit what was applied before. The files are held first, so that they are also if this is interrupted behind
        the switch; ahead of it the hold counts for nothing."""
        before = self.control
        hold = Hold(self._views.files.fingerprint(), f"{why}{_HELD}")
        self.file.write(replace(before, hold=replace(hold, once_beyond=view.observed.revision.number)))
        made = replace(before, hold=hold, unconfirmed=None, down=False)
        try:
            done = self._attempts.commit(view, allow_empty=True)
        except UnfinishedError:  # it holds all the same
            self.file.write(made)
            raise
        except RevproxyError:
            self.file.write(before)
            raise
        self.file.write(made)
        return done

    # -- confirming ------------------------------------------------------------------------------------------

    def unconfirmed(self, observed: Observed | None = None) -> answers.Unconfirmed | None:
        """The commit that waits to be confirmed, if one does."""
        waiting = self.control.unconfirmed
        if waiting is None:
            return None
        number = (observed or self._views.observe()).revision.number
        if number == waiting.previous:
            return None  # it was never made
        left_sec = waiting.left_sec()
        clock_set = abs(clock.age_sec(waiting.until) + left_sec) > _CLOCK_SET_SEC
        until = clock.after(left_sec) if clock_set else waiting.until
        return answers.Unconfirmed(number, waiting.previous, until, round(left_sec, 3))

    def promise(self, view: View, within_sec: float | None) -> Control:
        """Before a commit: write down that it is rolled back unless it is confirmed, so that also a process that is
        killed right behind the switch leaves a word. Without ``within_sec``, an unconfirmed commit that is already
        there gets its time again. Returns what was there before, for :meth:`withdraw`. Raises
        :class:`RevproxyError`."""
        before = self.control
        former = before.unconfirmed if self.unconfirmed(view.observed) else None
        if within_sec is None and former is None:
            return before
        if within_sec is not None and not SHORTEST_SEC <= within_sec <= LONGEST_SEC:
            raise RevproxyError(
                f"a commit can wait for {SHORTEST_SEC:g} s to {LONGEST_SEC / 86400:g} days to be confirmed"
            )
        seconds = within_sec if within_sec is not None else former.within_sec if former else 0.0
        previous = former.previous if former else self._going_back_to(view)
        if previous is None:
            return before
        if previous:
            self._archive.applied(previous)  # refused now rather than when the time is up
        self._archive.spared = previous
        made = Unconfirmed(previous, seconds, boot_clock() + seconds, boot_id(), clock.after(seconds))
        self.file.write(replace(before, unconfirmed=made))
        return before

    def _going_back_to(self, view: View) -> int | None:
        """The revision before the commit that is about to be made. If that makes none since the daemon was faster, the
        one before that which it has just made; None if nothing was done, or only drift is to be put right."""
        present = view.observed.revision.number
        if view.changes and not view.repairs(self._live.manifest(view.observed.revision)):
            return present
        entry = next((each for each in reversed(self._archive.entries()) if each.result == APPLIED), None)
        if entry is None or (entry.number, entry.cause) != (present, "files"):
            return None
        if self._commits.age_sec(entry) > _JUST_NOW_SEC:
            return None
        before = [each for each in self._archive.entries() if each.result == APPLIED and each.number < present]
        return before[-1].number if before else 0

    def withdraw(self, before: Control, view: View) -> None:
        """The commit of ``view`` that :meth:`promise` was for has failed: what stood there before holds again, unless
        the kernel has taken the commit all the same."""
        if self._views.observe().revision == view.observed.revision:
            self.file.write(before)

    def confirm(self) -> answers.Confirmed:
        """Keep the unconfirmed commit. Raises :class:`NothingToConfirmError` if there is none, or its time is up."""
        self.expire()
        waiting = self.unconfirmed()
        if waiting is None:
            raise NothingToConfirmError("there is nothing to confirm")
        self.file.change(lambda now: replace(now, unconfirmed=None))
        _log.info("commit_confirmed", revision=waiting.revision)
        return answers.Confirmed(waiting.revision)

    def left_sec(self) -> float | None:
        """Seconds until an unconfirmed commit is rolled back; None if there is none."""
        waiting = self.control.unconfirmed
        return None if waiting is None else waiting.left_sec()

    def expire(self) -> answers.Applied | None:
        """Roll an unconfirmed commit back if its time is up; what that did, None if it is not. Raises
        :class:`RevproxyError` if it does not work; the next call tries again."""
        waiting = self.control.unconfirmed
        if waiting is None or waiting.left_sec() > 0:
            return None
        present = self._views.observe().revision.number
        if present == waiting.previous:  # the commit was never made, or is undone already
            over = replace(self.control, unconfirmed=None)
            if not present and waiting.boot != boot_id():  # undone by a start of the machine: not to be made again
                why = f"a commit was not confirmed before the machine was started anew{_HELD}"
                hold = Hold(self._views.files.fingerprint(), why)
                over = replace(over, hold=hold, down=True)
                _log.warning("commit_expired", revision=0, to=0, changes=0)
            self.file.write(over)
            return None
        what = f"revision {present} was not confirmed in time" if present else "a commit was not confirmed in time"
        try:
            if waiting.previous:
                view = self._stored_view(waiting.previous, "expired")
            else:
                view = self._views.take(parse_sources({}), Origin("expired", of=0, stored=True))
            done = self._back(view, f"{what} and was rolled back")
        except UnfinishedError:  # it holds all the same
            raise
        except RevproxyError as error:
            self._note_trouble(error)
            raise
        _log.warning("commit_expired", revision=done.revision, to=waiting.previous, changes=len(done.changes))
        return done

    def _note_trouble(self, error: RevproxyError) -> None:
        """For :meth:`overdue`, in whatever process."""
        with suppress(RevproxyError):  # the one at hand says more
            waiting = self.control.unconfirmed
            if waiting is not None:
                told = replace(waiting, trouble=str(error))
                self.file.change(lambda now: replace(now, unconfirmed=told))

    def overdue(self, observed: Observed) -> RevproxyError | None:
        """An unconfirmed commit was to be rolled back, and that did not work: why."""
        waiting = self.control.unconfirmed
        if waiting is None or not waiting.trouble or waiting.left_sec() > 0 or self.unconfirmed(observed) is None:
            return None
        number = observed.revision.number
        return OverdueError(f"revision {number} was not confirmed in time, and can't be rolled back: {waiting.trouble}")

    # -- suspending ------------------------------------------------------------------------------------------

    def suspend(self) -> answers.Suspension:
        """Stop reconciling: neither files nor drift nor what the host does is acted on. Commands are."""
        since = self.control.suspended or clock.now()
        self.file.change(lambda now: replace(now, suspended=since))
        return answers.Suspension(True, since)

    def resume(self) -> answers.Suspension:
        """Take reconciling up."""
        self.file.change(lambda now: replace(now, suspended=None))
        return answers.Suspension(False)

    def taken_down(self) -> None:
        """Everything was taken out of the kernel: there is nothing to confirm or to hold any more."""
        control = Control(suspended=self.control.suspended, down=True)
        try:
            self.file.write(control)
        except RevproxyError as error:
            _log.warning("state_dir_not_written", error=str(error))
