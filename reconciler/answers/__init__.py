"""What commands answer, as values: the same from the daemon, from the kernel directly, and in Python.

The field names are the keys of the JSON that scripts rely on. :func:`to_json` and :func:`from_json` go there and back.
"""

from __future__ import annotations

from reconciler.answers.configured import (
    ConfiguredCheck,
    ConfiguredProxy,
    ConfiguredRoute,
    ConfiguredTarget,
    Edited,
    EditHold,
)
from reconciler.answers.connections import Connection, ConnectionCount, Draining, DrainingTarget, Flushed
from reconciler.answers.events import KINDS, Event
from reconciler.answers.host import Conflict, Diagnosis, Finding, InterfaceDetail, Level, Program
from reconciler.answers.instance import Instance, TakenDown
from reconciler.answers.plan import Applied, Change, Difference, PlanAnswer, PlanFile, SavedPlan, Touched
from reconciler.answers.probing import Explanation, Tested, TestResult
from reconciler.answers.revisions import Confirmed, HistoryEntry, Suspension
from reconciler.answers.statistics import ProxyStats, Stats, TargetStats, Traffic
from reconciler.answers.status import (
    Attempt,
    Condition,
    InterfaceStatus,
    ProxyStatus,
    Status,
    Sync,
    TableUse,
    TargetStatus,
    Unconfirmed,
)
from reconciler.answers.wire import Json, from_json, to_json

__all__ = [
    "KINDS",
    "Applied",
    "Attempt",
    "Change",
    "Condition",
    "ConfiguredCheck",
    "ConfiguredProxy",
    "ConfiguredRoute",
    "ConfiguredTarget",
    "Confirmed",
    "Conflict",
    "Connection",
    "ConnectionCount",
    "Diagnosis",
    "Difference",
    "Draining",
    "DrainingTarget",
    "EditHold",
    "Edited",
    "Event",
    "Explanation",
    "Finding",
    "Flushed",
    "HistoryEntry",
    "Instance",
    "InterfaceDetail",
    "InterfaceStatus",
    "Json",
    "Level",
    "PlanAnswer",
    "PlanFile",
    "Program",
    "ProxyStats",
    "ProxyStatus",
    "SavedPlan",
    "Stats",
    "Status",
    "Suspension",
    "Sync",
    "TableUse",
    "TakenDown",
    "TargetStats",
    "TargetStatus",
    "TestResult",
    "Tested",
    "Touched",
    "Traffic",
    "Unconfirmed",
    "from_json",
    "to_json",
]
