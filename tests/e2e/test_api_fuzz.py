"""Thousands of malformed requests to a running daemon: each is refused in JSON, and nothing is changed by any."""

from __future__ import annotations

import json
import os
import random
import socket
from pathlib import Path
from typing import Any

import pytest

from netlab import TCP_PORT, Lab
from netlab.clients import connect
from reconciler.api.client import _Connection
from reconciler.api.routes import MAX_BODY_BYTES, ROUTES, Route
from tests.e2e.instance import Instance, web

WELL_FORMED = 3000
TORN = 1500
JUNK: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        1.5,
        10**30,
        "",
        "web",
        "\ud800",
        "10.0.0.1:80",
        "::1",
        "\x00",
        "'; --",
        "../../etc",
        "a" * 9000,
    ),
    *([], [[]], {}, {"a": {}}, {"target": None}, "² ", "10.0.0.0/33", "[::1", ":" * 50, -(2**63), 2**63, 1e308),
)


def bodies(route: Route, chance: random.Random) -> bytes:
    """A body that no route takes: none of JSON, no object, or one with an unknown key or a value of a wrong type."""
    choice = chance.randrange(5)
    if choice == 0:
        return chance.choice((b"{", b"[1,", b'{"a":}', b"\xff\xfe{}", b"NaN", b'{"seconds": NaN}', b"[" * 5000, b"\0"))
    if choice == 1:
        return json.dumps(chance.choice([each for each in JUNK if not isinstance(each, dict)])).encode()
    body = {name: chance.choice(JUNK) for name in route.body if chance.random() < 0.7}
    if choice == 2 and route.body:
        body[chance.choice(list(route.body))] = [chance.choice(JUNK)]  # no key takes a list
    else:
        body[f"no_{chance.randrange(100)}"] = chance.choice(JUNK)
    return json.dumps(body).encode()


def queries(route: Route, chance: random.Random) -> str:
    """A query that no route takes."""
    known = [*route.query, "x"]
    pairs = [
        (chance.choice(known), chance.choice(("", "0", "%C2%B2", "%00", "%ff", "a%0d%0ab", "9" * 40, "-1", "NaN")))
    ]
    pairs.append((f"no_{chance.randrange(100)}", "1"))
    return "&".join(f"{name}={value}" for name, value in pairs)


def wellformed(route: Route, chance: random.Random) -> tuple[str, str, bytes]:
    """An HTTP request that says something wrong."""
    if chance.random() < 0.1:
        return chance.choice(("PUT", "DELETE", "PATCH", "OPTIONS", "HEAD")), route.path, b""
    if chance.random() < 0.1:
        return route.method, chance.choice((f"{route.path}/x", "/v2/status", "/v1/%2e%2e/status", "//", "/v1")), b""
    if route.method == "GET" or chance.random() < 0.2:
        return route.method, f"{route.path}?{queries(route, chance)}", b""
    return "POST", route.path, bodies(route, chance)


def torn(chance: random.Random) -> bytes:
    """Bytes that are no whole request for anything that would change something."""
    route = chance.choice(
        [each for each in ROUTES if each.name in ("drain", "undrain", "begin_edit", "status", "diff")]
    )
    body = b'{"no_such": 1}' if route.method == "POST" else b""
    head = f"{route.method} {route.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    data = bytearray(head.encode() + body)
    match chance.randrange(4):
        case 0:
            return bytes(data[: chance.randrange(1, len(data))])
        case 1:
            data[chance.randrange(len(data))] = chance.randrange(256)
        case 2:
            data.insert(chance.randrange(len(data)), chance.randrange(256))
        case _:
            return chance.randbytes(chance.randrange(1, 200))
    return bytes(data)


def send_torn(path: Path, data: bytes) -> None:
    """Send it and hang up; what comes back, if anything, is HTTP."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
        except (BrokenPipeError, ConnectionResetError):
            return
        assert not answer or answer.startswith(b"HTTP/1."), answer


def kept(instance: Instance) -> Any:
    """What must not change: all that packets, files and people see, without what time alone changes."""
    status = instance.json("status", status=0)
    del status["attempt"]  # each look at the files is one, and every 30 seconds there is one
    stats = instance.json("stats", status=0)
    files = {path: path.read_bytes() for path in sorted(instance.config_dir.rglob("*"))}
    control = sorted(path.name for path in instance.state_dir.rglob("*"))
    connections = [(each["client"], each["target"]) for each in instance.json("connections", status=0)]
    return status, stats["proxies"], files, control, connections, instance.json("history", status=0)


@pytest.mark.timeout(300)
def test_malformed_requests_change_nothing_and_crash_nothing(lab: Lab, instance: Instance) -> None:
    instance.write(web(f"{lab.backends[0].ip4}:{TCP_PORT}"))
    daemon = instance.start_daemon()
    path = instance.run_dir / "revproxyd.sock"
    chance = random.Random(5)
    with connect(lab.client, (lab.proxy4, 80)) as held:
        held.sendall(b"x")
        assert held.recv(1)
        before = kept(instance)
        descriptors = Path(f"/proc/{daemon.pid}/fd")
        open_before = len(os.listdir(descriptors))  # noqa: PTH208  # only how many
        over = _Connection(path, 30)
        for number in range(WELL_FORMED):
            method, where, body = wellformed(chance.choice(ROUTES), chance)
            over.request(method, where, body or None, {"Content-Type": "application/json"})
            response = over.getresponse()
            status, content = response.status, response.read()
            said = (number, method, where, body[:200], status, content[:300])
            assert 400 <= status < 500, said
            if method != "HEAD":
                found = json.loads(content)
                assert found["error"], said
                assert set(found) == {"error", "problems", "kind"}, said
                assert found["kind"] in ("UsageError", "RequestError"), said
        over.request("POST", "/v1/drain", b"x" * (MAX_BODY_BYTES + 1))
        assert over.getresponse().status == 413
        over.close()
        for _ in range(TORN):
            send_torn(path, torn(chance))
        assert kept(instance) == before
        held.sendall(b"y")
        assert held.recv(1)
        assert len(os.listdir(descriptors)) <= open_before + 3  # noqa: PTH208
    assert daemon.status is None
    log = daemon.output()
    assert "Traceback" not in log
    assert "request_failed" not in log
