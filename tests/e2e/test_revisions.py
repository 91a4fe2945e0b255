"""Revisions on the wire: saved plans, commits to be confirmed, going back, waiting to be told, suspended; with a daemon
and without one."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from netlab import HTTP_PORT, Lab, wait_for
from netlab.clients import http_connection
from reconciler.kernel.maps import Maps
from tests.e2e.instance import Instance, web
from tests.e2e.watching import Requests, attached, held


def http(lab: Lab, number: int, **options: Any) -> str:
    """The file that leads port 80 to one backend; numbers from 1."""
    return web(f"{lab.backends[number - 1].ip4}:{HTTP_PORT}", **options)


def answering(lab: Lab) -> str:
    """The backend that answers a new connection."""
    return Requests(lab).ask()


MANUAL = "{sync: manual}"


@pytest.fixture(params=["daemon", "direct"])
def serving(request: pytest.FixtureRequest, lab: Lab, instance: Instance) -> Instance:
    """Revision 1 leads to the first backend, and nothing is applied without being said."""
    instance.write(http(lab, 1, settings=MANUAL))
    if request.param == "daemon":
        instance.start_daemon(ready=False)
    instance.ctl("apply", "--yes")
    assert answering(lab) == "backend1"
    return instance


# -- saved plans ----------------------------------------------------------------------------------------------


def test_a_saved_plan_is_applied_exactly_or_not_at_all(serving: Instance, tmp_path: Path) -> None:
    lab, plan, later = serving.lab, str(tmp_path / "plan"), str(tmp_path / "later")
    serving.write(http(lab, 2, settings=MANUAL))
    shown = serving.json("plan", "--out", plan, "--detailed-exitcode", status=2)
    assert shown["changes"]
    assert answering(lab) == "backend1", "a plan changes nothing"
    # The files have gone on since: what was planned is applied, not they.
    serving.write(http(lab, 3, settings=MANUAL))
    serving.ctl("plan", "--out", later)
    done = serving.json("apply", plan, "--yes", status=0)
    assert (done["changes"], done["operations"]) == (shown["changes"], shown["operations"])
    assert answering(lab) == "backend2"
    assert serving.json("status", status=1)["sync"] == "OutOfSync"
    before = held(serving), attached(lab)
    for each in (plan, later):
        refused = serving.run("apply", each, "--yes")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "stale" in refused.stderr
    assert (held(serving), attached(lab)) == before
    assert answering(lab) == "backend2"


def test_a_plan_is_stale_when_anything_in_the_kernel_moved(lab: Lab, instance: Instance, tmp_path: Path) -> None:
    plan = str(tmp_path / "plan")
    instance.apply(http(lab, 1))
    instance.write(http(lab, 2))
    instance.ctl("plan", "--out", plan)
    lab.proxy.run("tc", "filter", "del", "dev", "eth0", "ingress")
    refused = instance.run("apply", plan)
    assert refused.returncode == 1
    assert "stale" in refused.stderr
    # Another version's plan, and what is none.
    document = json.loads(Path(plan).read_text())
    Path(plan).write_text(json.dumps(document | {"version": "0.0.9"}))
    assert "0.0.9" in instance.run("apply", plan).stderr
    Path(plan).write_text("[]")
    refused = instance.run("apply", plan)
    assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)


def test_nothing_to_do_is_a_plan_too(serving: Instance, tmp_path: Path) -> None:
    plan, before = str(tmp_path / "plan"), (held(serving), attached(serving.lab))
    assert serving.json("plan", "--out", plan, "--detailed-exitcode", status=0)["changes"] == []
    assert serving.json("apply", plan, status=0)["changes"] == []
    assert (held(serving), attached(serving.lab)) == before


def test_a_plan_says_before_after_place_maps_and_connections(serving: Instance) -> None:
    lab = serving.lab
    one, two = (f"{each.ip4}:{HTTP_PORT}" for each in lab.backends[:2])
    connection = http_connection(lab.client, (lab.proxy4, 80))
    connection.request("GET", "/")
    connection.getresponse().read()
    serving.write(http(lab, 2, settings=MANUAL, extra="balance: source"))
    text = serving.ctl("plan")
    assert f"- delete target web/{one}" in text
    assert f"+ create target web/{two}  # {serving.config_dir}/web.yaml:7:" in text
    assert "balance: maglev -> source" in text
    assert re.search(rf"live connections of web to {re.escape(one)} stay where they are until they end: \d", text)
    assert "proxy 1" in text.splitlines()[-2]
    connection.close()


# -- commits to be confirmed -----------------------------------------------------------------------------------


def test_unconfirmed_it_goes_back_and_stays_back(serving: Instance) -> None:
    lab = serving.lab
    serving.write(http(lab, 2, settings=MANUAL))
    connection = http_connection(lab.client, (lab.proxy4, 80))
    connection.request("GET", "/")
    assert connection.getresponse().read().startswith(b"backend1")
    with Requests(lab):
        done = serving.json("apply", "--yes", "--confirm-within", "3s", status=0)
        assert done["unconfirmed"]["previous"] == 1
        assert answering(lab) == "backend2"
        wait_for(lambda: answering(lab) == "backend1", "rolled back", timeout_sec=15)
    status = serving.json("status", status=1)
    assert (status["sync"], status["unconfirmed"]) == ("OutOfSync", None)
    assert "not confirmed" in status["waiting"]
    assert serving.run("confirm").returncode == 1
    assert serving.json("history", status=0)[-1]["cause"] == "expired"
    connection.request("GET", "/")  # a connection from before has gone through it all
    assert connection.getresponse().read().startswith(b"backend1")
    connection.close()


def test_confirmed_it_stays_and_applying_again_gives_it_its_time_again(serving: Instance) -> None:
    lab = serving.lab
    serving.write(http(lab, 2, settings=MANUAL))
    first = serving.json("apply", "--yes", "--confirm-within", "60s", status=0)["unconfirmed"]
    serving.write(http(lab, 3, settings=MANUAL))
    again = serving.json("apply", "--yes", "--confirm-within", "1h30m", status=0)["unconfirmed"]
    assert again["previous"] == first["previous"] == 1, "one unconfirmed commit at a time"
    assert 5000 < again["left_sec"] <= 5400
    progressing = {each["type"]: each for each in serving.json("status", status=0)["conditions"]}["Progressing"]
    assert (progressing["status"], progressing["reason"]) == ("True", "AwaitingConfirmation")
    assert serving.json("confirm", status=0) == {"revision": 3}
    assert serving.ctl("confirm", status=1) == ""
    assert answering(lab) == "backend3"
    assert serving.json("status", status=0)["unconfirmed"] is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_daemon_that_ends_does_not_make_it_stay(lab: Lab, instance: Instance, number: int) -> None:
    instance.write(http(lab, 1))
    instance.start_daemon()
    instance.ctl("suspend")  # also then
    instance.write(http(lab, 2))
    instance.ctl("apply", "--yes", "--confirm-within", "2s")
    instance.stop_daemon(number)
    assert answering(lab) == "backend2", "without a daemon nobody rolls back"
    deadline = json.loads((instance.state_dir / "control.json").read_text())["unconfirmed"]["deadline"]
    wait_for(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) > deadline, "the time is up")
    instance.start_daemon(ready=False)
    wait_for(lambda: answering(lab) == "backend1", "rolled back by the next one", timeout_sec=20)
    found = instance.json("status", status=1)
    assert found["suspended"]
    instance.ctl("resume")
    instance.daemon.send(signal.SIGHUP)
    assert "not confirmed" in instance.json("status", status=1)["waiting"]
    assert answering(lab) == "backend1", "what was rolled back is not applied again"
    instance.write(http(lab, 3))
    wait_for(lambda: answering(lab) == "backend3", "files that changed are", timeout_sec=10)


def test_a_daemon_that_was_faster_is_no_way_around(lab: Lab, instance: Instance) -> None:
    instance.write(http(lab, 1))
    instance.start_daemon()
    instance.write(http(lab, 2))
    wait_for(lambda: answering(lab) == "backend2", "applied by the daemon", timeout_sec=10)
    assert instance.json("apply", "--yes", "--confirm-within", "12s", status=0)["unconfirmed"]["previous"] == 1
    instance.write(http(lab, 3))
    wait_for(lambda: "confirm" in instance.json("status")["waiting"], "the next edit waits")
    assert answering(lab) == "backend2"
    wait_for(lambda: answering(lab) == "backend1", "rolled back", timeout_sec=30)
    assert instance.json("status", status=1)["sync"] == "OutOfSync"
    instance.ctl("apply", "--yes")
    assert answering(lab) == "backend3"


def test_the_very_first_commit_goes_back_to_nothing(lab: Lab, instance: Instance) -> None:
    instance.write(http(lab, 1))
    instance.ctl("apply", "--yes", "--confirm-within", "2s")
    assert answering(lab) == "backend1"
    wait_for(lambda: instance.json("status")["proxies"] == [], "taken back", timeout_sec=15)
    with pytest.raises(OSError, match=r"refused|reset|timed out"):
        answering(lab)


@pytest.mark.parametrize("words", ["0s", "soon", "-3", "1x", "8d"])
def test_wrong_durations_change_nothing(lab: Lab, instance: Instance, words: str) -> None:
    instance.write(http(lab, 1))
    refused = instance.run("apply", "--yes", "--confirm-within", words)
    assert refused.returncode in (1, 2)
    assert "Traceback" not in refused.stderr
    assert not instance.bpffs_dir.exists()


# -- going back -----------------------------------------------------------------------------------------------


def test_rollback_changes_what_differs_and_holds_the_files(lab: Lab, instance: Instance) -> None:
    extra = http(lab, 1, name="other", port=8081)
    instance.write(extra, "other.yaml")
    instance.write(http(lab, 1))
    instance.start_daemon()
    for number in (2, 3):
        instance.write(http(lab, number))
        wait_for(lambda n=number: answering(lab) == f"backend{n}", "followed", timeout_sec=10)
    with Requests(lab):
        done = instance.json("rollback", status=0)
        assert {each["name"].split("/")[0] for each in done["changes"]} == {"web"}
        assert answering(lab) == "backend2"
        assert instance.json("status", status=1)["sync"] == "OutOfSync"
        assert instance.stop_daemon() == 0
        instance.start_daemon(ready=False)
        instance.daemon.send(signal.SIGHUP)
        assert instance.json("status", status=1)["sync"] == "OutOfSync", "also after a restart"
        assert answering(lab) == "backend2"
        instance.ctl("rollback", "1")
        assert answering(lab) == "backend1"
        found = instance.json("history", status=0)
        assert [(each["number"], each["cause"], each["of"]) for each in found] == [
            (1, "files", None),
            (2, "files", None),
            (3, "files", None),
            (4, "rollback", 2),
            (5, "rollback", 1),
        ]
        assert [each["current"] for each in found] == [False, False, False, False, True]
        assert found[1]["files"] == ["web.yaml"]
        instance.write(http(lab, 2))
        wait_for(lambda: answering(lab) == "backend2", "files that change are applied", timeout_sec=10)
        # To what was held once, but has changed in between.
        instance.write(http(lab, 3))
        wait_for(lambda: answering(lab) == "backend3", "applied", timeout_sec=10)
        instance.wait_synced()


def test_rollback_and_what_there_is_not(serving: Instance) -> None:
    lab = serving.lab
    for words, word in ((("rollback",), "before"), (("rollback", "7"), "7"), (("rollback", "1"), "is what is applied")):
        refused = serving.run(*words)
        assert refused.returncode == 1
        assert word in refused.stderr
    serving.write(http(lab, 2, settings=MANUAL))
    serving.ctl("apply", "--yes")
    serving.ctl("rollback")
    assert answering(lab) == "backend1"
    serving.ctl("apply", "--yes")
    assert answering(lab) == "backend2"
    serving.json("status", status=0)


def test_history_has_what_was_refused_and_what_git_says(lab: Lab, instance: Instance) -> None:
    def git(*words: str) -> str:
        settings = ("-c", "user.name=A. U. Thor", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main")
        return lab.proxy.run("git", "-C", instance.config_dir, *settings, *words).stdout.strip()

    instance.write(http(lab, 1))
    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "Lead to the first")
    instance.start_daemon()
    instance.write("apiVersion: revproxy/v1\nproxies: [", "broken.yaml")
    wait_for(lambda: len(instance.json("history")) == 2, "refused")
    assert instance.json("status", status=1)["sync"] == "Degraded"
    assert instance.run("apply", "--yes").returncode == 1, "the same again is no news"
    (instance.config_dir / "broken.yaml").unlink()
    instance.wait_synced()
    first, refused = instance.json("history", status=0)
    commit = git("rev-parse", "HEAD")
    assert (first["result"], first["commit"], first["author"], first["message"]) == (
        "applied",
        commit,
        "A. U. Thor",
        "Lead to the first",
    )
    assert (refused["number"], refused["result"], refused["files"]) == (2, "refused", ["broken.yaml"])
    assert "broken.yaml:2:" in refused["error"]
    table = instance.ctl("history")
    assert "Lead to the first" in table
    assert len(table.splitlines()) == 3
    instance.stop_daemon()
    instance.ctl("down")
    assert len(instance.json("history", status=0)) == 2, "it outlives what it is about"
    instance.ctl("apply", "--yes")
    assert instance.json("status", status=0)["revision"] == 2, "no number is used twice"


# -- waiting to be told ----------------------------------------------------------------------------------------


def test_manual_waits_for_apply_and_keeps_what_is_applied(lab: Lab, instance: Instance) -> None:
    instance.write(http(lab, 1, settings=MANUAL))
    instance.start_daemon(ready=False)
    assert instance.json("status", status=1)["sync"] == "OutOfSync"
    with pytest.raises(OSError, match=r"refused|reset|timed out"):
        answering(lab)
    instance.ctl("apply", "--yes")
    instance.wait_synced()
    assert answering(lab) == "backend1"
    instance.write(http(lab, 2, settings=MANUAL))
    wait_for(lambda: instance.json("status")["sync"] == "OutOfSync", "told")
    status = instance.json("status", status=1)
    assert (status["policy"], "manual" in status["waiting"]) == ("manual", True)
    before = attached(lab)
    lab.proxy.run("tc", "filter", "del", "dev", "eth0", "ingress")
    wait_for(lambda: attached(lab) == before, "what is applied is kept in force", timeout_sec=5)
    assert answering(lab) == "backend1"
    instance.write(http(lab, 2))
    wait_for(lambda: answering(lab) == "backend2", "auto again", timeout_sec=10)
    instance.wait_synced()


def test_suspended_it_does_nothing_until_resumed(lab: Lab, instance: Instance) -> None:
    instance.write(http(lab, 1))
    instance.start_daemon()
    assert instance.json("suspend", status=0)["suspended"] is True
    since = instance.json("status", status=0)["suspended"]
    before = held(instance)
    instance.write(http(lab, 2))
    lab.proxy.run("tc", "filter", "del", "dev", "eth0", "egress")
    pid = instance.json("status")["pid"]
    instance.stop_daemon(signal.SIGKILL)
    instance.start_daemon(ready=False)
    wait_for(lambda: instance.json("status")["pid"] not in (pid, None), "a new daemon answers", timeout_sec=20)
    instance.daemon.send(signal.SIGHUP)
    status = instance.json("status", status=1)
    assert (status["sync"], status["suspended"]) == ("OutOfSync", since)
    assert held(instance) == before
    assert "suspended" in instance.ctl("status", status=1)
    assert instance.json("resume", status=0)["suspended"] is False
    wait_for(lambda: answering(lab) == "backend2", "goes on", timeout_sec=10)
    instance.wait_synced()
    assert instance.json("status", status=0)["suspended"] is None


# -- what connections kept ------------------------------------------------------------------------------------


def used_targets(instance: Instance) -> int:
    """How many targets the kernel knows."""
    maps = Maps(instance.bpffs_dir)
    maps.open()
    try:
        return int((maps["target"].items()[1]["family"] != 0).sum())
    finally:
        maps.close()


def test_what_only_connections_kept_is_freed_without_a_word(serving: Instance) -> None:
    lab = serving.lab
    with closing(http_connection(lab.client, (lab.proxy4, 80))) as connection:
        connection.request("GET", "/")
        connection.getresponse().read()
        serving.write(http(lab, 2, settings=MANUAL))
        serving.ctl("apply", "--yes")
        assert used_targets(serving) == 2
        serving.ctl("connections", "flush", "--all")
        assert used_targets(serving) == 1
    serving.write(http(lab, 3, settings=MANUAL))
    said = serving.run("apply", "--yes").stderr + (serving.daemon.output() if serving.daemon else "")
    assert "recovered" not in said
    assert answering(lab) == "backend3"


# -- other files ----------------------------------------------------------------------------------------------


def test_other_files_are_compared_while_a_daemon_runs(lab: Lab, instance: Instance, tmp_path: Path) -> None:
    instance.write(http(lab, 1))
    instance.start_daemon()
    other = tmp_path / "other"
    other.mkdir()
    (other / "web.yaml").write_text(http(lab, 2))
    words = ("--config-dir", str(other))
    assert f"{lab.backends[1].ip4}:{HTTP_PORT}" in instance.ctl(*words, "diff", status=1)
    plan = str(tmp_path / "plan")
    instance.ctl(*words, "plan", "--out", plan)
    assert instance.run(*words, "apply", "--yes").returncode == 1, "its files are the daemon's business"
    assert answering(lab) == "backend1"
    instance.ctl("apply", plan)
    assert answering(lab) == "backend2"
    instance.daemon.send(signal.SIGHUP)
    assert "saved plan" in instance.json("status", status=1)["waiting"], "the daemon does not take it back"
    assert answering(lab) == "backend2"


@pytest.fixture(autouse=True)
def no_processes_left() -> Iterator[None]:
    """What waits in the background ends by itself."""
    yield

    def waiting() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if b"reconciler.waiter" in words and str(os.getpid()).encode() in b" ".join(words):
                found.append(path.parent.name)
        return found

    wait_for(lambda: not waiting(), "no process is left", timeout_sec=10)
