"""The daemon's events over HTTP: one JSON object a line, those that are remembered and, if wanted, those to come.

A line may be empty: that is how a stream in which nothing happens shows that it goes on.
"""

from __future__ import annotations

import asyncio
import json
from typing import Final

from aiohttp import web

from reconciler.answers import Event as Answer
from reconciler.runtime import clock
from reconciler.runtime.events import Event, Events, Slice

LOST: Final = "events_lost"
"""Kind of the line that says how many events the reader was too slow for, or the kernel had no room for."""
_AT_ONCE: Final = 2000
_PULSE_SEC: Final = 15.0


class Streams:
    """Everybody who follows ``events``, on one event loop."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._followers: set[asyncio.Event] = set()
        self._ended = False

    def end(self) -> None:
        """No more of it: the loop is about to stop."""
        self._ended = True
        for changed in self._followers:
            changed.set()

    async def answer(
        self, request: web.Request, *, follow: bool, kinds: frozenset[str], proxy: str | None
    ) -> web.StreamResponse:
        """Stream events of these kinds (none: all) and this proxy (None: all)."""
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        if follow:
            await self._follow(response, kinds, proxy)
        else:
            number, last = 0, self._events.last
            while number < last:
                number = await self._send(response, number, kinds, proxy)
        return response

    async def _follow(self, response: web.StreamResponse, kinds: frozenset[str], proxy: str | None) -> None:
        """From now on."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def added() -> None:
            loop.call_soon_threadsafe(changed.set)

        number = self._events.last
        self._followers.add(changed)
        self._events.listen(added)
        try:
            await response.write(b"\n")  # the reader knows that it misses nothing from here on
            while not self._ended:
                changed.clear()
                if self._events.last > number:
                    number = await self._send(response, number, kinds, proxy)
                    continue
                try:
                    await asyncio.wait_for(changed.wait(), _PULSE_SEC)
                except TimeoutError:
                    await response.write(b"\n")
        except ConnectionError:
            return  # nobody listens any more
        finally:
            self._events.unlisten(added)
            self._followers.discard(changed)

    async def _send(self, response: web.StreamResponse, number: int, kinds: frozenset[str], proxy: str | None) -> int:
        """Send some of what came after event ``number``; the number of the last event that is done with."""
        pieces, lost = self._events.pieces(number, limit=_AT_ONCE)
        lines = []
        if lost:
            now = clock.now()
            lines.append(_line(Answer(number + lost, now, LOST, {"lost": lost, "reason": "slow_reader"})))
        for piece in pieces:
            if isinstance(piece, Slice):
                lines += piece.batch.event_lines(piece.start, piece.stop, piece.first, kinds, proxy)
                continue
            event = piece.event
            if (not kinds or event.kind in kinds) and (proxy is None or event.fields.get("proxy") == proxy):
                lines.append(_line(as_answer(event)))
        if lines:
            await response.write("".join(lines).encode())
        else:
            await asyncio.sleep(0)
        return pieces[-1].last if pieces else number + lost


def _line(answer: Answer) -> str:
    return json.dumps(answer.to_json()) + "\n"


def as_answer(event: Event) -> Answer:
    """The event as it is told."""
    return Answer(event.number, clock.of_ns(event.time_ns), event.kind, event.fields)
