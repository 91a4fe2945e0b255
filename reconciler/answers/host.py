"""What ``interfaces`` and ``doctor`` answer: the host, and what of others' is in the way."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Program:
    """A BPF program of somebody else's. ``tag``: 16 hex digits, the kernel's digest of its instructions."""

    id: int
    name: str = ""
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Something of somebody else's where ours is or would go. ``where``: xdp native, xdp generic, tc ingress or
    tc egress. ``program`` None: it is no BPF program. ``effect``: what it does to ours; ``remedy``: the command that
    removes it; ``blocks``: ours can't be attached; ``gives_way``: ours takes its place when the files are applied."""

    where: str
    what: str
    program: Program | None
    effect: str
    remedy: str = ""
    blocks: bool = False
    gives_way: bool = False


@dataclass(frozen=True, slots=True)
class InterfaceDetail:
    """One interface. ``asked``: settings.xdp_mode; ``wanted``: what that comes to here, None where nothing of ours
    is to be; ``mode``: how our XDP program runs now (native, generic, off); ``attached``: our TC programs are in
    force. ``xdp_native``: the driver has native XDP; ``listens``: the proxies that listen here. ``ifindex`` 0: it
    does not exist. ``taken_over``: somebody else's XDP program whose place ours has, kept to be put back."""

    name: str
    ifindex: int = 0
    kind: str = ""
    driver: str = ""
    mtu: int = 0
    up: bool = False
    xdp_native: bool = False
    asked: str = ""
    wanted: str | None = None
    mode: str = "off"
    attached: bool = False
    listens: tuple[str, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    note: str = ""
    taken_over: Program | None = None


class Level(StrEnum):
    """How bad a finding is. ``error``: what is configured will not work."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that ``doctor`` looked at. ``check``: its name, e.g. kernel.version or target.route; ``subject``: an
    interface, a target or the like; ``remedy``: the command that mends it. ``checked`` False: it could not be looked
    at, and ``message`` says why."""

    check: str
    level: Level
    message: str
    subject: str = ""
    remedy: str = ""
    checked: bool = True


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything ``doctor`` found. ``fine``: no errors."""

    fine: bool
    errors: int
    warnings: int
    findings: tuple[Finding, ...] = ()
