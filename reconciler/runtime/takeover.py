"""What another version with other maps has left in force: taken over with its connections, and then taken away.

Ours are made beside them, as a copy, and a commit exchanges the programs, as it does for a version with the same maps.
Until then, and if that fails, the other version's maps and programs are untouched. Connections that it opens or moves
meanwhile are carried over around each exchange and once more at the end. Killed anywhere, the next start of either
version goes on from what it finds: a copy of which no program has ever been attached is made anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

from reconciler.errors import KernelError
from reconciler.kernel import bpf
from reconciler.kernel.compiler import ENTRY_POINTS
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.maps import Maps
from reconciler.kernel.otherlayout import OtherLayout, carry_over, others, take_over
from reconciler.kernel.program import Programs
from reconciler.runtime.logger import Logger
from reconciler.state.objects import ProgramState

_log: Final = Logger("takeover")


class Takeover:
    """For the instance with these maps and programs."""

    def __init__(self, maps: Maps, programs: Programs, gateway: Gateway) -> None:
        self._maps, self._programs, self._gateway = maps, programs, gateway

    def others(self) -> list[OtherLayout]:
        """What other versions with other maps have pinned."""
        return list(others(self._maps, self._programs.kept.directory))

    def in_force(self) -> OtherLayout | None:
        """What of it was in force last; None if there is none. If several are whole, a takeover of a takeover was
        interrupted, and programs of both may be attached: any one is as good, all of them are carried over."""
        whole = [each for each in self.others() if each.is_whole]
        return next((each for each in whole if each.current), next(iter(whole), None))

    @property
    def program(self) -> ProgramState | None:
        """The programs that are to be exchanged, of the other version."""
        found = self.in_force()
        return Programs.named(found.current) if found and found.current else None

    @property
    def set_in_force(self) -> Path | None:
        """Where those are pinned, if all entry points still are."""
        found = self.in_force()
        path = found.root / "progs" / found.current if found and found.current else None
        return path if path and all((path / name).exists() for name in ENTRY_POINTS) else None

    def program_ids(self) -> frozenset[int]:
        """The other versions' programs, as far as they are pinned."""
        found = set()
        for each in self.others():
            for pin in each.root.glob("progs/*/*"):
                if pin.name not in ENTRY_POINTS:
                    continue
                descriptor = bpf.obj_get(str(pin))
                try:
                    found.add(bpf.prog_info(descriptor).id)
                finally:
                    os.close(descriptor)
        return frozenset(found)

    @property
    def pending(self) -> bool:
        """Whether there is anything to take over or to take away."""
        return bool(self.others())

    def begin(self, attached: Collection[int]) -> Iterator[str]:
        """Make our maps of the other version's, if no program of ours is attached yet; what was done, in words. Raises
        :class:`KernelError`, and has changed nothing then."""
        other = self.in_force()
        if other is None or self._programs.current is not None:
            return
        if self._maps.exists:
            if not self._programs.own().ids.isdisjoint(attached):
                return  # half of it is done
            other.specs()  # raises before anything goes that may be of use
            self._programs.remove()
            self._maps.remove()
        take_over(other, self._maps)
        _log.info("maps_taken_over", root=str(other.root))
        yield f"maps of another version copied from {other.root}"

    def carry_over(self) -> None:
        """Bring over which connections have been opened or moved since."""
        for each in self.others():
            if each.is_whole and self._maps.exists:
                carry_over(each, self._maps)

    def end(self, attached: Collection[int]) -> Iterator[str]:
        """Take the other versions' pins away, once none of their programs is attached and ours are in force; what was
        done, in words."""
        if self._programs.current is None or not self.program_ids().isdisjoint(attached):
            return
        for each in self.others():
            if each.is_whole:
                try:
                    number = carry_over(each, self._maps)
                except KernelError as error:  # nothing runs with it any more, and nobody can read it
                    _log.warning("connections_not_carried_over", error=str(error))
                else:
                    _log.info("connections_carried_over", root=str(each.root), connections=number)
            self.remove(each)
            yield f"another version's maps and programs removed from {each.root}"

    def remove(self, other: OtherLayout) -> None:
        """Unpin everything of it. The maps first that make it whole: half of it is of no use to anybody."""
        paths = sorted(other.root.rglob("*"), reverse=True)
        for path in sorted(paths, key=lambda path: path.name != "control"):
            remove: Callable[[], None] = path.rmdir if path.is_dir() and not path.is_symlink() else path.unlink
            self._gateway.call("unpin", str(path), remove)
        self._gateway.call("remove directory", str(other.root), other.root.rmdir)
