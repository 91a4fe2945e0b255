"""Answers that tell how many connections targets have: where there are very many, those are counted by a process of its
own first, so that the worker, and with it an edit, does not wait for that."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from reconciler import answers
from reconciler.api.reader import Reader
from reconciler.errors import DaemonError
from reconciler.state.totals import Totals

Handler = Callable[[dict[str, Any]], Awaitable[Any]]
Call = Callable[[Callable[[], Any]], Awaitable[Any]]


class Counted(Protocol):
    """The commands that tell of it; called on the worker, but for the last."""

    def status(self) -> answers.Status: ...
    def drain(self, target: str, *, proxy: str | None = None) -> answers.Draining: ...
    def undrain(self, target: str, *, proxy: str | None = None) -> answers.Draining: ...
    def draining(self, target: str, *, proxy: str | None = None) -> answers.Draining: ...

    def counted(self, totals: Totals, /) -> AbstractContextManager[None]:
        """Within it these are the numbers of connections."""
        ...

    def totals_command(self) -> list[str] | None:
        """What starts a process that writes them, where there are very many; at once, on the event loop."""
        ...


class Counting:
    """The handlers of these commands. ``call`` runs a function on the worker."""

    def __init__(self, commands: Counted, reader: Reader, call: Call) -> None:
        self._commands, self._reader, self._call = commands, reader, call
        self.handlers: Mapping[str, Handler] = {
            "status": self._status,
            "draining": self._draining,
            "drain": self._drain,
            "undrain": self._undrain,
        }

    async def _status(self, _said: dict[str, Any]) -> Any:
        return await self._with(await self._totals(), self._commands.status)

    async def _draining(self, said: dict[str, Any]) -> Any:
        return await self._with(await self._totals(), lambda: self._commands.draining(**said))

    async def _undrain(self, said: dict[str, Any]) -> Any:
        return await self._with(await self._totals(), lambda: self._commands.undrain(**said))

    async def _drain(self, said: dict[str, Any]) -> Any:
        """Counted when no new ones come any more."""
        if self._commands.totals_command() is None:
            return await self._call(lambda: self._commands.drain(**said))
        await self._with(Totals(), lambda: self._commands.drain(**said))
        return await self._draining(said)

    async def _with(self, totals: Totals | None, function: Callable[[], Any]) -> Any:
        def counted() -> Any:
            if totals is None:
                return function()
            with self._commands.counted(totals):
                return function()

        return await self._call(counted)

    async def _totals(self) -> Totals | None:
        """None: there are few enough to be counted on the way."""
        command = self._commands.totals_command()
        if command is None:
            return None
        try:
            return Totals.from_json(json.loads(await self._reader.said(command)))
        except ValueError as error:
            raise DaemonError(f"the process that counts connections was cut off: {error}") from error
