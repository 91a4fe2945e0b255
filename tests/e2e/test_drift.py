"""What others change in the kernel: `diff` names the object it belongs to, the daemon puts it right, counts it and
tells of it; a repair is no new revision."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netlab import HTTP_PORT, TCP_PORT, UDP_PORT, Lab, wait_for
from netlab.clients import ask_udp, connect
from reconciler.kernel import layout
from reconciler.kernel.maps import Maps
from tests.e2e.instance import Instance
from tests.e2e.watching import Requests, attached, held

RESYNC_SEC = 2


def config(lab: Lab) -> str:
    """Native XDP; a group, a single target, a route, and a fullnat proxy."""
    one, two, three = (each.ip4 for each in lab.backends)
    return f"""\
apiVersion: revproxy/v1
settings: {{xdp_mode: native}}
proxies:
  - name: web
    listen: {{interfaces: [eth0], port: 80}}
    default_target: [{{ip: {one}, port: {HTTP_PORT}}}, {{ip: {two}, port: {HTTP_PORT}}}]
    source_routes: [{{source: 198.51.100.0/24, target: {{ip: {three}, port: {HTTP_PORT}}}}}]
  - name: dns
    listen: {{interfaces: [eth0], port: 53, protocol: udp}}
    mode: fullnat
    default_target: {{ip: {three}, port: {UDP_PORT}}}
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Instance]:
    """A daemon that compares everything every other second."""
    with Lab(offload=False, xdp_peers=True) as lab, Instance(lab) as instance:
        instance.write(config(lab))
        instance.start_daemon("--resync", str(RESYNC_SEC))
        yield instance


def serves(lab: Lab) -> None:
    """Both proxies answer."""
    assert Requests(lab).ask().startswith("backend")
    assert ask_udp(lab.client, (lab.proxy4, 53), b"?")


def told(instance: Instance) -> list[list[str]]:
    """The objects of each repair that the daemon has logged."""
    assert instance.daemon is not None
    lines = [json.loads(line) for line in instance.daemon.output().splitlines()]
    return [line["objects"] for line in lines if line["event"] == "drift_repaired"]


def on_maps(change: Callable[[Maps], None]) -> Callable[[Instance], None]:
    """As somebody with bpftool does."""

    def damage(instance: Instance) -> None:
        maps = Maps(instance.bpffs_dir)
        maps.open()
        try:
            change(maps)
        finally:
            maps.close()

    return damage


def delete_all(name: str) -> Callable[[Instance], None]:
    return on_maps(lambda maps: maps[name].delete_many(maps[name].items()[0]))


def edit(name: str, how: Callable[[Any], None]) -> Callable[[Instance], None]:
    """Change the values of a map; both slots, as somebody who knows nothing of them."""

    def change(maps: Maps) -> None:
        keys, values = maps[name].items()
        values = np.array(values)
        how(values)
        maps[name].put_many(keys, values)

    return on_maps(change)


def set_all(field: str, value: Any) -> Callable[[Any], None]:
    def change(values: Any) -> None:
        values["slot"][field] = value

    return change


def zero_used_targets(values: Any) -> None:
    values[1:] = np.zeros((), values.dtype)


def zero(values: Any) -> None:
    values[:] = np.zeros((), values.dtype)


def forget_before(values: Any) -> None:
    """What we set is what stood there, so that nothing would be put back."""
    values["before"] = values["after"]


def close_ports(values: Any) -> None:
    values[:] = 0


def other_idle(values: Any) -> None:
    values["slot"]["idle_sec"][1:3] = 7


MAPS: dict[str, tuple[Callable[[Instance], None], set[str]]] = {
    "listeners deleted": (delete_all("listener4"), {"proxy web", "proxy dns"}),
    "listeners to another proxy": (
        edit("listener4", lambda values: values["proxy"].__imul__(0)),
        {"proxy web", "proxy dns"},
    ),
    "routes deleted": (delete_all("route4"), {"route web/198.51.100.0/24"}),
    "settings changed": (edit("settings", set_all("unanswered_sec", 5)), {"setting unanswered_sec"}),
    "proxies changed": (edit("proxy", other_idle), {"proxy web", "proxy dns"}),
    "members of groups deleted": (delete_all("group_member"), {"target web/{one}", "target web/{two}"}),
    "targets zeroed": (
        edit("target", zero_used_targets),
        {"target web/{one}", "target web/{two}", "target dns/{udp}", "route web/198.51.100.0/24"},
    ),
    "names deleted": (delete_all("proxy_name"), {"proxy web", "proxy dns"}),
    "ports closed": (edit("port", close_ports), {"setting port/80", "setting port/53"}),
    "files deleted": (delete_all("blob"), {"setting files in force"}),
    "a bit of the files": (on_maps(lambda maps: change_a_bit(maps)), {"setting files in force"}),
    "one piece more of a file": (on_maps(lambda maps: add_a_piece(maps)), {"setting files in force"}),
    "revision zeroed": (edit("revision", zero), {"setting revision in force"}),
    "revision's number": (edit("revision", set_all("number", 77)), {"setting revision in force"}),
    "revision's manifest": (edit("revision", set_all("manifest", 7)), {"setting revision in force"}),
    "revision zeroed and files deleted": (
        lambda instance: (edit("revision", zero)(instance), delete_all("blob")(instance), None)[-1],
        {"setting revision in force", "setting files in force"},
    ),
    "devices deleted": (delete_all("device"), {"interface eth0", "interface eth1"}),
}


def change_a_bit(maps: Maps) -> None:
    """Of a file, not of the manifest that names it."""
    keys, values = maps["blob"].items()
    manifest = maps["revision"].items()[1]["slot"]["manifest"][0, 0]
    chosen = (keys["digest"] != manifest).any(axis=1)
    values["data"][chosen, 20] ^= 1
    maps["blob"].put_many(keys[chosen], values[chosen])


def add_a_piece(maps: Maps) -> None:
    keys, values = maps["blob"].items()
    keys["chunk"] += 1
    maps["blob"].put_many(keys, values)


def listen_for_nobody(maps: Maps) -> None:
    """An entry that belongs to no object: its proxy does not exist."""
    keys, values = maps["listener4"].items()
    keys["port_be"], values["proxy"] = 8888, 999
    maps["listener4"].put_many(keys[:1], values[:1])


def other_standby_slot(maps: Maps) -> None:
    """What no packet reads, and the next commit would put in force."""
    active = int(maps["control"].items()[1]["active"][0]) & 1
    keys, values = maps["settings"].items()
    values["slot"]["unanswered_sec"][0, 1 - active] += 5
    maps["settings"].put_many(keys, values)


@pytest.mark.parametrize(("name", "change"), [("listener4", listen_for_nobody), ("settings", other_standby_slot)])
def test_what_belongs_to_no_object_is_told_by_its_map(running: Instance, name: str, change: Any) -> None:
    before, repaired = held(running), len(told(running))
    on_maps(change)(running)
    wait_for(lambda: told(running)[repaired:] == [[f"setting map/{name}"]], "told", timeout_sec=RESYNC_SEC + 8)
    wait_for(lambda: held(running) == before, "put right")
    running.wait_synced()


@pytest.mark.parametrize("damage", MAPS)
def test_map_entries(running: Instance, damage: str) -> None:
    lab, (change, objects) = running.lab, MAPS[damage]
    one, two, three = (each.ip4 for each in lab.backends)
    places = {"one": f"{one}:{HTTP_PORT}", "two": f"{two}:{HTTP_PORT}", "udp": f"{three}:{UDP_PORT}"}
    named = {each.format(**places) for each in objects}
    repairs(running, change, named)


def sizes(instance: Instance) -> dict[str, int]:
    """How many entries each map has, but for what connections may keep for a while where numbers were lost.

    And but for the control map: it is all zeros, and so not dumped, whenever the first slot is in force.
    """
    passing = ("target", "proxy_name", "control")
    return {name: len(entries) for name, entries in held(instance).items() if name not in passing}


def repairs(running: Instance, change: Callable[[Instance], None], named: set[str]) -> None:
    """Suspended, it is named; resumed, it is put right, counted and told."""
    lab = running.lab
    status, before, repaired = running.json("status", status=0), sizes(running), len(told(running))
    running.ctl("suspend")
    try:
        change(running)
        found = running.json("diff", status=1)["changes"]
        assert {f"{each['object']} {each['name']}" for each in found} >= named
        assert running.json("status", status=1)["sync"] == "OutOfSync"
    finally:
        running.ctl("resume")
    running.wait_synced(timeout_sec=20)
    serves(lab)
    after = running.json("status", status=0)
    assert after["revision"] == status["revision"], "a repair is no new revision"
    assert after["drift_repaired"] > status["drift_repaired"]
    assert {text for objects in told(running)[repaired:] for text in objects} >= named
    assert sizes(running) == before


def test_without_a_word_it_is_found_at_resync(running: Instance) -> None:
    repaired = len(told(running))
    delete_all("listener4")(running)
    wait_for(lambda: len(told(running)) > repaired, "found", timeout_sec=RESYNC_SEC + 8)
    running.wait_synced()
    serves(running.lab)


LINKS = {
    "XDP taken off": ("ip link set dev eth0 xdpdrv off", {"interface eth0"}),
    "filters deleted": ("tc filter del dev eth1 ingress", {"interface eth1"}),
    "qdisc deleted": ("tc qdisc del dev eth0 clsact", {"interface eth0"}),
}


@pytest.mark.parametrize("damage", LINKS)
def test_links(running: Instance, damage: str) -> None:
    words, named = LINKS[damage]
    before = attached(running.lab)
    repairs(running, lambda instance: instance.lab.proxy.run(*words.split()), named)
    assert attached(running.lab) == before
    # And at once, without being asked.
    repaired = len(told(running))
    running.lab.proxy.run(*words.split())
    wait_for(lambda: attached(running.lab) == before, "at once", timeout_sec=2)
    wait_for(lambda: len(told(running)) == repaired + 1, "told", timeout_sec=5)
    assert {text for objects in told(running)[repaired:] for text in objects} >= named


def test_sysctls(running: Instance) -> None:
    name = "net/ipv4/conf/lo/forwarding"
    repairs(running, lambda instance: instance.lab.proxy.write_sysctls({name: "0"}), {f"setting {name}"})


def test_what_stood_in_sysctls_before_us(running: Instance) -> None:
    """The map that remembers it has a second copy, in the state directory: `down` is not the first to need it."""
    names = {f"setting net/ipv4/conf/lo/{each}" for each in ("forwarding", "accept_local")}
    remembered = []
    look = on_maps(lambda maps: remembered.append(sorted(value.tobytes() for value in maps["sysctl"].items()[1])))
    look(running)
    for damage in (delete_all("sysctl"), edit("sysctl", forget_before), edit("sysctl", zero)):
        repairs(running, damage, names)
        look(running)
        assert remembered[0] == remembered.pop()
    # One that is not asked for any more goes back, although the map had forgotten what stood there.
    running.ctl("suspend")
    edit("sysctl", forget_before)(running)
    running.write(config(running.lab).replace("mode: fullnat", "mode: dnat"))
    running.ctl("resume")
    running.wait_synced(timeout_sec=20)
    running.ctl("connections", "flush", "--all")
    read = running.lab.proxy.leniency
    wait_for(lambda: read()["net/ipv4/conf/lo/accept_local"] == "0", "given back", timeout_sec=RESYNC_SEC + 8)
    running.write(config(running.lab))
    running.wait_synced()


def test_pins(running: Instance) -> None:
    """The maps are found by the programs that use them, and pinned again: connections go on. (That of `listener4` is
    gone first, then all.)"""
    lab = running.lab
    before = running.json("status", status=0)
    two = lab.backends[1].ip4
    for number, pins in enumerate((["listener4"], None)):
        # Open, and with a target that its packets would not be given to by now.
        running.write(config(lab).replace("mode: fullnat", "mode: fullnat\n    balance: random"))
        running.wait_synced()
        held = connect(lab.client, (lab.proxy4, 53), kind=socket.SOCK_DGRAM)
        held.send(b"?")
        assert held.recv(200).split()[0] == b"backend3"
        running.write(
            config(lab).replace(f"ip: {lab.backends[2].ip4}, port: {UDP_PORT}", f"ip: {two}, port: {UDP_PORT}")
        )
        running.wait_synced()
        running.ctl("suspend")
        for path in sorted(running.bpffs_dir.rglob("*"), reverse=True):
            if path.is_file() and (pins is None or path.name in pins):
                path.unlink()
        found = running.json("diff")["changes"]
        assert ("program", "revproxy") in {(each["object"], each["name"]) for each in found}, number
        repaired = len(told(running))
        running.ctl("resume")
        running.wait_synced(timeout_sec=60)
        wait_for(lambda n=repaired: ["program revproxy"] in told(running)[n:], "told")  # type: ignore[misc]
        held.send(b"?")
        assert held.recv(200).split()[0] == b"backend3", number
        held.close()
        serves(lab)
    running.write(config(lab))
    running.wait_synced()
    after = running.json("status", status=0)
    assert after["interfaces"] == before["interfaces"]
    # That `down` puts sysctls back all the same is looked at when the instance goes.


def test_the_pin_that_tells_other_versions_of_the_layout(running: Instance) -> None:
    """Without it the next version could not read the maps: it would refuse them, or lose connections."""
    (path,) = running.bpffs_dir.glob("*/layout")
    repaired = len(told(running))
    path.unlink()
    wait_for(lambda: told(running)[repaired:] == [["program revproxy"]], "told", timeout_sec=RESYNC_SEC + 8)
    assert path.exists()
    running.wait_synced()


def test_what_is_applied_is_kept_in_force_while_the_files_are_broken(running: Instance) -> None:
    lab, before = running.lab, attached(running.lab)
    broken = running.write("nonsense: [", "broken.yaml")
    try:
        wait_for(lambda: running.json("status")["sync"] == "Degraded", "refused")
        delete_all("listener4")(running)
        lab.proxy.run("tc", "qdisc", "del", "dev", "eth1", "clsact")
        wait_for(lambda: attached(lab) == before, "put right", timeout_sec=RESYNC_SEC + 8)

        def answered() -> bool:
            serves(lab)
            return True

        wait_for(answered, "served", timeout_sec=RESYNC_SEC + 8)
        assert running.json("status", status=1)["sync"] == "Degraded"
    finally:
        Path(broken).unlink()
    running.wait_synced()


def test_found_at_start_it_is_put_right(running: Instance) -> None:
    running.stop_daemon(signal.SIGTERM)
    before = running.json("status")
    delete_all("listener4")(running)
    edit("revision", zero)(running)
    running.start_daemon("--resync", str(RESYNC_SEC))
    assert {"proxy web", "proxy dns"} <= {text for objects in told(running) for text in objects}
    after = running.json("status", status=0)
    assert (after["revision"], after["commit"]) == (before["revision"], before["commit"])
    serves(running.lab)


def test_connections_outlive_the_programs_of_tc() -> None:
    """XDP leaves them a packet of each way now and then, so that the kernel sees it. Without them the stack gets it,
    which knows no such connection: it must not answer with RST."""
    with Lab(offload=False, xdp_peers=True) as lab, Instance(lab) as instance:
        target = f"{{ip: {lab.backends[0].ip4}, port: {TCP_PORT}}}"
        listen = "{interfaces: [eth0], port: 7}"
        proxies = f"[{{name: echo, listen: {listen}, default_target: {target}}}]"
        instance.apply(f"apiVersion: revproxy/v1\nsettings: {{xdp_mode: native}}\nproxies: {proxies}\n")
        with connect(lab.client, (lab.proxy4, 7)) as kept:
            kept.sendall(b"before")
            assert kept.recv(100) == b"before"
            show_each_way_after(8)(instance)
            for interface in ("eth0", "eth1"):
                lab.proxy.run("tc", "qdisc", "del", "dev", interface, "clsact")
            for number in range(10):
                kept.sendall(b"after")
                assert kept.recv(100) == b"after", number
                time.sleep(0.3)  # a packet that comes alone, and not by the way that its connection remembers
            time.sleep(1)
            kept.sendall(b"at last")
            assert kept.recv(100) == b"at last"
        assert int(lab.proxy.run("nstat", "-asz", "TcpOutRsts").stdout.split()[-2]) == 0


def show_each_way_after(units: int) -> Callable[[Instance], None]:
    """Of 67 ms."""

    def change(maps: Maps) -> None:
        head = maps["way"].get(0)
        assert head is not None
        head.view(layout.way_head)["show_after"][0] = units
        maps["way"].put(0, head)

    return on_maps(change)
