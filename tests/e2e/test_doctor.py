"""``revproxyctl doctor`` on a host that is fine, and on one that is not: what it tells to do mends it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from netlab import HTTP_PORT, Lab
from reconciler.kernel import bpf
from tests.e2e.instance import PROGRAMS, Instance, web
from tests.e2e.test_coexistence import XDP_PASS, pinned


def troubles(instance: Instance) -> dict[tuple[str, str], dict[str, Any]]:
    """What is not fine, by check and subject."""
    found = instance.json("doctor")["findings"]
    return {(each["check"], each["subject"]): each for each in found if each["level"] != "ok"}


def of_the_kernel() -> set[tuple[str, str]]:
    """What it warns of on this kernel whatever the host is like."""
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    return {("kernel.features", "what drivers can do with XDP (netlink family netdev)")} if release < (6, 3) else set()


@pytest.mark.parametrize("daemon", [True, False], ids=["daemon", "direct"])
def test_a_host_that_is_fine(lab: Lab, instance: Instance, daemon: bool) -> None:
    instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}", f"[{lab.backends[0].ip6}]:{HTTP_PORT}"))
    if daemon:
        instance.start_daemon()
    left = of_the_kernel()
    found = troubles(instance)
    assert set(found) == left, found
    assert all(each["remedy"] == "boot Linux 6.3 or later" for each in found.values())
    found = instance.json("doctor", status=0)
    assert (found["fine"], found["errors"], found["warnings"]) == (True, 0, len(left))
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


MANY_TROUBLES = """\
apiVersion: revproxy/v1
settings: {xdp_mode: native}
proxies:
  - name: web
    listen: {interfaces: [eth0, rpifb, rpdown, rpcable, rpnone], port: 80}
    default_target:
      - {ip: 10.90.2.99}      # nobody has this address
      - {ip: 10.90.1.2}       # where the clients are
      - {ip: 198.51.100.7}    # behind a router
"""


def test_every_trouble_of_interfaces_targets_and_git(lab: Lab, instance: Instance) -> None:
    """All made at once; what can be mended by a command is, by the one that was told."""
    lab.proxy.ip(
        *(f"link add {name} type ifb" for name in ("rpifb", "rpdown")),
        "link add rpcable type veth peer name rppeer",
        "link set rpifb up",
        "link set rpcable up",
        "link set eth0 mtu 9000",
        f"route add 198.51.100.0/24 via {lab.backends[0].ip4}",
        "neigh replace 10.90.2.99 dev eth1 nud failed",
    )
    lab.proxy.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
    with pinned(bpf.PROG_TYPE_SCHED_CLS, 0, "filter") as (path, _):
        lab.proxy.run("tc", "filter", "add", "dev", "eth0", "ingress", "pref", "1", "bpf", "da", "pinned", path)
    instance.write(MANY_TROUBLES)
    git = ["git", "-C", str(instance.config_dir), "-c", "user.name=x", "-c", "user.email=x@example.net"]
    later = {"GIT_AUTHOR_DATE": "@2999999999 +0000", "GIT_COMMITTER_DATE": "@2999999999 +0000"}
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True, env={**os.environ, **later})
    lock = instance.config_dir / ".git" / "index.lock"
    lock.touch()
    os.utime(lock, (0, 0))
    try:
        found = troubles(instance)
        for check, subject, level, word in (
            ("interface.driver", "rpifb", "error", "no native XDP"),
            ("interface.up", "rpdown", "error", "is down"),
            ("interface.up", "rpcable", "warning", "no carrier"),
            ("interface.exists", "rpnone", "warning", "waited for"),
            ("interface.programs", "eth0", "warning", "ingress"),
            ("target.neighbour", "10.90.2.99", "warning", "does not answer ARP"),
            ("target.return", "10.90.1.2", "warning", "directly"),
            ("target.return", "198.51.100.7", "warning", "have to come back"),
            ("git.clock", "", "warning", "in the future"),
            ("git.lock", "", "warning", "left by a git that was killed"),
        ):
            assert (check, subject) in found, (check, subject, sorted(found))
            finding = found[check, subject]
            assert finding["level"] == level, finding
            assert word in finding["message"], finding
            assert finding["remedy"], finding
        for key in (("interface.up", "rpdown"), ("interface.programs", "eth0"), ("git.lock", "")):
            lab.proxy.run(*shlex.split(found[key]["remedy"]))
        again = troubles(instance)
        assert set(found) - set(again) >= {("interface.up", "rpdown"), ("interface.programs", "eth0"), ("git.lock", "")}

        instance.write(MANY_TROUBLES.replace("rpifb, rpdown, ", ""))  # only what can run native XDP, and a veth's price
        native = troubles(instance)["interface.checksums", "eth0"]
        assert "native XDP on a veth" in native["message"]
        assert native["remedy"] == "set settings.xdp_mode to auto"
        instance.write("apiVersion: revproxy/v1\nproxies: [{name: web}]\n")
        wrong = instance.json("doctor", status=1)["findings"]
        assert [each["level"] for each in wrong if each["check"] == "files"] == ["error"] * 2
    finally:
        lab.proxy.ip("link set eth0 mtu 1500")
        lab.proxy.run("tc", "qdisc", "del", "dev", "eth0", "clsact", check=False)
        (instance.config_dir / "web.yaml").unlink()


def test_every_trouble_of_the_system(lab: Lab, instance: Instance) -> None:
    """As far as a process can be made to see another system than there is."""
    instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}"))
    found_bcc = importlib.util.find_spec("bcc")
    assert found_bcc
    bcc = Path(found_bcc.origin or "").parent
    doctor = f'exec "$@" {PROGRAMS}/revproxyctl doctor --output json'
    for script, under, expected in (
        (
            "mount -t tmpfs none /usr/include/linux",
            ["setarch", "--uname-2.6", "prlimit", "--memlock=65536:65536"],
            {
                "kernel.version": "apt install linux-image",
                "memlock": "ulimit -l unlimited",
                "headers": "apt install linux-libc-dev",
            },
        ),
        (f"mount -t tmpfs none {bcc}", [], {"bcc": "apt install python3-bpfcc", "network": "apt install"}),
        (
            "true",
            ["setpriv", "--bounding-set=-net_admin,-bpf,-sys_admin", "--inh-caps=-all", "--"],
            {"capabilities": "sudo", "kernel.features": "sudo", "interface.programs": "sudo"},
        ),
    ):
        command = lab.proxy.command("unshare", "--mount", "bash", "-ec", f"{script}; {doctor}", "bash", *under)
        done = subprocess.run(command, env=instance.env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1, done.stdout + done.stderr
        found = {each["check"]: each for each in json.loads(done.stdout)["findings"] if each["level"] != "ok"}
        for check, remedy in expected.items():
            assert remedy in found[check]["remedy"], (check, found)
