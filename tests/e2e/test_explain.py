"""``explain`` against what the wire shows, ``test``, and tests of the files that hold a change back, under traffic;
with a daemon and without one."""

from __future__ import annotations

import json

import pytest

from netlab import HTTP_PORT, UDP_PORT, Lab, wait_for
from netlab.clients import ask_udp, http_connection
from reconciler import Client
from tests.e2e.instance import Instance, web
from tests.e2e.watching import Requests, attached, held

daemons = pytest.mark.parametrize("daemon", [True, False], ids=["daemon", "direct"])


def start(instance: Instance, text: str, daemon: bool) -> None:
    instance.write(text)
    if daemon:
        instance.start_daemon()
    else:
        instance.apply()


def python(instance: Instance) -> Client:
    """What talks to the instance's daemon from here."""
    return Client(run_dir=instance.run_dir, bpffs_dir=instance.bpffs_dir, config_dir=instance.config_dir)


def three(lab: Lab, **more: str) -> str:
    return web(*(f"{backend.ip4}:{HTTP_PORT}" for backend in lab.backends), **more)


def answerer(lab: Lab, port: int) -> str:
    """The name of the backend that answers a connection from this port."""
    connection = http_connection(lab.client, (lab.proxy4, 80), source=(lab.client4, port))
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode().split()[0]
    finally:
        connection.close()


@pytest.mark.parametrize("settings", ["{xdp_mode: native}", "{}", "{fast_path: false}"])
def test_explain_foretells_which_backend_answers(lab: Lab, instance: Instance, settings: str) -> None:
    start(instance, three(lab, settings=settings), daemon=True)
    client = python(instance)
    names = {f"{backend.ip4}:{HTTP_PORT}": backend.name for backend in lab.backends}
    met = set()
    for port in range(21000, 21008):
        said = client.explain(f"{lab.client4}:{port}", f"{lab.proxy4}:80")
        assert (said.verdict == "pass") == ("fast_path" in settings)
        assert said.verdict in ("redirect", "tx", "pass")
        assert (said.proxy, said.rule, said.connection) == ("web", "default_target", None)
        assert said.place.startswith(str(instance.config_dir / "web.yaml:"))
        assert said.target is not None
        assert answerer(lab, port) == names[said.target]
        met.add(said.target)
    assert len(met) > 1
    assert client.stats().opened == 8


@daemons
def test_a_live_connection_is_told_where_it_goes(lab: Lab, instance: Instance, daemon: bool) -> None:
    one, two, _ = lab.backends
    start(instance, web(f"{one.ip4}:{HTTP_PORT}"), daemon)
    connection = http_connection(lab.client, (lab.proxy4, 80), source=(lab.client4, 21100))
    connection.request("GET", "/")
    assert connection.getresponse().read().decode().split()[0] == one.name
    instance.write(web(f"{two.ip4}:{HTTP_PORT}"))
    if daemon:
        instance.wait_synced()
    else:
        instance.apply()
    way = ("--to", f"{lab.proxy4}:80")
    said = instance.json("explain", "--from", f"{lab.client4}:21100", *way)
    assert (said["target"], said["rule"], said["connection"]) == (f"{one.ip4}:{HTTP_PORT}", "connection", "established")
    assert instance.json("explain", "--from", f"{lab.client4}:21101", *way)["target"] == f"{two.ip4}:{HTTP_PORT}"
    back = instance.json("explain", "--from", f"{one.ip4}:{HTTP_PORT}", "--to", f"{lab.client4}:21100")
    assert (back["proxy"], back["connection"]) == ("web", "established")
    assert "answer" in back["reason"]
    connection.request("GET", "/")
    assert connection.getresponse().read().decode().split()[0] == one.name
    connection.close()


@daemons
def test_what_is_denied_and_what_is_nobodys(lab: Lab, instance: Instance, daemon: bool) -> None:
    one = lab.backends[0]
    deny = f"source_routes:\n  - {{source: {lab.client4}/32, action: deny}}"
    start(instance, web(f"{one.ip4}:{UDP_PORT}", port=53, protocol="udp", extra=deny), daemon)
    said = instance.json("explain", "--from", str(lab.client4), "--to", f"{lab.proxy4}:53", "--protocol", "udp")
    assert (said["verdict"], said["proxy"], said["rule"], said["target"]) == ("drop", "web", f"{lab.client4}/32", None)
    assert said["reason"].startswith("denied")
    with pytest.raises(TimeoutError):
        ask_udp(lab.client, (lab.proxy4, 53), timeout_sec=0.5)
    assert instance.json("stats")["drops"]["denied"] == 1
    nobodys = instance.json("explain", "--from", str(lab.client4), "--to", f"{lab.proxy4}:54", "--protocol", "udp")
    assert (nobodys["verdict"], nobodys["proxy"], nobodys["target"]) == ("pass", None, None)
    assert "no proxy listens" in nobodys["reason"]
    for wrong, words, status in (
        (("--from", "nobody", "--to", f"{lab.proxy4}:53"), "--from", 2),
        (("--from", "10.0.0.1", "--to", f"{lab.proxy4}"), "lacks a port", 2),
        (("--from", "10.0.0.1", "--to", "[::1]:53"), "--from is IPv4, --to is IPv6", 2),
        (("--from", "10.0.0.1", "--to", f"{lab.proxy4}:53", "--interface", "eth9"), "no interface eth9", 1),
    ):
        result = instance.run("explain", *wrong)
        assert (result.returncode, words in result.stderr) == (status, True), result.stderr


def and_tests(lab: Lab, target: object) -> str:
    return f'tests:\n  - {{from: {lab.client4}, to: "{lab.proxy4}:80", expect: {{target: "{target}:{HTTP_PORT}"}}}}\n'


@daemons
def test_a_wrong_test_holds_the_change_back(lab: Lab, instance: Instance, daemon: bool) -> None:
    one, two, _ = lab.backends
    start(instance, web(f"{one.ip4}:{HTTP_PORT}") + and_tests(lab, one.ip4), daemon)
    assert "1 of 1 tests hold" in instance.ctl("test")
    both = f"source_routes:\n  - {{source: 1.2.3.4/32, target: {{ip: {one.ip4}, port: {HTTP_PORT}}}}}"
    changed = web(f"{two.ip4}:{HTTP_PORT}", extra=both) + and_tests(lab, one.ip4)
    line = next(number for number, text in enumerate(changed.splitlines(), 1) if text.startswith("  - {from"))
    with Requests(lab) as requests:
        before = held(instance), attached(lab)
        path = instance.write(changed)
        result = instance.run("apply", "--yes")
        assert result.returncode == 1
        words = f"expected target {one.ip4}:{HTTP_PORT}, got target {two.ip4}:{HTTP_PORT} (proxy web, default_target)"
        assert f"{path}:{line}:5: the test fails: " in result.stderr
        assert words in result.stderr
        problem = json.loads(instance.run("apply", "--yes", "--output", "json").stdout)["problems"][0]
        assert (problem["file"], problem["line"], problem["column"]) == (str(path), line, 5)
        if daemon:
            wait_for(lambda: instance.json("status")["sync"] == "Degraded", "Degraded")
            (error,) = instance.json("status")["errors"]
            assert (error["file"], error["line"]) == (str(path), line)
        assert (held(instance), attached(lab)) == before
        # What is live still holds the test; the files are something else, and that is said.
        tested = instance.run("test")
        assert tested.returncode == 0
        assert "OutOfSync" in tested.stderr
        instance.write(web(f"{two.ip4}:{HTTP_PORT}", extra=both) + and_tests(lab, two.ip4))
        if daemon:
            instance.wait_synced()
        else:
            instance.apply()
        assert instance.json("test", status=0)["tests"][0]["holds"]
    assert requests.answers[one.name]
    assert answerer(lab, 21200) == two.name


def test_the_same_from_python(lab: Lab, instance: Instance) -> None:
    one = lab.backends[0]
    start(instance, web(f"{one.ip4}:{HTTP_PORT}") + and_tests(lab, one.ip4), daemon=True)
    client = python(instance)
    assert [each.holds for each in client.test().tests] == [True]
    said = client.explain(str(lab.client4), f"{lab.proxy4}:80")
    assert (said.proxy, said.target) == ("web", f"{one.ip4}:{HTTP_PORT}")
