"""A host that refuses what is needed: full and read-only disks, directories of others, limits, missing privileges.

Each trouble is told as what it is: no traceback, no internal error, nothing half done; and ends with its cause.
"""

from __future__ import annotations

import grp
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netlab import HTTP_PORT, Lab, wait_for
from tests.e2e.instance import PROGRAMS, Instance, web

SOMEBODY = 64998  # nobody's number


@contextmanager
def mounted(directory: Path, options: str) -> Iterator[None]:
    """A tmpfs over a directory."""
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


def refused(instance: Instance, *words: str, under: tuple[str, ...] = ()) -> str:
    """``revproxyctl``, behind a command that takes something from it; what it says when it fails."""
    command = instance.lab.proxy.command(*under, PROGRAMS / "revproxyctl", *words)
    done = subprocess.run(command, env=instance.env, capture_output=True, text=True, timeout=120, check=False)
    said = done.stdout + done.stderr
    assert done.returncode, said
    assert "internal error" not in said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(("options", "word"), [("ro", "Read-only"), ("size=4k", "No space left")])
def test_a_state_directory_that_takes_nothing(lab: Lab, instance: Instance, options: str, word: str) -> None:
    """Packets are served all the same; what has to outlive the process is refused."""
    instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}"))
    with mounted(instance.state_dir, options):
        if options != "ro":
            (instance.state_dir / "fill").write_bytes(bytes(4096))
        daemon = instance.start_daemon()
        assert lab.curl(f"http://{lab.proxy4}/")
        assert word in refused(instance, "suspend")
        assert word in refused(instance, "drain", f"{lab.backends[0].ip4}:{HTTP_PORT}")
        said = instance.run("down")
        assert "detached from eth0" in said.stdout
        assert "Traceback" not in said.stderr
        assert daemon.wait(timeout_sec=20) == 0
        assert '"state_dir_not_written"' in daemon.output()
        assert "Traceback" not in daemon.output()


def test_places_that_can_not_be_used(lab: Lab, instance: Instance) -> None:
    instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}"))
    for words, said in (
        (("--run-dir", "/etc/passwd/x"), "--run-dir /etc/passwd/x: Not a directory"),
        (("--bpffs-dir", "/etc/passwd/x"), "Not a directory: a part of the path is a file"),
        (("--bpffs-dir", "/sys/fs/bpf/a.b"), 'a bpffs takes no names with a dot in them, such as "a.b"'),
        (("--config-dir", "/etc/passwd"), "/etc/passwd: can't be read: Not a directory"),
    ):
        assert said in refused(instance, *words, "apply", "--yes")
    with mounted(instance.run_dir, "size=4k"):
        (instance.run_dir / "fill").write_bytes(bytes(4096))
        daemon = lab.spawn(lab.proxy, PROGRAMS / "revproxyd", env=instance.env)
        assert daemon.wait(timeout_sec=20) == 1
        assert f"{instance.run_dir}/revproxyd.pid: No space left on device: make room there" in daemon.output()
    with mounted(instance.config_dir, "ro"):
        assert "Read-only" in refused(instance, "proxy", "add", "a", "-i", "eth0", "-p", "81", "-t", "10.0.0.1:80")


def test_what_this_process_may_not_do(lab: Lab, instance: Instance) -> None:
    instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}"))
    few = "raise this process's limit of open files (ulimit -n)"
    for under, word in (
        (("prlimit", "--nofile=16:16"), f"EMFILE: {few}"),
        # They run out when something is read, and when a sysctl has been set.
        *((("prlimit", f"--nofile={number}:{number}"), f"{few}; rolled back") for number in (25, 55)),
        (("setpriv", "--bounding-set=-net_admin", "--inh-caps=-all", "--"), "CAP_NET_ADMIN missing"),
        (("setpriv", "--bounding-set=-bpf,-sys_admin", "--inh-caps=-all", "--"), "CAP_SYS_ADMIN, CAP_BPF missing"),
        (("setpriv", f"--reuid={SOMEBODY}", "--clear-groups", "--"), "takes root"),
    ):
        assert word in refused(instance, "apply", "--yes", under=under)
        lab.assert_clean(instance.bpffs_dir)
        assert not instance.bpffs_dir.exists()
    daemon = lab.proxy.command("prlimit", "--nofile=8:8", PROGRAMS / "revproxyd", "--log-format", "json")
    (line,) = subprocess.run(daemon, env=instance.env, capture_output=True, text=True, check=False).stderr.splitlines()
    assert json.loads(line)["error"].startswith("this process may have 8 files open, and needs 256")
    # The kernels this runs on count BPF's memory elsewhere, and packets don't need what is written down of them.
    little = lab.proxy.command(
        "prlimit", "--memlock=1024:1024", "--fsize=0:0", PROGRAMS / "revproxyctl", "apply", "--yes"
    )
    done = subprocess.run(little, env=instance.env, check=True, capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert lab.curl(f"http://{lab.proxy4}/")
    # Who is of the second group may ask a daemon, and nothing else.
    lab.directory.chmod(0o755)
    instance.start_daemon("--read-group", "games")
    somebody = ("setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}")
    reader = (*somebody, f"--groups={grp.getgrnam('games').gr_gid}", "--")
    for words in (
        ("status",),
        ("connections", "--count"),
        ("explain", "--from", "192.0.2.9", "--to", f"{lab.proxy4}:80"),
    ):
        asked = lab.proxy.command(*reader, PROGRAMS / "revproxyctl", *words)
        assert subprocess.run(asked, env=instance.env, capture_output=True, check=True).stdout, words
    for words in (("suspend",), ("drain", f"{lab.backends[0].ip4}:{HTTP_PORT}"), ("down",)):
        assert "revproxyd-read.sock is for reading" in refused(instance, *words, under=reader)
    assert "permission denied" in refused(instance, "status", under=(*somebody, "--clear-groups", "--"))


def test_pins_of_somebody_else(lab: Lab, instance: Instance) -> None:
    """A bpffs directory that the daemon may not enter: told in its answers, at its start, and over once it may."""
    one, two, _ = lab.backends
    instance.write(web(f"{one.ip4}:{HTTP_PORT}"))
    few = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", "--")
    revproxyd = (*few, PROGRAMS / "revproxyd", "--resync", "1")
    instance.daemon = daemon = lab.spawn(lab.proxy, *revproxyd, env=instance.env)
    wait_for(lambda: instance.run("status").returncode == 0, "Synced", timeout_sec=60)
    os.chown(instance.bpffs_dir, SOMEBODY, SOMEBODY)
    instance.bpffs_dir.chmod(0o700)
    said = f"use {instance.bpffs_dir}: EACCES: {instance.bpffs_dir}: Permission denied"
    try:
        instance.write(web(f"{two.ip4}:{HTTP_PORT}"))

        daemon.wait_output("commit_failed", timeout_sec=60)
        assert said in refused(instance, "apply", "--yes")
        assert said in refused(instance, "status")
        assert lab.curl(f"http://{lab.proxy4}/").split()[0] == one.name, "packets don't ask for permission"
        os.chown(instance.bpffs_dir, 0, 0)
        wait_for(lambda: lab.curl(f"http://{lab.proxy4}/").split()[0] == two.name, "applied", timeout_sec=30)
        instance.stop_daemon()
        os.chown(instance.bpffs_dir, SOMEBODY, SOMEBODY)
        again = lab.spawn(lab.proxy, *revproxyd, env=instance.env)
        assert again.wait(timeout_sec=60) == 1
        assert said in again.output()
        assert "to mend it: " in refused(instance, "doctor", under=few).partition(said)[2]
        assert "Traceback" not in daemon.output() + again.output()
    finally:
        os.chown(instance.bpffs_dir, 0, 0)


def test_a_machine_without_a_bpffs_gets_one(lab: Lab, instance: Instance) -> None:
    """With a process 1 and mounts of its own, as in a container where nobody has mounted one."""
    instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}"))
    ctl = PROGRAMS / "revproxyctl"
    script = f"""
        umount /sys/fs/bpf
        {ctl} doctor | grep -A1 'no bpffs at {instance.bpffs_dir}'
        {ctl} apply --yes
        mount -t bpf | grep 'bpf on /sys/fs/bpf '
        {ctl} status --output json | grep -q Synced
        {ctl} doctor -v | grep 'bpffs: .* is on a bpffs'
        {ctl} down
    """
    command = lab.proxy.command("unshare", "--mount", "--pid", "--fork", "--mount-proc", "bash", "-ec", script)
    done = subprocess.run(command, env=instance.env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mount -t bpf bpf /sys/fs/bpf" in done.stdout
    assert "removed the pins" in done.stdout
