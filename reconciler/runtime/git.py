"""Which git commit the configuration directory is at, without git's settings being touched."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.runtime.snapshot import index_lock, is_config_file

_TIMEOUT_SEC: Final = 5.0
_UNIT: Final = "\x1f"
_DIRTY: Final = "-dirty"
NO_GIT: Final = 127
"""The exit status of :func:`run` where git can't be started, or does not end."""

# The work tree may belong to another user, and we may be root: nothing that its settings name may run. So no command
# that hooks, filters, fsmonitor, signatures or a promisor remote have a part in, and those turned off all the same.
SETTINGS: Final[Mapping[str, str]] = {
    "safe.directory": "*",
    "core.fsmonitor": "false",
    "core.hooksPath": "/dev/null",
    "log.showSignature": "false",
    "protocol.allow": "never",
}


@dataclass(frozen=True, slots=True)
class Commit:
    """The commit checked out. ``id`` ends in -dirty if the directory's files are not the commit's."""

    id: str
    author: str
    subject: str

    @property
    def dirty(self) -> bool:
        """The files are not the commit's."""
        return self.id.endswith(_DIRTY)


def commit_of(directory: Path, contents: Mapping[str, bytes]) -> Commit | None:
    """The commit of the work tree that contains ``directory``; None outside of one or without git.

    ``contents`` are the configuration files as they were read, by name: they are compared with the commit's.
    """
    if git_directory(directory) is None:
        return None
    real = os.path.realpath(directory)
    described = _git(real, "log", "-1", f"--format=%H{_UNIT}%an{_UNIT}%s")
    tree = _git(real, "ls-tree", "-z", "HEAD")
    if described is None or tree is None or described.count(_UNIT) != 2:
        return None
    identity, author, subject = described.rstrip("\n").split(_UNIT)
    return Commit(identity if _clean(tree, contents) else f"{identity}{_DIRTY}", author, subject)


def commit_time(directory: Path) -> float | None:
    """When the commit checked out around ``directory`` was made, in seconds since the epoch by the committer's clock;
    None outside of a work tree or without git."""
    found = _git(os.path.realpath(directory), "log", "-1", "--format=%ct")
    return float(found) if found and found.strip().isdigit() else None


def _clean(tree: str, contents: Mapping[str, bytes]) -> bool:
    """The files are those that ``git ls-tree`` lists. What a symlink leads to is not git's business here."""
    committed: dict[str, str] = {}
    links = set()
    for line in tree.split("\0"):
        described, _, name = line.partition("\t")
        if is_config_file(name):
            mode, kind, identity = described.split()
            if mode == "120000":
                links.add(name)
            elif kind == "blob":
                committed[name] = identity
    if committed.keys() != contents.keys() - links:
        return False
    return all(object_id("blob", contents[name], len(identity)) == identity for name, identity in committed.items())


def object_id(kind: str, content: bytes, digits: int) -> str:
    """The id that git gives to an object (gitformat-pack(5)); 40 digits: SHA-1, else SHA-256."""
    digest = hashlib.sha1(usedforsecurity=False) if digits == 40 else hashlib.sha256()
    digest.update(b"%s %d\0" % (kind.encode(), len(content)) + content)
    return digest.hexdigest()


def git_directory(directory: Path) -> Path | None:
    """The git directory of the work tree that contains ``directory``; None outside of one.

    Follows symlinks, and the ``.git`` files of linked work trees and submodules (gitrepository-layout(5)).
    """
    lock = index_lock(directory)
    return lock.parent if lock else None


def _git(directory: str, *arguments: str) -> str | None:
    done = run(("-C", directory, *arguments))
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def run(
    arguments: Sequence[str],
    *,
    settings: Mapping[str, str] = SETTINGS,
    environment: Mapping[str, str] | None = None,
    given: bytes = b"",
    timeout_sec: float = _TIMEOUT_SEC,
) -> subprocess.CompletedProcess[bytes]:
    """``git`` with these settings above all others, ``environment`` on top of what it needs, and ``given`` on its
    standard input. Exit status :data:`NO_GIT` if it can't be started or takes too long."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env |= {
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_COUNT": str(len(settings)),
        **(environment or {}),
    }
    for number, (key, value) in enumerate(settings.items()):
        env[f"GIT_CONFIG_KEY_{number}"], env[f"GIT_CONFIG_VALUE_{number}"] = key, value
    try:
        return subprocess.run(
            ["git", *arguments], input=given, capture_output=True, timeout=timeout_sec, env=env, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess([], NO_GIT, b"", str(error).encode())
