"""A Debian 12 of its own, booted under systemd, in the network namespace of a lab's proxy host."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab import Lab, wait_for
from netlab.process import Process


class Machine:
    """The container. ``root``: its file system as seen from outside."""

    def __init__(self, lab: Lab, tree: Path) -> None:
        self.lab = lab
        self.root = Path(tempfile.mkdtemp(prefix="revproxy-debian-", dir=tree.parent))
        subprocess.run(["tar", "-C", self.root, "-xf", tree], check=True)
        command = ["systemd-nspawn", "--boot", "--quiet", "--register=no", "--keep-unit", "--capability=all"]
        command += ["--system-call-filter=bpf perf_event_open", f"--network-namespace-path={lab.proxy.path}"]
        command += [f"--directory={self.root}", f"--machine={lab.name}"]
        log = lab.directory / "nspawn.log"
        self._nspawn = Process(command, log, env={"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "yes"})
        self._leader = ""
        wait_for(self._booted, "the container has booted", timeout_sec=90)
        # As systemd mounts it on a host; in a container it does not.
        self.run("mount -t bpf -o nosuid,nodev,noexec,relatime,mode=700 bpf /sys/fs/bpf")

    def _booted(self) -> bool:
        assert self._nspawn.status is None, self._nspawn.output()
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        if not children:
            return False
        self._leader = children[0]
        return self.run("systemctl is-active multi-user.target", status=None).stdout.strip() == "active"

    def run(self, script: str, *, status: int | None = 0) -> subprocess.CompletedProcess[str]:
        """A shell script in there, as root; ``status`` is what it must end with, None: anything."""
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "TERM=dumb"]
        clean += ["DEBIAN_FRONTEND=noninteractive"]
        command = ["nsenter", f"--target={self._leader}", "--all", "--", *clean, "sh", "-ec", script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if status is not None and done.returncode != status:
            journal = "" if "journalctl" in script else self.run("journalctl -n 30 --no-pager", status=None).stdout
            raise AssertionError(f"{script}: status {done.returncode}\n{done.stdout}{done.stderr}\n{journal}")
        return done

    def out(self, script: str) -> str:
        """What it prints."""
        return self.run(script).stdout.strip()

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.out(f"systemctl show --property={name} --value {unit}")

    def write(self, path: str, text: str) -> None:
        """A file in there, exchanged by renaming."""
        file = self.root / path.lstrip("/")
        draft = file.with_name(f".{file.name}.draft")
        draft.write_text(text)
        draft.rename(file)

    def close(self) -> None:
        """Power off, and remove it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._nspawn.send(signal.SIGTERM)
            self._nspawn.wait(timeout_sec=60)
        self._nspawn.kill()
        shutil.rmtree(self.root, ignore_errors=True)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(offload=False, xdp_peers=True) as built:
        yield built


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Machine]:
    made = None
    try:
        made = Machine(lab, Path(os.environ["REVPROXY_TREE"]))
        yield made
    finally:
        if made:
            made.close()


@pytest.fixture(scope="session")
def deb() -> Path:
    """The package."""
    return Path(os.environ["REVPROXY_DEB"])


@pytest.fixture(scope="session")
def next_deb() -> Path:
    """The same with a higher version and other programs."""
    return Path(os.environ["REVPROXY_NEXT_DEB"])
