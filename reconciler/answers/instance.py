"""The daemon that answers, and what is left after ``down``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TakenDown:
    """What ``down`` removed, as text; empty if there was nothing of this instance in the kernel."""

    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Instance:
    """The daemon that answers. ``config_dir`` None: it was started with a target on its command line.
    ``require_signed``: the keyrings of which the files need a signature; empty: they need none."""

    pid: int
    version: str
    config_dir: str | None
    bpffs_dir: str
    require_signed: tuple[str, ...] = ()
