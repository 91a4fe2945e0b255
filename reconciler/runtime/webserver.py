"""HTTP served from a thread with an event loop of its own: what the API and the metrics have in common."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Final

from aiohttp import web

from reconciler.runtime.webguard import QUIET_SEC, Factory, Guards, middleware

MAX_LINE_BYTES: Final = 8190
"""The longest request line, and the longest header."""

_ANSWERING_SEC: Final = 10
"""For so long what is being answered holds up the end."""

Listen = Callable[[Factory], Awaitable[asyncio.AbstractServer]]
Site = tuple[Callable[[], web.Application], Listen]
"""What makes an application, and what has connections made somewhere served by what a factory gives."""


class WebServer:
    """Serves ``sites`` from :meth:`start` until :meth:`stop`. ``name``: of the thread. ``ending`` is called on the loop
    when no more requests are taken, and before those at work are waited for."""

    def __init__(self, name: str, sites: Sequence[Site], ending: Callable[[], None] = lambda: None) -> None:
        self._sites, self._ending = sites, ending
        self._quiet = logging.getLogger(f"{__name__}.{name}")  # what aiohttp says of requests that are no HTTP
        self._quiet.setLevel(logging.CRITICAL)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started: Future[None] = Future()
        self._servers: list[tuple[asyncio.AbstractServer, Guards]] = []
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Listen; returns when connections are taken. Raises :class:`OSError` if it can't listen."""
        self._thread.start()
        self._started.result()

    def stop(self) -> None:
        """Answer what is being answered, and end."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def listen_again(self, site: int) -> None:
        """Where the place of a site (its number) has gone; what is being answered is not disturbed. Raises
        :class:`OSError` if it can't listen."""
        asyncio.run_coroutine_threadsafe(self._listen_again(site), self._loop).result()

    async def _listen_again(self, site: int) -> None:
        former, factory = self._servers[site]
        self._servers[site] = await self._sites[site][1](factory), factory
        former.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:
            if self._started.done():
                raise
            self._started.set_exception(error)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        runners: list[web.AppRunner] = []
        try:
            for make, listen in self._sites:
                application, made = make(), []  # type: tuple[web.Application, list[Guards]]
                application.middlewares.insert(0, middleware(lambda made=made: made[0]))  # type: ignore[misc]
                runner = web.AppRunner(
                    application,
                    access_log=None,
                    keepalive_timeout=2 * QUIET_SEC,  # guards are quicker, and the same with every aiohttp
                    logger=self._quiet,
                    max_line_size=MAX_LINE_BYTES,
                    max_field_size=MAX_LINE_BYTES,
                )
                runners.append(runner)
                await runner.setup()
                assert runner.server is not None
                made.append(Guards(runner.server))
                self._servers.append((await listen(made[0]), made[0]))
            self._started.set_result(None)
            await self._stop.wait()
        finally:
            self._ending()
            for server, _ in self._servers:
                server.close()
            for runner in runners:
                # Before aiohttp 3.9 cleaning up waits for answers on sites of its own alone, and here are none.
                if runner.server is not None:
                    await runner.server.shutdown(_ANSWERING_SEC)
                await runner.cleanup()
            await _others_end()


async def _others_end() -> None:
    """End requests whose connection is gone: aiohttp before 3.9 knows nothing of them any more."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for each in others:
        each.cancel()
    if others:
        await asyncio.wait(others, timeout=_ANSWERING_SEC)
