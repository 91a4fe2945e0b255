"""Live connections that end, because somebody flushes them or they expire, and what was kept only for them, given back
after them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from reconciler.errors import RevproxyError
from reconciler.runtime.logger import Logger
from reconciler.state.plan import housekeeping

if TYPE_CHECKING:
    from reconciler.runtime.commits import Commits
    from reconciler.runtime.revisions import Revisions
    from reconciler.runtime.views import Views
    from reconciler.state.selection import Query

_log = Logger("engine")


class Housekeeping:
    """Of one engine. Where there are very many connections, what they leave waits for a thorough look, which counts
    them all anyway."""

    def __init__(self, views: Views, commits: Commits, revisions: Revisions) -> None:
        self._views, self._live = views, views.live
        self._commits, self._revisions = commits, revisions
        self._owed = False  # something is to be freed, and has waited

    def flushing(self, query: Query) -> Iterator[int]:
        """Forget these connections, in steps of a tenth of a second, each telling how many it has forgotten; then free
        targets and proxies that only they still used."""
        from reconciler.kernel.flushing import Flusher  # only here: it needs bcc

        flusher, total = Flusher(query), 0
        while (flushed := self._live.flush(flusher)) is not None:
            total += flushed
            yield flushed
        if total and self._live.many_connections:
            self._owed = True
        elif total:
            self._free_idle()

    def sweep(self) -> int:
        """Delete expired connections, and free targets and proxies that only they still used; how many were
        deleted."""
        swept = self._live.sweep()
        many = self._live.many_connections
        if (swept and self._views.retired and not many) or self._owed:
            self._owed = False
            self._free_idle()
        return swept

    def _free_idle(self) -> None:
        """What was kept for connections that have ended. While something is to be done, that does it as well."""
        try:
            view = self._views.take(connections_anew=True)
            if view.changes:
                return
            if not self._revisions.control.suspended:
                self._commits.give_back(view)
            if view.observed.unfinished:
                self._commits.recover(view.observed)
            else:
                limits = self._live.limits
                self._live.free(housekeeping(view.desired, view.observed, limits=limits, runtime=view.runtime))
        except RevproxyError as error:
            _log.debug("housekeeping_put_off", error=str(error))
