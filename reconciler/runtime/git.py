"""Which git commit the configuration directory is at, without git's settings being touched."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.runtime.snapshot import is_config_file

_TIMEOUT_SEC: Final = 5.0
_UNIT: Final = "\x1f"

# The work tree may belong to another user, and we may be root: nothing that its settings name may run. So no command
# that hooks, filters, fsmonitor, signatures or a promisor remote have a part in, and those turned off all the same.
_SETTINGS: Final[Mapping[str, str]] = {
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


def commit_of(directory: Path, contents: Mapping[str, bytes]) -> Commit | None:
    """The commit of the work tree that contains ``directory``; None outside of one or without git.

    ``contents`` are the configuration files as they were read, by name: they are compared with the commit's.
    """
    real = os.path.realpath(directory)
    described = _git(real, "log", "-1", f"--format=%H{_UNIT}%an{_UNIT}%s")
    tree = _git(real, "ls-tree", "-z", "HEAD")
    if described is None or tree is None or described.count(_UNIT) != 2:
        return None
    identity, author, subject = described.rstrip("\n").split(_UNIT)
    return Commit(identity if _clean(tree, contents) else f"{identity}-dirty", author, subject)


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
    return all(_blob_id(contents[name], len(identity)) == identity for name, identity in committed.items())


def _blob_id(content: bytes, digits: int) -> str:
    """The object id git gives to a file's content (gitformat-pack(5)); 40 digits: SHA-1, else SHA-256."""
    digest = hashlib.sha1(usedforsecurity=False) if digits == 40 else hashlib.sha256()
    digest.update(b"blob %d\0" % len(content) + content)
    return digest.hexdigest()


def _git(directory: str, *arguments: str) -> str | None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "LC_ALL": "C.UTF-8",
    }
    environment["GIT_CONFIG_COUNT"] = str(len(_SETTINGS))
    for number, (key, value) in enumerate(_SETTINGS.items()):
        environment[f"GIT_CONFIG_KEY_{number}"], environment[f"GIT_CONFIG_VALUE_{number}"] = key, value
    try:
        done = subprocess.run(
            ["git", "-C", directory, *arguments],
            capture_output=True,
            timeout=_TIMEOUT_SEC,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
