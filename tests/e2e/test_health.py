"""Health checks on the wire: a target that is ill gets no new connections, and comes back by quarters."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from netlab import HTTP_PORT, Backend, Lab, wait_for
from netlab.clients import http_connection
from tests.e2e.health import CHECK, HEALTH_PORT, Healthy, checked, shares, targets, wait_health
from tests.e2e.instance import Instance
from tests.e2e.watching import Requests


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(offload=False, xdp_peers=True, separate=True) as built:
        yield built


def get(connection: object) -> str:
    connection.request("GET", "/")  # type: ignore[attr-defined]
    return str(connection.getresponse().read().decode().split()[0])  # type: ignore[attr-defined]


def events(instance: Instance, kind: str) -> list[dict[str, object]]:
    """What the daemon's log has of one kind."""
    assert instance.daemon
    lines = (json.loads(line) for line in instance.daemon.output().splitlines() if line.startswith("{"))
    return [line for line in lines if line["event"] == kind]


@pytest.mark.parametrize("way", ["native", "tc"])
def test_an_ill_target_gets_no_new_connections_and_comes_back(lab: Lab, instance: Instance, way: str) -> None:
    healthy = Healthy(lab)
    ill, *well = lab.backends
    settings = "settings: {xdp_mode: native}\n" if way == "native" else ""
    check = CHECK.replace("interval_ms: 200", "interval_ms: 600")
    instance.write(checked(lab, 2, 1, 3, check=check).replace("proxies:", settings + "proxies:"))
    instance.start_daemon()
    for backend in lab.backends:
        wait_health(instance, backend, "healthy")
    revision = instance.json("status")["revision"]

    kept = http_connection(lab.client, (lab.proxy4, 80))
    while get(kept) != ill.name:
        kept.close()
        kept = http_connection(lab.client, (lab.proxy4, 80))
    with Requests(lab):
        healthy.stop(0)
        wait_health(instance, ill, "unhealthy")
        found = shares(lab, 200)
        assert set(found) == {backend.name for backend in well}
        assert 0.12 < found[well[0].name] / 200 < 0.38, "a quarter, as 1 of 1 and 3"
        assert get(kept) == ill.name, "what is open stays"
        instance.ctl("diff")

        healthy.start(0)
        wait_health(instance, ill, "healthy")
        wait_for(lambda: shares(lab, 20)[ill.name], "connections to the one that came back")
    kept.close()
    status = instance.json("status", status=0)
    assert status["revision"] == revision, "no commit"
    (down,) = events(instance, "target_down")
    assert (down["proxy"], down["target"], down["reason"]) == ("web", f"{ill.ip4}:8080", "connection refused")
    (up,) = events(instance, "target_up")
    assert up["quarters"] == 1
    assert len(events(instance, "target_recovered")) == 1
    assert 3 <= len(events(instance, "shares_changed")) <= 5, "out, and back in four steps, of which a look may see two"


def test_servers_that_are_slowed_killed_and_restarted_under_load(lab: Lab, instance: Instance) -> None:
    """Those that are checked are those that serve."""
    serving = Healthy(lab)
    instance.write(checked(lab, check=CHECK.replace("port: 8099, ", "")).replace(str(HTTP_PORT), str(HEALTH_PORT)))
    instance.start_daemon()
    ill, *well = lab.backends
    with ExitStack() as ending:
        crowd = [ending.enter_context(Requests(lab, pause_sec=0)) for _ in range(4)]

        def served_by(*backends: Backend) -> None:
            """By all of these and nobody else, without a failure; after what was on its way to others."""
            for after in (1, 50):
                for each in crowd:
                    each.failures.clear()
                    each.answers.clear()
                wait_for(lambda after=after: all(each.count >= after for each in crowd), "requests", timeout_sec=20)
            assert {name for each in crowd for name in each.answers} == {each.name for each in backends}
            assert [failure for each in crowd for failure in each.failures] == []

        for backend in lab.backends:
            wait_health(instance, backend, "healthy")
        served_by(*lab.backends)
        serving.servers[ill.name].send(signal.SIGSTOP)
        wait_health(instance, ill, "unhealthy")
        served_by(*well)
        serving.servers[ill.name].send(signal.SIGCONT)
        wait_health(instance, ill, "healthy")
        served_by(*lab.backends)
        serving.stop(0)
        wait_health(instance, ill, "unhealthy")
        served_by(*well)
        serving.start(0)
        wait_health(instance, ill, "healthy")
        served_by(*lab.backends)
    assert [each["reason"] for each in events(instance, "target_down")] == [
        "no answer within 500 ms",
        "connection refused",
    ]


def test_all_ill_fails_open(lab: Lab, instance: Instance) -> None:
    healthy = Healthy(lab)
    instance.write(checked(lab))
    instance.start_daemon()
    with Requests(lab):
        for number, backend in enumerate(lab.backends):
            healthy.stop(number)
            wait_health(instance, backend, "unhealthy")
        wait_for(lambda: set(shares(lab, 30)) == {each.name for each in lab.backends}, "everybody serves")
        status = instance.json("status", status=0)
        assert any("fail open" in warning["message"] for warning in status["warnings"])
        assert "fail open" in instance.ctl("status")

        healthy.start(1)
        wait_health(instance, lab.backends[1], "healthy")
        assert set(shares(lab, 30)) == {lab.backends[1].name}
        assert not any("fail open" in warning["message"] for warning in instance.json("status")["warnings"])


def test_broken_files_hold_up_nothing(lab: Lab, instance: Instance) -> None:
    healthy = Healthy(lab)
    instance.write(checked(lab))
    instance.start_daemon()
    instance.write("apiVersion: revproxy/v1\nproxies: 1\n")
    wait_for(lambda: instance.json("status")["sync"] == "Degraded", "Degraded")
    healthy.stop(0)
    wait_health(instance, lab.backends[0], "unhealthy")
    assert lab.backends[0].name not in shares(lab, 30)

    # Also for a daemon that has never read files that are right.
    instance.stop_daemon()
    instance.start_daemon(ready=False)
    wait_for(lambda: instance.json("status")["sync"] == "Degraded", "Degraded")
    healthy.stop(1)
    wait_health(instance, lab.backends[1], "unhealthy")
    assert set(shares(lab, 30)) == {lab.backends[2].name}


def test_a_killed_daemon_leaves_the_ill_out(lab: Lab, instance: Instance) -> None:
    healthy = Healthy(lab)
    instance.write(checked(lab))
    instance.start_daemon()
    healthy.stop(0)
    wait_for(lambda: events(instance, "shares_changed"), "the table to follow")
    with Requests(lab) as requests:
        instance.stop_daemon(signal.SIGKILL)
        assert targets(instance)[str(lab.backends[0].ip4)]["health"] == "unhealthy"
        assert targets(instance)[str(lab.backends[1].ip4)]["health"] == "unchecked"
        instance.ctl("diff")
        instance.ctl("apply", "--yes")
        instance.start_daemon()
        assert targets(instance)[str(lab.backends[0].ip4)]["health"] == "unhealthy"
        assert lab.backends[0].name not in requests.answers
    assert not events(instance, "target_down"), "it was down all along"
    healthy.start(0)
    wait_health(instance, lab.backends[0], "healthy")

    # A check that the files no longer ask for takes nobody out.
    healthy.stop(0)
    wait_health(instance, lab.backends[0], "unhealthy")
    instance.write(checked(lab, check=""))
    wait_health(instance, lab.backends[0], "unchecked")
    wait_for(lambda: shares(lab, 20)[lab.backends[0].name], "connections to all")


def test_what_a_check_asks_for(lab: Lab, instance: Instance) -> None:
    """Path and codes; a target's own check takes the place of its proxy's; `none`; no port of its own."""
    Healthy(lab)
    text = checked(lab, check=CHECK.replace("port: 8099", "port: 8099, path: /bytes/5, expected_codes: [500]"))
    text = text.replace(f"ip: {lab.backends[0].ip4},", f"ip: {lab.backends[0].ip4}, health_check: {CHECK},")
    text = text.replace(f"ip: {lab.backends[2].ip4},", f"ip: {lab.backends[2].ip4}, health_check: {{type: none}},")
    instance.write(text)
    instance.start_daemon()
    for backend, health in zip(lab.backends, ("healthy", "unhealthy", "unchecked"), strict=True):
        wait_health(instance, backend, health)
    assert any(each["reason"] == "HTTP status 200" for each in events(instance, "target_down"))


def test_udp_targets_are_checked_by_tcp(lab: Lab, instance: Instance) -> None:
    healthy = Healthy(lab)
    instance.write(
        f"""\
apiVersion: revproxy/v1
proxies:
  - name: datagrams
    listen: {{interfaces: [eth0], port: 7001, protocol: udp}}
    health_check: {CHECK.replace("http", "tcp")}
    default_target: [{", ".join(f"{{ip: {each.ip4}}}" for each in lab.backends)}]
"""
    )
    instance.start_daemon()
    for number, backend in enumerate(lab.backends[:2]):
        healthy.stop(number)
        wait_for(lambda backend=backend: health_of(instance, backend.ip4) == "unhealthy", "unhealthy")
    assert health_of(instance, lab.backends[2].ip4) == "healthy"
    from netlab.clients import ask_udp

    found = {ask_udp(lab.client, (lab.proxy4, 7001)).split()[0] for _ in range(20)}
    assert found == {lab.backends[2].name}


def health_of(instance: Instance, ip: object) -> str:
    (proxy,) = instance.json("status")["proxies"]
    return str(next(each["health"] for each in proxy["targets"] if each["address"] == str(ip)))


WAYS = {
    "native": ({"offload": False, "xdp_peers": True}, "xdp_mode: native"),
    "tc-with-offloads": ({"offload": True}, "xdp_mode: off"),
    "stack": ({"offload": False}, "fast_path: false"),
}


@pytest.mark.parametrize("mode", ["dnat", "fullnat"])
@pytest.mark.parametrize("way", WAYS)
def test_connections_to_a_dead_target_are_reset(way: str, mode: str) -> None:
    options, settings = WAYS[way]
    with Lab(separate=True, **options) as lab, Instance(lab) as instance:
        healthy = Healthy(lab)
        check = CHECK.replace("{", "{on_unhealthy: reset, ")
        text = checked(lab, check=check, extra=f"mode: {mode}")
        instance.write(text.replace("proxies:", f"settings: {{{settings}}}\nproxies:"))
        instance.start_daemon()
        opened = [http_connection(lab.client, (lab.proxy4, 80)) for _ in range(24)]
        by_backend = {backend.name: [] for backend in lab.backends}  # type: ignore[var-annotated]
        for connection in opened:
            by_backend[get(connection)].append(connection)
        assert all(by_backend.values())
        healthy.stop(0)
        wait_for(lambda: events(instance, "connections_reset"), "connections to be reset", timeout_sec=20)
        for connection in by_backend.pop(lab.backends[0].name):
            with pytest.raises(ConnectionResetError):
                get(connection)
        for name, connections in by_backend.items():
            assert [get(each) for each in connections] == [name] * len(connections)
        assert int(instance.json("stats")["outcomes"]["reset"]) > 0
        assert lab.backends[0].name not in shares(lab, 30)
        for connection in opened:
            connection.close()
        assert lab.checksum_errors() == {}


def test_suspending_does_not_suspend_health(lab: Lab, instance: Instance) -> None:
    healthy = Healthy(lab)
    instance.write(checked(lab))
    instance.start_daemon()
    instance.ctl("suspend")
    healthy.stop(0)
    wait_for(lambda: events(instance, "shares_changed"), "the table to follow", timeout_sec=20)
    assert lab.backends[0].name not in shares(lab, 30)

    # Nor does a start while it is suspended.
    instance.stop_daemon()
    instance.start_daemon(ready=False)
    healthy.stop(1)
    wait_for(lambda: events(instance, "shares_changed"), "the table to follow", timeout_sec=20)
    assert set(shares(lab, 30)) == {lab.backends[2].name}
    instance.ctl("resume")
