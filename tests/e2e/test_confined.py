"""``revproxyd`` works with exactly what its service unit allows it, and needs what that gives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab import Lab, wait_for
from netlab.process import Process
from reconciler.runtime.needs import LARGE
from tests.bench.connections import fill
from tests.e2e.confine import setting
from tests.e2e.instance import PROGRAMS, Instance, web
from tests.kernel.kernelmaps import in_child

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "packaging" / "systemd" / "revproxyd.service"
UID = 64998  # nobody's
MANY = LARGE // 2 + 100


class Confined:
    """The instance's daemon, started under the unit's confinement."""

    def __init__(self, lab: Lab, instance: Instance) -> None:
        self.lab, self.instance = lab, instance
        self.cache = instance.run_dir.parent / "cache"
        self.tmp = instance.run_dir.parent / "tmp"
        lab.directory.chmod(0o755)
        self.env = {**instance.env, "REVPROXY_CACHE_DIR": str(self.cache), "TMPDIR": str(self.tmp)}

    def start(self, *without: str) -> Process:
        places = (self.instance.run_dir, self.instance.state_dir, self.instance.bpffs_dir, self.cache, self.tmp)
        words = [str(UNIT), str(UID), *map(str, places), *(word for each in without for word in ("--without", each))]
        command = [sys.executable, str(ROOT / "tests" / "e2e" / "confine.py"), *words, "--"]
        command += [str(PROGRAMS / "revproxyd"), "--log-format", "json"]
        self.instance.daemon = self.lab.spawn(self.lab.proxy, *command, env=self.env)
        return self.instance.daemon


@pytest.fixture
def confined(lab: Lab, instance: Instance) -> Iterator[Confined]:
    made = Confined(lab, instance)
    yield made
    made.instance.ctl("down")
    # The daemon can't remove its directory of pins, which the unit makes for it.
    if instance.bpffs_dir.is_dir():
        instance.bpffs_dir.rmdir()


def status_of(process: Process) -> dict[str, str]:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def servers(lab: Lab) -> set[str]:
    return {lab.curl(f"http://{lab.proxy4}/").split()[0] for _ in range(20)}


def test_it_compiles_forwards_edits_repairs_and_goes_down(lab: Lab, instance: Instance, confined: Confined) -> None:
    one, two, three = lab.backends
    instance.write(web(f"{one.ip4}:8080", f"{two.ip4}:8080", f"[{one.ip6}]:8080", extra="mode: fullnat"))
    daemon = confined.start()
    wait_for(
        lambda: (instance.run_dir / "revproxyd.sock").exists() or daemon.status is not None, "socket", timeout_sec=60
    )
    assert daemon.status is None, daemon.output()
    instance.wait_synced()

    status = status_of(daemon)
    assert status["Uid"].split() == [str(UID)] * 4
    assert status["Groups"] == ""
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    bits = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
    allowed = sum(1 << bits[name] for name in setting(UNIT.read_text(), "CapabilityBoundingSet"))
    assert {int(status[name], 16) for name in ("CapPrm", "CapBnd")} == {allowed}
    assert int(status["CapEff"], 16) == allowed & ~(1 << bits["CAP_SYS_ADMIN"]), "but for single calls"
    assert {int(status[name], 16) for name in ("CapInh", "CapAmb")} == {0}, "what it starts gets none"

    assert list(confined.cache.glob("*.json")), "the programs were compiled under the confinement, and kept"
    assert servers(lab) == {one.name, two.name}
    assert lab.curl(f"http://[{lab.proxy6}]/").split()[0] == one.name

    # sysctls (a target at 127.0.0.1 takes one), attaching, and a commit
    instance.write(web(f"{three.ip4}:8080", settings="{fast_path: false}"))
    wait_for(lambda: servers(lab) == {three.name}, "the edit is live")
    instance.wait_synced()
    lab.proxy.run("tc", "qdisc", "del", "dev", "eth0", "clsact")
    wait_for(lambda: not instance.run("diff").returncode, "repaired")
    assert servers(lab) == {three.name}
    assert "Traceback" not in daemon.output()
    assert "state_dir_not_written" not in daemon.output()
    assert (instance.state_dir / "last-good").is_symlink()

    # very many connections are read by a process of the daemon's, which is given what that takes
    assert in_child(lambda: fill(instance.bpffs_dir, MANY)) == 0
    instance.ctl("plan")  # so that the daemon knows how many there are
    assert instance.json("connections", "--count")["count"] >= MANY
    assert len(instance.json("connections", "--client", "10.0.7.7")) == 16
    assert {int(status_of(daemon)[name], 16) for name in ("CapInh", "CapAmb")} == {0}
    instance.ctl("connections", "flush", "--all")

    # what root did without a daemon is taken over, and the other way round
    assert instance.stop_daemon() == 0
    instance.apply(web(f"{one.ip4}:8080"))
    assert servers(lab) == {one.name}
    confined.start()
    instance.wait_synced()
    instance.write(web(f"{two.ip4}:8080"))
    wait_for(lambda: servers(lab) == {two.name}, "the daemon owns what root made")
    instance.ctl("down")
    assert instance.daemon is not None
    assert instance.daemon.wait(timeout_sec=20) == 0
    assert list(instance.bpffs_dir.iterdir()) == []


@pytest.mark.parametrize("capability", setting(UNIT.read_text(), "CapabilityBoundingSet"))
def test_without_a_capability_it_says_which(instance: Instance, confined: Confined, capability: str) -> None:
    one = confined.lab.backends[0]
    instance.write(web(f"{one.ip4}:8080"))
    daemon = confined.start(capability)
    assert daemon.wait(timeout_sec=60) == 1
    assert f"{capability} missing" in daemon.output()
    assert "Traceback" not in daemon.output()


def test_the_confinement_confines(confined: Confined) -> None:
    """What the test above shows counts only if this does."""
    places = [confined.instance.run_dir, confined.tmp]
    anybodys = confined.lab.directory / "anybodys"
    anybodys.mkdir()
    anybodys.chmod(0o777)
    tries = {
        "a file elsewhere": f"open('{anybodys}/file', 'w')",
        "a sysctl of the machine": "open('/proc/sys/kernel/printk', 'w')",
        "another address family": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "a namespace": "import os, ctypes; assert ctypes.CDLL(None).unshare(0x20000) == 0",
        "a mount": "import ctypes; assert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
        "memory to write and execute": "import mmap; mmap.mmap(-1, 4096, prot=7)",
        "another user": "import os; os.setuid(0)",
    }
    for what, code in {**tries, "nothing": "pass"}.items():
        words = [str(UNIT), str(UID), *map(str, places), "--", sys.executable, "-c", code]
        done = subprocess.run(
            [sys.executable, ROOT / "tests" / "e2e" / "confine.py", *words],
            env={**os.environ, **confined.env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) == (what == "nothing"), f"{what}: {done.stdout}{done.stderr}"
        assert what == "nothing" or "Error" in done.stderr.splitlines()[-1], done.stderr
