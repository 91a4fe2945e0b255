"""``revproxyctl doctor`` on a host that is fine, and on one that is not: what it tells to do mends it."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from netlab import HTTP_PORT, Lab
from reconciler.kernel import bpf
from tests.e2e.instance import Instance, web
from tests.e2e.test_coexistence import XDP_PASS, pinned


def troubles(instance: Instance) -> dict[tuple[str, str], dict[str, Any]]:
    """What is not fine, by check and subject."""
    found = instance.json("doctor")["findings"]
    return {(each["check"], each["subject"]): each for each in found if each["level"] != "ok"}


@pytest.mark.parametrize("daemon", [True, False], ids=["daemon", "direct"])
def test_a_host_that_is_fine(lab: Lab, instance: Instance, daemon: bool) -> None:
    instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}", f"[{lab.backends[0].ip6}]:{HTTP_PORT}"))
    if daemon:
        instance.start_daemon()
    assert troubles(instance) == {}
    found = instance.json("doctor", status=0)
    assert (found["fine"], found["errors"], found["warnings"]) == (True, 0, 0)
    said = instance.ctl("doctor", "-v")
    assert "helper bpf_fib_lookup in XDP: tried, works" in said
    assert ("revproxyd runs, process" in said) == daemon
    assert f"target.route: {lab.backends[0].ip4}: by eth1, on the link" in said


def test_what_it_says_mends_what_is_wrong(lab: Lab, instance: Instance) -> None:
    """Each trouble is made, found and mended by the very command that was told."""
    target = lab.backends[0].ip4
    instance.apply(web(f"{target}:{HTTP_PORT}"))
    lab.proxy.write_sysctls({"net/ipv4/conf/eth0/rp_filter": "1"})
    lab.proxy.ip("link set eth1 mtu 1400")
    with pinned(bpf.PROG_TYPE_XDP, XDP_PASS, "somebody") as (path, number):
        lab.proxy.run("ip", "link", "set", "dev", "eth0", "xdpdrv", "pinned", path)
        found = troubles(instance)
        assert set(found) == {
            ("host", ""),
            ("interface.rp_filter", "eth0"),
            ("interface.programs", "eth0"),
            ("target.mtu", str(target)),
        }
        assert str(number) in found["interface.programs", "eth0"]["message"]
        for key in (("interface.rp_filter", "eth0"), ("interface.programs", "eth0"), ("target.mtu", str(target))):
            lab.proxy.run(*shlex.split(found[key]["remedy"]))
    assert troubles(instance) == {}
    lab.proxy.write_sysctls({"net/ipv4/conf/eth0/forwarding": "0", "net/ipv4/conf/eth0/rp_filter": "0"})


def test_a_target_without_a_route_is_an_error(lab: Lab, instance: Instance) -> None:
    lab.proxy.ip("route add unreachable 198.51.100.0/24")
    instance.write(web(f"198.51.100.7:{HTTP_PORT}"))
    found = instance.json("doctor", status=1)
    (finding,) = (each for each in found["findings"] if each["level"] == "error")
    assert (finding["check"], finding["subject"]) == ("target.route", "198.51.100.7")
    lab.proxy.run(*shlex.split(finding["remedy"].replace("GATEWAY", str(lab.backends[0].ip4))))
    assert [each["level"] for each in instance.json("doctor")["findings"]].count("error") == 0
