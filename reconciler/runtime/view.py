"""Both sides at one moment, as the engine compares them, and where the files of it come from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from reconciler.errors import ConfigError, Problem
from reconciler.state.lapsed import Lapsed, keep, lapsed, without

if TYPE_CHECKING:
    from reconciler.config.model import Config
    from reconciler.kernel.store import Manifest
    from reconciler.runtime.git import Commit
    from reconciler.state.desired import Desired
    from reconciler.state.diff import Change, Delta
    from reconciler.state.facts import HostFacts, RuntimeFacts
    from reconciler.state.objects import Observed


@dataclass(frozen=True, slots=True)
class Origin:
    """Why a configuration is to be applied, and which git commit it is of. ``cause`` as in
    :class:`~reconciler.answers.HistoryEntry`; ``of``: the revision it was; ``stored``: its files are not those of the
    configuration directory, so that ``commit`` says all there is to know of git."""

    cause: str = "apply"
    of: int | None = None
    stored: bool = False
    commit: Commit | None = None


@dataclass(frozen=True, slots=True)
class View:
    """Both sides at one moment: what the files ask for on this host, what the kernel holds, how they differ.

    ``lapsed``: what ``desired`` holds only because it has not been given back yet; see :meth:`with_lapsed`. ``exact``
    is without it. ``delta``: what ``changes`` are of."""

    config: Config
    facts: HostFacts
    runtime: RuntimeFacts
    observed: Observed
    desired: Desired
    changes: tuple[Change, ...]
    origin: Origin = field(default_factory=Origin)
    routes_as_known: bool = False
    lapsed: Lapsed = field(default_factory=Lapsed)
    delta: Delta | None = field(default=None, compare=False)

    def with_lapsed(self, manifest: Manifest) -> View:
        """The same, without ``changes`` yet, where what only connections needed that have ended is no difference:
        it is one if the files are others than those that are applied (``manifest`` is what that was made from)."""
        found = lapsed(self.desired, self.observed)
        if not found or not self.repairs(manifest):
            return self
        return replace(self, desired=keep(self.desired, self.observed, found), lapsed=found)

    @property
    def exact(self) -> Desired:
        """What the files and live connections ask for, and nothing else."""
        return without(self.desired, self.lapsed)

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What a person should know although it is no error."""
        texts = (*self.desired.warnings, *self.observed.hidden)
        return self.config.warnings + tuple(Problem("", 0, 0, "", text) for text in texts)

    def same_situation(self, other: View | None) -> bool:
        """Nothing that could make a difference to an attempt differs between the two."""
        return other is not None and self._situation() == other._situation()

    def _situation(self) -> tuple[object, ...]:
        observed = self.observed
        return self.config.files, self.facts, observed.state, observed.others, self.desired.state.program

    def digests(self) -> dict[str, bytes]:
        """Digest of each file's content, by name."""
        return {file.path.rpartition("/")[2]: file.digest for file in self.config.files}

    def repairs(self, manifest: Manifest) -> bool:
        """The files are those that are applied (``manifest`` is what that was made from): what differs is the kernel
        or the host."""
        applied = self.observed.revision.number > 0 and bool(manifest.files or not self.config.files)
        return applied and self.digests() == {file.path: file.digest for file in manifest.files}


class HeldError(ConfigError):
    """The files could be applied, and are not without being told to: they would take everything away, or may be half of
    a checkout."""
