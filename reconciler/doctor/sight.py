"""What ``doctor`` looks at, as plain values: gathered by ``doctor/look.py``, judged by ``doctor/judge_*.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reconciler import answers
    from reconciler.config.model import Config
    from reconciler.errors import Problem
    from reconciler.places import Places
    from reconciler.state.desired import Desired
    from reconciler.state.facts import HostFacts, Trial
    from reconciler.state.objects import IPAddress


@dataclass(frozen=True, slots=True)
class SystemSight:
    """The kernel and this process. ``trials`` None: they take privileges that are missing. ``bpffs``: where the pins'
    directory is on a bpffs, None if it is on none; ``bpffs_point``: where one would be mounted for it;
    ``bpffs_occupied``: there are files, which it would hide; ``bpffs_trouble``: why it can't be used.
    ``memlock_bytes`` None: unlimited."""

    release: str
    missing_capabilities: tuple[str, ...] = ()
    trials: tuple[Trial, ...] | None = None
    lockdown: str = "none"
    memlock_bytes: int | None = None
    bpffs: str | None = None
    bpffs_point: str = "/sys/fs/bpf"
    bpffs_trouble: str = ""
    bpffs_occupied: bool = False
    bcc: str | None = None
    headers: bool = True


@dataclass(frozen=True, slots=True)
class PlaceSight:
    """The file system that a directory of the instance is on, or would be made on: where that is mounted, and what
    keeps files from being written there."""

    mount: str = "/"
    read_only: bool = False
    full: bool = False


@dataclass(frozen=True, slots=True)
class GitSight:
    """The work tree of the configuration. ``ahead_sec``: by how much its last commit is later than this host's clock.
    ``lock_age_sec``: since when an index.lock stands at ``lock``."""

    ahead_sec: float
    lock: str = ""
    lock_age_sec: float | None = None


@dataclass(frozen=True, slots=True)
class InterfaceSight:
    """One interface. ``conflicts`` None: looking takes privileges that are missing. None elsewhere: the driver doesn't
    say."""

    conflicts: tuple[answers.Conflict, ...] | None = None
    lro: bool | None = None
    queues_now: int | None = None
    queues_most: int | None = None
    rp_filter: int = 0


@dataclass(frozen=True, slots=True)
class Sight:
    """Everything. ``host`` None: there was no looking at the network (``system.bcc`` is missing). ``neighbours``: state
    by interface number and address. ``wanted`` None: the files ask for nothing that can be had; ``refused`` says why.
    ``way_back``: by which interface packets to anywhere leave, for each family. ``settings``: where the network's
    sysctls are. ``daemon_failure``: what keeps a daemon that runs from its work, but for wrong files."""

    system: SystemSight
    places: Places
    config: Config | None = None
    problems: tuple[Problem, ...] = ()
    host: HostFacts | None = None
    interfaces: Mapping[str, InterfaceSight] = field(default_factory=dict)
    neighbours: Mapping[tuple[int, IPAddress], str] = field(default_factory=dict)
    way_back: Mapping[int, int | None] = field(default_factory=dict)
    wanted: Desired | None = None
    refused: str = ""
    git: GitSight | None = None
    daemon_pid: int | None = None
    daemon_trouble: str = ""
    daemon_failure: str = ""
    run_dir: PlaceSight = PlaceSight()
    state_dir: PlaceSight = PlaceSight()
    settings: PlaceSight = PlaceSight("/proc")
    cpus: int = 1
