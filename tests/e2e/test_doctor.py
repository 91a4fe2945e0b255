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

CAP_SYS_RESOURCE = 24


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
      - {ip: 10.90.2.11}      # answers, but was not heard lately
      - {ip: 10.90.1.2}       # where the clients are
      - {ip: 198.51.100.7}    # behind a router
"""


def test_every_trouble_of_interfaces_targets_and_git(lab: Lab, instance: Instance) -> None:
    """All made at once, and mended by the very commands that were told; by hand what takes a cable, or a clock."""
    lab.proxy.ip(
        *(f"link add {name} type ifb" for name in ("rpifb", "rpdown")),
        "link add rpcable type veth peer name rppeer",
        "link set rpifb up",
        "link set rpcable up",
        f"route add 198.51.100.0/24 via {lab.backends[0].ip4}",
        "neigh replace 10.90.2.11 dev eth1 nud failed",
    )
    lab.proxy.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
    with pinned(bpf.PROG_TYPE_SCHED_CLS, 0, "filter") as (path, _):
        lab.proxy.run("tc", "filter", "add", "dev", "eth0", "ingress", "pref", "1", "bpf", "da", "pinned", path)
    file = instance.write(MANY_TROUBLES)
    git = ["git", "-C", str(instance.config_dir), "-c", "user.name=x", "-c", "user.email=x@example.net"]
    later = {"GIT_AUTHOR_DATE": "@2999999999 +0000", "GIT_COMMITTER_DATE": "@2999999999 +0000"}
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True, env={**os.environ, **later})
    lock = instance.config_dir / ".git" / "index.lock"
    lock.touch()
    os.utime(lock, (0, 0))
    try:
        found = troubles(instance)
        by_hand = {("interface.up", "rpcable"), ("interface.exists", "rpnone"), ("git.clock", "")}
        for check, subject, level, word in (
            ("interface.driver", "rpifb", "error", "no native XDP"),
            ("interface.up", "rpdown", "error", "is down"),
            ("interface.up", "rpcable", "warning", "no carrier"),
            ("interface.exists", "rpnone", "warning", "waited for"),
            ("interface.programs", "eth0", "warning", "ingress"),
            ("target.neighbour", "10.90.2.11", "warning", "does not answer ARP"),
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
            if (check, subject) not in by_hand and "traceroute" not in finding["remedy"]:
                lab.proxy.run("bash", "-ec", finding["remedy"])
        lab.proxy.ip("link set rppeer up", "tuntap add rpnone mode tap", "link set rpnone mtu 9000 up")
        subprocess.run([*git, "commit", "-qam", "now"], check=True)
        assert "    mode: fullnat\n" in file.read_text()
        again = troubles(instance)
        # auto runs native XDP on the last one. Nobody is connected to it, and `up` is what can be done here.
        assert set(again) == {("interface.mtu", "rpnone"), ("interface.up", "rpnone")}

        # A range of ports that reaches into ours, native XDP on a veth, and files that are wrong.
        lab.proxy.run("bash", "-ec", again["interface.mtu", "rpnone"]["remedy"])
        lab.proxy.write_sysctls({"net/ipv4/ip_local_port_range": "32000 60999"})
        file.write_text(file.read_text().replace("auto", "native").replace("rpifb, rpdown, ", ""))
        native = troubles(instance)
        veths = {("interface.checksums", name) for name in ("eth0", "eth1", "rpcable")}
        assert set(native) == veths | {("host", ""), ("interface.up", "rpnone"), ("interface.driver", "rpcable")}
        assert "takes no frames redirected" in native["interface.driver", "rpcable"]["message"]
        assert "native XDP on a veth" in native["interface.checksums", "eth0"]["message"]
        for key in (("host", ""), ("interface.checksums", "eth0")):
            lab.proxy.run("bash", "-ec", native[key]["remedy"])
        assert set(troubles(instance)) == {("interface.up", "rpnone")}
        instance.write("apiVersion: revproxy/v1\nproxies: [{name: web}]\n")
        wrong = instance.json("doctor", status=1)["findings"]
        assert [each["level"] for each in wrong if each["check"] == "files"] == ["error"] * 2
    finally:
        lab.proxy.run("tc", "qdisc", "del", "dev", "eth0", "clsact", check=False)
        file.unlink()


def test_every_trouble_of_the_system(lab: Lab, instance: Instance) -> None:
    """As far as a process can be made to see another system than there is. What it is told mends that, but where it
    would be another kernel or a package: then what hid them is taken away."""
    instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}"))
    found_bcc = importlib.util.find_spec("bcc")
    assert found_bcc
    bcc = Path(found_bcc.origin or "").parent
    doctor = f"{PROGRAMS}/revproxyctl doctor --output json"
    elsewhere = lab.directory / "a place" / "revproxy"
    status = Path("/proc/self/status").read_text()
    may_raise = int(status.partition("CapEff:")[2].split()[0], 16) >> CAP_SYS_RESOURCE & 1
    few = "setpriv --inh-caps=-all --bounding-set="
    for make, under, expected, mended, left in (
        (
            "mount -t tmpfs none /usr/include/linux",
            "setarch --uname-2.6 prlimit --memlock=65536:65536",
            {
                "kernel.version": "apt install linux-image",
                "memlock": "ulimit -l unlimited",
                "headers": "apt install linux-libc-dev",
            },
            f"umount /usr/include/linux; {'REMEDY' if may_raise else 'true'}; setarch --uname-2.6 {doctor} || true",
            {"kernel.version"} if may_raise else {"kernel.version", "memlock"},
        ),
        (
            f"mount -t tmpfs none {bcc}",
            "",
            dict.fromkeys(("bcc", "kernel.features", "bpffs", "network"), "apt install python3-bpfcc"),
            f"umount {bcc}; {doctor}",
            set(),
        ),
        (
            "true",
            f"{few}-net_admin,-bpf,-sys_admin --",
            {"capabilities": "sudo", "kernel.features": "sudo", "interface.programs": "sudo"},
            doctor,
            set(),
        ),
        ("true", f"{few}-sys_admin --", {"capabilities": "sudo", "interface.programs": "sudo"}, doctor, set()),
        (
            "true",
            f"env REVPROXY_BPFFS_DIR={shlex.quote(str(elsewhere))}",
            {"bpffs": f"mkdir -p '{elsewhere}' && mount -t bpf bpf '{elsewhere}'"},
            f"REMEDY; REVPROXY_BPFFS_DIR={shlex.quote(str(elsewhere))} {doctor}",
            set(),
        ),
        (
            "true",
            f"env REVPROXY_BPFFS_DIR={instance.config_dir}",
            {"bpffs": "revproxyctl --bpffs-dir /sys/fs/bpf/revproxy doctor"},
            f"PATH={PROGRAMS}:$PATH; REMEDY --output json",
            set(),
        ),
    ):
        script = f"{make}; {under} {doctor} || true; echo; read -r remedy; {mended.replace('REMEDY', 'eval $remedy')}"
        command = lab.proxy.command("unshare", "--mount", "bash", "-ec", script)
        remedy = next((each for each in expected.values() if each.startswith(("ulimit", "mkdir", "revproxyctl"))), "")
        done = subprocess.run(
            command, env=instance.env, input=remedy + "\n", capture_output=True, text=True, timeout=60, check=False
        )
        before, after = (
            {each["check"]: each for each in json.loads(text)["findings"] if each["level"] != "ok"}
            for text in done.stdout.split("\n\n")
        )
        assert set(before) == set(expected), done.stdout
        for check, remedy in expected.items():
            assert remedy in before[check]["remedy"], before[check]
        assert set(after) == left, done.stdout
