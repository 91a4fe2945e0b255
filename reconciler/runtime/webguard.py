"""Bounds on who may hold a connection to an HTTP server of ours: how many, how long without saying what they want.

Versions of aiohttp differ in what they bound. Here it is the same with each: a connection on which no request is at
work is closed after a while, however much of one has come; there are only so many; and whoever has said all and closed
only his sending side is answered.
"""

from __future__ import annotations

import asyncio
import json
import select
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from aiohttp import web

MAX_CONNECTIONS: Final = 256
QUIET_SEC: Final = 30.0
"""For so long a connection may be there without a whole request."""
_HALF_CLOSED_SEC: Final = 0.05

Factory = Callable[[], asyncio.Protocol]


class Guards:
    """The connections of one server. ``inner`` makes the protocol that serves one."""

    def __init__(self, inner: Callable[[], asyncio.BaseProtocol]) -> None:
        self._inner = inner
        self.open: dict[asyncio.BaseTransport, _Guard] = {}

    def __call__(self) -> asyncio.Protocol:
        """The protocol for a new connection."""
        return _Guard(self, self._inner())

    def full(self) -> bool:
        """There is no room for another one."""
        return len(self.open) >= MAX_CONNECTIONS


def middleware(guards: Callable[[], Guards]) -> Callable[..., Awaitable[web.StreamResponse]]:
    """For the application behind: says when a request is at work. ``guards``: known once the server is there."""

    @web.middleware
    async def watch(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        guard = guards().open.get(request.transport) if request.transport else None
        if guard is None:
            return await handler(request)
        with guard.at_work(request):
            return await handler(request)

    return watch


class _Guard(asyncio.Protocol):
    """Passes on what happens on one connection."""

    def __init__(self, guards: Guards, inner: asyncio.BaseProtocol) -> None:
        assert isinstance(inner, asyncio.Protocol)
        self._guards, self._inner = guards, inner
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._half_closed = False
        self._request: web.Request | None = None

    # -- what the transport says ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, or say that there are too many."""
        assert isinstance(transport, asyncio.Transport)
        if self._guards.full():
            transport.write(_BUSY)
            transport.close()
            return
        self._transport = transport
        self._guards.open[transport] = self
        self._inner.connection_made(transport)
        self._wait()

    def connection_lost(self, error: Exception | None) -> None:
        """Forget it."""
        if self._transport is None:
            return
        self._stop_waiting()
        self._guards.open.pop(self._transport, None)
        self._inner.connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        if self._transport is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool:
        """Whoever has only finished sending gets his answer; whoever has gone does not, nor who has not said all."""
        if self._transport is None or _hung_up(self._transport):
            return False
        self._inner.eof_received()
        self._half_closed = True
        if self._request is None:
            self._wait()
        else:
            self._wait_no_longer(self._request)
        return True

    def pause_writing(self) -> None:
        """Pass it on."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._inner.resume_writing()

    # -- waiting for a request -----------------------------------------------------------------------------

    @contextmanager
    def at_work(self, request: web.Request) -> Iterator[None]:
        """While the block runs, the request takes what time it has been given; there is one after the other."""
        self._request = request
        self._stop_waiting()
        if self._half_closed:
            self._wait_no_longer(request)
        try:
            yield
        finally:
            self._request = None
            self._wait()

    def _wait_no_longer(self, request: web.Request) -> None:
        """Nothing more comes. Where some of the body is missing, only a refusal that needs none of it is waited for."""

        def give_up() -> None:
            if self._request is request and not request.content.is_eof() and self._transport is not None:
                self._transport.abort()

        asyncio.get_running_loop().call_later(_HALF_CLOSED_SEC, give_up)

    def _wait(self) -> None:
        self._stop_waiting()
        seconds = _HALF_CLOSED_SEC if self._half_closed else QUIET_SEC
        self._timer = asyncio.get_running_loop().call_later(seconds, self._time_is_over, 0)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_is_over(self, left_before: int) -> None:
        """But not while an answer is being read."""
        if self._transport is None:
            return
        left = self._transport.get_write_buffer_size()
        if left and left != left_before:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(QUIET_SEC, self._time_is_over, left)
        else:
            self._transport.abort()


def _hung_up(transport: asyncio.Transport) -> bool:
    """Whether the other side has closed both ways, as far as the socket tells."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), 0)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))


def _busy() -> bytes:
    text = f"{MAX_CONNECTIONS} connections are open already"
    body = json.dumps({"error": text, "problems": [], "kind": "RequestError"}).encode()
    head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


_BUSY: Final = _busy()
