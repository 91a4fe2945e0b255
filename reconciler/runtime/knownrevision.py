"""Which revision is in force, known also when somebody has been at the map that says it or at the manifest behind it:
this process remembers what it has made or found, and the history what was applied last."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.errors import RevproxyError
from reconciler.runtime import clock
from reconciler.runtime.history import APPLIED
from reconciler.state.objects import Revision

if TYPE_CHECKING:
    from reconciler.answers import HistoryEntry
    from reconciler.kernel.store import Manifest
    from reconciler.runtime.history import History
    from reconciler.runtime.live import Live
    from reconciler.state.objects import Observed


class KnownRevision:
    """Of one instance, for one process."""

    def __init__(self, live: Live, archive: History) -> None:
        self._live, self._archive = live, archive
        self._known: Revision | None = None

    def made(self, revision: Revision | None) -> None:
        """This one was just committed; None: it is not sure what is in force."""
        self._known = revision

    def supplement(self, observed: Observed) -> Observed:
        """With the revision that is in force in place of one that the kernel's map says wrongly. One that nobody knows
        any more is number 0, as before the first."""
        if not observed.exists:
            self._known = None
            return observed
        said = observed.revision
        if self._known is None or self._other_commit(observed):
            self._known = self._found(observed)
        if self._known is None:
            return replace(observed, revision=Revision(), revision_said=said)
        if self._known == said:
            return observed
        manifest = self._live.manifest(self._known)
        needed = {self._known.manifest, *(file.digest for file in manifest.files)}
        lost = bool(self._known.manifest) and not needed <= observed.blobs
        return replace(observed, revision=self._known, revision_said=said, files_lost=lost)

    def _other_commit(self, observed: Observed) -> bool:
        """Another process has made one: it has another manifest, which is there."""
        said = observed.revision
        return said.manifest != (self._known or said).manifest and said.manifest in observed.blobs

    def _found(self, observed: Observed) -> Revision | None:
        """What the kernel says if that can be, else what the history has to say of it."""
        said = observed.revision
        if said.manifest and said.number and said.manifest in observed.blobs:
            return said
        if not observed.state.proxies:
            return said
        entry = next((each for each in reversed(self._archive.entries()) if each.result == APPLIED), None)
        manifest = self._recorded(entry) if entry else None
        if entry is None or manifest is None:
            return said if said.number else None
        digest = self._live.remember(manifest)
        if digest == said.manifest and said.number:
            return said
        if digest not in observed.blobs:
            return said if said.number else None
        return Revision(entry.number, clock.ns_of(entry.time), digest)

    def _recorded(self, entry: HistoryEntry) -> Manifest | None:
        """What that revision was made from, as the history has it."""
        from reconciler.kernel.store import Manifest, ManifestFile, digest_of

        try:
            sources = self._archive.sources(entry.number)
        except RevproxyError:
            return None
        files = tuple(ManifestFile(Path(path).name, digest_of(content)) for path, content in sources.items())
        return Manifest(files, entry.commit, entry.author, entry.message)
