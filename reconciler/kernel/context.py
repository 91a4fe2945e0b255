"""What a commit works with besides the plan: the maps, and who looks after programs, interfaces and sysctls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from reconciler.kernel.maps import Maps
from reconciler.kernel.store import Packer
from reconciler.state.objects import Attachment
from reconciler.state.operations import LoadProgram


class Host(Protocol):
    """Interfaces and sysctls. Every method may be repeated; those that change something raise
    :class:`RevproxyError`, and what they did before that stays."""

    def attach(self, wanted: Attachment) -> None:
        """Bring an interface to ``wanted`` from whatever of ours is there."""

    def detach(self, attachment: Attachment) -> None:
        """Take everything of ours off an interface."""

    def attachments(self) -> Mapping[int, Attachment]:
        """What of ours is attached now, by ifindex."""

    def busy_interfaces(self) -> frozenset[int]:
        """Numbers of those by which live connections come or go."""

    def read_sysctl(self, name: str) -> str | None:
        """The live value, None if the host has none of that name."""

    def write_sysctl(self, name: str, value: str) -> None:
        """Set it."""


class ProgramLoader(Protocol):
    """The programs (``program.py``)."""

    def stage(self, operation: LoadProgram) -> None:
        """Make the maps where there are none; load and pin the new set beside the old one. From now on attaching
        means the new set."""

    def withdraw(self, operation: LoadProgram) -> None:
        """First step of the undo: from now on attaching means the old set again. The new one stays known as ours."""

    def undo(self, operation: LoadProgram) -> None:
        """Last step of the undo: take back what :meth:`stage` did, however far it came."""

    def finish(self, operation: LoadProgram) -> None:
        """Make the new set the current one and forget the old one."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a commit works with. ``verify`` is called with the standby slot before the switch and raises
    :class:`RevproxyError` to stop the commit. ``maps`` need not be open, nor exist before a LoadProgram. ``packer``: of
    earlier commits, for what they have stored already."""

    maps: Maps
    host: Host
    programs: ProgramLoader
    verify: Callable[[int], None] | None = None
    packer: Packer | None = None
