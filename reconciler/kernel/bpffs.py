"""Where pins live: finding the bpffs, mounting one where there is none, and giving it back.

Pins must outlive the process, so a bpffs is mounted in the mount namespace of the *witness*: process 1 or, where it
lets nobody look (a container whose process 1 has more capabilities), the eldest ancestor that does, or else anybody
with the same root directory who sees a bpffs. ``ip netns exec`` mounts a new /sys, under which /sys/fs/bpf is empty:
then the pins are reached through the witness's /proc/PID/root.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.errors import KernelError
from reconciler.kernel.gateway import Gateway
from reconciler.trouble import explained

COMMON: Final = Path("/sys/fs/bpf")
"""The mount point that everybody shares. Mounted if missing, never unmounted."""

SOURCE: Final = "revproxy"
"""What a bpffs that is ours names as its source in the mount table."""

_KERNELS_OWN: Final = ("maps.debug", "progs.debug")  # in the root of every bpffs
_THROUGH_A_WITNESS: Final = re.compile(r"/proc/[^/]+/root(/.*)")
_OCTAL: Final = {r"\040": " ", r"\011": "\t", r"\012": "\n", r"\134": "\\"}


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of a mount table."""

    point: Path
    type: str
    source: str


def mounts(process: str = "self") -> list[Mount]:
    """The mount table of a process, as ``/proc/<process>/mountinfo`` gives it; later entries hide earlier ones."""
    table = []
    for line in os.fsdecode(Path(f"/proc/{process}/mountinfo").read_bytes()).rstrip("\n").split("\n"):
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4]
        for octal, character in _OCTAL.items():
            point = point.replace(octal, character)
        kind, source = after.split(" ")[:2]
        table.append(Mount(Path(point), kind, source))
    return table


def mount_of(path: Path, process: str = "self") -> Mount:
    """The mount that ``path`` (absolute, existing or not) lies on, as that process sees it."""
    best = Mount(Path("/"), "", "")
    for mount in mounts(process):
        if (path == mount.point or mount.point in path.parents) and len(mount.point.parts) >= len(best.point.parts):
            best = mount
    return best


def witness() -> str:
    """The process whose mount namespace counts, as its number; "self" if nobody lets us look."""
    for process in _elders():
        try:
            Path(f"/proc/{process}/ns/mnt").stat()
            Path(f"/proc/{process}/root/").stat()
        except OSError:
            continue
        return process
    return _bystander() or "self"


def _elders() -> list[str]:
    return ["1", *reversed(_ancestors())]


def _bystander() -> str | None:
    """The process with the lowest number that shows the pins: for who has lost the ancestors that let us look
    (started in the background by a script that has ended)."""
    for process in sorted(filter(str.isdecimal, os.listdir("/proc")), key=int):  # noqa: PTH208
        try:
            if shows_pins(process):
                return process
        except OSError:
            continue  # it has ended, or does not let us look
    return None


def shows_pins(process: str) -> bool:
    """Whether a process sees a bpffs at the common place, and sees what we see: it has our root directory and our user
    namespace. (In one of their own unprivileged users mount what they like.) Raises :class:`OSError`."""
    ours = all(
        os.path.samestat(Path(f"/proc/{process}/{what}").stat(), Path(f"/proc/self/{what}").stat())
        for what in ("root/", "ns/user")
    )
    return ours and mount_of(COMMON, process).type == "bpf"


def _ancestors() -> list[str]:
    """Our parent, its parent and so on."""
    found: list[str] = []
    process = "self"
    while True:
        try:
            status = Path(f"/proc/{process}/status").read_bytes()
        except OSError:
            return found
        process = next((line[5:].strip().decode() for line in status.split(b"\n") if line.startswith(b"PPid:")), "0")
        if process == "0":
            return found
        found.append(process)


def locate(directory: Path) -> Path | None:
    """The path by which this process reaches ``directory`` on a bpffs: itself, or through the witness. None if
    neither of them sees a bpffs there. Raises :class:`KernelError` if there is one and this process may not use it."""
    if (mount := mount_of(directory)).type == "bpf":
        return _usable(directory, directory, mount)
    process = witness()
    try:
        mount = mount_of(directory, process)
    except OSError:
        return None
    if process == "self" or mount.type != "bpf":
        return None
    return _usable(Path(f"/proc/{process}/root") / directory.relative_to("/"), directory, mount)


def as_named(reached: Path) -> Path:
    """The directory that :func:`locate` was asked for, of the path that it gave: the same for everybody, from whichever
    mount namespace and through whichever witness they reach it."""
    found = _THROUGH_A_WITNESS.match(str(reached))
    return Path(found[1]) if found else reached


def _usable(found: Path, directory: Path, mount: Mount) -> Path:
    """``found``, by which ``directory`` is reached, once it is known that this process may look into it."""
    _check_names(directory, mount.point)
    try:
        for each in (found, *(path for path in found.iterdir() if path.is_dir())):
            os.scandir(each).close()
    except FileNotFoundError:
        return found  # it is made when it is needed, or goes just now
    except OSError as error:
        trouble = explained(error)
        raise KernelError("use", str(directory), error.errno or 0, str(trouble)) from error
    return found


def mount_point_for(directory: Path) -> Path:
    """Where a bpffs is mounted for ``directory`` if there is none."""
    return COMMON if COMMON in (directory, *directory.parents) else directory


def provide(directory: Path, gateway: Gateway | None = None) -> Path:
    """The path to use for ``directory``, after mounting a bpffs if there is none: at /sys/fs/bpf if it is below,
    else at the directory itself. Raises :class:`KernelError`."""
    gateway = gateway or Gateway()
    if (found := locate(directory)) is None:
        point = mount_point_for(directory)
        gateway.call("mount", str(point), lambda: _mount(point))
        found = locate(directory)
    if found is None:
        raise KernelError("mount", str(directory), detail="mounted a bpffs, but it is not to be seen")
    return found


def release(directory: Path, gateway: Gateway | None = None) -> None:
    """After ``down``: remove ``directory`` if it is empty, or unmount the bpffs that :func:`provide` mounted there.

    What others put into it stays, and with it the directory or mount.
    """
    gateway = gateway or Gateway()
    found = locate(directory)
    if found is None or not found.is_dir() or any(path.name not in _KERNELS_OWN for path in found.iterdir()):
        return
    mount = mount_of(directory, _seen_by(directory, found))
    if mount.point != directory:
        gateway.call("remove directory", str(directory), found.rmdir)
    elif mount.source == SOURCE and directory != COMMON:
        gateway.call("unmount", str(directory), lambda: _run("umount", str(directory)))


def _seen_by(directory: Path, found: Path) -> str:
    return "self" if found == directory else found.parts[2]


def _check_names(directory: Path, point: Path) -> None:
    """The kernel refuses names with a dot in them on a bpffs, with a bare EPERM."""
    for part in directory.relative_to(point).parts:
        if "." in part:
            raise KernelError(
                "use", str(directory), detail=f'a bpffs takes no names with a dot in them, such as "{part}"'
            )


def _mount(point: Path) -> None:
    """Over a directory of others' files it would hide them, and not from us alone."""
    if is_occupied(point):
        raise KernelError(
            "mount a bpffs on",
            str(point),
            detail="the directory is not empty: name one that is, or one below /sys/fs/bpf (--bpffs-dir)",
        )
    _run("mkdir", "-p", str(point))
    _run("mount", "-t", "bpf", "-o", "mode=0700", "bpf" if point == COMMON else SOURCE, str(point))


def is_occupied(point: Path) -> bool:
    """Whether a directory holds files, as the witness sees it, which a bpffs there would hide. False too if there is
    none, and for the common place, which is made for that. Raises :class:`KernelError` if it can't be a directory."""
    if point == COMMON:
        return False
    process = witness()
    there = point if process == "self" else Path(f"/proc/{process}/root") / point.relative_to("/")
    try:
        return any(there.iterdir())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise KernelError("mount a bpffs on", str(point), error.errno or 0, str(explained(error))) from error


def _run(*command: str) -> None:
    """Run a command in the witness's mount namespace."""
    process = witness()
    elsewhere = not Path("/proc/self/ns/mnt").samefile(f"/proc/{process}/ns/mnt")
    prefix = ("nsenter", f"--mount=/proc/{process}/ns/mnt", "--") if elsewhere else ()
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(command[0], command[-1], detail=done.stderr.strip())
