"""Serves metrics over HTTP, with /healthz and /readyz, from a thread of its own: :class:`Exporter`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

from aiohttp import web

from reconciler.config.model import Metrics as Settings
from reconciler.daemon.metrics import Metrics
from reconciler.errors import RevproxyError
from reconciler.runtime.logger import Logger
from reconciler.runtime.webguard import Factory
from reconciler.runtime.webserver import WebServer

RETRY_SEC: Final = 5.0
"""A port that was in use is tried again after this."""

_log = Logger("exporter")


class Exporter:
    """Serves as the settings say. ``alive`` and ``ready`` give None, or why not."""

    def __init__(self, metrics: Metrics, alive: Callable[[], str | None], ready: Callable[[], str | None]) -> None:
        self._metrics, self._alive, self._ready = metrics, alive, ready
        self._server: WebServer | None = None
        self._serving = Settings()
        self._again_at = 0.0
        self.problem: str | None = None
        """Why metrics are not served although they should be."""

    def differs(self, wanted: Settings) -> bool:
        """:meth:`align` has something to do, now or later."""
        return wanted != self._serving or self.problem is not None

    def align(self, wanted: Settings) -> None:
        """Serve there, or nowhere. What doesn't work is in :attr:`problem`, and tried again."""
        if wanted == self._serving and (self.problem is None or time.monotonic() < self._again_at):
            return
        self.stop()
        self._serving = wanted
        if not wanted.enabled:
            return
        host, _, port = wanted.listen.rpartition(":")

        async def listen(factory: Factory) -> asyncio.AbstractServer:
            loop = asyncio.get_running_loop()
            return await loop.create_server(factory, host.strip("[]"), int(port), reuse_address=True)

        server = WebServer("metrics", ((self._application, listen),))
        try:
            server.start()
        except OSError as error:
            self._again_at = time.monotonic() + RETRY_SEC
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            problem = f"metrics can't be served at {wanted.listen}: {reason}"
            if problem != self.problem:
                _log.error("metrics_not_served", listen=wanted.listen, error=reason)
            self.problem = problem
        else:
            self._server, self.problem = server, None
            _log.info("metrics_served", listen=wanted.listen)

    def stop(self) -> None:
        """Serve no more."""
        if self._server is not None:
            self._server.stop()
            self._server = None
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
