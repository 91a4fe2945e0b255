"""Long lists over HTTP: read by a thread of its own, and sent as they are asked for, so that a million connections take
neither the memory of their text nor the time of anybody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

from aiohttp import web

from reconciler.errors import DaemonError

T = TypeVar("T")

_LISTS: Final = 3
"""So many long lists are on their way at once: what each was made of is held until its end."""
_ROOM_SEC: Final = 60.0
"""For so long another one waits for its turn."""
_STALLED_SEC: Final = 300.0
"""For so long a reader may leave it at that: somebody who looks at a page of it."""


class Reader:
    """Calls functions that take long, one at a time, beside the event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "reader")
        self._room = asyncio.Semaphore(_LISTS)
        self._transports: set[asyncio.BaseTransport] = set()

    def end(self) -> None:
        """Cut off who is still reading: the loop is about to stop, and waits for no page to be turned."""
        for transport in self._transports:
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()

    def stop(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def call(self, function: Callable[[], T]) -> T:
        """What it returns."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def listed(self, request: web.Request, function: Callable[[], Iterator[list[str]]]) -> web.StreamResponse:
        """An array of the JSON values that ``function`` gives, some with each step; one on each line. Raises
        :class:`DaemonError` where too many are on their way."""
        try:
            await asyncio.wait_for(self._room.acquire(), _ROOM_SEC)
        except asyncio.TimeoutError:  # noqa: UP041  # another class than TimeoutError before Python 3.11
            raise DaemonError(f"{_LISTS} long lists are on their way to others: ask again, or for fewer") from None
        try:
            steps = await self.call(function)
            first, second = await self.call(lambda: (next(steps, []), next(steps, None)))
            if second is None:
                return web.Response(text=_array(first), content_type="application/json")
            response = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8"})
            await response.prepare(request)
            with self._cut_off_at_the_end(request.transport):
                await _send(response, "[\n" + ",\n".join(first))
                lines: list[str] | None = second
                while lines is not None:
                    await _send(response, ",\n" + ",\n".join(lines))
                    lines = await self.call(lambda: next(steps, None))
                await _send(response, "\n]\n")
            return response
        finally:
            self._room.release()

    @contextmanager
    def _cut_off_at_the_end(self, transport: asyncio.BaseTransport | None) -> Iterator[None]:
        if transport is None:
            raise ConnectionResetError
        self._transports.add(transport)
        try:
            yield
        finally:
            self._transports.discard(transport)


async def _send(response: web.StreamResponse, text: str) -> None:
    try:
        await asyncio.wait_for(response.write(text.encode()), _STALLED_SEC)
    except asyncio.TimeoutError:  # noqa: UP041
        raise ConnectionResetError("nobody reads it") from None


def _array(lines: list[str]) -> str:
    return "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n"
