"""What an error of the operating system tells a person, where no code nearer to it knew a better word.

A full disk, a directory of another user, a limit of this process are the host's troubles, not mistakes of ours: they
are told like any other failure, not as internal errors.
"""

from __future__ import annotations

import errno
import os
import pwd
from pathlib import Path
from typing import Final

from reconciler.errors import LIMITS, HostError, RevproxyError

EXPLAINED: Final = (RevproxyError, OSError)
"""What :func:`explained` takes."""

_REMEDIES: Final = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or raise the quota",
    errno.EROFS: "mount it writable, or name another place",
    **LIMITS,
    errno.ENOTDIR: "a part of the path is a file: name another place",
    errno.EFBIG: "raise this process's limit of file sizes (ulimit -f)",
}


def explained(error: RevproxyError | OSError) -> RevproxyError:
    """The error as one that is meant for a person: the file, the system's words, what to do next."""
    if isinstance(error, RevproxyError):
        return error
    return HostError(_object(error), error.errno or 0, error.strerror or str(error), _remedy(error))


def _object(error: OSError) -> str:
    names = [os.fsdecode(each) for each in (error.filename, error.filename2) if isinstance(each, (str, bytes))]
    return " -> ".join(names)


def _remedy(error: OSError) -> str:
    number = error.errno or 0
    if number in (errno.EACCES, errno.EPERM) and isinstance(error.filename, str):
        return _permission(Path(error.filename))
    return _REMEDIES.get(number, "")


def _permission(path: Path) -> str:
    """Whose the nearest thing is that can be looked at, and who we are."""
    for each in (path, *path.parents):
        try:
            owner = each.stat().st_uid
        except OSError:
            continue
        if owner == os.geteuid() or os.geteuid() == 0:
            return ""
        return (
            f"{each} is {_name(owner)}'s, and this process runs as {_name(os.geteuid())}: run it as that user or root"
        )
    return ""


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
