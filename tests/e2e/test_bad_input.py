"""Bad files beside a live configuration under traffic: refused with their places, all errors at once, and neither a
byte in the kernel nor a request is lost; with a daemon and without one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from netlab import HTTP_PORT, Lab, wait_for
from reconciler.answers import Sync
from reconciler.api.client import DaemonClient
from tests.e2e.instance import Instance, web
from tests.e2e.watching import Requests, attached, held

HEAD = "apiVersion: revproxy/v1\nproxies:\n"


def proxy(name: str = "other", port: str = "81", targets: str = "{ip: 10.0.0.1, port: 1}", more: str = "") -> str:
    """A file with one proxy in flow style, its ``listen`` in line 4, its target in line 5, ``more`` from line 6."""
    listen = f"{{interfaces: [eth0], port: {port}}}"
    return f"{HEAD}  - name: {name}\n    listen: {listen}\n    default_target: {targets}\n{more}"


def bomb() -> str:
    """Nine levels of aliases, each nine times the one before: a thousand million items from half a kilobyte."""
    levels = [f"  - &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    return "apiVersion: revproxy/v1\nproxies:\n  - &a0 [x]\n" + "\n".join(levels) + "\n"


Maker = str | Callable[[Path], object]
# What stands in worse.yaml, and what is said about it: LINE:COLUMN: (or nothing), and words of the message.
CASES: dict[str, tuple[Maker, tuple[str, ...]]] = {
    "wrong types": (
        proxy(port='"http"', targets="[1, {ip: 10.0.0.1, port: x}]"),
        (r":4:40: .*'port'.*'http'", r":5:22: .*target", r":5:46: .*'port'.*'x'"),
    ),
    "unknown key": (
        proxy(more="    sorce_routes: []\n"),
        (r":6:5: unknown key 'sorce_routes'.*'source_routes'",),
    ),
    "test of a proxy that is not there": (
        "apiVersion: revproxy/v1\ntests:\n"
        "  - {from: 192.0.2.1, to: 10.90.1.1:80, protocol: tcp, interface: eth0, expect: {proxy: wbe}}\n",
        (r":3:\d+: .*wbe.*'web'",),
    ),
    "name of another file's proxy": (proxy("web"), (r":3:11: .*'web' already, at .*web\.yaml:3:\d+",)),
    "listener of another file's proxy": (proxy(port="[81, 80]"), (r":4:\d+: .*'web'.*80.*web\.yaml:4:\d+",)),
    "weights that sum to 0": (
        proxy(targets="[{ip: 10.0.0.1, weight: 0}, {ip: 10.0.0.2, weight: 0}]"),
        (r":5:22: .*weights.* 0",),
    ),
    "identical source prefixes": (
        proxy(
            more="    source_routes:\n"
            "      - {source: 10.1.0.0/16, action: deny}\n"
            "      - {source: 10.1.0.0/16, target: {ip: 10.0.0.2}}\n"
        ),
        (r":8:9: .*10\.1\.0\.0/16 already, at .*worse\.yaml:7:9",),
    ),
    "family of a route's target": (
        proxy(more="    source_routes:\n      - {source: 10.1.0.0/16, target: {ip: 'fd00::1'}}\n"),
        (r":7:\d+: .*fd00::1.*IPv6.*10\.1\.0\.0/16.*IPv4",),
    ),
    "family that is not listened on": (
        proxy(port="81, addresses: ['2001:db8::1']"),
        (r":5:\d+: .*10\.0\.0\.1:1.*IPv4",),
    ),
    "target is its own listener": (
        proxy(port="81, addresses: [10.0.0.1]", targets="{ip: 10.0.0.1, port: 81}"),
        (r":5:\d+: .*10\.0\.0\.1:81.*own listener",),
    ),
    "target is its own listener on the interface's own address": (
        proxy(targets="{ip: 10.90.1.1, port: 81}"),
        (r":5:\d+: .*10\.90\.1\.1:81.*listener",),
    ),
    "no YAML": (proxy(more="    : }{\n"), (r":6:\d+: not YAML",)),
    "no JSON": ("{,}", (r":1:\d+: ",)),
    "no text": (lambda path: path.write_bytes(b"\x7fELF\x00\xff\xfe" * 99), (r":1:\d+: ",)),
    "no UTF-8": (lambda path: path.write_bytes(b"a: b\nc: \xff\n"), (r":2:\d+: .*UTF-8",)),
    "two documents": (proxy() + "---\n" + proxy("third"), (r":6:1: .*document",)),
    "directory": (lambda path: path.mkdir(), (r":1:1: .*directory",)),
    "10 MB": (proxy(more=f"    # {'x' * 10_000_000}\n"), (r":1:1: .*too large",)),
    "alias bomb": (bomb(), (r":\d+:\d+: .*alias",)),
    "deep": ("[" * 100_000, (r":1:\d+: .*deep",)),
    "symbolic link to nothing": (lambda path: path.symlink_to("nowhere"), (r":1:1: .*link",)),
    "symbolic link to itself": (lambda path: path.symlink_to("worse.yaml"), (r":1:1: .*symbolic link",)),
    "pipe": (os.mkfifo, (r":1:1: .*regular file",)),
    "device": (lambda path: path.symlink_to("/dev/zero"), (r":1:1: .*regular file",)),
    # reading it gives EIO, also to root, whom no mode keeps out
    "unreadable": (lambda path: path.symlink_to("/proc/self/mem"), (r":1:1: (.*can't be read|.*regular|.*too large)",)),
}
SOME = ("wrong types", "name of another file's proxy", "directory", "10 MB", "alias bomb")
"""Some of each kind, for where each takes a program's start."""


def remove(path: Path) -> None:
    """Whatever it is."""
    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


@dataclass(frozen=True)
class Served:
    """An instance with one proxy, requests to it all the time, and what the kernel holds."""

    instance: Instance
    requests: Requests
    before: object

    def unchanged(self) -> bool:
        return (held(self.instance), attached(self.instance.lab)) == self.before


@pytest.fixture(scope="module", params=["daemon", "direct"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """Tests leave it with the one good file. No request may fail from the first test to the last."""
    with Lab(offload=False, xdp_peers=True) as lab, Instance(lab) as instance:
        instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}"))
        if request.param == "daemon":
            instance.start_daemon()
        else:
            instance.ctl("apply", "--yes")
        with Requests(lab) as requests:
            yield Served(instance, requests, (held(instance), attached(lab)))


@pytest.fixture
def bad(served: Served) -> Iterator[Path]:
    """The path of the bad file. Afterwards it is gone, and nothing else is wrong."""
    path = served.instance.config_dir / "worse.yaml"
    failed, count = len(served.requests.failures), served.requests.count
    yield path
    if os.path.lexists(path):
        remove(path)
    wait_for(lambda: served.requests.count > count + 3, "requests go on")
    assert served.requests.failures[failed:] == []
    if served.instance.daemon:
        daemon = DaemonClient(served.instance.run_dir / "revproxyd.sock")
        wait_for(lambda: (found := daemon.status()).sync is Sync.SYNCED and not found.errors, "Synced again")
    assert served.unchanged()


def put(path: Path, what: Maker) -> None:
    """At once, as a careful writer would."""
    draft = path.with_name(".draft")
    draft.write_text(what) if isinstance(what, str) else what(draft)
    draft.rename(path)


def assert_said(lines: list[str], expected: tuple[str, ...], path: Path) -> None:
    """Each expected error is a line of its own, in this order, and nothing else is said."""
    assert len(lines) == len(expected), lines
    for line, words in zip(lines, expected, strict=True):
        assert re.match(re.escape(str(path)) + f"(?:{words})", line), line


@pytest.mark.parametrize("served", ["daemon"], indirect=True)
@pytest.mark.parametrize("case", CASES)
def test_held_with_its_place_and_nothing_changes(served: Served, bad: Path, case: str) -> None:
    what, expected = CASES[case]
    put(bad, what)
    daemon = DaemonClient(served.instance.run_dir / "revproxyd.sock")
    status = wait_for(lambda: (found := daemon.status()).errors and found, "the daemon has seen it")
    assert status.sync is Sync.DEGRADED
    assert_said([str(error) for error in status.errors], expected, bad)
    # the loop has tried, and held it
    wait_for(lambda: (attempt := daemon.status().attempt) and attempt.result == "held", "an attempt")
    assert served.unchanged()


def test_apply_refuses_it_with_its_place_and_nothing_changes(served: Served, bad: Path) -> None:
    for case in SOME:
        what, expected = CASES[case]
        put(bad, what)
        result = served.instance.run("apply", "--yes")
        assert (result.returncode, result.stdout) == (1, ""), case
        assert_said(result.stderr.splitlines(), expected, bad)
        assert served.unchanged(), case
        remove(bad)


def test_all_errors_of_all_files_at_once(served: Served, bad: Path) -> None:
    other = bad.with_name("also-bad.json")
    put(bad, proxy("Other", port="0", more="    balanse: maglev\n"))
    put(other, '{"apiVersion": "revproxy/v1",\n "settings": {"fast_path": 1}, "proxys": []}\n')
    expected = [(str(other), 2, 28), (str(other), 2, 32), (str(bad), 3, 11), (str(bad), 4, 40), (str(bad), 6, 5)]
    try:
        instance = served.instance
        for words, status in {("validate",): 1, ("diff",): 2, ("plan",): 2, ("apply", "--yes"): 1}.items():
            result = instance.run(*words)
            assert (result.returncode, result.stdout) == (status, "")
            places = [re.match(r"(.*?):(\d+):(\d+): \S", line) for line in result.stderr.splitlines()]
            assert [(p[1], int(p[2]), int(p[3])) for p in places if p] == expected, result.stderr
            assert all(places)
        status = instance.json("status", status=1)
        assert status["sync"] == "Degraded"
        assert [(each["file"], each["line"], each["column"]) for each in status["errors"]] == expected
        assert [each["path"] for each in status["errors"]] == [
            "settings.fast_path",
            "proxys",
            "proxies[0].name",
            "proxies[0].listen.port",
            "proxies[0].balanse",
        ]
        assert all(each["message"] for each in status["errors"])
        assert served.unchanged()
    finally:
        other.unlink()
