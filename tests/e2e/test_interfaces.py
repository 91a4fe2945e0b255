"""``revproxyctl interfaces``: what runs, what was asked for, and who else is there."""

from __future__ import annotations

import pytest

from netlab import HTTP_PORT, Lab
from reconciler.kernel import bpf
from tests.e2e.instance import Instance, web
from tests.e2e.test_coexistence import TC_UNSPEC, XDP_PASS, pinned


@pytest.mark.parametrize("daemon", [True, False], ids=["daemon", "direct"])
def test_what_runs_and_what_was_asked_for(lab: Lab, instance: Instance, daemon: bool) -> None:
    instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}").replace("[eth0]", "[eth0, later0]"))
    if daemon:
        instance.start_daemon()
    else:
        instance.apply()
    found = {each["name"]: each for each in instance.json("interfaces", status=0)}
    assert set(found) == {"eth0", "eth1", "later0"}
    eth0 = found["eth0"]
    assert (eth0["driver"], eth0["kind"], eth0["mtu"], eth0["up"]) == ("veth", "veth", 1500, True)
    assert (eth0["asked"], eth0["wanted"], eth0["mode"], eth0["attached"]) == ("auto", "off", "off", True)
    assert (eth0["listens"], eth0["conflicts"]) == (["web"], [])
    assert "segmentation offload" in eth0["note"]
    assert found["eth1"]["listens"] == []
    assert (found["later0"]["ifindex"], found["later0"]["note"]) == (0, "waiting for it to appear")
    assert {"lo", *found} == {each["name"] for each in instance.json("interfaces", "--all")}

    instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}", settings="{xdp_mode: native}"))
    instance.ctl("apply", "--yes")
    (eth0,) = (each for each in instance.json("interfaces") if each["name"] == "eth0")
    assert (eth0["asked"], eth0["wanted"], eth0["mode"], eth0["note"]) == ("native", "native", "native", "")
    assert "native" in instance.ctl("interfaces")


def hiding(instance: Instance) -> list[str]:
    """What `status` warns of: programs of others that keep packets from ours."""
    warnings = (each["message"] for each in instance.json("status")["warnings"])
    return [each for each in warnings if each.endswith("runs before ours and hides from it what it does not pass on")]


def test_programs_of_others_are_named_with_what_removes_them(lab: Lab, instance: Instance) -> None:
    with (
        pinned(bpf.PROG_TYPE_XDP, XDP_PASS, "somebody") as (xdp, number),
        pinned(bpf.PROG_TYPE_SCHED_CLS, TC_UNSPEC, "watcher") as (tc, filter_number),
    ):
        lab.proxy.run("ip", "link", "set", "dev", "eth0", "xdpdrv", "pinned", xdp)
        lab.proxy.run("tc", "qdisc", "add", "dev", "eth1", "clsact")
        lab.proxy.run(*f"tc filter add dev eth1 ingress prio 1 bpf da pinned {tc}".split())
        lab.proxy.run(*f"tc filter add dev eth1 ingress prio 40000 bpf da pinned {tc}".split())
        instance.apply(web(f"{lab.backends[0].ip4}:{HTTP_PORT}"))
        found = {each["name"]: each["conflicts"] for each in instance.json("interfaces")}
        (on_xdp,) = found["eth0"]
        assert (on_xdp["where"], on_xdp["program"]["id"], on_xdp["program"]["name"]) == (
            "xdp native",
            number,
            "somebody",
        )
        assert len(on_xdp["program"]["tag"]) == 16
        (on_tc,) = found["eth1"]  # the one behind ours is in nobody's way
        assert (on_tc["where"], on_tc["program"]["id"]) == ("tc ingress", filter_number)
        hidden = hiding(instance)
        assert len(hidden) == 1
        assert hidden[0].startswith(f"eth1: ingress bpf filter, preference 1, program {filter_number} (watcher, tag ")
        instance.write("nonsense", "broken.yaml")
        assert hiding(instance) == hidden
        (instance.config_dir / "broken.yaml").unlink()
        text = instance.ctl("interfaces")
        for conflict in (on_xdp, on_tc):
            assert conflict["remedy"] in text
            lab.proxy.run(*conflict["remedy"].split())
        assert [each["conflicts"] for each in instance.json("interfaces")] == [[], []]
        assert hiding(instance) == []
        instance.ctl("down")
        lab.proxy.run("tc", "qdisc", "del", "dev", "eth1", "clsact")


def test_wrong_files_hide_nothing(lab: Lab, instance: Instance) -> None:
    instance.apply(web(f"{lab.backends[0].ip4}:{HTTP_PORT}"))
    instance.write("nonsense")
    (eth0,) = (each for each in instance.json("interfaces", status=0) if each["name"] == "eth0")
    assert (eth0["attached"], eth0["asked"], eth0["wanted"]) == (True, "", None)


def test_another_instance_on_the_interface_is_an_error_and_not_to_be_removed(lab: Lab, instance: Instance) -> None:
    """Ours could not be attached; and the other one's filters must not be deleted behind its back."""
    instance.apply(web(f"{lab.backends[0].ip4}:{HTTP_PORT}"))
    other = Instance(lab, "other")  # puts nothing into the kernel
    other.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}", port=81, name="b"))
    (ingress, egress) = next(each["conflicts"] for each in other.json("interfaces") if each["name"] == "eth0")
    for conflict in (ingress, egress):
        assert conflict["blocks"]
        assert conflict["remedy"] == ""
        assert instance.bpffs_dir.name in conflict["effect"]
    assert "error    interface.programs: eth0: tc ingress" in other.ctl("doctor", status=1)
    assert "of another revproxy" in other.run("apply", "--yes").stderr
    instance.ctl("diff")
    other.ctl("down")
    assert not other.bpffs_dir.exists()
