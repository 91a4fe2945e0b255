"""Findings about the kernel, this process and the files. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Final

from reconciler.answers import Finding, Level
from reconciler.doctor.sight import Sight, SystemSight
from reconciler.runtime.snapshot import LOCK_PATIENCE_SEC
from reconciler.state.facts import JUST_IN_TIME

WRITTEN_FOR: Final = (5, 15)
LEAST: Final = (5, 11)
"""What the helpers of the kernel that the programs use came with."""
TESTED: Final = "6.18"
_ROOM_BYTES: Final = 512 << 20
_CLOCK_SEC: Final = 60.0
_MOST_PROBLEMS: Final = 20
_OPTIONAL: Final = "netlink family netdev"
_AS_ROOT: Final = "sudo revproxyctl doctor"
_BCC: Final = "apt install python3-bpfcc"


def ok(check: str, message: str, subject: str = "") -> Finding:
    """Nothing wrong."""
    return Finding(check, Level.OK, message, subject)


def warning(check: str, message: str, remedy: str = "", subject: str = "") -> Finding:
    """It works, but not as well or not always."""
    return Finding(check, Level.WARNING, message, subject, remedy)


def error(check: str, message: str, remedy: str = "", subject: str = "") -> Finding:
    """It will not work."""
    return Finding(check, Level.ERROR, message, subject, remedy)


def unchecked(check: str, why: str, remedy: str = "", subject: str = "") -> Finding:
    """It could not be looked at."""
    return Finding(check, Level.WARNING, f"not checked: {why}", subject, remedy, checked=False)


def system(sight: Sight) -> Iterator[Finding]:
    """The kernel, what this process may do, what the programs are compiled with."""
    yield _release(sight.system.release)
    yield _capabilities(sight)
    yield from _tools(sight)
    yield from _trials(sight.system)
    yield _lockdown(sight.system.lockdown)
    yield _memlock(sight)
    yield _bpffs(sight)


def _version(release: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _release(release: str) -> Finding:
    written_for, least = (".".join(map(str, each)) for each in (WRITTEN_FOR, LEAST))
    if _version(release) < WRITTEN_FOR:
        told = error if _version(release) < LEAST else warning
        text = f"Linux {release}: the programs are written for Linux {written_for} and later, and need {least}"
        return told("kernel.version", text, "apt install linux-image-amd64, and boot it")
    return ok("kernel.version", f"Linux {release} (needs {written_for}; tested on {TESTED})")


def _capabilities(sight: Sight) -> Finding:
    missing = sight.system.missing_capabilities
    if not missing:
        return ok("capabilities", "this process may load programs and attach them")
    text = f"{', '.join(missing)} missing"
    if sight.daemon_pid is not None:
        return unchecked("capabilities", f"{text}; revproxyd (process {sight.daemon_pid}) has its own", _AS_ROOT)
    return error("capabilities", f"{text}: working on the kernel takes root", _AS_ROOT)


def _tools(sight: Sight) -> Iterator[Finding]:
    if sight.system.bcc is None:
        yield error("bcc", "the Python module bcc, or its library, is not there", _BCC)
    else:
        yield ok("bcc", f"bcc {sight.system.bcc}")
    if sight.system.headers:
        yield ok("headers", "the kernel's headers for user space are there")
    else:
        yield error("headers", "/usr/include/linux/bpf.h is missing: nothing compiles", "apt install linux-libc-dev")


def _trials(system: SystemSight) -> Iterator[Finding]:
    if system.trials is None:
        why, remedy = ("trying maps and programs takes root", _AS_ROOT) if system.bcc else ("bcc is missing", _BCC)
        yield unchecked("kernel.features", why, remedy)
        return
    for each in system.trials:
        if not each.refusal:
            yield ok("kernel.features", "tried, works", each.name)
        elif JUST_IN_TIME in each.name:
            text = f"tried, refused: {each.refusal}: every packet costs several times as much"
            yield warning("kernel.features", text, "sysctl -w net.core.bpf_jit_enable=1", each.name)
        elif _OPTIONAL in each.name:
            yield warning("kernel.features", each.refusal, "boot Linux 6.3 or later", each.name)
        else:
            yield error("kernel.features", f"tried, refused: {each.refusal}", "boot a kernel that has it", each.name)


def _lockdown(mode: str) -> Finding:
    if mode == "confidentiality":
        text = "kernel lockdown is 'confidentiality', which keeps BPF programs from being loaded"
        return error("kernel.lockdown", text, "boot with lockdown=integrity")
    return ok("kernel.lockdown", f"kernel lockdown: {mode or 'none'}")


def _memlock(sight: Sight) -> Finding:
    limit = sight.system.memlock_bytes
    if limit is None:
        return ok("memlock", "RLIMIT_MEMLOCK: unlimited")
    if limit < _ROOM_BYTES and _version(sight.system.release) < LEAST:
        return error("memlock", f"RLIMIT_MEMLOCK is {limit} bytes, too little for the maps", "ulimit -l unlimited")
    return ok("memlock", f"RLIMIT_MEMLOCK is {limit} bytes, which does not count for BPF on this kernel")


def _bpffs(sight: Sight) -> Finding:
    wanted = sight.places.bpffs_dir
    if sight.system.bcc is None:
        return unchecked("bpffs", "bcc is missing", _BCC)
    if sight.system.bpffs_trouble:
        return error("bpffs", sight.system.bpffs_trouble, _AS_ROOT)
    if sight.system.bpffs_occupied:
        text = (
            f"{wanted} is on no bpffs, and {sight.system.bpffs_point} is not empty, so that none can be mounted there"
        )
        return error("bpffs", text, "revproxyctl --bpffs-dir /sys/fs/bpf/revproxy doctor")
    if sight.system.bpffs is None:
        text = f"no bpffs at {wanted}: the first apply will mount one"
        point = shlex.quote(sight.system.bpffs_point)
        return warning("bpffs", text, f"mkdir -p {point} && mount -t bpf bpf {point}")
    if sight.system.bpffs != str(wanted):
        return ok("bpffs", f"{wanted} is hidden here (ip netns exec?), and reached by {sight.system.bpffs}")
    return ok("bpffs", f"{wanted} is on a bpffs")


# -- files and daemon ----------------------------------------------------------------------------------------


def files(sight: Sight) -> Iterator[Finding]:
    """The configuration, the work tree it is in, the daemon."""
    if sight.config is None:
        for each in sight.problems[:_MOST_PROBLEMS]:
            missing = each.file == str(sight.places.config_dir) and "no such directory" in each.message
            remedy = f"mkdir -p {shlex.quote(each.file)}" if missing else "revproxyctl validate"
            yield error("files", str(each), remedy)
        if len(sight.problems) > _MOST_PROBLEMS:
            yield error("files", f"{len(sight.problems) - _MOST_PROBLEMS} more errors", "revproxyctl validate")
    else:
        proxies, number = len(sight.config.proxies), len(sight.config.files)
        yield ok("files", f"proxies: {proxies}, in files of {sight.places.config_dir}: {number}")
        for each in sight.config.warnings:
            yield warning("files", str(each), "revproxyctl validate")
    yield from _git(sight)
    if sight.daemon_trouble:
        yield unchecked("daemon", sight.daemon_trouble, _AS_ROOT)
    elif sight.daemon_failure:
        text = f"revproxyd (process {sight.daemon_pid}) can't do its work: {sight.daemon_failure}"
        yield error("daemon", text, "revproxyctl status")
    elif sight.daemon_pid is not None:
        yield ok("daemon", f"revproxyd runs, process {sight.daemon_pid}")
    else:
        yield ok("daemon", "no revproxyd runs: what is live stays so, and nobody follows the files")


def _git(sight: Sight) -> Iterator[Finding]:
    git = sight.git
    if git is None:
        yield ok("git", f"{sight.places.config_dir} is in no git work tree")
        return
    if git.ahead_sec > _CLOCK_SEC:
        text = f"the last commit is {git.ahead_sec:.0f} s in the future: this host's clock or the committer's is wrong"
        yield warning("git.clock", text, "timedatectl set-ntp true")
    else:
        yield ok("git.clock", "the last commit is not later than this host's clock")
    if git.lock_age_sec is not None and git.lock_age_sec > LOCK_PATIENCE_SEC:
        held = "files that are not those of the commit are held because of it"
        text = f"{git.lock} stands for {git.lock_age_sec:.0f} s, left by a git that was killed? {held}"
        yield warning("git.lock", text, f"rm {git.lock}")
