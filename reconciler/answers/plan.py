"""What files and kernel differ in, what an apply would do, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field

from reconciler.answers.status import Unconfirmed
from reconciler.answers.wire import Json
from reconciler.errors import Problem


@dataclass(frozen=True, slots=True)
class Change:
    """One object that differs. ``action``: create, update, delete, attach, detach, replace. ``object``: interface,
    proxy, route, target, setting, program. ``before`` and ``after`` are JSON values, None for absent. ``place``:
    FILE:LINE:COLUMN of what the files say about it, if they do."""

    action: str
    object: str
    name: str
    before: Json = None
    after: Json = None
    place: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """Files against kernel. ``operations``: how many steps in the kernel an apply would take."""

    changes: tuple[Change, ...] = ()
    operations: int = 0
    warnings: tuple[Problem, ...] = ()

    @property
    def empty(self) -> bool:
        """Nothing differs."""
        return not self.changes


@dataclass(frozen=True, slots=True)
class Touched:
    """Live connections of a target that a plan takes something away from, and what becomes of them."""

    proxy: str
    target: str
    connections: int
    fate: str


@dataclass(frozen=True, slots=True)
class PlanAnswer:
    """What an apply would do. ``steps``: the operations in order, as text; ``counts``: how many of them per map or
    other place in the kernel; ``connections``: live ones that the changes touch; ``revision``: what would be applied
    then, None if only something is repaired."""

    changes: tuple[Change, ...] = ()
    operations: int = 0
    steps: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    connections: tuple[Touched, ...] = ()
    revision: int | None = None
    warnings: tuple[Problem, ...] = ()

    @property
    def empty(self) -> bool:
        """There is nothing to do."""
        return not self.changes


@dataclass(frozen=True, slots=True)
class Applied:
    """What an apply did. ``changes`` empty: there was nothing to do. ``unconfirmed``: it is taken back unless it is
    confirmed in time."""

    revision: int
    changes: tuple[Change, ...] = ()
    operations: int = 0
    commit: str | None = None
    warnings: tuple[Problem, ...] = ()
    unconfirmed: Unconfirmed | None = None


@dataclass(frozen=True, slots=True)
class PlanFile:
    """A file that a saved plan was made of; ``content`` is Base64."""

    name: str
    content: str


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """A plan to be applied as it is, or not at all. ``version`` and ``tag`` name the program that made it; ``state`` is
    a digest of the kernel's state it was made from, ``work`` one of what it would do, ``digest`` one of everything else
    here. ``commit``, ``author`` and ``message`` are those of the files' git commit."""

    format: str
    version: str
    tag: str
    made: str
    state: str
    work: str
    plan: PlanAnswer
    files: tuple[PlanFile, ...] = ()
    commit: str | None = None
    author: str | None = None
    message: str | None = None
    digest: str = ""
