"""revproxyd as the contract has it: follows its directory however it is changed, adopts what it finds, repairs what
others break, and never takes traffic along when it ends."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import netlab
from netlab import HTTP_PORT, Lab, wait_for
from netlab.clients import http_connection
from reconciler.answers import Status, Sync
from reconciler.api.client import DaemonClient
from reconciler.kernel.maps import Maps
from tests.e2e.instance import PROGRAMS, Instance, web
from tests.e2e.watching import Requests, attached, changed, held


def status(instance: Instance) -> Status:
    """What the daemon says, without starting a program."""
    return DaemonClient(instance.run_dir / "revproxyd.sock").status()


def targets(instance: Instance) -> set[str]:
    """The target addresses that are live."""
    return {target.address for proxy in status(instance).proxies for target in proxy.targets}


def events(instance: Instance, name: str = "") -> list[dict[str, Any]]:
    """The daemon's log so far; every line of it is JSON."""
    assert instance.daemon is not None
    lines = [json.loads(line) for line in instance.daemon.output().splitlines()]
    return [line for line in lines if name in ("", line["event"])]


def backend(lab: Lab, number: int) -> str:
    """A backend's HTTP server as a target; numbers from 1."""
    return f"{lab.backends[number - 1].ip4}:{HTTP_PORT}"


def http(lab: Lab, number: int, **options: Any) -> str:
    """The file that leads port 80 to one backend."""
    return web(backend(lab, number), **options)


# -- following the directory ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running() -> Iterator[Instance]:
    """A daemon that has been running for a while."""
    with Lab(offload=False, xdp_peers=True) as lab, Instance(lab) as instance:
        instance.write(http(lab, 1))
        instance.start_daemon()
        yield instance


@pytest.fixture
def following(running: Instance) -> Instance:
    """The same with the one file, web.yaml, in a directory made anew."""
    directory = running.config_dir
    directory.unlink() if directory.is_symlink() else shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    running.write(http(running.lab, 1))
    wait_for(lambda: status(running).sync is Sync.SYNCED, "Synced")
    assert targets(running) == {backend(running.lab, 1)}
    return running


def test_every_way_in_which_files_change_is_followed(following: Instance) -> None:
    instance, lab, path = following, following.lab, following.config_dir / "web.yaml"
    seen = len(events(instance))

    def follows(number: int, what: str) -> None:
        wait_for(lambda: targets(instance) == {backend(lab, number)}, what, timeout_sec=5)

    with Requests(lab) as requests:
        path.write_text(http(lab, 2))
        follows(2, "written in place")
        backup = path.with_name("web.yaml~")  # as vim does with backupcopy=no
        path.rename(backup)
        path.write_text(http(lab, 3))
        backup.unlink()
        follows(3, "renamed away, written anew")
        draft = instance.config_dir / "4913"
        draft.write_text(http(lab, 1))
        draft.replace(path)
        follows(1, "replaced by a rename")
        with path.open("r+") as file:  # piece by piece
            text = http(lab, 2)
            for start in range(0, len(text), 40):
                file.write(text[start : start + 40])
                file.flush()
            file.truncate()
        follows(2, "overwritten in pieces")
        instance.write(http(lab, 3), "other.json.draft")
        (instance.config_dir / "other.json.draft").rename(instance.config_dir / "web.yml")
        path.unlink()
        follows(3, "another name takes its place")
        assert requests.failures == []
    assert {each["event"] for each in events(instance)[seen:]} == {"commit_applied"}, "never a broken set"


def test_symlinks_swapped_as_kubernetes_does(following: Instance) -> None:
    instance, lab = following, following.lab
    volume = instance.config_dir.parent / "volume"
    for number in (1, 2, 3):
        (volume / f"v{number}").mkdir(parents=True)
        (volume / f"v{number}" / "web.yaml").write_text(http(lab, number))

    def swap(number: int, link: Path, to: str) -> None:
        draft = link.with_name(".tmp")
        draft.symlink_to(to)
        draft.replace(link)
        wait_for(lambda: targets(instance) == {backend(lab, number)}, f"version {number}", timeout_sec=5)

    (volume / "..data").symlink_to("v1")
    (volume / "web.yaml").symlink_to("..data/web.yaml")
    shutil.rmtree(instance.config_dir)
    instance.config_dir.symlink_to(volume)
    with Requests(lab):
        swap(2, volume / "..data", "v2")  # the link on the way to each file
        swap(3, volume / "..data", "v3")  # the watch has moved along
        swap(1, instance.config_dir, str(volume / "v1"))  # the directory itself
        swap(2, instance.config_dir, str(volume / "v2"))


def test_a_git_checkout_is_applied_whole_or_not_at_all(following: Instance) -> None:
    """Six files, each naming the same backend in one commit, and a filter that makes git take its time for each: a
    torn set would show as a commit that is none of git's, or as an update of some proxies only."""
    instance, lab = following, following.lab
    tree, files = instance.config_dir.parent / "tree", range(6)

    def git(*words: str) -> str:
        settings = ["user.name=t", "user.email=t@example.com", "init.defaultBranch=main", "filter.slow.clean=cat"]
        settings.append("filter.slow.smudge=sleep 0.25; cat")
        command = ["git", "-C", tree, *(word for setting in settings for word in ("-c", setting)), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tree / "config.d").mkdir(parents=True)
    git("init", "-q")
    (tree / ".gitattributes").write_text("*.yaml filter=slow\n")
    commits = {}
    for number in (1, 2):
        for file in files:
            (tree / "config.d" / f"{file}.yaml").write_text(http(lab, number, name=f"p{file}", port=80 + file))
        git("add", "-A")
        git("commit", "-q", "-m", f"to backend {number}")
        commits[number] = git("rev-parse", "HEAD")
    seen, log = len(histories(instance)), len(events(instance))
    instance.config_dir.rename(instance.config_dir.with_name("before-git"))
    instance.config_dir.symlink_to(tree / "config.d")
    wait_for(lambda: status(instance).commit == commits[2], "the work tree is followed")
    with Requests(lab):
        for number in (1, 2, 1):
            git("checkout", "-q", commits[number])
            wait_for(lambda n=number: status(instance).commit == commits[n], "followed")
        (tree / "config.d" / "0.yaml").write_text(http(lab, 3, name="p0"))
        wait_for(lambda: (status(instance).commit or "").endswith("-dirty"), "an edit that is not committed")
        git("commit", "-q", "-a", "-m", "to backend 3")
        assert status(instance).commit == git("rev-parse", "HEAD"), "what is in force is of a commit now"
        with (tree / "config.d" / "1.yaml").open("a") as file:
            file.write("# unchanged\n")
        git("commit", "-q", "-a", "-m", "a comment")
        assert status(instance).commit == git("rev-parse", "HEAD"), "which says the same"
        git("checkout", "-q", "-f", commits[2])
        wait_for(lambda: status(instance).commit == commits[2], "followed")
    applied = [
        (record["commit"], {re.split(r"[ /]", text)[2] for text in record["changes"]} - {"web", "eth0", "eth1"})
        for record in histories(instance)[seen:]
    ]
    whole = {f"p{file}" for file in files}
    turns = [(commits[number], whole) for number in (2, 1, 2, 1)]
    assert applied == [*turns, (f"{commits[1]}-dirty", {"p0"}), (commits[2], whole)]
    assert {each["event"] for each in events(instance)[log:]}.isdisjoint({"config_held", "commit_failed"})


def histories(instance: Instance) -> list[dict[str, Any]]:
    """The daemon's record of what it has applied."""
    return [json.loads(line) for line in (instance.state_dir / "history.jsonl").read_text().splitlines()]


def test_an_emptied_or_removed_directory_is_held_until_it_is_meant(following: Instance) -> None:
    instance, lab, path = following, following.lab, following.config_dir / "web.yaml"
    before, aside = held(instance), instance.config_dir.with_name("removed")

    def degraded() -> bool:
        found = status(instance)
        return found.sync is Sync.DEGRADED and "--allow-empty" in found.errors[0].message

    with Requests(lab):
        path.rename(path.with_suffix(".off"))
        wait_for(degraded, "emptied")
        path.with_suffix(".off").rename(path)
        wait_for(lambda: status(instance).sync is Sync.SYNCED, "the file is back")
        instance.config_dir.rename(aside)
        wait_for(degraded, "removed")
        assert "no such directory" in instance.ctl("status", status=1)
        refused = instance.run("apply", "--yes")
        assert refused.returncode == 1
        assert "--allow-empty" in refused.stderr
        difference = changed(before, held(instance))
        # Targets of the tests before this one go once their last connection has.
        assert all(after is None for _, after in difference.pop("target", {}).values())
        assert difference == {}
        instance.config_dir.mkdir()
        instance.write(http(lab, 2))
        wait_for(lambda: targets(instance) == {backend(lab, 2)}, "made anew, and followed")
        instance.write(http(lab, 3))
        wait_for(lambda: targets(instance) == {backend(lab, 3)}, "still followed")
        (instance.config_dir / "web.yaml").write_text("")
        wait_for(degraded, "a file without content")
    instance.ctl("apply", "--yes", "--allow-empty")
    assert status(instance).proxies == ()
    wait_for(lambda: status(instance).sync is Sync.SYNCED, "empty is what is wanted now")
    with pytest.raises(OSError, match=r"refused|reset"):
        requests_of(lab)


def requests_of(lab: Lab) -> str:
    """One request to port 80; the backend's name."""
    return Requests(lab).ask()


# -- ending and starting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["{xdp_mode: native}", "{}", "{fast_path: false}"])
def test_killed_and_started_again_it_adopts_without_writing_anything(following: Instance, way: str) -> None:
    instance, lab = following, following.lab
    instance.ctl("connections", "flush", "--all")  # so that nothing is kept for them any more
    instance.write(http(lab, 2, settings=way))
    wait_for(lambda: targets(instance) == {backend(lab, 2)}, "live")
    with Requests(lab):
        before, programs, revision = held(instance), attached(lab), status(instance).revision
        instance.stop_daemon(signal.SIGKILL)
        assert changed(before, held(instance)) == {}
        instance.start_daemon()
        assert changed(before, held(instance)) == {}
        assert attached(lab) == programs
        assert status(instance).revision == revision
        assert [each["revision"] for each in events(instance, "state_adopted")] == [revision]
        assert events(instance, "commit_applied") == []
        assert instance.stop_daemon(signal.SIGTERM) == 0
        assert changed(before, held(instance)) == {}
        assert attached(lab) == programs
        assert not (instance.run_dir / "revproxyd.pid").exists()
        assert instance.json("status", status=0)["revision"] == revision
        # What changed while it was away is applied at once.
        instance.write(http(lab, 3, settings=way))
        instance.start_daemon()
        assert targets(instance) == {backend(lab, 3)}


def test_started_with_broken_files_it_keeps_what_the_kernel_has(lab: Lab, instance: Instance) -> None:
    path = instance.write(http(lab, 1))
    instance.start_daemon()
    instance.stop_daemon()
    before = held(instance), attached(lab)
    path.write_text(http(lab, 2).replace("listen", "lisen"))
    with Requests(lab):
        instance.start_daemon(ready=False)
        wait_for(lambda: status(instance).sync is Sync.DEGRADED, "it has looked")
        error = status(instance).errors[0]
        assert (error.file, error.line, error.column) == (str(path), 4, 5)
        assert (held(instance), attached(lab)) == before
        instance.write(http(lab, 2))
        wait_for(lambda: targets(instance) == {backend(lab, 2)}, "mended")
        instance.wait_synced()
    # Nothing in the kernel, as after a boot, and not because somebody took it down: the last configuration that worked
    # serves.
    instance.ctl("down")
    assert instance.daemon is not None
    assert instance.daemon.wait(timeout_sec=20) == 0, "down ends the daemon"
    lab.assert_clean(instance.bpffs_dir)
    path.write_text("proxies: 1\n")
    (instance.state_dir / "control.json").unlink()
    instance.start_daemon(ready=False)
    wait_for(lambda: targets(instance) == {backend(lab, 2)}, "served")
    assert requests_of(lab) == "backend2"
    assert status(instance).sync is Sync.DEGRADED


def test_only_one_at_a_time_and_detached_on_exit_if_asked(lab: Lab, instance: Instance) -> None:
    instance.write(http(lab, 1))
    instance.start_daemon("--detach-on-exit")
    first = instance.daemon
    assert first is not None
    with Requests(lab):
        # The last two are meant for another instance, by a person who forgot that it has other pins as well.
        others = [
            lab.spawn(lab.proxy, PROGRAMS / words[0], *words[1:], env={**instance.env, "REVPROXY_RUN_DIR": str(place)})
            for place, *words in (
                (instance.run_dir, "revproxyd"),
                (instance.run_dir.with_name("other"), "revproxyd"),
                (instance.run_dir.with_name("third"), "revproxyctl", "down"),
            )
        ]
        for other in others:
            assert other.wait(timeout_sec=30) == 1
            assert re.search(rf"in use by process {first.pid}\b", other.output())
            assert "Traceback" not in other.output()
        assert status(instance).sync is Sync.SYNCED, "the first goes on"
    assert instance.stop_daemon() == 0
    lab.assert_clean(instance.bpffs_dir)


# -- signals and systemd --------------------------------------------------------------------------------------


@pytest.fixture
def notified(lab: Lab, instance: Instance) -> Iterator[Callable[[], list[str]]]:
    """A service manager's socket, named in the daemon's environment; gives the messages so far."""
    path = lab.directory / "notify"
    messages: list[str] = []
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(str(path))
        manager.setblocking(False)
        instance.env["NOTIFY_SOCKET"] = str(path)

        def received() -> list[str]:
            try:
                while True:
                    messages.append(manager.recv(4096).decode())
            except BlockingIOError:
                return messages

        yield received


def test_systemd_is_told_and_a_hangup_has_everything_looked_at(
    lab: Lab, instance: Instance, notified: Callable[[], list[str]]
) -> None:
    instance.write(http(lab, 1))
    instance.start_daemon("--resync", "3600", ready=False)
    wait_for(lambda: any("READY=1" in text for text in notified()), "ready", timeout_sec=60)
    assert targets(instance) == {backend(lab, 1)}, "ready means that the first reconcile has finished"
    assert instance.daemon is not None
    # A map entry that somebody deletes tells nobody; looks that are due after the start may still find it.
    before = held(instance)

    def stays_deleted() -> bool:
        delete_listeners(instance)
        assert held(instance) != before
        return bool(instance.json("diff")["changes"])

    wait_for(stays_deleted, "no more looks")
    notified().clear()
    instance.daemon.send(signal.SIGHUP)
    wait_for(lambda: any("READY=1" in text for text in notified()), "reloaded", timeout_sec=60)
    # A look for another reason may have come in between, and says its status.
    said = notified()
    (reloading,) = (number for number, text in enumerate(said) if "RELOADING=1" in text)
    assert any("READY=1" in text for text in said[reloading + 1 :])
    for name in (now := held(instance)).keys() - {"control", "revision"}:  # the switch, and that there was one
        assert now[name] == before[name], name
    assert requests_of(lab) == "backend1"
    assert instance.stop_daemon() == 0
    assert any("STOPPING=1" in text for text in notified())


def delete_listeners(instance: Instance) -> None:
    """As an attacker with bpftool would."""
    maps = Maps(instance.bpffs_dir)
    maps.open()
    keys, _ = maps["listener4"].items()
    assert len(keys)
    maps["listener4"].delete_many(keys)
    maps.close()


# -- drift ----------------------------------------------------------------------------------------------------

DRIFT = {
    "ingress filter": "tc filter del dev {} ingress",
    "egress filter": "tc filter del dev {} egress",
    "qdisc": "tc qdisc del dev {} clsact",
    "xdp": "ip link set dev {} xdpdrv off",
}


@pytest.fixture(scope="module")
def native() -> Iterator[Instance]:
    """A daemon that serves with native XDP."""
    with Lab(offload=False, xdp_peers=True) as lab, Instance(lab) as instance:
        instance.write(http(lab, 1, settings="{xdp_mode: native}"))
        instance.start_daemon()
        yield instance


@pytest.mark.parametrize("interface", ["eth0", "eth1"])
@pytest.mark.parametrize("drift", DRIFT)
def test_what_others_take_off_an_interface_is_put_back_at_once(native: Instance, drift: str, interface: str) -> None:
    lab, before, revision = native.lab, attached(native.lab), status(native).revision
    lab.proxy.run(*DRIFT[drift].format(interface).split())
    wait_for(lambda: attached(lab) == before, f"{drift} is back", timeout_sec=5)
    assert requests_of(lab) == "backend1"
    wait_for(lambda: status(native).sync is Sync.SYNCED, "nothing left to do")
    assert status(native).revision == revision, "a repair is no new configuration"


def test_a_sysctl_that_others_change_is_set_again(lab: Lab, instance: Instance) -> None:
    instance.write(http(lab, 1, settings="{fast_path: false}"))
    instance.start_daemon()
    wanted = lab.proxy.forwarding()
    lab.proxy.write_sysctls({"net/ipv4/conf/eth0/forwarding": "0"})
    wait_for(lambda: lab.proxy.forwarding() == wanted, "set again", timeout_sec=5)
    assert requests_of(lab) == "backend1"


# -- the host changes -----------------------------------------------------------------------------------------


def test_ways_to_a_target_are_followed_and_interfaces_waited_for() -> None:
    with Lab(offload=False, xdp_peers=True, separate=True) as lab, Instance(lab) as instance:
        one, two, _ = lab.backends
        instance.write(http(lab, 1, settings="{xdp_mode: native}").replace("[eth0]", "[eth0, later0]"))
        instance.start_daemon()
        assert {each.name: each.attached for each in status(instance).interfaces} == {
            "eth0": True,
            "eth1": True,
            "later0": False,
        }
        # The target gets another network card: an open connection goes on, to the new address.
        connection = http_connection(lab.client, (lab.proxy4, 80))
        connection.request("GET", "/before")
        connection.getresponse().read()
        before = generation(instance)
        one.namespace.ip("link set eth0 address 02:00:00:00:00:77")
        lab.proxy.ip(f"neigh replace {one.ip4} lladdr 02:00:00:00:00:77 dev eth1")
        wait_for(
            lambda: generation(instance) > before, "no connection uses the address that it remembers", timeout_sec=5
        )
        connection.request("GET", "/after")
        assert connection.getresponse().read().startswith(b"backend1")
        connection.close()
        # The target moves behind another interface.
        two.namespace.ip(f"address add {one.ip4}/32 dev eth0")
        servers = Path(netlab.__file__).with_name("servers.py")
        words = (sys.executable, servers, "--at", f"moved={one.ip4}", "--http", str(HTTP_PORT))
        lab.spawn(two.namespace, *words).wait_output("ready")
        assert attached(lab)["eth2"][0] is None
        lab.proxy.ip(f"route add {one.ip4}/32 dev eth2")
        wait_for(lambda: attached(lab)["eth2"][0], "the new way out is attached to")
        wait_for(lambda: requests_of(lab) == "moved", "packets take it")
        # An interface that comes is taken up, and one that goes is waited for again.
        lab.proxy.ip("link add later0 type veth peer name later1", "address add 10.90.50.1/24 dev later0")
        wait_for(lambda: "10.90.50.1:80/tcp" in status(instance).proxies[0].listen, "taken up")
        lab.proxy.ip("link delete later0")
        wait_for(lambda: "10.90.50.1:80/tcp" not in status(instance).proxies[0].listen, "given up")
        wait_for(lambda: status(instance).sync is Sync.SYNCED, "Synced")


def generation(instance: Instance) -> int:
    """The number that remembered ways out are compared with."""
    maps = Maps(instance.bpffs_dir)
    maps.open()
    _, control = maps["control"].items()
    maps.close()
    return int(control[0]["generation"])


# -- without a directory --------------------------------------------------------------------------------------


def test_on_the_command_line_alone(lab: Lab, instance: Instance) -> None:
    for words, missing in (
        (("-i", "eth0"), "-p"),
        (("-p", "80", "-t", "10.0.0.1"), "-i"),
        (("-t", "nobody"), "nobody"),
    ):
        result = lab.proxy.run(PROGRAMS / "revproxyd", *words, env=instance.env, check=False)
        assert result.returncode == 2
        assert missing in result.stderr
    targets_of = [word for number in (1, 2, 3) for word in ("-t", backend(lab, number))]
    instance.start_daemon("-i", "eth0", "-p", "80", *targets_of, "-v")
    with Requests(lab) as requests:
        wait_for(lambda: len(requests.answers) == 3, "all three answer")
    found = instance.json("status", status=0)
    assert len(found["proxies"]) == 1
    assert found["proxies"][0]["listen"] == [f"{lab.proxy4}:80/tcp"]
    assert all({"event", "level", "timestamp"} <= each.keys() for each in events(instance))
    assert list(instance.config_dir.iterdir()) == []


def test_a_socket_that_somebody_has_removed_is_made_again(lab: Lab, instance: Instance) -> None:
    instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}"))
    daemon = instance.start_daemon()
    socket = instance.run_dir / "revproxyd.sock"
    socket.unlink()
    wait_for(socket.exists, "the socket", timeout_sec=15)
    instance.ctl("status")
    assert "socket_made_again" in daemon.output()
