"""What ``test`` and ``explain`` answer."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.answers.status import Sync


@dataclass(frozen=True, slots=True)
class TestResult:
    """One of the files' tests. ``source`` is the key ``from`` of the files; ``actual``: what the packet met."""

    __test__ = False  # no test itself, whatever pytest thinks of the name

    file: str
    line: int
    column: int
    source: str
    to: str
    protocol: str
    interface: str | None
    expected: str
    actual: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Tested:
    """The files' tests, run on what packets see now: ``revision``, which is what the files say if ``sync`` is Synced.
    ``failed``: how many of the tests do not hold."""

    sync: Sync
    revision: int
    differences: int = 0
    tests: tuple[TestResult, ...] = ()
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Explanation:
    """What becomes of a packet now. ``verdict``: redirect, tx, drop or pass. ``rule``: a source route's prefix,
    ``default_target``, or ``connection`` for a packet of a live connection, whose state is then ``connection``.
    ``program``: the one that decided. ``place``: FILE:LINE:COLUMN of what the files say about the rule."""

    verdict: str
    proxy: str | None = None
    rule: str | None = None
    target: str | None = None
    reason: str = ""
    interface: str | None = None
    program: str | None = None
    connection: str | None = None
    place: str = ""
