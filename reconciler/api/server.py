"""The daemon's HTTP interface on a unix socket: JSON in and out, versioned paths, one thread of its own.

What can be asked for is in :mod:`reconciler.api.routes`. Handlers hand the work to the daemon's worker, or to
a thread that reads; they never touch the kernel.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol

from aiohttp import web

from reconciler import answers
from reconciler.answers import to_json
from reconciler.api import failures, openapi, requests
from reconciler.api.counting import Counted, Counting, Handler
from reconciler.api.reader import Reader
from reconciler.api.routes import MAX_PLAN_BYTES, ROUTES, Route
from reconciler.api.streams import Streams
from reconciler.errors import RevproxyError
from reconciler.places import READ_SOCKET
from reconciler.runtime import savedplan
from reconciler.runtime.events import Events
from reconciler.runtime.logger import Logger
from reconciler.runtime.webguard import Factory
from reconciler.runtime.webserver import Site, WebServer
from reconciler.selection import event_kinds

_SOCKET_MODE: Final = 0o660
_READ_SEC: Final = 30.0
"""For so long a request's body may be on its way."""
_ANSWER_SEC: Final = 600.0
"""For so long the worker is waited for: twice as long as a compilation and the look behind it."""


class Commands(Counted, Protocol):
    """What the interface offers; called on the worker, one at a time, unless it says otherwise."""

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

    flush: Callable[..., Iterator[int]]  # step by step

    def interfaces(self) -> tuple[answers.InterfaceDetail, ...]: ...
    def begin_edit(self, seconds: int) -> answers.EditHold: ...
    def end_edit(self, token: str) -> None: ...
    def test(self) -> answers.Tested: ...
    def explain(
        self, source: str, to: str, *, protocol: str = "tcp", interface: str | None = None
    ) -> answers.Explanation: ...
    def down(self) -> answers.TakenDown: ...

    # They only read, and take long where there are many connections: on a thread of their own, one at a time.
    connections: Callable[..., Iterator[list[str]]]  # filters, sort and limit by name
    connection_count: Callable[..., int]

    def bequeathing(self) -> AbstractContextManager[None]:
        """For the starting of that."""
        ...

    def list_command(self, how: Mapping[str, Any], /) -> list[str] | None:
        """What starts a process that does both where there are very many; at once, on the event loop."""
        ...

    def stats(self) -> answers.Stats: ...


Submit = Callable[[Callable[[], Any]], "Future[Any]"]
"""Runs a function on the worker and gives its result later."""


_Identity = tuple[int, int] | None
"""Of a file; None: there is none."""

_log = Logger("api")


class Server:
    """Listens on ``path`` until :meth:`stop`. ``submit`` brings calls to the worker's thread. Members of ``read_group``
    may ask, and change nothing, on a socket of their own beside it."""

    def __init__(
        self,
        path: Path,
        commands: Commands,
        submit: Submit,
        instance: answers.Instance,
        events: Events | None = None,
        *,
        read_group: int | None = None,
    ) -> None:
        self._streams = Streams(events or Events())
        self._path, self._commands, self._submit, self._instance = path, commands, submit, instance
        self._special: Mapping[str, Handler] = {
            "document": self._get_document,
            "instance": self._get_instance,
            "stats": self._stats,
            "explain": self._explain,
            "flush": self._flush,
            "apply": self._apply,
            "rollback": self._rollback,
            "end_edit": self._end_edit,
        }
        self._reader = Reader(commands.bequeathing)
        self._special = {**self._special, **Counting(commands, self._reader, self._call).handlers}
        self._read_path, self._read_group = path.with_name(READ_SOCKET), read_group
        sites: list[Site] = [(self._application, self._listen)]
        self._made: dict[Path, _Identity] = {}  # in the order of the sites
        if read_group is not None:
            sites.append((self._reading, self._listen_for_readers))
        self._web = WebServer("api", sites, self._ending)

    def start(self) -> None:
        """Listen; returns when connections are taken. Raises :class:`RevproxyError` if the socket can't be made."""
        try:
            self._web.start()
        except OSError as error:
            raise RevproxyError(f"{error.filename or self._path}: {error.strerror or error}") from error

    def stop(self) -> None:
        """Answer what is being answered, close the socket, remove it."""
        self._web.stop()
        self._reader.stop()
        self._path.unlink(missing_ok=True)
        if self._read_group is not None:
            self._read_path.unlink(missing_ok=True)

    def tend(self) -> None:
        """Make sockets again that somebody has removed, or has put something else in place of. Raises
        :class:`RevproxyError` if one can't be made."""
        for site, (path, made) in enumerate(self._made.items()):
            if _identity(path) == made:
                continue
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
                self._web.listen_again(site)
            except OSError as error:
                raise RevproxyError(f"{error.filename or path}: {error.strerror or error}") from error
            _log.warning("socket_made_again", path=str(path))

    def _ending(self) -> None:
        self._streams.end()
        self._reader.end()

    async def _listen(self, factory: Factory) -> asyncio.AbstractServer:
        return await self._listening(self._path, None, factory)

    async def _listen_for_readers(self, factory: Factory) -> asyncio.AbstractServer:
        return await self._listening(self._read_path, self._read_group, factory)

    async def _listening(self, path: Path, group: int | None, factory: Factory) -> asyncio.AbstractServer:
        listener = listen(path, group)
        self._made[path] = _identity(path)
        return await asyncio.get_running_loop().create_unix_server(factory, sock=listener)

    # -- routes --------------------------------------------------------------------------------------------

    def _application(self) -> web.Application:
        return self._serving(self._post)

    def _reading(self) -> web.Application:
        return self._serving(self._refusing)

    def _serving(
        self, post: Callable[[Route], Callable[[web.Request], Awaitable[web.StreamResponse]]]
    ) -> web.Application:
        application = web.Application(client_max_size=MAX_PLAN_BYTES, middlewares=[failures.as_json])
        for route in ROUTES:
            handler = self._get(route) if route.method == "GET" else post(route)
            application.router.add_route(route.method, route.path, handler)
        return application

    def _refusing(self, _route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handler(_request: web.Request) -> web.StreamResponse:
            text = f"{self._read_path} is for reading: changing takes root, or the group of {self._path}"
            return failures.answer(text, "RequestError", 403)

        return handler

    def _get(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        answer: Handler = self._special.get(route.name) or self._plain(route.name)

        async def handler(request: web.Request) -> web.StreamResponse:
            query = requests.query(route, request)
            if route.lines:
                return await self._events(request, query)
            if route.name == "connections":
                return await self._connections(request, query)
            return _json(await answer(query))

        return handler

    def _post(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        answer: Handler = self._special.get(route.name) or self._plain(route.name)

        async def handler(request: web.Request) -> web.StreamResponse:
            try:
                body = await asyncio.wait_for(requests.body(route, request), _READ_SEC)
            except TimeoutError:
                raise web.HTTPRequestTimeout from None
            return _json(await answer(body))

        return handler

    def _plain(self, name: str) -> Handler:
        """The command of that name, which takes what the request says."""
        return lambda said: self._call(lambda: getattr(self._commands, name)(**said))

    async def _call(self, function: Callable[[], Any]) -> Any:
        work = asyncio.wrap_future(self._submit(function))
        try:
            return await asyncio.wait_for(asyncio.shield(work), _ANSWER_SEC)
        except TimeoutError:
            if work.done():
                raise
            raise web.HTTPGatewayTimeout(reason=f"not done within {_ANSWER_SEC:g} s; it goes on") from None

    # -- those that are more than a command ------------------------------------------------------------------

    async def _get_document(self, _query: dict[str, Any]) -> Any:
        return openapi.document()

    async def _get_instance(self, _query: dict[str, Any]) -> Any:
        return self._instance

    async def _connections(self, request: web.Request, query: dict[str, Any]) -> web.StreamResponse:
        if command := self._commands.list_command(query):
            return await self._reader.piped(request, command)
        if query.pop("count", False):
            how = {name: value for name, value in query.items() if name not in ("sort", "limit")}
            count = await self._reader.call(lambda: self._commands.connection_count(**how))
            return _json(answers.ConnectionCount(count))
        return await self._reader.listed(request, lambda: self._commands.connections(**query))

    async def _stats(self, _query: dict[str, Any]) -> Any:
        return await self._reader.call(self._commands.stats)

    async def _events(self, request: web.Request, query: dict[str, Any]) -> web.StreamResponse:
        kinds = event_kinds(query.get("kind", ()))
        follow = query.get("follow", False)
        return await self._streams.answer(request, follow=follow, kinds=kinds, proxy=query.get("proxy"))

    async def _explain(self, query: dict[str, Any]) -> Any:
        source = query.pop("from")
        return await self._call(lambda: self._commands.explain(source, **query))

    async def _flush(self, body: dict[str, Any]) -> Any:
        steps: Iterator[int] = await self._call(lambda: self._commands.flush(**body))
        total, flushed = 0, await self._call(lambda: next(steps, None))
        while flushed is not None:  # others have their turns in between
            total += flushed
            flushed = await self._call(lambda: next(steps, None))
        return answers.Flushed(total)

    async def _apply(self, body: dict[str, Any]) -> Any:
        if body.get("plan") is not None:
            body["plan"] = savedplan.parse(body["plan"])
        return await self._call(lambda: self._commands.apply(**body))

    async def _rollback(self, body: dict[str, Any]) -> Any:
        return await self._call(lambda: self._commands.rollback(body.get("revision")))

    async def _end_edit(self, body: dict[str, Any]) -> Any:
        await self._call(lambda: self._commands.end_edit(body["token"]))
        return {}


def listen(path: Path, group: int | None = None) -> socket.socket:
    """A listening unix socket at ``path`` that only owner and group can use, its group being the process's own or
    ``group``. One that a killed daemon left there is replaced; the instance lock, held by the caller, says that it is
    nobody's."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.unlink(missing_ok=True)
        before = os.umask(0o777 & ~_SOCKET_MODE)  # from the moment it exists, not from a chmod after it
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        if group is not None:
            _give(path, group)
        listener.listen(64)
    except OSError:
        listener.close()
        raise
    return listener


def _identity(path: Path) -> _Identity:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _give(path: Path, group: int) -> None:
    try:
        os.chown(path, -1, group)
    except PermissionError as error:
        path.unlink()
        text = f"can't be given to group {group}: the daemon's user has to be one of its members"
        raise PermissionError(error.errno, text, str(path)) from None


def _json(value: Any) -> web.Response:
    return web.json_response(to_json(value))
