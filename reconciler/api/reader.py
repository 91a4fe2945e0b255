"""Long lists over HTTP: read by a thread of its own, and sent as they are asked for, so that a million connections take
neither the memory of their text nor the time of anybody else."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from typing import Final, TypeVar

from aiohttp import web

from reconciler import child
from reconciler.errors import DaemonError, RevproxyError

T = TypeVar("T")
Bequeathing = Callable[[], AbstractContextManager[None]]

_LISTS: Final = 3
"""So many long lists are on their way at once: what each was made of is held until its end."""
_ROOM_SEC: Final = 60.0
"""For so long another one waits for its turn."""
_PIECE_BYTES: Final = 1 << 18
_STALLED_SEC: Final = 300.0
"""For so long a reader may leave it at that: somebody who looks at a page of it."""


class Reader:
    """Calls functions that take long, one at a time, beside the event loop. ``bequeathing``: gives what the calling
    thread starts meanwhile the privileges that it needs."""

    def __init__(self, bequeathing: Bequeathing = nullcontext) -> None:
        self._bequeathing = bequeathing
        self._thread = ThreadPoolExecutor(1, "reader")
        self._room = asyncio.Semaphore(_LISTS)
        self._transports: set[asyncio.BaseTransport] = set()
        self._processes: set[Process] = set()

    def end(self) -> None:
        """Cut off who is still reading: the loop is about to stop, and waits for no page to be turned."""
        for transport in self._transports:
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()
        for process in self._processes:
            _kill(process)

    def stop(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def call(self, function: Callable[[], T]) -> T:
        """What it returns."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def listed(self, request: web.Request, function: Callable[[], Iterator[list[str]]]) -> web.StreamResponse:
        """An array of the JSON values that ``function`` gives, some with each step; one on each line. Raises
        :class:`DaemonError` where too many are on their way."""
        async with self._roomy():
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

    async def piped(self, request: web.Request, command: Sequence[str]) -> web.StreamResponse:
        """What this process writes, which is JSON. Raises :class:`RevproxyError` with its words where it writes
        nothing, and :class:`DaemonError` where too many are at work."""
        async with self._roomy(), self._process(command) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            data = await process.stdout.read(_PIECE_BYTES)
            if not data:
                said = (await process.stderr.read(_PIECE_BYTES)).decode(errors="replace").strip()
                raise RevproxyError(said or "the process that reads connections has ended")
            response = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8"})
            await response.prepare(request)
            with self._cut_off_at_the_end(request.transport):
                while data:
                    await _write(response, data)
                    data = await process.stdout.read(_PIECE_BYTES)
            if await process.wait():
                raise ConnectionResetError("the process that reads connections has not come to its end")
            return response

    async def said(self, command: Sequence[str]) -> bytes:
        """What this process writes, which is short. Raises :class:`RevproxyError` with its words if it fails, and
        :class:`DaemonError` where too many are at work."""
        async with self._roomy(), self._process(command) as process:
            data, words = await process.communicate()
            if process.returncode:
                raise RevproxyError(words.decode(errors="replace").strip() or "the process that reads has ended")
            return data

    @asynccontextmanager
    async def _roomy(self) -> AsyncIterator[None]:
        """One of few, for as long as this holds."""
        try:
            await asyncio.wait_for(self._room.acquire(), _ROOM_SEC)
        except TimeoutError:
            raise DaemonError(f"{_LISTS} long lists are on their way to others: ask again, or for fewer") from None
        try:
            yield
        finally:
            self._room.release()

    @asynccontextmanager
    async def _process(self, command: Sequence[str]) -> AsyncIterator[Process]:
        """It has ended afterwards."""
        with self._bequeathing():
            process = await asyncio.create_subprocess_exec(
                *command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=child.environment(), limit=_PIECE_BYTES
            )
        self._processes.add(process)
        try:
            yield process
        finally:
            self._processes.discard(process)
            _kill(process)
            await process.communicate()  # to the end of what it wrote: before that it does not count as ended

    @contextmanager
    def _cut_off_at_the_end(self, transport: asyncio.BaseTransport | None) -> Iterator[None]:
        if transport is None:
            raise ConnectionResetError
        self._transports.add(transport)
        try:
            yield
        finally:
            self._transports.discard(transport)


def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()


async def _send(response: web.StreamResponse, text: str) -> None:
    await _write(response, text.encode())


async def _write(response: web.StreamResponse, data: bytes) -> None:
    try:
        await asyncio.wait_for(response.write(data), _STALLED_SEC)
    except TimeoutError:
        raise ConnectionResetError("nobody reads it") from None


def _array(lines: list[str]) -> str:
    return "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n"
