"""Without what it needs of the kernel, every command says so in one sentence, with what to do next, and changes
nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.instance import PROGRAMS

LACKING = Path(__file__).with_name("lacking.py")
STATUS = {"diff": 2, "plan": 2}
FILE = """\
apiVersion: revproxy/v1
proxies:
  - name: web
    listen: {interfaces: [lo], addresses: [127.0.0.1], port: 80}
    default_target: {ip: 127.0.0.1, port: 8080}
"""
FILTERED = "this kernel refuses bpf() to this process, although it has the capabilities (EPERM): let the container's"
CASES = {
    "bpf=ENOSYS": "this kernel has no bpf() (ENOSYS): boot one that was built with CONFIG_BPF_SYSCALL",
    "bpf=EPERM": FILTERED,
    "bpf=EINVAL": "this kernel knows no pinned BPF objects (EINVAL): boot a newer one",
}
COMMANDS = ("status", "diff", "apply --yes", "target weight web 127.0.0.1:8080 5")


class Place:
    """An instance's places, on a kernel that lacks something."""

    def __init__(self, directory: Path, what: str) -> None:
        self.what, self.bpffs = what, Path(f"/sys/fs/bpf/lacking-{os.getpid()}")
        self.file = directory / "config.d" / "web.yaml"
        self.file.parent.mkdir()
        self.file.write_text(FILE)
        places = {"config": self.file.parent, "run": directory / "run", "state": directory / "state"}
        named = {f"REVPROXY_{name.upper()}_DIR": str(path) for name, path in places.items()}
        self.env = {**os.environ, **named, "REVPROXY_BPFFS_DIR": str(self.bpffs)}

    def run(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, LACKING, self.what, "--", PROGRAMS / program, *words]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def place(tmp_path: Path, what: str) -> Place:
    return Place(tmp_path, what)


@pytest.mark.parametrize("what", CASES)
def test_each_command_says_what_is_missing_and_what_to_do(place: Place, what: str) -> None:
    sentence, none = CASES[what], what == "bpf=ENOSYS"
    for words in COMMANDS if none else ("apply --yes",):
        done = place.run("revproxyctl", *words.split())
        assert done.returncode == STATUS.get(words, 1), words
        assert done.stdout == "", words
        assert done.stderr.startswith(f"revproxyctl: {sentence}"), words
        assert done.stderr.count("\n") == 1, words
    assert place.file.read_text() == FILE
    if none:
        doctor = place.run("revproxyctl", "doctor")
        assert doctor.returncode == 1
        assert "to mend it: boot a kernel that has it" in doctor.stdout
        daemon = place.run("revproxyd", "--log-format", "json")
        assert daemon.returncode == 1
        assert sentence in daemon.stderr
        assert len(daemon.stderr.splitlines()) == 1
    assert not place.bpffs.exists()


@pytest.mark.parametrize("what", ["bpf=ENOSYS"])
def test_files_need_no_kernel(place: Place) -> None:
    for words in (("validate",), ("proxy", "show", "web")):
        done = place.run("revproxyctl", *words)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("what", ["btf"])
def test_type_information_is_not_needed(place: Place) -> None:
    assert place.run("revproxyctl", "apply", "--yes").returncode == 0
    assert place.run("revproxyctl", "down").returncode == 0
