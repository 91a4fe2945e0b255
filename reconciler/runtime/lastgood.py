"""What was applied last, put in force after a start of the machine with files that can't be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.config import files as config_files
from reconciler.errors import Problem, RevproxyError
from reconciler.runtime.history import APPLIED
from reconciler.runtime.view import Origin

if TYPE_CHECKING:
    from reconciler import answers
    from reconciler.places import Places
    from reconciler.runtime.commits import Commits
    from reconciler.runtime.history import History
    from reconciler.runtime.views import Views
    from reconciler.state.objects import Observed

CAUSE = "last-good"


class LastGood:
    """Of one instance. ``trouble``: why that did not work in this process."""

    def __init__(self, views: Views, commits: Commits, archive: History, places: Places) -> None:
        self._views, self._commits, self._archive, self._places = views, commits, archive, places
        self.trouble = ""

    def apply(self) -> answers.Applied | None:
        """Put it in force. None where nothing was ever applied. Raises :class:`RevproxyError`."""
        number = self._archive.last_number
        try:
            directory = self._archive.last_good()
            if directory is None:
                if number:
                    raise RevproxyError(f"the files of revision {number} are not in {self._places.state_dir} any more")
                return None
            applied = self._commits.run(self._views.take(config_files.load(directory), Origin(CAUSE, number or None)))
        except RevproxyError as error:
            self.trouble = str(error)
            raise
        self.trouble = ""
        return applied

    def warnings(self, observed: Observed) -> tuple[Problem, ...]:
        """While the files can't be applied: that it is in force, or why it is not."""
        number = observed.revision.number
        entry = next(
            (each for each in self._archive.entries() if (each.number, each.result) == (number, APPLIED)), None
        )
        if entry is not None and entry.cause == CAUSE:
            of = f"revision {entry.of}, the last good one" if entry.of else "the last good revision"
            return (Problem("", 0, 0, "", f"in force is {of}: the files could not be applied when revproxyd started"),)
        if self.trouble and not observed.state.proxies:
            return (Problem("", 0, 0, "", f"nothing is in force: what was applied last can't be: {self.trouble}"),)
        return ()
