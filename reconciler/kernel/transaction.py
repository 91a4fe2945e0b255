"""Carrying out a plan, all or nothing: stage, attach, verify, switch, wait, finish.

Until the switch everything done is noted in a :class:`Journal` and taken back on any failure, last first, and the
result is looked at: :class:`TransactionError` says whether the kernel is what it was. After the switch the commit
holds; a failure then leaves clearing up for :func:`~reconciler.kernel.recover.recover` and the next plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np

from reconciler.errors import RevproxyError, StaleError, TransactionError
from reconciler.kernel import groups, layout, store
from reconciler.kernel.codec import pack_sysctl_key, pack_text
from reconciler.kernel.context import Context
from reconciler.kernel.finishing import carry_out
from reconciler.kernel.maps import Maps
from reconciler.kernel.reserve import reserve
from reconciler.kernel.staging import Stage
from reconciler.kernel.writes import Journal
from reconciler.state.objects import Revision
from reconciler.state.operations import Attach, Detach, LoadProgram, Operation, SetSysctl, Switch
from reconciler.trouble import explained


class PlanLike(Protocol):
    """The parts of a :class:`~reconciler.state.plan.Plan` that matter here."""

    @property
    def stage(self) -> tuple[Operation, ...]: ...

    @property
    def attach(self) -> tuple[Operation, ...]: ...

    @property
    def switch(self) -> Switch | None: ...

    @property
    def finish(self) -> tuple[Operation, ...]: ...

    @property
    def base(self) -> Revision: ...


@dataclass(frozen=True, slots=True)
class Result:
    """The commit holds. ``pending``: why clearing up is not done, None if it is."""

    pending: RevproxyError | None = None


def execute(plan: PlanLike, context: Context) -> Result:
    """Carry out ``plan``.

    Raises :class:`StaleError` if the kernel is not at the revision and slot that the plan was made from (nothing was
    done), and :class:`TransactionError` if it failed before the switch. A process killed within leaves a kernel that
    ``recover`` brings to the state before or, after the switch, to the one after.
    """
    maps = context.maps
    if not maps.is_open and maps.exists:
        maps.open()
    if maps.is_open:
        _check_base(plan, maps)
    journal = Journal()
    stage = Stage(maps, journal, plan.switch, context.packer)
    with reserve() as kept:
        try:
            for kind, operations in _runs((*plan.stage, *plan.attach)):
                _stage_run(kind, operations, stage, context, journal)
            if plan.switch is not None:
                if context.verify is not None:
                    context.verify(plan.switch.after)
                _switch(maps, plan.switch)
        except BaseException as error:
            if _switched(maps, plan.switch):  # interrupted (Ctrl-C) just behind it
                raise
            kept.close()
            for operation in reversed(_loads(plan)):
                context.programs.withdraw(operation)
            residue = journal.revert()
            if not isinstance(error, Exception):
                raise
            cause = explained(error) if isinstance(error, OSError) else error
            raise TransactionError(cause, rolled_back=not residue, residue=residue) from error
    try:
        _clear_up(plan, context, stage)
    except RevproxyError as error:
        return Result(pending=error)
    return Result()


def _clear_up(plan: PlanLike, context: Context, stage: Stage) -> None:
    loads = _loads(plan)
    if plan.switch is not None or loads:
        groups.wait_for_packets(context.maps)
    # The programs of interfaces that go are known as ours only as long as their set is there.
    left = max((place for place, each in enumerate(plan.finish, 1) if isinstance(each, Detach)), default=0)
    carry_out(plan.finish[:left], context)
    for operation in loads:
        context.programs.finish(operation)
    stage.level()
    carry_out(plan.finish[left:], context)


def _loads(plan: PlanLike) -> list[LoadProgram]:
    return [operation for operation in plan.stage if isinstance(operation, LoadProgram)]


def _check_base(plan: PlanLike, maps: Maps) -> None:
    active = int(maps["control"].items()[1][0]["active"]) & 1
    if plan.switch is not None and plan.switch.before != active:
        raise StaleError(f"the plan was made when slot {plan.switch.before} was active, now slot {active} is")
    revision = store.read_revision(maps)
    if revision != plan.base:
        raise StaleError(f"the plan was made from revision {plan.base.number}, the kernel is at {revision.number}")


def _runs(operations: Sequence[Operation]) -> list[tuple[type[Operation], list[Operation]]]:
    """Neighbours of one type together, so that they can be written in batches."""
    return [(kind, list(run)) for kind, run in groupby(operations, key=type)]


def _stage_run(
    kind: type[Operation], operations: list[Operation], stage: Stage, context: Context, journal: Journal
) -> None:
    for operation in operations:
        if isinstance(operation, LoadProgram):
            _load(operation, context, journal)
        elif isinstance(operation, SetSysctl):
            _set_sysctl(operation, context, journal)
        elif isinstance(operation, Attach):
            _attach(operation, context, journal)
    if kind not in (LoadProgram, SetSysctl, Attach):
        stage.run(kind, operations)


def _load(operation: LoadProgram, context: Context, journal: Journal) -> None:
    existed = context.maps.exists
    journal.note("the set of maps", lambda: context.programs.undo(operation), lambda: context.maps.exists == existed)
    context.programs.stage(operation)


def _set_sysctl(operation: SetSysctl, context: Context, journal: Journal) -> None:
    """What stood there before the first time is what is to be restored one day."""
    name, table = operation.name, context.maps["sysctl"]
    live = context.host.read_sysctl(name)
    key, value = pack_sysctl_key(name), np.zeros(1, layout.sysctl_value)
    known = table.get(key)
    original = operation.original or (operation.before if live is None else live)
    kept = known[0]["before"] if known is not None and not operation.original else b""
    value["before"] = kept or pack_text(original, layout.sysctl_value["before"])
    value["after"] = pack_text(operation.after, layout.sysctl_value["after"])
    journal.put(table, key, value)
    if live is not None:
        _note_sysctl(name, live, context, journal)
    context.host.write_sysctl(name, operation.after)


def _note_sysctl(name: str, live: str, context: Context, journal: Journal) -> None:
    def same() -> bool:
        return context.host.read_sysctl(name) == live

    def back() -> None:
        if not same():  # where it could not be written, it need not be
            context.host.write_sysctl(name, live)

    journal.note(f"sysctl {name}", back, same)


def _attach(operation: Attach, context: Context, journal: Journal) -> None:
    before, after = operation.before, operation.after

    def back() -> None:
        if before is None:
            context.host.detach(after)
        else:
            context.host.attach(before)

    journal.note(f"interface {after.name}", back, lambda: context.host.attachments().get(after.ifindex) == before)
    context.host.attach(after)


def _switch(maps: Maps, switch: Switch) -> None:
    """Eight bytes in one store, of which four change."""
    value = maps["control"].items()[1]
    value["active"] = switch.after
    maps["control"].put(0, value)


def _switched(maps: Maps, switch: Switch | None) -> bool:
    """Whether packets already see the new configuration: then there is no way back."""
    if switch is None or not maps.is_open:
        return False
    return int(maps["control"].items()[1][0]["active"]) == switch.after
