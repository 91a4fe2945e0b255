"""The commands as the contract has them: exit statuses, keys and types, what goes to stdout and what to stderr; with
a running daemon and without one."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from netlab import HTTP_PORT, TCP_PORT, UDP_PORT, Lab, wait_for
from netlab.clients import ask_udp, connect
from tests.e2e.instance import PROGRAMS, Instance, web
from tests.e2e.watching import attached, held

TEXT, NUMBER, YES_OR_NO, MAYBE_TEXT = str, (int, float), bool, (str, type(None))
TRAFFIC = {
    "connections": int,
    "packets_forward": int,
    "bytes_forward": int,
    "packets_reverse": int,
    "bytes_reverse": int,
}
PROBLEM = {"file": TEXT, "line": int, "column": int, "path": TEXT, "message": TEXT}
TARGET = {"address": TEXT, "weight": int, "health": TEXT, "state": TEXT, "connections": int}
STATUS = {
    "sync": TEXT,
    "revision": int,
    "commit": MAYBE_TEXT,
    "interfaces": [{"name": TEXT, "mode": TEXT, "attached": YES_OR_NO}],
    "proxies": [{"name": TEXT, "listen": [TEXT], "targets": [TARGET]}],
    "errors": [PROBLEM],
}
CHANGE = {"action": TEXT, "object": TEXT, "name": TEXT, "before": object, "after": object}
CHANGES = {"changes": [CHANGE], "operations": int}
STATS = {**TRAFFIC, "drops": {...: int}, "proxies": {...: {**TRAFFIC, "targets": {...: TRAFFIC}}}}
CONNECTIONS = [
    {
        **dict.fromkeys(("proxy", "protocol", "client", "listen", "target", "state"), TEXT),
        **dict.fromkeys(("packets_forward", "bytes_forward", "packets_reverse", "bytes_reverse"), int),
        **dict.fromkeys(("age_sec", "idle_sec"), NUMBER),
    }
]
ACTIONS = {"create", "update", "delete", "attach", "detach", "replace"}
OBJECTS = {"interface", "proxy", "route", "target", "setting", "program"}


def assert_fits(value: Any, pattern: Any, where: str = "") -> None:
    """Every key of the pattern is there, with a value that fits. ``...`` as a key: all keys there are."""
    if isinstance(pattern, dict):
        assert isinstance(value, dict), f"{where}: {value!r}"
        assert ... in pattern or pattern.keys() <= value.keys(), f"{where}: {sorted(pattern.keys() - value.keys())}"
        for key in value if ... in pattern else pattern:
            assert_fits(value[key], pattern.get(..., pattern.get(key)), f"{where}.{key}")
    elif isinstance(pattern, list):
        assert isinstance(value, list), f"{where}: {value!r}"
        for index, each in enumerate(value):
            assert_fits(each, pattern[0], f"{where}[{index}]")
    else:
        kinds = pattern if isinstance(pattern, tuple) else (pattern,)
        assert isinstance(value, kinds), f"{where}: {value!r}"
        assert not isinstance(value, bool) or pattern in (bool, object), f"{where}: {value!r}"


def config(lab: Lab, settings: str = "{}") -> str:
    """Two proxies, weights, both families, source routes."""
    one, two, three = lab.backends
    return f"""\
apiVersion: revproxy/v1
settings: {settings}
proxies:
  - name: echo
    listen: {{interfaces: [eth0], port: [7, 70], protocol: tcp}}
    default_target:
      - {{ip: {one.ip4}, port: {TCP_PORT}, weight: 3}}
      - {{ip: {two.ip4}, port: {TCP_PORT}, weight: 0}}
      - {{ip: "{one.ip6}", port: {TCP_PORT}}}
  - name: dns
    listen: {{interfaces: [eth0], port: 53, protocol: udp}}
    default_target: [{{ip: {two.ip4}, port: {UDP_PORT}}}, {{ip: "{two.ip6}", port: {UDP_PORT}}}]
    source_routes:
      - source: 192.0.2.0/24
        target: {{ip: {three.ip4}, port: {UDP_PORT}}}
      - source: 192.0.2.66
        action: deny
"""


@pytest.fixture(scope="module", params=["daemon", "direct"])
def served(request: pytest.FixtureRequest) -> Iterator[Instance]:
    """An instance that serves :func:`config`; tests leave it as they find it."""
    with Lab(offload=False, xdp_peers=True) as lab, Instance(lab) as instance:
        for address in ("192.0.2.1", "192.0.2.66"):
            lab.add_client_address(address)
        instance.write(config(lab))
        if request.param == "daemon":
            instance.start_daemon()
        else:
            instance.ctl("apply", "--yes")
        yield instance


@pytest.fixture
def empty(served: Instance) -> Iterator[Instance]:
    """The directory holds nothing: the one difference that a daemon does not close by itself."""
    path = served.config_dir / "web.yaml"
    path.rename(aside := path.with_suffix(".aside"))
    yield served
    aside.rename(path)
    if served.daemon:
        served.wait_synced()


def test_in_sync_there_is_nothing_to_do_and_nothing_is_written(served: Instance) -> None:
    revision = served.json("status", status=0)["revision"]
    before = held(served), attached(served.lab)
    assert served.ctl("diff", status=0) == ""
    for words in ((), ("--detailed-exitcode",)):
        found = served.json("plan", *words, status=0)
        assert (found["changes"], found["operations"]) == ([], 0)
    for words in (("--yes",), ("--yes", "--allow-empty")):
        assert served.json("apply", *words, status=0)["revision"] == revision
    status = served.json("status", status=0)
    assert (status["sync"], status["revision"], status["errors"]) == ("Synced", revision, [])
    assert (held(served), attached(served.lab)) == before


def test_json_has_the_keys_and_types_of_the_contract(served: Instance) -> None:
    held_open = connect(served.lab.client, (served.lab.proxy4, 7))
    ask_udp(served.lab.client, (served.lab.proxy6, 53), b"?")
    status = served.json("status", status=0)
    assert_fits(status, STATUS)
    assert {each["name"] for each in status["interfaces"]} == {"eth0", "eth1"}
    assert all(each["attached"] and each["mode"] == "off" for each in status["interfaces"]), "auto on veth is TC"
    proxies = {each["name"]: each for each in status["proxies"]}
    lab, one = served.lab, served.lab.backends[0]
    expected = {f"{lab.proxy4}:7", f"{lab.proxy4}:70", f"[{lab.proxy6}]:7", f"[{lab.proxy6}]:70"}
    assert {text.removesuffix("/tcp") for text in proxies["echo"]["listen"]} == expected
    targets = {each["address"]: each for each in proxies["echo"]["targets"]}
    assert targets[f"{one.ip4}:{TCP_PORT}"]["weight"] == 3
    assert targets[f"{one.ip4}:{TCP_PORT}"]["connections"] == 1
    assert targets[f"[{one.ip6}]:{TCP_PORT}"]["connections"] == 0
    connections = served.json("connections", status=0)
    assert_fits(connections, CONNECTIONS)
    assert {each["proxy"] for each in connections} == {"echo", "dns"}
    stats = served.json("stats", status=0)
    assert_fits(stats, STATS)
    assert stats["proxies"].keys() == {"echo", "dns"}
    held_open.close()
    served.ctl("connections", "flush", "--all")


def test_what_is_printed_is_the_same_in_every_format(served: Instance) -> None:
    commands = [("diff",), ("plan",), ("stats",), ("connections", "--count"), ("apply",), ("validate",), ("status",)]
    for words in commands if served.daemon else commands[-1:]:
        texts = {}
        for form in ("json", "yaml", "table"):
            result = served.run("--output", form, *words)
            assert result.returncode == 0, (words, form, result.stderr)
            texts[form] = result.stdout
            assert result.stderr == "" or (words, form) == (("validate",), "table"), words
        as_json, as_yaml = json.loads(texts["json"]), YAML(typ="safe", pure=True).load(io.StringIO(texts["yaml"]))
        for each in (as_json, as_yaml):
            if isinstance(each, dict):
                each.pop("attempt", None)  # the time of the last attempt, which may be one in between
                for condition in each.get("conditions", ()):  # without a daemon nobody knows since when
                    del condition["last_transition"]
        assert as_json == as_yaml
        assert "\x1b" not in texts["table"]
        assert not texts["table"].startswith(("{", "[")), words


def test_options_may_stand_before_and_after_the_command(served: Instance) -> None:
    bare = [PROGRAMS / "revproxyctl"]
    places = [f"--{name}-dir={getattr(served, f'{name}_dir')}" for name in ("config", "run", "state", "bpffs")]
    env = {name: value for name, value in served.env.items() if not name.startswith("REVPROXY_")}
    for words in ((*places, "-o", "json", "-q", "status"), ("status", *places, "--output=json", "--no-color", "-v")):
        command = served.lab.proxy.command(*bare, *words)
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["sync"] == "Synced"


def test_a_difference_shows_in_diff_plan_and_status(empty: Instance) -> None:
    before, revision = held(empty), empty.json("status")["revision"]
    text = empty.ctl("diff", status=1)
    assert "--- live/proxy/dns" in text
    assert any(line.startswith("-") and str(empty.lab.backends[1].ip4) in line for line in text.splitlines())
    found = empty.json("diff", status=1)
    assert_fits(found, CHANGES)
    assert found["operations"] > 0
    assert {each["action"] for each in found["changes"]} <= ACTIONS
    assert {each["object"] for each in found["changes"]} <= OBJECTS
    assert ("delete", "proxy", "dns") in {(each["action"], each["object"], each["name"]) for each in found["changes"]}
    plan = empty.json("plan", status=0)
    assert_fits(plan, CHANGES)
    assert plan["changes"] == found["changes"]
    assert plan["operations"] == found["operations"] == len(plan["steps"])
    empty.ctl("plan", "--detailed-exitcode", status=2)
    status = empty.json("status", status=1)
    assert status["sync"] == "Degraded"
    assert "--allow-empty" in status["errors"][0]["message"]
    refused = empty.run("apply", "--yes")
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "--allow-empty" in refused.stderr
    assert empty.json("status")["revision"] == revision
    assert held(empty) == before


@pytest.fixture
def broken(served: Instance) -> Iterator[Path]:
    """A second file, with an error in line 2, column 1."""
    path = served.write("apiVersion: revproxy/v1\nproxys: []\n", "broken.yaml")
    yield path
    path.unlink()
    if served.daemon:
        served.wait_synced()


def test_trouble_has_its_own_exit_status_and_a_place(served: Instance, broken: Path) -> None:
    before = held(served)
    place = f"{broken}:2:1: "
    statuses = {
        ("validate",): 1,
        ("diff",): 2,
        ("plan",): 2,
        ("plan", "--detailed-exitcode"): 1,
        ("apply", "--yes"): 1,
    }
    for words, expected in statuses.items():
        result = served.run(*words, "--output", "json")
        assert result.returncode == expected, words
        answer = json.loads(result.stdout)
        problems = answer if words == ("validate",) else answer["problems"]
        assert_fits(problems, [PROBLEM])
        assert [(each["file"], each["line"], each["column"]) for each in problems] == [(str(broken), 2, 1)]
        if served.daemon or words == ("validate",):
            result = served.run(*words)
            assert (result.returncode, result.stdout) == (expected, ""), words
        assert [line for line in result.stderr.splitlines() if line.startswith(place) and "proxies" in line], words
    status = served.json("status", status=1)
    assert_fits(status, STATUS)
    assert (status["sync"], status["errors"][0]["line"]) == ("Degraded", 2)
    assert len(status["proxies"]) == 2, "what is live is still told"
    assert served.json("stats", status=0)["proxies"].keys() == {"echo", "dns"}
    assert held(served) == before


def test_wrong_words_are_no_traceback(served: Instance) -> None:
    for words, expected in {
        ("plan", "--detailed-exitcode", "--nonsense"): 1,
        ("diff", "--nonsense"): 2,
        ("connections", "--target", "nobody"): 2,
        ("connections", "--target", "10.0.0.1:99999"): 2,
        ("connections", "flush"): 2,
        ("nonsense",): 2,
        ("--output", "xml", "status"): 2,
    }.items():
        result = served.run(*words)
        assert result.returncode == expected, (words, result.stderr)
        assert result.stdout == "", words
        assert result.stderr.strip(), words
        assert "Traceback" not in result.stderr
        assert "internal error" not in result.stderr


def test_quiet_says_data_and_errors_only(served: Instance) -> None:
    served.ctl("connections", "flush", "--all")
    assert "no live connections" in served.run("connections").stderr
    quiet = served.run("-q", "connections")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert served.run("connections", "-q", "--target", "nobody").stderr != ""
    assert served.run("validate").stderr != ""
    assert served.run("validate", "-q").stderr == ""


def test_colour_on_a_terminal_only(served: Instance) -> None:
    def on_terminal(*words: str, **more: str) -> str:
        ours, theirs = pty.openpty()
        env = {name: value for name, value in served.env.items() if name != "NO_COLOR"}
        subprocess.run(
            served.lab.proxy.command(PROGRAMS / "revproxyctl", *words),
            stdout=theirs,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**env, "TERM": "xterm-256color", **more},
            timeout=60,
            check=True,
        )
        os.close(theirs)
        text = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # EIO: the other end is closed, and all is read
                break
            text += part
        os.close(ours)
        assert b"Synced" in text
        return text.decode()

    assert "\x1b[" in on_terminal("status")
    assert "\x1b[" not in on_terminal("status", NO_COLOR="1")
    assert "\x1b[" not in on_terminal("status", TERM="dumb")
    assert "\x1b[" not in on_terminal("--no-color", "status")


def segments(connection: socket.socket) -> tuple[int, int]:
    """How many segments the kernel says this socket has sent and received (struct tcp_info)."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 144)
    sent, received = struct.unpack_from("=II", info, 136)
    return sent, received


IP_TCP, IP6_TCP, SYN_EXTRA = 20 + 32, 40 + 32, 8  # timestamps in each segment; MSS, SACK and scaling in the SYN
WAYS = {"native": "{xdp_mode: native}", "generic": "{xdp_mode: generic}", "stack": "{fast_path: false}", "tc": "{}"}


@pytest.mark.parametrize("served", ["daemon"], indirect=True)
@pytest.mark.parametrize("way", WAYS)
def test_counters_are_exact_each_packet_once_and_each_direction_apart(served: Instance, way: str) -> None:
    instance, lab, (one, two, _) = served, served.lab, served.lab.backends
    instance.apply(config(lab, WAYS[way]))
    instance.ctl("connections", "flush", "--all")
    before = instance.json("stats", status=0)
    # UDP: 30 datagrams of 100 bytes, answered.
    with connect(lab.client, (lab.proxy4, 53), kind=socket.SOCK_DGRAM) as asking:
        answered = 0
        for _ in range(30):
            asking.send(bytes(100))
            answered += len(asking.recv(1000)) + 28
        port = asking.getsockname()[1]
    # TCP: an echo over each family, held open. Whether a packet is overtaken must not show in its length.
    lab.client.write_sysctls({"net/ipv4/tcp_sack": "0"})
    connections = [connect(lab.client, (listen, 7)) for listen in (lab.proxy4, lab.proxy6)]
    for connection in connections:
        connection.sendall(bytes(50_000))
        received = 0
        while received < 50_000:
            received += len(connection.recv(65536))
    wait_for(lambda: quiet(connections), "no segment under way")
    rows: dict[str, Any] = {}
    stats: dict[str, Any] = {}

    def at_rest() -> bool:
        """Listed with no acknowledgement sent meanwhile, which may be delayed."""
        exchanged = [segments(each) for each in connections]
        rows.update({row["client"]: row for row in instance.json("connections", status=0)})
        stats.update(instance.json("stats", status=0))
        return exchanged == [segments(each) for each in connections]

    wait_for(at_rest, "a list between two segments")
    assert len(rows) == 3
    row = rows[f"{lab.client4}:{port}"]
    assert (row["proxy"], row["protocol"], row["state"]) == ("dns", "udp", "established")
    assert (row["listen"], row["target"]) == (f"{lab.proxy4}:53", f"{two.ip4}:{UDP_PORT}")
    assert (row["packets_forward"], row["bytes_forward"]) == (30, 30 * 128)
    assert (row["packets_reverse"], row["bytes_reverse"]) == (30, answered)
    assert 0 <= row["idle_sec"] <= row["age_sec"] < 60
    for connection, header, target in zip(connections, (IP_TCP, IP6_TCP), (one.ip4, f"[{one.ip6}]"), strict=True):
        host, client_port = connection.getsockname()[:2]
        row = rows[f"[{host}]:{client_port}" if ":" in host else f"{host}:{client_port}"]
        assert (row["proxy"], row["protocol"], row["state"]) == ("echo", "tcp", "established")
        assert row["target"] == f"{target}:{TCP_PORT}"
        sent, came = segments(connection)
        assert (row["packets_forward"], row["packets_reverse"]) == (sent, came)
        assert row["bytes_forward"] == 50_000 + header * sent + SYN_EXTRA
        assert row["bytes_reverse"] == 50_000 + header * came + SYN_EXTRA
    assert (stats["connections"], stats["drops"]) == (3, before["drops"])
    for counter in ("packets_forward", "bytes_forward", "packets_reverse", "bytes_reverse"):
        assert stats[counter] - before[counter] == sum(row[counter] for row in rows.values())
        assert stats[counter] == sum(each[counter] for each in stats["proxies"].values())
        of_echo = stats["proxies"]["echo"]
        assert of_echo[counter] == sum(each[counter] for each in of_echo["targets"].values())
    connections[0].close()
    wait_for(lambda: instance.json("connections", "--target", str(one.ip4)) == [], "it is over")
    assert instance.json("connections", "--target", str(one.ip4), "--state", "closed")[0]["state"] == "closed"
    connections[1].close()


def test_connections_are_chosen_by_proxy_and_target(served: Instance) -> None:
    lab, (one, two, _) = served.lab, served.lab.backends
    served.ctl("connections", "flush", "--all")
    echo = connect(lab.client, (lab.proxy4, 7))
    ask_udp(lab.client, (lab.proxy4, 53), b"?")
    assert served.json("connections", "--count")["count"] == 2
    assert served.ctl("connections", "--count", "--proxy", "echo").strip() == "1"
    rows = served.json("connections", "--target", f"{two.ip4}:{UDP_PORT}")
    assert [row["proxy"] for row in rows] == ["dns"]
    assert served.ctl("connections", "--count", "--target", f"{two.ip4}:1").strip() == "0"
    assert served.json("connections", "flush", "--proxy", "dns") == {"flushed": 1}
    assert [row["target"] for row in served.json("connections")] == [f"{one.ip4}:{TCP_PORT}"]
    echo.sendall(b"still here")
    assert echo.recv(100) == b"still here"
    echo.close()


def quiet(connections: list[socket.socket]) -> bool:
    """Whether all that was sent is acknowledged, and every count stays as it is for a moment."""
    first = [segments(each) for each in connections]
    unacknowledged = [struct.unpack_from("=I", each.getsockopt(6, socket.TCP_INFO, 144), 24)[0] for each in connections]
    os.sched_yield()
    return not any(unacknowledged) and first == [segments(each) for each in connections]


def test_stats_count_denied_packets_by_reason(served: Instance) -> None:
    before = served.json("stats")
    with connect(served.lab.client, (served.lab.proxy4, 53), source=("192.0.2.66", 0), kind=socket.SOCK_DGRAM) as asks:
        for _ in range(7):
            asks.send(b"?")
    after = served.json("stats")
    assert after["drops"]["denied"] - before["drops"]["denied"] == 7
    assert after["packets_forward"] == before["packets_forward"]


def test_down_takes_everything_away_and_may_be_repeated(lab: Lab, instance: Instance) -> None:
    instance.apply(web(f"{lab.backends[0].ip4}:{HTTP_PORT}", settings="{xdp_mode: native}"))
    assert instance.json("down", status=0)["removed"] != []
    lab.assert_clean(instance.bpffs_dir)
    again = instance.run("down")
    assert (again.returncode, again.stdout) == (0, "")
    assert "nothing" in again.stderr
    status = instance.json("status", status=1)
    assert (status["sync"], status["revision"], status["proxies"]) == ("OutOfSync", 0, [])


def test_where_nothing_was_ever_applied(lab: Lab, instance: Instance) -> None:
    assert instance.json("diff", status=0)["changes"] == []
    instance.ctl("plan", "--detailed-exitcode", status=0)
    status = instance.json("status", status=0)
    assert (status["sync"], status["revision"], status["proxies"], status["interfaces"]) == ("Synced", 0, [], [])
    assert instance.json("connections", status=0) == []
    assert instance.ctl("connections", "--count").strip() == "0"
    stats = instance.json("stats", status=0)
    assert_fits(stats, STATS)
    assert (stats["connections"], stats["proxies"]) == (0, {})
    assert instance.ctl("down") == ""
    assert instance.json("apply", "--yes", status=0)["changes"] == []
    lab.assert_clean(instance.bpffs_dir)
    for words, expected in {
        ("status",): 1,
        ("diff",): 2,
        ("plan",): 2,
        ("apply", "--yes"): 1,
        ("validate",): 1,
    }.items():
        result = instance.run("--config-dir", str(instance.config_dir / "absent"), *words)
        assert result.returncode == expected, (words, result.stdout, result.stderr)
        assert str(instance.config_dir / "absent") in result.stderr + (result.stdout if words == ("status",) else "")
    lab.assert_clean(instance.bpffs_dir)


NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def test_without_privileges_it_says_so(served: Instance) -> None:
    lab = served.lab
    for directory in (lab.directory, served.config_dir.parent, served.config_dir):
        directory.chmod(0o755)
    words = {"status": 1, "diff": 2, "plan": 2, "apply": 1, "connections": 1, "stats": 1, "down": 1}
    for command, expected in words.items():
        result = lab.proxy.run(*NOBODY, PROGRAMS / "revproxyctl", command, env=served.env, check=False)
        assert result.returncode == expected, (command, result.stderr)
        assert result.stdout == ""
        assert re.search(r"root|permission", result.stderr), (command, result.stderr)
        assert len(result.stderr.splitlines()) == 1
    lab.proxy.run(*NOBODY, PROGRAMS / "revproxyctl", "validate", env=served.env)
    started = lab.proxy.run(*NOBODY, PROGRAMS / "revproxyd", env=served.env, check=False)
    assert started.returncode == 1
    assert "root" in started.stderr
    assert "Traceback" not in started.stderr


def test_validate_needs_neither_root_nor_a_network(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    for text, status in ((web("10.0.0.1:80"), 0), (web("10.0.0.1:http"), 1)):
        path.write_text(text)
        result = subprocess.run(
            ["unshare", "--user", "--net", PROGRAMS / "revproxyctl", "validate", path],
            env={**os.environ, "REVPROXY_BPFFS_DIR": "/nowhere"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (result.returncode, result.stdout) == (status, "")
