"""What is not ours stays: another instance beside ours, other people's XDP programs, TC filters and qdiscs."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from netlab import HTTP_PORT, Lab, wait_for
from reconciler.kernel import bpf, tc
from tests.e2e.instance import Instance, web
from tests.e2e.watching import Requests, attached, held

XDP_PASS, TC_UNSPEC = 2, -1
LO_FORWARDING = "net/ipv4/conf/lo/forwarding"


@contextmanager
def pinned(kind: int, result: int, name: str) -> Iterator[tuple[Path, int]]:
    """Somebody else's program, which only returns ``result``: its pin and its id."""
    code = struct.pack("=BBhi", 0xB7, 0, 0, result) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    path = Path(f"/sys/fs/bpf/foreign-{os.getpid()}-{name}")
    program = bpf.prog_load(kind, name, "GPL", code)
    try:
        bpf.obj_pin(program, str(path))
        yield path, bpf.prog_info(program).id
    finally:
        os.close(program)
        path.unlink(missing_ok=True)


@pytest.fixture
def foreign_xdp(lab: Lab) -> Iterator[int]:
    """The id of a program of somebody else's on eth0; it is still there at the end."""
    with pinned(bpf.PROG_TYPE_XDP, XDP_PASS, "somebody") as (path, number):
        lab.proxy.run("ip", "link", "set", "dev", "eth0", "xdpdrv", "pinned", path)
        yield number
        assert xdp_id(lab, "eth0") == number
        lab.proxy.run("ip", "link", "set", "dev", "eth0", "xdpdrv", "off")


def xdp_id(lab: Lab, interface: str) -> int | None:
    """The id of the XDP program there."""
    (link,) = lab.proxy.ip_json("-details", "link", "show", "dev", interface)
    found = link.get("xdp", {}).get("prog", {}).get("id")
    return int(found) if found is not None else None


def interface(instance: Instance, name: str) -> dict[str, Any]:
    """What ``status`` says about an interface."""
    (found,) = (each for each in instance.json("status")["interfaces"] if each["name"] == name)
    return dict(found)


def test_a_second_instance_beside_the_first() -> None:
    with Lab(offload=False, xdp_peers=True, separate=True) as lab:  # noqa: SIM117  # the lab stands until both are gone
        # Taken down in the test: each, at its end, expects that nothing at all is left in the lab.
        with Instance(lab, "second") as second, Instance(lab) as first:
            one, two, three = lab.backends
            first.apply(web(f"{one.ip4}:{HTTP_PORT}", settings="{xdp_mode: native}"))
            second.write(web(f"{three.ip4}:{HTTP_PORT}", settings="{xdp_mode: native}").replace("eth0", "eth2"))
            before = held(first), {name: attached(lab)[name] for name in ("eth0", "eth1")}
            with Requests(lab) as requests:
                second.ctl("apply", "--yes")
                gateway = str(two.ip4).rpartition(".")[0] + ".1"  # eth2's own address
                answer = two.namespace.run("curl", "-sf", "--max-time", "5", f"http://{gateway}/").stdout
                assert answer.split()[0] == three.name
                assert {each["name"] for each in first.json("status")["interfaces"]} == {"eth0", "eth1"}
                assert {each["name"] for each in second.json("status")["interfaces"]} == {"eth2", "eth3"}
                second.ctl("down")
                assert (held(first), {name: attached(lab)[name] for name in ("eth0", "eth1")}) == before
                # The one that came first goes: what it has set of lo is the other one's to put back.
                before_second = lab.proxy.read_sysctl(LO_FORWARDING)
                second.ctl("apply", "--yes")
            first.ctl("status")
            first.ctl("down")
            assert lab.proxy.read_sysctl(LO_FORWARDING) == before_second == "1"
            assert second.json("diff", status=0)["changes"] == []
            answer = two.namespace.run("curl", "-sf", "--max-time", "5", f"http://{gateway}/").stdout
            assert answer.split()[0] == three.name
            second.ctl("down")
            assert lab.proxy.read_sysctl(LO_FORWARDING) == "0"
            assert set(requests.answers) == {one.name}
            assert [xdp_id(lab, name) for name in ("eth2", "eth3")] == [None, None]


def test_native_refuses_where_a_foreign_xdp_program_is(lab: Lab, instance: Instance, foreign_xdp: int) -> None:
    instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}", settings="{xdp_mode: native}"))
    for words, status in {("apply", "--yes"): 1, ("plan",): 2}.items():
        refused = instance.run(*words)
        assert refused.returncode == status
        assert f"eth0 carries native program {foreign_xdp} (somebody, tag " in refused.stderr
    found = instance.json("status", status=1)
    assert found["sync"] == "Degraded"
    assert str(foreign_xdp) in found["errors"][0]["message"]
    (left,) = lab.residue(instance.bpffs_dir)
    assert left.startswith("eth0: XDP program")


def test_auto_serves_through_tc_beside_a_foreign_xdp_program(lab: Lab, instance: Instance, foreign_xdp: int) -> None:
    instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}"))
    instance.start_daemon()
    assert Requests(lab).ask() == "backend1"
    found = interface(instance, "eth0")
    assert (found["attached"], found["mode"]) == (True, "off")
    text = instance.ctl("status")
    assert str(foreign_xdp) in text
    assert "served through TC" in text


def test_a_foreign_program_that_takes_our_place_keeps_it(lab: Lab, instance: Instance) -> None:
    instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}", settings="{xdp_mode: native}"))
    instance.start_daemon()
    with pinned(bpf.PROG_TYPE_XDP, XDP_PASS, "somebody") as (path, number), Requests(lab):
        lab.proxy.run("ip", "-force", "link", "set", "dev", "eth0", "xdpdrv", "pinned", path)
        wait_for(lambda: instance.json("status", status=1)["sync"] == "Degraded", "noticed")
        assert str(number) in instance.json("status")["errors"][0]["message"]
        assert xdp_id(lab, "eth0") == number
        lab.proxy.run("ip", "link", "set", "dev", "eth0", "xdpdrv", "off")
        instance.wait_synced()
        assert xdp_id(lab, "eth0") not in (None, number), "ours is back"


def test_foreign_filters_and_their_qdisc_stay(lab: Lab) -> None:
    with Instance(lab) as instance, pinned(bpf.PROG_TYPE_SCHED_CLS, TC_UNSPEC, "watcher") as (path, number):

        def add_filter(interface: str, way: str, priority: int) -> None:
            words = f"tc filter add dev {interface} {way} prio {priority} bpf da pinned {path}"
            lab.proxy.run(*words.split())

        lab.proxy.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
        add_filter("eth0", "ingress", 1)
        add_filter("eth0", "ingress", 40000)
        before = attached(lab)["eth0"]
        instance.apply(web(f"{lab.backends[0].ip4}:{HTTP_PORT}"))
        assert Requests(lab).ask() == "backend1"
        assert attached(lab)["eth0"] != before
        add_filter("eth1", "egress", 7)  # below the qdisc that we have made
        instance.apply(web(f"{lab.backends[1].ip4}:{HTTP_PORT}", settings="{xdp_mode: generic}"))
        assert attached(lab)["eth0"][1].count(f"id {number} ") == 2
        instance.ctl("down")
        after = attached(lab)
        assert after["eth0"] == before
        assert after["eth1"][1] == ""
        assert after["eth1"][2].count("direct-action") == after["eth1"][2].count(f"id {number} ") == 1
        for interface in ("eth0", "eth1"):
            assert "clsact" in lab.proxy.run("tc", "qdisc", "show", "dev", interface).stdout
            lab.proxy.run("tc", "qdisc", "del", "dev", interface, "clsact")


@pytest.mark.parametrize(
    ("there", "gone"),
    [
        (
            "tc filter replace dev eth0 ingress protocol all pref {preference} handle {handle} bpf da pinned {path}",
            "tc filter del dev eth0 ingress pref {preference}",
        ),
        ("tc qdisc del dev eth0 clsact && tc qdisc add dev eth0 ingress", "tc qdisc del dev eth0 ingress"),
    ],
    ids=["filter", "qdisc"],
)
def test_what_has_the_place_of_our_filters_is_told_and_its_going_noticed(
    lab: Lab, instance: Instance, there: str, gone: str
) -> None:
    instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}"))
    instance.start_daemon()
    with pinned(bpf.PROG_TYPE_SCHED_CLS, TC_UNSPEC, "watcher") as (path, _):
        places = {"preference": tc.PRIORITY, "handle": tc.HANDLE, "path": path}
        lab.proxy.run("sh", "-c", there.format(**places))
        wait_for(lambda: instance.json("status")["sync"] == "Degraded", "noticed")
        assert "attach tc eth0: " in instance.json("status", status=1)["errors"][0]["message"]
        lab.proxy.run("sh", "-c", gone.format(**places))
        wait_for(lambda: instance.json("status")["sync"] == "Synced", "noticed that it is gone", timeout_sec=10)
    assert Requests(lab).ask() == "backend1"
    # By then the qdisc is nobody's: that of the filter was there when ours came back.
    instance.stop_daemon()
    instance.ctl("down")
    lab.proxy.run("tc", "qdisc", "del", "dev", "eth0", "clsact", check=False)
