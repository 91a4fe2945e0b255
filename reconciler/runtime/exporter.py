"""Serves metrics over HTTP, with /healthz and /readyz, from a thread of its own: :class:`Exporter`."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from aiohttp import web

from reconciler.config.model import Metrics as Settings
from reconciler.errors import RevproxyError
from reconciler.runtime.logger import Logger
from reconciler.runtime.metrics import Metrics

RETRY_SEC: Final = 5.0
"""A port that was in use is tried again after this."""
_MAX_LINE_BYTES: Final = 8190

_log = Logger("exporter")


class _Site:
    """One listening server. Raises :class:`OSError` if it can't listen."""

    def __init__(self, application: Callable[[], web.Application], host: str, port: int) -> None:
        self._application, self._host, self._port = application, host, port
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()
        self._started.result()

    def stop(self) -> None:
        """Listen no more."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except OSError as error:
            self._started.set_exception(error)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        quiet = logging.getLogger(f"{__name__}.http")  # what it says of requests that are no HTTP
        quiet.setLevel(logging.CRITICAL)
        runner = web.AppRunner(
            self._application(),
            access_log=None,
            logger=quiet,
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
            self._started.set_result(None)
            await self._stop.wait()
        finally:
            await runner.cleanup()


class Exporter:
    """Serves as the settings say. ``alive`` and ``ready`` give None, or why not."""

    def __init__(self, metrics: Metrics, alive: Callable[[], str | None], ready: Callable[[], str | None]) -> None:
        self._metrics, self._alive, self._ready = metrics, alive, ready
        self._site: _Site | None = None
        self._serving = Settings()
        self._again_at = 0.0
        self.problem: str | None = None
        """Why metrics are not served although they should be."""

    def align(self, wanted: Settings) -> None:
        """Serve there, or nowhere. What doesn't work is in :attr:`problem`, and tried again."""
        if wanted == self._serving and (self.problem is None or time.monotonic() < self._again_at):
            return
        self.stop()
        self._serving = wanted
        if not wanted.enabled:
            return
        host, _, port = wanted.listen.rpartition(":")
        try:
            self._site = _Site(self._application, host.strip("[]"), int(port))
        except OSError as error:
            self._again_at = time.monotonic() + RETRY_SEC
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            problem = f"metrics can't be served at {wanted.listen}: {reason}"
            if problem != self.problem:
                _log.error("metrics_not_served", listen=wanted.listen, error=reason)
            self.problem = problem
        else:
            self.problem = None
            _log.info("metrics_served", listen=wanted.listen)

    def stop(self) -> None:
        """Serve no more."""
        if self._site is not None:
            self._site.stop()
            self._site = None
        if not self._serving.enabled:
            self.problem = None

    # -- in the server's thread ------------------------------------------------------------------------------

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=1024)
        application.router.add_get("/metrics", self._get_metrics)
        application.router.add_get("/healthz", lambda request: self._state(request, self._alive))
        application.router.add_get("/readyz", lambda request: self._state(request, self._ready))
        return application

    async def _get_metrics(self, request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "")
        try:
            body, content_type = await asyncio.get_running_loop().run_in_executor(None, self._metrics.text, accept)
        except RevproxyError as error:
            return web.Response(status=503, text=f"{error}\n")
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _state(self, _request: web.Request, state: Callable[[], str | None]) -> web.Response:
        reason = state()
        return web.Response(status=503 if reason else 200, text=f"{reason or 'ok'}\n")
