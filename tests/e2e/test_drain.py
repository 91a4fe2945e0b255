"""Drains on the wire: no new connections to a target, the existing ones finish, whatever is restarted."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

import pytest

import reconciler
from netlab import HTTP_PORT, Lab, wait_for
from netlab.clients import http_connection
from tests.e2e.health import checked, shares, targets
from tests.e2e.instance import PROGRAMS, Instance
from tests.e2e.watching import Requests


def target(lab: Lab, number: int) -> str:
    return f"{lab.backends[number].ip4}:{HTTP_PORT}"


def state(instance: Instance, lab: Lab, number: int) -> str:
    return str(targets(instance)[str(lab.backends[number].ip4)]["state"])


def open_to(lab: Lab, number: int) -> Any:
    """An open connection to that backend."""
    for _ in range(200):
        connection = http_connection(lab.client, (lab.proxy4, 80))
        if ask(connection) == lab.backends[number].name:
            return connection
        connection.close()
    raise AssertionError(f"nothing goes to {lab.backends[number].name}")


def ask(connection: Any) -> str:
    connection.request("GET", "/")
    return str(connection.getresponse().read().decode().split()[0])


@pytest.mark.parametrize("balance", ["maglev", "source", "random"])
def test_no_new_connections_and_the_others_keep_theirs(lab: Lab, instance: Instance, balance: str) -> None:
    sources = [(f"10.60.0.{number}", 0) for number in range(1, 31)] if balance == "source" else []
    for address, _ in sources:
        lab.add_client_address(address)
    instance.apply(checked(lab, check="", extra=f"balance: {balance}"))

    def by_client() -> list[str]:
        return [next(iter(shares(lab, 1, lambda _, one=one: one))) for one in sources]

    instance.start_daemon()
    before = by_client()
    drained = next(iter(shares(lab, 1)))  # with `source`, the only one this client knows
    number = next(index for index, backend in enumerate(lab.backends) if backend.name == drained)
    kept = open_to(lab, number)
    with Requests(lab):
        found = instance.json("drain", target(lab, number), status=0)
        assert [(each["target"], each["state"]) for each in found["targets"]] == [(target(lab, number), "draining")]
        others = {backend.name for backend in lab.backends} - {drained}
        found = set(shares(lab, 60))
        assert found < others if balance == "source" else found == others
        after = by_client()
        stayed = [now for was, now in zip(before, after, strict=True) if was != drained]
        assert stayed == [was for was in before if was != drained], "a client stays with its target"
        assert drained not in after
        assert ask(kept) == drained
        assert state(instance, lab, number) == "draining"
        instance.ctl("diff")

        instance.ctl("undrain", target(lab, number))
        assert by_client() == before
        kept.close()
        open_to(lab, number).close()
    assert state(instance, lab, number) == "active"


def test_waiting_for_the_last_connection(lab: Lab, instance: Instance) -> None:
    instance.write(checked(lab, check="", extra="connection_timeout_sec: 1000"))
    instance.start_daemon()
    kept = open_to(lab, 0)
    late = instance.run("drain", target(lab, 0), "--timeout", "1")
    assert late.returncode == 1
    assert "timed out: " in late.stderr
    assert state(instance, lab, 0) == "draining"

    def wait() -> subprocess.Popen[str]:
        return subprocess.Popen(
            lab.proxy.command(PROGRAMS / "revproxyctl", "drain", target(lab, 0), "--wait", "--output", "json"),
            env=instance.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    instance.ctl("undrain", target(lab, 0))
    impatient = wait()
    wait_for(lambda: state(instance, lab, 0) == "draining", "the drain")
    impatient.send_signal(signal.SIGINT)
    assert impatient.communicate(timeout=60) == ("", "revproxyctl: interrupted\n")
    assert impatient.returncode == 130
    assert state(instance, lab, 0) == "draining"

    waiting = wait()
    try:
        instance.stop_daemon()
        instance.start_daemon()
        assert ask(kept) == lab.backends[0].name
        assert waiting.poll() is None, "it waits, whoever restarts"
        kept.close()
        output, _ = waiting.communicate(timeout=60)
    finally:
        waiting.kill()
    assert waiting.returncode == 0
    assert json.loads(output)["connections"] == 0
    assert state(instance, lab, 0) == "drained"
    assert lab.backends[0].name not in shares(lab, 30), "also after the restart"


def test_without_a_daemon(lab: Lab, instance: Instance) -> None:
    instance.apply(checked(lab, check=""))
    instance.ctl("drain", str(lab.backends[0].ip4))
    assert lab.backends[0].name not in shares(lab, 30)
    assert state(instance, lab, 0) == "drained"
    instance.ctl("diff")

    # What is drained stays so under another configuration, a target that had gone included.
    instance.apply(checked(lab, 5, 1, 1, check=""))
    assert lab.backends[0].name not in shares(lab, 30)
    both = checked(lab, check="")
    instance.apply("\n".join(line for line in both.splitlines() if f"ip: {lab.backends[0].ip4}," not in line))
    instance.apply(both)
    assert state(instance, lab, 0) == "drained"
    instance.start_daemon()
    assert lab.backends[0].name not in shares(lab, 30)
    client = reconciler.Client(run_dir=instance.run_dir)
    assert client.draining(target(lab, 0)).done
    assert not client.undrain(target(lab, 0)).done
    wait_for(lambda: shares(lab, 20)[lab.backends[0].name], "connections again")


def test_nobody_left(lab: Lab, instance: Instance) -> None:
    """A single target, and a group of which every member is drained: dropped and counted."""
    single = f"""\
  - name: single
    listen: {{interfaces: [eth0], port: 81}}
    default_target: {{ip: {lab.backends[0].ip4}, port: {HTTP_PORT}}}
"""
    instance.write(checked(lab, check="") + single)
    instance.start_daemon()

    def drops() -> int:
        return int(instance.json("stats")["drops"]["no_target"])

    def refused(port: int) -> bool:
        try:
            http_connection(lab.client, (lab.proxy4, port), timeout_sec=0.5).close()
        except TimeoutError:
            return True
        return False

    instance.ctl("drain", target(lab, 0), "--proxy", "single")
    before = drops()
    assert refused(81)
    assert drops() > before
    assert shares(lab, 60)[lab.backends[0].name], "the other proxy goes on"
    for number in range(3):
        instance.ctl("drain", target(lab, number), "--proxy", "web")
    before = drops()
    assert refused(80)
    assert drops() > before
    warnings = [each["message"] for each in instance.json("status", status=0)["warnings"]]
    assert [warning.partition(",")[0] for warning in warnings if "every target is drained" in warning] == [
        "single",
        "web",
    ]
    instance.ctl("undrain", target(lab, 0))
    assert not refused(81)
    assert set(shares(lab, 10)) == {lab.backends[0].name}


def test_a_target_taken_out_of_the_files(lab: Lab, instance: Instance) -> None:
    """It drains the same way, and goes with its last connection."""
    text = checked(lab, check="")
    instance.write(text)
    instance.start_daemon()
    kept = open_to(lab, 0)
    instance.write("\n".join(line for line in text.splitlines() if f"ip: {lab.backends[0].ip4}," not in line))
    wait_for(lambda: state(instance, lab, 0) == "draining", "draining")
    assert targets(instance)[str(lab.backends[0].ip4)]["weight"] == 0
    assert lab.backends[0].name not in shares(lab, 30)
    assert ask(kept) == lab.backends[0].name
    assert instance.run("drain", target(lab, 0), "--timeout", "0.5").returncode == 1
    kept.close()
    assert instance.run("drain", target(lab, 0), "--timeout", "40").returncode == 0
    wait_for(lambda: str(lab.backends[0].ip4) not in targets(instance), "it has gone", timeout_sec=60)
    instance.ctl("undrain", target(lab, 0))


def test_what_there_is_not(lab: Lab, instance: Instance) -> None:
    instance.apply(checked(lab, check=""))
    for words, text, status in (
        (("drain", "10.1.1.1:80"), "no live proxy has a target 10.1.1.1:80 (there are 10.90.2.11:8080, ", 1),
        (("drain", target(lab, 0), "--proxy", "wbe"), "no live proxy is called wbe", 1),
        (("drain", "nonsense"), "nonsense", 2),
        (("undrain", "10.1.1.1"), "no live proxy has a target 10.1.1.1", 1),
    ):
        found = instance.run(*words)
        assert found.returncode == status
        assert text in found.stderr
    assert instance.run("undrain", target(lab, 0)).returncode == 0
    instance.ctl("drain", target(lab, 0))
    assert "no live proxy is called wbe" in instance.run("undrain", target(lab, 0), "--proxy", "wbe").stderr
    assert state(instance, lab, 0) == "drained"
    instance.ctl("undrain", target(lab, 0), "--proxy", "web")
    assert state(instance, lab, 0) == "active"


def test_what_is_drained_stays_so_without_the_file_that_says_so(lab: Lab, instance: Instance) -> None:
    instance.apply(checked(lab, check=""))
    instance.ctl("drain", target(lab, 0))
    (instance.state_dir / "drains.json").write_text("{")
    instance.ctl("apply", "--yes")
    assert state(instance, lab, 0) == "drained"
    (warning,) = instance.json("status")["warnings"]
    assert "drains.json.broken" in warning["message"]
    instance.ctl("undrain", target(lab, 0))
    assert state(instance, lab, 0) == "active"
