"""Events over real traffic: each connection opened is told of once, and its end once, with the right bytes and why."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections import Counter
from typing import Any

import pytest

from netlab import TCP_PORT, UDP_PORT, Lab, wait_for
from netlab.clients import ask_udp, connect
from netlab.process import Process
from reconciler import Client
from reconciler.errors import DaemonError
from tests.e2e.instance import PROGRAMS, Instance

ROUNDS = 40


def config(lab: Lab, stats: str = "true", timeout_sec: int = 2) -> str:
    one, two, _ = lab.backends
    return f"""\
apiVersion: revproxy/v1
settings: {{stats_enabled: {stats}}}
proxies:
  - name: echo
    listen: {{interfaces: [eth0], port: 7}}
    default_target: [{{ip: {one.ip4}, port: {TCP_PORT}}}, {{ip: {two.ip4}, port: {TCP_PORT}}},
                     {{ip: "{one.ip6}", port: {TCP_PORT}}}]
  - name: dns
    listen: {{interfaces: [eth0], port: 53, protocol: udp}}
    default_target: [{{ip: {two.ip4}, port: {UDP_PORT}}}]
    connection_timeout_sec: {timeout_sec}
"""


class Follower:
    """``revproxyctl events --follow --output json``."""

    def __init__(self, instance: Instance, *words: str) -> None:
        command = (PROGRAMS / "revproxyctl", "events", "--follow", "--output", "json", *words)
        self.process: Process = instance.lab.spawn(instance.lab.proxy, *command, env=instance.env)

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.process.output().splitlines() if line.endswith("}")]
        return [line for line in lines if kind in ("", line["kind"])]


def identity(event: dict[str, Any]) -> tuple[str, str]:
    return event["client"], event["listen"]


@pytest.fixture
def recording(lab: Lab, instance: Instance) -> Instance:
    instance.write(config(lab))
    instance.start_daemon()
    wait_for(lambda: "recording_started" in instance.daemon.output(), "the recording")  # type: ignore[union-attr]
    return instance


def follow(instance: Instance, *words: str) -> Follower:
    """Following already: it tells of something that happened after it began."""
    follower = Follower(instance, *words)

    def told() -> bool:
        with contextlib.suppress(OSError), connect(instance.lab.client, (instance.lab.proxy4, 7)) as connection:
            connection.sendall(b"x")
            connection.recv(1)
        return bool(follower.events())

    wait_for(told, "an event", timeout_sec=30)
    return follower


def echo(lab: Lab, to: Any, size: int, *, reset: bool = False) -> tuple[str, int]:
    """One connection; its client's address as events have it, and how many bytes went each way."""
    with connect(lab.client, (to, 7)) as connection:
        host, port = connection.getsockname()[:2]
        connection.sendall(bytes(size))
        left = size
        while left:
            left -= len(connection.recv(65536))
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        else:
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
    return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}"), size


def test_each_connection_is_opened_and_closed_once(lab: Lab, recording: Instance) -> None:
    follower = follow(recording)
    sent: dict[str, tuple[int, str]] = {}
    for number in range(ROUNDS):
        to = lab.proxy6 if number % 4 == 3 else lab.proxy4
        reset = number % 5 == 4
        client, size = echo(lab, to, 100 + 1000 * number, reset=reset)
        sent[client] = size, "rst" if reset else "fin"

    def closed() -> list[dict[str, Any]]:
        return [event for event in follower.events("connection_closed") if event["client"] in sent]

    wait_for(lambda: len(closed()) >= ROUNDS, "every connection's end", timeout_sec=30)
    opened = [event for event in follower.events("connection_opened") if event["client"] in sent]
    assert Counter(map(identity, opened)) == Counter(map(identity, closed()))
    assert set(Counter(map(identity, closed())).values()) == {1}
    for event in closed():
        size, reason = sent[event["client"]]
        assert (event["proxy"], event["protocol"], event["reason"]) == ("echo", "tcp", reason), event
        # What was said, and a header of at most 60 + 60 bytes on each packet.
        for direction in ("forward", "reverse"):
            packets, count = event[f"packets_{direction}"], event[f"bytes_{direction}"]
            assert size + 40 * packets <= count <= size + 120 * packets, event
        assert 0 <= event["duration_sec"] < 30
        assert any(event["target"].startswith(f"{ip}:") or f"[{ip}]" in event["target"]
                   for backend in lab.backends for ip in (backend.ip4, backend.ip6))  # fmt: skip
    follower.process.send(signal.SIGINT)
    assert follower.process.wait() in (0, 130)
    assert "Traceback" not in follower.process.output()


def test_ends_that_no_packet_shows(lab: Lab, recording: Instance) -> None:
    """Idle and flushed connections: their bytes are just those of the statistics."""
    follower = Follower(recording, "--proxy", "dns")

    asked = 0

    def heard() -> bool:
        nonlocal asked
        asked += 1
        ask_udp(lab.client, (lab.proxy4, 53), b"who")
        return bool(follower.events("connection_opened"))

    def reasons() -> list[str]:
        return [event["reason"] for event in follower.events("connection_closed")]

    wait_for(heard, "an event", timeout_sec=30)
    recording.ctl("connections", "flush", "--proxy", "dns")
    wait_for(lambda: "flushed" in reasons(), "the flushed connection's end")
    flushed = len(reasons())
    for _ in range(5):
        asked += 1
        ask_udp(lab.client, (lab.proxy4, 53), b"who")
    wait_for(lambda: len(reasons()) == asked, "the idle ones' ends", timeout_sec=60)
    assert reasons()[flushed:] == ["idle"] * 5
    assert {event["proxy"] for event in follower.events()} == {"dns"}
    stats = recording.json("stats")["proxies"]["dns"]
    for name in ("packets_forward", "bytes_forward", "packets_reverse", "bytes_reverse"):
        assert stats[name] == sum(event[name] for event in follower.events("connection_closed")), name


def test_who_gets_the_number_of_another_proxy_is_told_by_its_own_name(lab: Lab, recording: Instance) -> None:
    daemon, text = recording.daemon, config(lab)
    first, _, rest = text.partition("  - name: dns\n")
    assert daemon is not None

    def told() -> list[tuple[str, str]]:
        lines = map(json.loads, recording.ctl("events", "--output", "json").splitlines())
        return [(each["kind"], each["proxy"]) for each in lines if each.get("listen", "").endswith(":53")]

    def applied(number: int) -> bool:
        return daemon.output().count("commit_applied") >= number

    for number, (name, revision) in enumerate((("dns", 1), ("other", 3)), 1):
        recording.write(f"{first}  - name: {name}\n{rest}")
        wait_for(lambda revision=revision: applied(revision), "the proxy")  # type: ignore[misc]
        ask_udp(lab.client, (lab.proxy4, 53), b"who")
        recording.ctl("connections", "flush", "--all")
        wait_for(lambda number=number: len(told()) == 2 * number, "its connection")  # type: ignore[misc]
        recording.write(first)
        wait_for(lambda revision=revision: applied(revision + 1), "its end")  # type: ignore[misc]
    assert told() == [(kind, name) for name in ("dns", "other") for kind in ("connection_opened", "connection_closed")]


def test_a_restarted_daemon_tells_what_happened_meanwhile(lab: Lab, recording: Instance) -> None:
    recording.stop_daemon()
    client, _ = echo(lab, lab.proxy4, 5000)
    recording.start_daemon()

    def told() -> list[dict[str, Any]]:
        lines = recording.ctl("events", "--output", "json").splitlines()
        return [event for event in map(json.loads, lines) if event.get("client") == client]

    wait_for(lambda: len(told()) >= 2, "what happened meanwhile", timeout_sec=30)
    assert [event["kind"] for event in told()] == ["connection_opened", "connection_closed"]


def test_who_comes_right_behind_a_commit_is_told_of(lab: Lab, instance: Instance) -> None:
    instance.apply(config(lab, "false"))
    daemon = instance.start_daemon()
    for stats, said in (("true", "recording_started"), ("false", "recording_ended")) * 3:
        before = daemon.output().count(said)
        instance.apply(config(lab, stats))
        assert daemon.output().count(said) == before + 1, "told of the commit, but not ready for what it asks for"


def test_stats_enabled_goes_on_and_off_with_the_files(lab: Lab, instance: Instance) -> None:
    instance.write(config(lab, "false"))
    daemon = instance.start_daemon()
    client = Client(run_dir=instance.run_dir)
    echo(lab, lab.proxy4, 100)
    instance.write(config(lab, "true"))
    wait_for(lambda: "recording_started" in daemon.output(), "the recording", timeout_sec=30)
    addresses = {echo(lab, lab.proxy4, 100)[0]}
    wait_for(lambda: any(e.kind == "connection_closed" for e in client.events(follow=False)), "its end", timeout_sec=30)
    instance.write(config(lab, "false"))
    wait_for(lambda: "recording_ended" in daemon.output(), "its end", timeout_sec=30)
    echo(lab, lab.proxy4, 100)
    found = list(client.events(follow=False))
    assert {event.fields["client"] for event in found if event.kind.startswith("connection")} == addresses
    applied = [event.fields["revision"] for event in found if event.kind == "config_applied"]
    assert applied == [1, 2, 3]
    assert [e.kind for e in client.events(follow=False, kinds=["config_applied"])] == ["config_applied"] * 3


def test_without_a_daemon_it_says_so(instance: Instance) -> None:
    result = instance.run("events", "--follow")
    assert result.returncode == 1
    assert "no revproxyd listens" in result.stderr
    assert "running revproxyd only" in result.stderr
    with pytest.raises(DaemonError, match="running revproxyd only"):
        Client(run_dir=instance.run_dir).events()
