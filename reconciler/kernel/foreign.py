"""Other people's XDP programs whose place ours has taken: kept alive by a pin until they are put back.

``<bpffs_dir>/foreign/<ifindex>_<mode>``: one at most per interface. The pin is there before the place is taken and as
long as the place is ours, so that a process killed anywhere in between leaves the program alive and known. Where
somebody else's program is on the interface, what a pin says is over: it is stale, and nothing is put back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.errors import KernelError
from reconciler.kernel import bpf, xdp
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.identity import LoadedProgram, OwnPrograms, open_program, program_info
from reconciler.kernel.xdp import XdpStatus
from reconciler.state.facts import XdpProgram
from reconciler.state.objects import TakenOver, XdpMode

DIRECTORY: Final = "foreign"
"""Where the pins are, below the instance's directory. Not within that of a layout: they outlive an upgrade."""

_NEXT: Final = "_next"
_PUT_BACK: Final = "put back"  # not "attach": an interface that refuses it has not refused ours
_MODES: Final = frozenset((XdpMode.NATIVE.value, XdpMode.GENERIC.value))


@dataclass(frozen=True, slots=True)
class Kept:
    """The pins of the instance whose pins are below ``root``. Every change of them is a call of ``gateway``."""

    root: Path
    gateway: Gateway

    @property
    def directory(self) -> Path:
        """Where they are; there only while anything is kept."""
        return self.root / DIRECTORY

    def programs(self) -> dict[int, TakenOver]:
        """What is kept, by the number of the interface. Raises :class:`KernelError` if a pin can't be read."""
        found: dict[int, TakenOver] = {}
        for path, ifindex, mode in self._pins():
            descriptor = bpf.obj_get(str(path))
            try:
                info = program_info(descriptor)
            finally:
                os.close(descriptor)
            found[ifindex] = TakenOver(mode, info.id, info.name, info.tag)
        return found

    def keep(self, ifindex: int, taken: TakenOver) -> None:
        """Pin the program, instead of what was kept for that interface."""
        if self.programs().get(ifindex) == taken:
            return
        path, fresh = self._path(ifindex, taken.mode), self._path(ifindex, taken.mode + _NEXT)
        subject = f"program {taken.id}"
        if not self.directory.is_dir():
            make = self.directory.mkdir
            self.gateway.call("make directory", str(self.directory), lambda: make(parents=True))
        if fresh.exists():  # of a process that was killed here
            self.gateway.call("unpin", subject, fresh.unlink)
        try:
            with open_program(taken.id) as descriptor:
                self.gateway.call("pin", subject, lambda: bpf.obj_pin(descriptor, str(fresh)))
            self.gateway.call("rename", subject, lambda: fresh.rename(path))
        except KernelError:
            self.recover()
            raise
        self._forget(ifindex, but=path)

    @contextmanager
    def opened(self, ifindex: int, taken: TakenOver) -> Iterator[LoadedProgram]:
        """The program that is kept for the interface, for as long as the block runs."""
        descriptor = bpf.obj_get(str(self._path(ifindex, taken.mode)))
        try:
            yield LoadedProgram.of(descriptor)
        finally:
            os.close(descriptor)

    def forget(self, ifindex: int) -> None:
        """Unpin what is kept for the interface, and remove the directory with the last. Can be repeated."""
        self._forget(ifindex)
        self._tidy()

    @property
    def interrupted(self) -> bool:
        """Whether a process was killed within :meth:`keep`, or before the directory was removed."""
        return self.directory.is_dir() and (not self.programs() or any(self._unfinished()))

    def recover(self) -> None:
        """Remove what such a process left. Can be repeated."""
        for path in list(self._unfinished()):
            self.gateway.call("unpin", f"foreign program {path.name}", path.unlink)
        self._tidy()

    def _unfinished(self) -> Iterator[Path]:
        return self.directory.glob(f"*{_NEXT}") if self.directory.is_dir() else iter(())

    def _tidy(self) -> None:
        if self.directory.is_dir() and not any(self.directory.iterdir()):
            self.gateway.call("remove directory", str(self.directory), self.directory.rmdir)

    def _path(self, ifindex: int, mode: str) -> Path:
        return self.directory / f"{ifindex}_{mode}"

    def _forget(self, ifindex: int, but: Path | None = None) -> None:
        for mode in (*_MODES, *(mode + _NEXT for mode in _MODES)):
            path = self._path(ifindex, mode)
            if path != but and path.exists():
                self.gateway.call("unpin", f"foreign program {path.name}", path.unlink)

    def _pins(self) -> Iterator[tuple[Path, int, str]]:
        for path in sorted(self.directory.iterdir()) if self.directory.is_dir() else ():
            number, _, mode = path.name.partition("_")
            if number.isdigit() and mode in _MODES:
                yield path, int(number), mode


def take_over(status: XdpStatus, foreign: XdpProgram, mode: XdpMode, program: LoadedProgram, kept: Kept) -> None:
    """Attach ``program`` instead of ``foreign``, which is kept. In one step if it runs in the same mode; between native
    and generic the kernel has no exchange, and for a moment neither is there.

    Raises :class:`ForeignProgramError` or :class:`KernelError`; what was done then is undone by :func:`put_back`, or by
    :meth:`Kept.forget` if ``foreign`` is still there.
    """
    taken = foreign.taken_over()
    kept.keep(status.ifindex, taken)
    with kept.opened(status.ifindex, taken) as theirs:
        if taken.mode == mode.value:
            xdp.attach(status, mode, program, theirs.fd, kept.gateway)
            return
        xdp.detach(status, XdpMode(taken.mode), theirs.fd, kept.gateway)
        xdp.attach(_emptied(status), mode, program, None, kept.gateway)


def put_back(status: XdpStatus, taken: TakenOver, own: OwnPrograms, kept: Kept) -> None:
    """Attach what is kept for the interface, in its own mode, instead of ours if that is there, and let go of the pin.
    Raises :class:`ForeignProgramError` or :class:`KernelError` if it can't be put back; then it is still kept."""
    mode, present = XdpMode(taken.mode), status.own(own)
    with kept.opened(status.ifindex, taken) as theirs:
        if present is None:
            xdp.attach(status, mode, theirs, None, kept.gateway, _PUT_BACK)
        else:
            with own.descriptor(present[1]) as ours:
                if present[0] is mode:
                    xdp.attach(status, mode, theirs, ours, kept.gateway, _PUT_BACK)
                else:
                    xdp.detach(status, present[0], ours, kept.gateway)
                    xdp.attach(_emptied(status), mode, theirs, None, kept.gateway, _PUT_BACK)
    kept.forget(status.ifindex)


def _emptied(status: XdpStatus) -> XdpStatus:
    return XdpStatus(status.ifindex, status.name, {})
