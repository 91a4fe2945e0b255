"""Runs a command under what a systemd unit allows, as far as that goes without systemd as process 1.

    confine.py UNIT UID WRITABLE... [--without CAP] -- COMMAND

Taken from the unit: capabilities, system calls, address families, write-xor-execute, no new privileges; read-only
files but for /proc/sys/net and ``WRITABLE`` directories, which become the user's; of a bpffs only those directories.
What a package installs (this checkout, the interpreter) is made visible where the user could not reach it.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path

BPFFS = Path("/sys/fs/bpf")
ROOT = Path(__file__).resolve().parents[2]
_CLONE_NEWNS, _MS_BIND, _MS_REMOUNT, _MS_RDONLY, _MS_REC, _MS_PRIVATE = 0x20000, 4096, 32, 1, 16384, 1 << 18
_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
_SCMP_ACT_ALLOW, _SCMP_ACT_EPERM, _SCMP_ACT_ENOSYS, _SCMP_CMP_EQ = 0x7FFF0000, 0x00050001, 0x00050026, 4
# What RestrictNamespaces= takes away; clone3 can't be filtered, so it looks missing there as well.
_NAMESPACES = ("unshare", "setns")

_libc = ctypes.CDLL(None, use_errno=True)


def setting(unit: str, key: str) -> list[str]:
    """The words of a setting, all its lines together."""
    joined = unit.replace("\\\n", " ")
    return [word for line in re.findall(rf"^{key}=(.*)$", joined, re.MULTILINE) for word in line.split()]


def system_calls(unit: str) -> set[str]:
    """What SystemCallFilter= leaves, sets resolved by systemd itself."""
    allowed: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE):
        names = {name for word in line.removeprefix("~").split() for name in _resolve(word)}
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed - set(_NAMESPACES)


def _resolve(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    command = ["systemd-analyze", "--no-pager", "syscall-filter", word]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    members = [line.strip() for line in lines[1:] if line.strip() and not line.strip().startswith("#")]
    return {name for member in members for name in _resolve(member)}


# -- mounts --------------------------------------------------------------------------------------------------


def _mount(source: str, target: Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    if _libc.mount(source.encode(), str(target).encode(), kind.encode() or None, flags, data.encode() or None):
        raise OSError(ctypes.get_errno(), f"mount {source} {target}")


def _keep_only(paths: list[Path], within: Path) -> None:
    """Put an empty directory over ``within``, with only ``paths`` in it, at their places."""
    handles = {path: os.open(path, os.O_PATH) for path in paths}
    _mount("tmpfs", within, "tmpfs", 0, "mode=0755")
    for path, handle in handles.items():
        path.mkdir(parents=True)
        _mount(f"/proc/self/fd/{handle}", path, flags=_MS_BIND)
        os.close(handle)


def confine_files(writable: list[Path], uid: int) -> None:
    """Give the user its directories, and make everything else read-only."""
    if _libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    _mount("none", Path("/"), flags=_MS_REC | _MS_PRIVATE)
    for path in writable:
        path.mkdir(parents=True, exist_ok=True)
        for each in (path, *path.rglob("*")):
            os.chown(each, uid, uid, follow_symlinks=False)
        if BPFFS not in path.parents:
            _mount(str(path), path, flags=_MS_BIND)
    _keep_only([path for path in writable if BPFFS in path.parents], BPFFS)
    closed = [path for path in (*reversed(ROOT.parents), ROOT) if not path.stat().st_mode & 1]
    if closed:
        _keep_only([ROOT], closed[0])
    _mount("/proc/sys/net", Path("/proc/sys/net"), flags=_MS_BIND)
    for path in (Path("/"), Path("/sys"), Path("/proc/sys"), BPFFS):
        if not os.path.ismount(path):
            _mount(str(path), path, flags=_MS_BIND)
            if path == Path("/proc/sys"):
                _mount("/proc/sys/net", Path("/proc/sys/net"), flags=_MS_BIND)
        _mount("none", path, flags=_MS_BIND | _MS_REMOUNT | _MS_RDONLY)


# -- system calls --------------------------------------------------------------------------------------------


class _Comparison(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def confine_calls(calls: set[str], families: list[int], deny_write_execute: bool) -> None:
    """Load the filter; from now on a call that is not allowed fails with EPERM."""
    if deny_write_execute:
        _libc.prctl(_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)  # kernels before 6.3 don't have it
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(_SCMP_ACT_EPERM))
    for name in calls - {"socket", "clone3"}:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # of this architecture
            _succeed(seccomp.seccomp_rule_add(context, _SCMP_ACT_ALLOW, number, 0), name)
    _succeed(
        seccomp.seccomp_rule_add(context, _SCMP_ACT_ENOSYS, seccomp.seccomp_syscall_resolve_name(b"clone3"), 0),
        "clone3",
    )
    socket = seccomp.seccomp_syscall_resolve_name(b"socket")
    for family in families:
        one = _Comparison(0, _SCMP_CMP_EQ, family, 0)
        _succeed(seccomp.seccomp_rule_add_array(context, _SCMP_ACT_ALLOW, socket, 1, ctypes.byref(one)), "socket")
    _succeed(seccomp.seccomp_load(context), "load")


def _succeed(result: int, what: str) -> None:
    if result:
        raise OSError(-result, f"seccomp: {what}")


# -- both steps ----------------------------------------------------------------------------------------------


def main() -> None:
    """First as root: mounts; then, started again by setpriv as the user: system calls, and the command."""
    words, command = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    if words[0] == "--calls":
        confine_calls(
            **{name: set(value) if name == "calls" else value for name, value in json.loads(words[1]).items()}
        )
        os.execvp(command[0], command)
    dropped = [words[at + 1] for at, word in enumerate(words) if word == "--without"]
    given = [word for at, word in enumerate(words) if word != "--without" and words[at - 1] != "--without"]
    unit, uid = Path(given[0]).read_text(), given[1]
    import socket

    calls = {
        "calls": sorted(system_calls(unit)),
        "families": [int(getattr(socket, name)) for name in setting(unit, "RestrictAddressFamilies")],
        "deny_write_execute": setting(unit, "MemoryDenyWriteExecute") == ["yes"],
    }
    capabilities = [name for name in setting(unit, "AmbientCapabilities") if name not in dropped]
    assert sorted(setting(unit, "AmbientCapabilities")) == sorted(setting(unit, "CapabilityBoundingSet"))
    assert setting(unit, "NoNewPrivileges") == ["yes"]
    few = ",".join(["-all", *(f"+{name.lower().removeprefix('cap_')}" for name in capabilities)])
    confine_files([Path(each) for each in given[2:]], int(uid))
    setpriv = ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "--no-new-privs"]
    setpriv += ["--inh-caps", few, "--ambient-caps", few, "--bounding-set", few, "--"]
    os.execvp(setpriv[0], [*setpriv, sys.executable, __file__, "--calls", json.dumps(calls), "--", *command])


if __name__ == "__main__":
    main()
