"""A revision that is in force without a line in the history: whoever made it was killed before it could write one.
Without it, `rollback` would pass over it, and `apply --confirm-within` would have nothing to go back to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.answers import HistoryEntry
from reconciler.config.files import parse_sources
from reconciler.errors import RevproxyError
from reconciler.runtime import clock
from reconciler.runtime.history import APPLIED
from reconciler.runtime.logger import Logger

if TYPE_CHECKING:
    from reconciler.runtime.history import History
    from reconciler.runtime.live import Live
    from reconciler.state.objects import Observed

_log = Logger("history")


def record(live: Live, archive: History, observed: Observed) -> None:
    """Write the line, and keep the files, if what is in force has none: the kernel knows both. The cause is "found"."""
    revision = observed.revision
    if revision.number <= archive.last_number:
        return
    manifest, sources = live.manifest(revision), live.sources(revision)
    if sources is None:
        return
    entry = HistoryEntry(revision.number, clock.of_ns(revision.applied_ns), APPLIED, "found", manifest.commit)
    entry = replace(entry, author=manifest.author, message=manifest.subject, files=_differing(archive, sources))
    try:
        archive.keep(revision.number, parse_sources(sources).files)
        archive.add(entry)
    except (OSError, RevproxyError) as error:
        _log.warning("history_not_written", revision=revision.number, error=str(error))
        return
    _log.warning("revision_found", revision=revision.number)


def _differing(archive: History, sources: Mapping[str, bytes]) -> tuple[str, ...]:
    """Names of the files that differ from those of the latest revision in the history."""
    former: dict[str, bytes] = {}
    if number := archive.last_number:
        try:
            former = {Path(path).name: content for path, content in archive.sources(number).items()}
        except RevproxyError:
            former = {}  # not kept any more: then all of them are told
    return tuple(sorted(name for name in former.keys() | sources.keys() if former.get(name) != sources.get(name)))
