"""The daemon's HTTP interface on a unix socket: JSON in and out, versioned paths, one thread of its own.

Handlers check what came in and hand the work to the daemon's worker; they never touch the kernel. Every error is
``{"error": text, "problems": [...], "kind": name}`` with a status code that says whose fault it is; ``kind`` names the
exception, of :mod:`reconciler.errors`, or is RequestError (there is no such request) or InternalError.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Protocol

from aiohttp import web

from reconciler import answers
from reconciler.answers import to_json
from reconciler.api.streams import Streams
from reconciler.errors import (
    TOLD,
    CapacityError,
    CompileError,
    ConfigError,
    ForeignProgramError,
    HostError,
    KernelError,
    LockedError,
    NothingToConfirmError,
    RevproxyError,
    StaleError,
    TransactionError,
    UnfinishedError,
    UsageError,
)
from reconciler.runtime import savedplan
from reconciler.runtime.events import Events
from reconciler.runtime.logger import Logger
from reconciler.selection import FILTERS, event_kinds
from reconciler.trouble import explained

MAX_BODY_BYTES: Final = 64 * 1024
MAX_EDIT_SEC: Final = 300
MAX_PLAN_BYTES: Final = 256 << 20
"""A saved plan holds the files it was made of."""
_MAX_LINE_BYTES: Final = 8190
_DIGITS: Final = 18
_SOCKET_MODE: Final = 0o660

_log = Logger("api")


class Commands(Protocol):
    """What the interface offers; called on the worker, one at a time."""

    def status(self) -> answers.Status: ...
    def diff(self) -> answers.Difference: ...
    def plan(self) -> answers.PlanAnswer: ...
    def saved_plan(self) -> answers.SavedPlan: ...
    def apply(
        self,
        *,
        allow_empty: bool = False,
        confirm_within_sec: float | None = None,
        plan: answers.SavedPlan | None = None,
    ) -> answers.Applied: ...
    def confirm(self) -> answers.Confirmed: ...
    def rollback(self, number: int | None = None) -> answers.Applied: ...
    def history(self) -> tuple[answers.HistoryEntry, ...]: ...
    def suspend(self) -> answers.Suspension: ...
    def resume(self) -> answers.Suspension: ...

    connections: Callable[..., tuple[answers.Connection, ...]]  # filters, sort and limit by name
    connection_count: Callable[..., int]
    flush: Callable[..., int]

    def stats(self) -> answers.Stats: ...
    def drain(self, target: str, *, proxy: str | None = None) -> answers.Draining: ...
    def undrain(self, target: str, *, proxy: str | None = None) -> answers.Draining: ...
    def draining(self, target: str, *, proxy: str | None = None) -> answers.Draining: ...

    def interfaces(self) -> tuple[answers.InterfaceDetail, ...]: ...
    def begin_edit(self, seconds: int) -> answers.EditHold: ...
    def end_edit(self, token: str) -> None: ...
    def test(self) -> answers.Tested: ...
    def explain(
        self, source: str, to: str, *, protocol: str = "tcp", interface: str | None = None
    ) -> answers.Explanation: ...
    def down(self) -> answers.TakenDown: ...


Submit = Callable[[Callable[[], Any]], "Future[Any]"]
"""Runs a function on the worker and gives its result later."""


class _BadRequestError(Exception):
    """The request is not one we understand; the text says why."""


class Server:
    """Listens on ``path`` until :meth:`stop`. ``submit`` brings calls to the worker's thread."""

    def __init__(
        self,
        path: Path,
        commands: Commands,
        submit: Submit,
        instance: answers.Instance,
        events: Events | None = None,
    ) -> None:
        self._streams = Streams(events or Events())
        self._path, self._commands, self._submit, self._instance = path, commands, submit, instance
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)
        self._started: Future[None] = Future()
        self._stop = asyncio.Event()

    def start(self) -> None:
        """Listen; returns when connections are taken. Raises :class:`RevproxyError` if the socket can't be made."""
        self._thread.start()
        self._started.result()

    def stop(self) -> None:
        """Answer what is being answered, close the socket, remove it."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except OSError as error:
            self._started.set_exception(RevproxyError(f"{self._path}: {error.strerror or error}"))
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        # Handlers' errors are logged below; what is left is what aiohttp says about requests that are no HTTP.
        quiet = logging.getLogger(f"{__name__}.http")
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
            await web.SockSite(runner, listen(self._path)).start()
            self._started.set_result(None)
            await self._stop.wait()
        finally:
            self._streams.end()
            await runner.cleanup()
            self._path.unlink(missing_ok=True)

    # -- routes --------------------------------------------------------------------------------------------

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=MAX_PLAN_BYTES, middlewares=[_errors_as_json])
        commands = self._commands
        application.router.add_get("/v1/instance", self._get_instance)
        for name in ("status", "diff", "plan", "stats", "history", "test"):
            application.router.add_get(f"/v1/{name}", self._answering(getattr(commands, name)))
        application.router.add_get("/v1/interfaces", self._answering(lambda: self._commands.interfaces()))
        application.router.add_get("/v1/connections", self._get_connections)
        application.router.add_get("/v1/events", self._get_events)
        application.router.add_get("/v1/explain", self._get_explain)
        application.router.add_post("/v1/connections/flush", self._post_flush)
        application.router.add_get("/v1/plan/saved", self._answering(commands.saved_plan))
        application.router.add_post("/v1/apply", self._post_apply)
        application.router.add_post("/v1/edit/begin", self._post_begin_edit)
        application.router.add_post("/v1/edit/end", self._post_end_edit)
        application.router.add_post("/v1/rollback", self._post_rollback)
        for name in ("confirm", "suspend", "resume"):
            application.router.add_post(f"/v1/{name}", self._doing(getattr(commands, name)))
        application.router.add_post("/v1/down", self._post_down)
        application.router.add_get("/v1/drain", self._get_drain)
        application.router.add_post("/v1/drain", self._post_drain)
        application.router.add_post("/v1/undrain", self._post_undrain)
        return application

    async def _call(self, function: Callable[[], Any]) -> Any:
        return await asyncio.wrap_future(self._submit(function))

    def _answering(self, command: Callable[[], Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handler(request: web.Request) -> web.Response:
            _only(request.query, ())
            return _json(await self._call(command))

        return handler

    async def _get_instance(self, request: web.Request) -> web.Response:
        _only(request.query, ())
        return _json(self._instance)

    async def _get_connections(self, request: web.Request) -> web.Response:
        _only(request.query, (*FILTERS, "count", "sort", "limit"))
        filters = {name: request.query[name] for name in FILTERS if name in request.query}
        if request.query.get("count", "0") not in ("0", "1"):
            raise _BadRequestError("count: must be 0 or 1")
        if request.query.get("count") == "1":
            return _json({"count": await self._call(lambda: self._commands.connection_count(**filters))})
        how: dict[str, Any] = {"sort": request.query["sort"]} if "sort" in request.query else {}
        if "limit" in request.query:
            how["limit"] = _number(request.query["limit"], "limit")
        return _json(await self._call(lambda: self._commands.connections(**filters, **how)))

    async def _get_events(self, request: web.Request) -> web.StreamResponse:
        _only(request.query, ("follow", "kind", "proxy"))
        if request.query.get("follow", "0") not in ("0", "1"):
            raise _BadRequestError("follow: must be 0 or 1")
        kinds = event_kinds(request.query.getall("kind", ()))
        follow = request.query.get("follow") == "1"
        return await self._streams.answer(request, follow=follow, kinds=kinds, proxy=request.query.get("proxy"))

    async def _get_explain(self, request: web.Request) -> web.Response:
        _only(request.query, ("from", "to", "protocol", "interface"))
        source, to = (request.query.get(name, "") for name in ("from", "to"))
        protocol, interface = request.query.get("protocol", "tcp"), request.query.get("interface")
        return _json(
            await self._call(lambda: self._commands.explain(source, to, protocol=protocol, interface=interface))
        )

    async def _post_flush(self, request: web.Request) -> web.Response:
        body = await _body(request, dict.fromkeys(FILTERS, (str, type(None))))
        return _json(answers.Flushed(await self._call(lambda: self._commands.flush(**body))))

    async def _get_drain(self, request: web.Request) -> web.Response:
        _only(request.query, ("proxy", "target"))
        wanted = {"target": _required(request.query, "target"), "proxy": request.query.get("proxy")}
        return _json(await self._call(lambda: self._commands.draining(**wanted)))

    async def _post_drain(self, request: web.Request) -> web.Response:
        body = await _body(request, {"target": (str,), "proxy": (str, type(None))})
        _required(body, "target")
        return _json(await self._call(lambda: self._commands.drain(**body)))

    async def _post_undrain(self, request: web.Request) -> web.Response:
        body = await _body(request, {"target": (str,), "proxy": (str, type(None))})
        _required(body, "target")
        return _json(await self._call(lambda: self._commands.undrain(**body)))

    async def _post_apply(self, request: web.Request) -> web.Response:
        known = {"allow_empty": (bool,), "confirm_within_sec": (int, float, type(None)), "plan": (dict, type(None))}
        body = await _body(request, known, MAX_PLAN_BYTES)
        if body.get("plan") is not None:
            body["plan"] = savedplan.parse(body["plan"])
        return _json(await self._call(lambda: self._commands.apply(**body)))

    async def _post_begin_edit(self, request: web.Request) -> web.Response:
        body = await _body(request, {"seconds": (int,)})
        if not 0 < body.get("seconds", 0) <= MAX_EDIT_SEC:
            raise _BadRequestError(f"seconds: must be from 1 to {MAX_EDIT_SEC}")
        return _json(await self._call(lambda: self._commands.begin_edit(body["seconds"])))

    async def _post_end_edit(self, request: web.Request) -> web.Response:
        body = await _body(request, {"token": (str,)})
        await self._call(lambda: self._commands.end_edit(body.get("token", "")))
        return _json({})

    async def _post_rollback(self, request: web.Request) -> web.Response:
        body = await _body(request, {"revision": (int, type(None))})
        return _json(await self._call(lambda: self._commands.rollback(body.get("revision"))))

    def _doing(self, command: Callable[[], Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handler(request: web.Request) -> web.Response:
            await _body(request, {})
            return _json(await self._call(command))

        return handler

    async def _post_down(self, request: web.Request) -> web.Response:
        await _body(request, {})
        return _json(await self._call(self._commands.down))


def listen(path: Path) -> socket.socket:
    """A listening unix socket at ``path`` that only owner and group can use. One that a killed daemon left there is
    replaced; the instance lock, held by the caller, says that it is nobody's."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.unlink(missing_ok=True)
        before = os.umask(0o777 & ~_SOCKET_MODE)  # from the moment it exists, not from a chmod after it
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(64)
    except OSError:
        listener.close()
        raise
    return listener


# -- requests and answers ------------------------------------------------------------------------------------


def _json(value: Any, status: int = 200) -> web.Response:
    return web.json_response(to_json(value), status=status)


def _only(query: Mapping[str, str], known: tuple[str, ...]) -> None:
    for name in query:
        if name not in known:
            raise _BadRequestError(f"{name}: unknown parameter" + (f", known: {', '.join(known)}" if known else ""))


def _number(text: str, name: str) -> int:
    """A whole number of at most 18 digits."""
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        raise _BadRequestError(f"{name}: must be a number")
    return int(text)


def _required(values: Mapping[str, Any], name: str) -> Any:
    if name not in values:
        raise _BadRequestError(f"{name}: missing")
    return values[name]


async def _body(
    request: web.Request, known: Mapping[str, tuple[type, ...]], limit: int = MAX_BODY_BYTES
) -> dict[str, Any]:
    """The request's JSON object of at most ``limit`` bytes, each of its keys known and of one of the types named. Empty
    counts as {}."""
    if request.content_length is None and request.body_exists:
        raise _BadRequestError("the length of the body is missing")
    if (request.content_length or 0) > limit:
        raise web.HTTPRequestEntityTooLarge(limit, request.content_length or 0)
    content = await request.read()
    try:
        body = json.loads(content) if content.strip() else {}
    except (ValueError, RecursionError) as error:
        raise _BadRequestError(f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise _BadRequestError("the body must be a JSON object")
    for key, value in body.items():
        if key not in known:
            raise _BadRequestError(f"{key}: unknown key" + (f", known: {', '.join(known)}" if known else ""))
        if type(value) not in known[key]:
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in known[key])
            raise _BadRequestError(f"{key}: must be {names}")
    return body


def _status_of(error: RevproxyError) -> int:
    """The HTTP status that says whose fault it is."""
    if isinstance(error, ConfigError):
        return 422
    if isinstance(error, (LockedError, StaleError, ForeignProgramError, NothingToConfirmError)):
        return 409
    if isinstance(error, CapacityError):
        return 507
    if isinstance(error, (KernelError, HostError, CompileError, TransactionError, UnfinishedError)):
        return 503 if error.transient else 500
    return 400


def _kind_of(error: RevproxyError) -> str:
    """The name in :data:`~reconciler.errors.TOLD` that the client knows it by, else its own."""
    return next((each.__name__ for each in type(error).__mro__ if each.__name__ in TOLD), type(error).__name__)


def _usage(text: str) -> dict[str, Any]:
    return {"error": text, "problems": [], "kind": UsageError.__name__}


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except _BadRequestError as error:
        return _json(_usage(str(error)), 400)
    except ConfigError as error:
        return _json({"error": str(error), "problems": error.problems, "kind": "ConfigError"}, 422)
    except RevproxyError as error:
        return _json({"error": str(error), "problems": [], "kind": _kind_of(error)}, _status_of(error))
    except web.HTTPException as error:
        text = f"{request.method} {request.path}: {error.reason}"
        return _json({"error": text, "problems": [], "kind": "RequestError"}, error.status)
    except asyncio.CancelledError:
        raise
    except OSError as error:
        trouble = explained(error)
        _log.error("request_failed", method=request.method, path=request.path, error=str(trouble))
        return _json({"error": str(trouble), "problems": [], "kind": _kind_of(trouble)}, _status_of(trouble))
    except Exception as error:  # the last resort: a mistake of ours must not look like a broken connection
        reference = secrets.token_hex(4)
        _log.exception("request_failed", reference=reference, method=request.method, path=request.path)
        text = f"internal error {reference} ({type(error).__name__}: {error}); revproxyd's log has more"
        return _json({"error": text, "problems": [], "kind": "InternalError"}, 500)
