"""HTTP from a thread of its own: who starts it is told whatever keeps it from listening."""

from __future__ import annotations

import threading

import pytest
from aiohttp import web

from reconciler.runtime.webserver import WebServer


def test_a_site_that_can_not_be_made_is_an_error_of_the_start() -> None:
    def broken() -> web.Application:
        raise ValueError("no such site")

    caught: list[BaseException] = []

    def start() -> None:
        with pytest.raises(ValueError, match="no such site") as error:
            WebServer("test", ((broken, None),)).start()  # type: ignore[arg-type]
        caught.append(error.value)

    starting = threading.Thread(target=start, daemon=True)
    starting.start()
    starting.join(10)
    assert caught
