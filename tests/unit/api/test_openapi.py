"""The OpenAPI document against the running server: requests made of it are understood or refused as it says."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
import urllib3
from hypothesis import HealthCheck, given, settings
from requests.adapters import HTTPAdapter
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from reconciler.api import openapi
from reconciler.api.client import DaemonClient
from reconciler.api.routes import DOCUMENT, ROUTES, Route, Value
from reconciler.resources import directory
from reconciler.runtime.events import Events
from reconciler.runtime.revisions import LONGEST_SEC, SHORTEST_SEC
from tests.unit.api.fakecommands import FakeCommands
from tests.unit.api.rawhttp import get

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
EXAMPLES = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class UnixAdapter(HTTPAdapter):
    """Brings ``requests`` to a unix socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__()

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> Any:
        path = self._path

        class Connection(urllib3.connection.HTTPConnection):
            def connect(self) -> None:
                self.sock = socket.socket(socket.AF_UNIX)
                self.sock.settimeout(20)
                self.sock.connect(str(path))

        class Pool(urllib3.HTTPConnectionPool):
            ConnectionCls = Connection  # type: ignore[assignment]

        return Pool("localhost", 80)


def session(path: Path) -> requests.Session:
    made = requests.Session()
    made.mount("http://", UnixAdapter(path))
    return made


@pytest.fixture
def schema() -> Any:
    return schemathesis.openapi.from_dict(openapi.document())


def test_the_copy_that_is_shipped_is_the_document() -> None:
    shipped = directory("schema") / "revproxy-api-v1.openapi.json"
    assert shipped.read_text() == openapi.text(), f"python -m reconciler.api.openapi {shipped}"


def test_it_says_how_long_a_commit_can_wait_to_be_confirmed() -> None:
    (value,) = (route.body["confirm_within_sec"] for route in ROUTES if route.name == "apply")
    assert (value.minimum, value.maximum) == (SHORTEST_SEC, LONGEST_SEC)


def test_the_server_gives_the_document(path: Path) -> None:
    assert get(path, DOCUMENT) == (200, openapi.document())


def test_every_command_has_a_route_and_every_route_a_client() -> None:
    named = {route.name for route in ROUTES}
    other = {"connection_count", "explain"}  # a parameter of connections; the same name
    public = {name for name in vars(DaemonClient) if not name.startswith("_")} - other - {"held"}
    assert public <= named
    assert named - public == {"document", "explain", "begin_edit", "end_edit"}


PLAIN = [each for each in ROUTES if not each.lines]
TRIED = [
    *((each, GenerationMode.POSITIVE) for each in PLAIN),
    *((each, GenerationMode.NEGATIVE) for each in PLAIN if each.query or each.method == "POST"),
]


@pytest.mark.parametrize(("route", "mode"), TRIED, ids=[f"{each.name}-{mode.value}" for each, mode in TRIED])
def test_requests_made_of_the_document(
    path: Path, commands: FakeCommands, schema: Any, route: Route, mode: GenerationMode
) -> None:
    """Right ones get what the document says, wrong ones an error before any command is called."""
    over = session(path)

    @EXAMPLES
    @given(schema[route.path][route.method].as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        commands.calls.clear()
        response = case.call(base_url="http://localhost", session=over)
        case.validate_response(response, checks=CHECKS)
        if response.status_code == 200:
            return
        assert 400 <= response.status_code < 500
        found = response.json()
        assert (set(found), bool(found["error"]), commands.calls) == ({"error", "problems", "kind"}, True, [])

    send()


@pytest.mark.parametrize("query", ["follow=2", "follow=", "kind=BOGUS", "proxy=a&proxy=b", "follow=0&follow=0", "x=1"])
def test_a_stream_that_can_not_be(path: Path, query: str) -> None:
    status, found = get(path, f"/v1/events?{query}")
    assert (status, found["kind"]) == (400, "UsageError")


def test_a_stream_is_lines_of_what_the_document_says(path: Path, events: Events) -> None:
    events.publish("config_applied", revision=3)
    events.publish("target_down", proxy="web", target="10.0.0.1:80")
    status, lines = get(path, "/v1/events?kind=config_applied&kind=target_up")
    body = lines if isinstance(lines, bytes) else json.dumps(lines).encode()
    assert (status, b"config_applied" in body, b"target_down" in body) == (200, True, False)


def test_a_parameter_is_what_its_route_says() -> None:
    assert openapi._key(Value("integer", "x", nullable=True, minimum=1)) == {
        "type": ["integer", "null"],
        "minimum": 1,
        "description": "x",
    }
