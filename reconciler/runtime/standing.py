"""How things stand: the answer of ``status``, and since when each condition is as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler import answers, report
from reconciler.config.model import SyncPolicy
from reconciler.errors import ConfigError, KernelError, MetricsError, Problem, RevproxyError
from reconciler.runtime import clock, statedir
from reconciler.runtime.conditions import Conditions, Situation
from reconciler.runtime.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.places import Places
    from reconciler.runtime.attempts import Attempts
    from reconciler.runtime.commits import Commits
    from reconciler.runtime.lastgood import LastGood
    from reconciler.runtime.revisions import Revisions
    from reconciler.runtime.view import View
    from reconciler.runtime.views import Views
    from reconciler.state.objects import Observed

_log = Logger("engine")


class Standing:
    """Puts together what the parts of one engine know."""

    def __init__(
        self,
        views: Views,
        commits: Commits,
        attempts: Attempts,
        revisions: Revisions,
        last_good: LastGood,
        places: Places,
    ) -> None:
        self._last_good, self._places = last_good, places
        self._views, self._live = views, views.live
        self._commits, self._attempts, self._revisions = commits, attempts, revisions
        self._conditions = Conditions(places.state_dir / "conditions.json")
        self.beside: Callable[[], str | None] = lambda: None
        """What is wrong with metrics, which are no part of what is applied."""

    def status(self, *, keep: bool = False) -> answers.Status:
        """Sync state and what there is. ``keep``: the caller holds the instance lock, so that it is remembered since
        when things are as they are. Errors in the files are part of the answer, errors of the kernel are raised."""
        view: View | None = None
        error: RevproxyError | None = None
        try:
            view = self._views.take()
            self._attempts.hold(view)
        except KernelError:
            raise
        except RevproxyError as found:
            error = found
        if view and error is None:
            error = self._attempts.standing_failure(view) or self._attempts.blind
        observed = view.observed if view else self._views.observe()
        situation = self._situation(view, error, observed)
        error = situation.error
        revision = observed.revision
        per_target, use = self._live.use()
        return answers.Status(
            sync=situation.sync,
            revision=revision.number,
            commit=self._commits.commit_that_says_so(view) if view else self._commits.commit_in_force(observed),
            applied=clock.of_ns(revision.applied_ns) if revision.number else None,
            differences=situation.differences,
            interfaces=report.interfaces(observed, view.desired if view else None),
            proxies=report.proxies(observed, per_target, self._views.steering.health_names(observed)),
            connections=use,
            errors=_problems(error),
            warnings=(
                *(view.warnings if view else report.hidden_warnings(observed)),
                *(self._last_good.warnings(observed) if error else ()),
                *self._commits.ledger.warnings(),
                *statedir.warnings(self._places),
                *report.share_warnings(observed),
                *report.table_warnings(use),
            ),
            attempt=self._attempts.latest,
            conditions=self._conditions.of(situation, keep=keep),
            policy=view.config.settings.sync.value if view else SyncPolicy.AUTO.value,
            waiting=situation.waiting,
            suspended=situation.suspended,
            unconfirmed=situation.unconfirmed,
            drift_repaired=self._commits.drift_repaired,
        )

    def track(self, view: View | None, error: RevproxyError | None) -> None:
        """The daemon has looked, with this result: remember since when things are as they are. ``view`` None: the files
        can't be applied, or it could not even be found out what differs."""
        self._attempts.blind = None if view or isinstance(error, ConfigError) else error
        try:
            observed = view.observed if view else self._views.observe()
            self._conditions.of(self._situation(view, error, observed), keep=True)
        except KernelError as unreadable:
            _log.warning("conditions_not_kept", error=str(unreadable))

    def _situation(self, view: View | None, error: RevproxyError | None, observed: Observed) -> Situation:
        """What the conditions follow from."""
        return Situation(
            differences=len(view.changes) if view else 0,
            error=error or self._revisions.overdue(observed) or self._trouble_beside(),
            waiting=self._revisions.waiting(view) if view else "",
            suspended=self._revisions.control.suspended,
            unconfirmed=self._revisions.unconfirmed(observed),
            absent=view.desired.waiting if view else (),
        )

    def _trouble_beside(self) -> RevproxyError | None:
        trouble = self.beside()
        return MetricsError(trouble) if trouble else None


def _problems(error: RevproxyError | None) -> tuple[Problem, ...]:
    if error is None:
        return ()
    return error.problems if isinstance(error, ConfigError) else (Problem("", 0, 0, "", str(error)),)
