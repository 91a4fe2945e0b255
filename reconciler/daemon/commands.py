"""What the daemon's API offers: the engine's commands, and what only a daemon can say or do."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from reconciler import answers

if TYPE_CHECKING:
    from reconciler.daemon.loop import Loop
    from reconciler.engine import Engine
    from reconciler.state.totals import Totals

P = ParamSpec("P")
R = TypeVar("R")


def _then(wake: Callable[[str], None], command: Callable[P, R]) -> Callable[P, R]:
    """The command, and the loop woken behind it."""

    def run(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return command(*arguments, **options)
        finally:
            wake("command")

    return run


class DaemonCommands:
    """What the API offers: the engine's commands, plus what only a daemon can say or do."""

    def __init__(
        self, engine: Engine, loop: Loop, end: threading.Event, wake: Callable[[str], None] = lambda _: None
    ) -> None:
        from reconciler.runtime.reading import Reading

        self._engine, self._loop, self._end = engine, loop, end
        revisions = engine.revisions
        self.diff, self.plan, self.saved_plan = engine.diff, engine.plan, engine.saved_plan
        self.history = revisions.history
        # Whatever was said, the loop looks at what follows from it, and when it has to look again.
        self.apply, self.rollback = _then(wake, engine.apply), _then(wake, revisions.rollback)
        self.confirm = _then(wake, revisions.confirm)
        self.suspend, self.resume = _then(wake, revisions.suspend), _then(wake, revisions.resume)
        reading = Reading(self._bpffs_dir)
        self.connections, self.connection_count = reading.connections, reading.connection_count
        self.flush, self.stats = engine.flushing, reading.stats
        self.drain, self.undrain, self.draining = engine.drain, engine.undrain, engine.draining
        self.test, self.explain = engine.test, engine.explain

    def status(self) -> answers.Status:
        """The engine's status, with who answers."""
        return replace(self._engine.status(keep=True), pid=os.getpid())

    def interfaces(self) -> tuple[answers.InterfaceDetail, ...]:
        """Every interface, with what is attached there."""
        from reconciler.interfaces import interfaces

        return interfaces(self._engine)

    def bequeathing(self) -> contextlib.AbstractContextManager[None]:
        """What is started meanwhile may read maps."""
        from reconciler.kernel import privilege

        return privilege.bequeathing()

    def list_command(self, how: Mapping[str, Any]) -> list[str] | None:
        """What lists connections where there are very many; None: :meth:`connections` does."""
        from reconciler.runtime import list_child

        return list_child.command(self._bpffs_dir(), how) if self._engine.live.many_connections else None

    def totals_command(self) -> list[str] | None:
        """What counts connections by target where there are very many; None: who needs the numbers counts."""
        return self.list_command({"totals": True})

    def counted(self, totals: Totals) -> contextlib.AbstractContextManager[None]:
        """Within it these are the numbers of connections. On the worker."""
        return self._engine.live.counted(totals)

    def _bpffs_dir(self) -> Path:
        return self._engine.live.maps.root.parent

    def begin_edit(self, seconds: int) -> answers.EditHold:
        """Don't follow the files until :meth:`end_edit`, or for so long."""
        return answers.EditHold(self._loop.hold.take(seconds))

    def end_edit(self, token: str) -> None:
        """Follow them again."""
        self._loop.hold.release(token)

    def down(self) -> answers.TakenDown:
        """Take the data plane off, and end: a daemon that goes on would put it back."""
        self._loop.suspended = True
        try:
            removed = self._engine.down()
        except BaseException:
            self._loop.suspended = False
            raise
        self._end.set()
        return removed
