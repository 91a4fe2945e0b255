"""What ``doctor`` makes of what it sees: each trouble is found, graded and comes with what mends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest

from reconciler import answers
from reconciler.answers import Finding, Level
from reconciler.cli import app
from reconciler.cli.session import Session
from reconciler.config.files import parse_sources
from reconciler.doctor import diagnose
from reconciler.doctor.remedies import change_setting, make_full_nat
from reconciler.doctor.sight import GitSight, InterfaceSight, PlaceSight, Sight, SystemSight
from reconciler.errors import Problem
from reconciler.places import Places
from reconciler.state.desired import desired
from reconciler.state.facts import HostFacts, Interface, Route, RouteKind, Trial
from tests.clirunner import CliRunner

FILE = """\
apiVersion: revproxy/v1
settings: {xdp_mode: MODE}
proxies:
  - name: web
    mode: NAT
    listen: {interfaces: [eth0], port: 80}
    default_target: {ip: 10.0.0.1}
"""
TARGET = ip_address("10.0.0.1")
ETH0 = Interface(2, "eth0", driver="ixgbe", xdp_native=True, forwarding4=True)
ADDRESSED = replace(ETH0, addresses=(ip_interface("192.0.2.1/24"),))
ETH1 = Interface(3, "eth1", driver="ixgbe", xdp_native=True)
ON_LINK = Route(RouteKind.UNICAST, 3, source=ip_address("10.0.0.254"))
CLEAN = InterfaceSight(conflicts=(), lro=False, queues_now=4, queues_most=8)


def sight(
    *,
    mode: str = "auto",
    nat: str = "dnat",
    route: Route = ON_LINK,
    eth0: Interface = ETH0,
    eth1: Interface = ETH1,
    on_eth0: InterfaceSight = CLEAN,
    **others: Any,
) -> Sight:
    """A host on which everything is fine, but for what is said."""
    config = parse_sources({"/etc/web.yaml": FILE.replace("MODE", mode).replace("NAT", nat).encode()})
    host = HostFacts(
        {each.name: each for each in (eth0, eth1)},
        {TARGET: route.ifindex},
        {"net/ipv4/conf/lo/forwarding": "0"},
        routes={TARGET: route},
    )
    system = SystemSight("6.18.0", trials=(Trial("map type hash"),), bpffs="/sys/fs/bpf/revproxy", bcc="0.26")
    values: dict[str, Any] = {
        "system": system,
        "places": Places(),
        "config": config,
        "host": host,
        "interfaces": {"eth0": on_eth0, "eth1": CLEAN},
        "way_back": {4: 2},
        "wanted": desired(config, host, tag=""),
        "cpus": 2,
    }
    return Sight(**(values | others))


def system(**changes: Any) -> Sight:
    fine = sight()
    return replace(fine, system=replace(fine.system, **changes))


def troubles(found: Sight) -> list[Finding]:
    """What is not fine."""
    return [each for each in diagnose(found).findings if each.level is not Level.OK]


def test_nothing_is_said_of_a_host_that_is_fine() -> None:
    assert troubles(sight()) == []
    assert diagnose(sight()).fine
    assert troubles(sight(mode="native")) == []


CONFLICT = answers.Conflict(
    "xdp native", "native program 7 (a, tag b)", answers.Program(7, "a", "b"), "is there", "rm it"
)
BEHIND = replace(ON_LINK, gateway=ip_address("10.0.0.9"))

CASES: list[tuple[str, Sight, str, Level, str, str]] = [
    ("old kernel", system(release="5.4.0-1"), "kernel.version", Level.ERROR, "Linux 5.4.0-1", "apt install"),
    ("kernel before 5.15", system(release="5.14.0-1"), "kernel.version", Level.WARNING, "for Linux 5.15", "apt"),
    ("no privilege", system(missing_capabilities=("CAP_BPF",)), "capabilities", Level.ERROR, "CAP_BPF", "sudo"),
    ("a map type", system(trials=(Trial("map type x", "EINVAL"),)), "kernel.features", Level.ERROR, "EINVAL", "boot"),
    ("interpreted", system(trials=(Trial("XDP programs, compiled just in time", "no"),)), "kernel.features",
     Level.WARNING, "costs", "sysctl -w net.core.bpf_jit_enable=1"),
    ("lockdown", system(lockdown="confidentiality"), "kernel.lockdown", Level.ERROR, "loaded", "lockdown=integrity"),
    ("no bpffs", system(bpffs=None), "bpffs", Level.WARNING, "mount one", "mount -t bpf"),
    ("no room for a bpffs", system(bpffs=None, bpffs_point="/x", bpffs_occupied=True), "bpffs", Level.ERROR,
     "/x is not empty", "revproxyctl --bpffs-dir /sys/fs/bpf/revproxy doctor"),
    ("somebody else's pins", system(bpffs_trouble="use /x: EACCES"), "bpffs", Level.ERROR, "EACCES", "sudo"),
    ("no headers", system(headers=False), "headers", Level.ERROR, "compiles", "apt install linux-libc-dev"),
    ("future commit", sight(git=GitSight(3600)), "git.clock", Level.WARNING, "3600 s in the future", "timedatectl"),
    ("dead git", sight(git=GitSight(-9, "/x/index.lock", 31)), "git.lock", Level.WARNING, "31 s", "rm /x/index.lock"),
    ("link down", sight(eth0=replace(ETH0, up=False)), "interface.up", Level.ERROR, "down", "ip link set dev eth0 up"),
    ("no carrier", sight(eth1=replace(ETH1, carrier=False)), "interface.up", Level.WARNING, "carrier", "ethtool eth1"),
    ("no native", sight(mode="native", eth0=replace(ETH0, driver="e1000", xdp_native=False)), "interface.driver",
     Level.ERROR, "no native XDP", "sed -i --follow-symlinks '2s/xdp_mode: native/xdp_mode: auto/' /etc/web.yaml"),
    ("jumbo", sight(eth0=replace(ETH0, mtu=9000), eth1=replace(ETH1, mtu=9000)), "interface.mtu", Level.WARNING,
     "MTU 9000", "mtu 3498"),
    ("LRO", sight(on_eth0=replace(CLEAN, lro=True)), "interface.lro", Level.ERROR, "native", "ethtool -K eth0 lro off"),
    ("LRO under TC", sight(mode="off", on_eth0=replace(CLEAN, lro=True)), "interface.lro", Level.WARNING, "together",
     "ethtool -K eth0 lro off"),
    ("too few queues", sight(eth0=replace(ETH0, driver="virtio_net"), on_eth0=replace(CLEAN, queues_now=7)),
     "interface.queues", Level.WARNING, "virtio_net", "ethtool -L eth0 combined 6"),
    ("veth, native", sight(mode="native", eth0=replace(ETH0, kind="veth")), "interface.checksums", Level.WARNING,
     "checksum", "xdp_mode: auto/"),
    ("strict filter", sight(on_eth0=replace(CLEAN, rp_filter=1), way_back={4: 3}), "interface.rp_filter", Level.WARNING,
     "strict", "sysctl -w net.ipv4.conf.eth0.rp_filter=2"),
    ("foreign, auto", sight(on_eth0=replace(CLEAN, conflicts=(CONFLICT,))), "interface.programs", Level.WARNING,
     "program 7", "rm it"),
    ("foreign, native", sight(mode="native", on_eth0=replace(CLEAN, conflicts=(CONFLICT,))), "interface.programs",
     Level.ERROR, "program 7", "rm it"),
    ("foreign, gives way", sight(mode="native", on_eth0=replace(CLEAN, conflicts=(replace(CONFLICT, gives_way=True),))),
     "interface.programs", Level.WARNING, "program 7", "rm it"),
    ("not told apart", sight(on_eth0=replace(CLEAN, conflicts=None)), "interface.programs", Level.WARNING, "root",
     "sudo"),
    ("no route", sight(route=Route(RouteKind.UNREACHABLE)), "target.route", Level.ERROR, "no route",
     "ip route add 10.0.0.1/32 via GATEWAY"),
    ("dead neighbour", sight(neighbours={(3, TARGET): "failed"}), "target.neighbour", Level.WARNING, "ARP on eth1",
     "ip neigh replace 10.0.0.1 dev eth1 use"),
    ("dead gateway", sight(route=BEHIND, nat="fullnat", neighbours={(3, BEHIND.gateway): "failed"}), "target.neighbour",
     Level.WARNING, "10.0.0.9 does not answer", "ip neigh"),
    ("behind a router", sight(route=BEHIND), "target.return", Level.WARNING, "10.0.0.9", "traceroute from 10.0.0.1"),
    ("clients beside it", sight(route=replace(ON_LINK, ifindex=2)), "target.return", Level.WARNING, "directly",
     "sed -i --follow-symlinks 5s/dnat/fullnat/ /etc/web.yaml"),
    ("narrow way", sight(eth0=replace(ETH0, forwarding4=False), eth1=replace(ETH1, mtu=1400)), "target.mtu",
     Level.WARNING, "MTU 1400", "sysctl -w net.ipv4.conf.eth0.forwarding=1"),
    ("refused here", sight(wanted=None, refused="eth0 carries x"), "host", Level.ERROR, "carries", "interfaces"),
    ("nothing can be locked", sight(run_dir=PlaceSight("/run", read_only=True)), "places", Level.ERROR,
     "--run-dir: /run is read-only", "mount -o remount,rw /run"),
    ("nothing is kept", sight(state_dir=PlaceSight("/var", full=True)), "places", Level.WARNING,
     "--state-dir: /var is full", "du -xh /var"),
    ("read-only settings", sight(settings=PlaceSight("/proc/sys", read_only=True), eth0=ADDRESSED), "sysctls",
     Level.ERROR, "net/ipv4/conf/lo/forwarding must be set", "mount -o remount,rw,bind /proc/sys"),
    ("a daemon that fails", sight(daemon_pid=7, daemon_failure="attach eth0: EBUSY"), "daemon", Level.ERROR,
     "process 7) can't do its work: attach eth0: EBUSY", "revproxyctl status"),
    ("no directory", sight(config=None, wanted=None, problems=(Problem("/etc/revproxy/config.d", 0, 0, "",
     "there is no such directory"),)), "files", Level.ERROR, "no such directory", "mkdir -p /etc/revproxy/config.d"),
    ("wrong files", sight(config=None, wanted=None, problems=(Problem("a.yaml", 3, 5, "", "bad"),)), "files",
     Level.ERROR, "a.yaml:3:5: bad", "revproxyctl validate"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("found", "check", "level", "word", "remedy"), [each[1:] for each in CASES], ids=[c[0] for c in CASES]
)
def test_each_trouble_is_found(found: Sight, check: str, level: Level, word: str, remedy: str) -> None:
    finding = next(each for each in troubles(found) if each.check == check)
    assert finding.level is level
    assert word in finding.message
    assert remedy in finding.remedy
    assert diagnose(found).fine == (diagnose(found).errors == 0)
    if level is Level.ERROR:
        assert not diagnose(found).fine


def test_what_the_stack_forwards_is_said() -> None:
    for forwards, said in (
        ((True, True), "IPv4 and IPv6"),
        ((False, True), "forwards IPv6"),
        ((False, False), "forwards nothing"),
    ):
        eth0 = replace(ETH0, forwarding4=forwards[0], forwarding6=forwards[1])
        (finding,) = (each for each in diagnose(sight(eth0=eth0)).findings if each.check == "interface.forwarding")
        assert said in finding.message


def test_full_nat_asks_nothing_of_the_way_back() -> None:
    assert troubles(sight(route=BEHIND, nat="fullnat")) == []
    assert troubles(sight(route=replace(ON_LINK, ifindex=2), nat="fullnat")) == []


def test_what_can_not_be_checked_is_said() -> None:
    fine = sight()
    blind = replace(fine, system=replace(fine.system, trials=None, bcc=None), host=None, config=fine.config)
    unchecked = {each.check for each in diagnose(blind).findings if not each.checked}
    assert unchecked == {"kernel.features", "bpffs", "network"}
    with_daemon = replace(fine, system=replace(fine.system, missing_capabilities=("CAP_BPF",)), daemon_pid=7)
    assert diagnose(with_daemon).fine


def test_files_that_no_command_can_change_are_to_be_changed_in_words() -> None:
    proxy = "{name: a, listen: {interfaces: [b], port: 1}, default_target: {ip: 10.0.0.1}}"
    flow = f"{{apiVersion: revproxy/v1, proxies: [{proxy}]}}".encode()
    config = parse_sources({"/etc/a.yaml": flow})
    assert make_full_nat(config, config.proxies) == "set mode: fullnat for a"
    assert change_setting(config, "xdp_mode", "native", "auto") == "set settings.xdp_mode to auto"


def test_every_trouble_comes_with_a_remedy() -> None:
    for _, found, *_ in CASES:
        assert [each for each in troubles(found) if not each.remedy] == []


class _Client:
    def __init__(self, answer: answers.Diagnosis) -> None:
        self.doctor = lambda: answer


@pytest.mark.parametrize(("mode", "status"), [("auto", 0), ("native", 1)])
def test_the_command(monkeypatch: pytest.MonkeyPatch, mode: str, status: int) -> None:
    found = diagnose(sight(mode=mode, on_eth0=replace(CLEAN, conflicts=(CONFLICT,))))
    monkeypatch.setattr(Session, "client", lambda _: _Client(found))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == status
    level = "error" if status else "warning"
    assert f"{level:<8} interface.programs: eth0: xdp native: native program 7 (a, tag b) is there\n" in result.stdout
    assert "to mend it: rm it" in result.stdout
    assert "kernel.version" not in result.stdout
    assert "ok       kernel.version" in CliRunner().invoke(app, ["doctor", "-v"]).stdout
    data = json.loads(CliRunner().invoke(app, ["doctor", "--output", "json"]).stdout)
    assert data["fine"] == (status == 0)
    assert {each["level"] for each in data["findings"]} == {"ok", level}


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give it up")
def test_without_privileges_it_ends_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(FILE.replace("MODE", "auto").replace("NAT", "dnat"))
    tmp_path.chmod(0o755)
    words = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--securebits=+noroot", "--"]
    words += [str(Path(sys.executable).parent / "revproxyctl"), "--config-dir", str(tmp_path), "doctor", "-o", "json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    found = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["capabilities"]["level"] == "error"
    assert not found["kernel.features"]["checked"]
    assert found["files"]["level"] == "ok"
