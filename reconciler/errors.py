"""Every exception this package raises on purpose.

A :class:`RevproxyError` is meant for a person: its text says what failed, on which object, and what the kernel
said. ``transient`` tells whether trying again without any change can help.
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

LIMITS: Final[Mapping[int, str]] = {
    _errno.EMFILE: "raise this process's limit of open files (ulimit -n)",
    _errno.ENFILE: "raise the system's limit of open files (sysctl fs.file-max)",
}
"""What to do about them, whoever met them."""

_PASSING: Final = (_errno.EAGAIN, _errno.EBUSY, _errno.EINTR, _errno.ENOMEM, _errno.EMFILE, _errno.ENFILE)


class RevproxyError(Exception):
    """Base of all. ``transient``: a retry may succeed although nothing was changed."""

    transient = False


class UsageError(RevproxyError):
    """What was asked for can't be meant: an address that is none, an order or a kind of event that there is not."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing wrong in the files. ``line`` and ``column`` start at 1; 0 means a directory, or no place
    in the file. An empty ``file``: no file is to blame.

    ``path`` is where in the document, as keys and indexes: ``proxies[0].listen.port``.
    """

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        if not self.file:
            return self.message
        if not self.line:
            return f"{self.file}: {self.message}"
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class ConfigError(RevproxyError):
    """The files do not make a configuration. ``problems`` holds all of them, sorted."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UnsignedError(ConfigError):
    """The files are not those of a commit with a good signature, and have to be (``--require-signed``)."""


class KernelError(RevproxyError):
    """The kernel refused. ``operation`` and ``subject`` say what was tried on what; ``detail`` is the kernel's
    own explanation (extended ack, verifier log) where it gave one."""

    def __init__(self, operation: str, subject: str, errno: int = 0, detail: str = "") -> None:
        self.operation, self.subject, self.errno, self.detail = operation, subject, errno, detail
        text = f"{operation} {subject}"
        if errno:
            text += f": {_errno.errorcode.get(errno, errno)}"
        for more in (detail, LIMITS.get(errno, "")):
            text += f": {more}" if more else ""
        super().__init__(text)

    @property
    def transient(self) -> bool:  # type: ignore[override]  # a class attribute in the base, computed here
        return self.errno in (*_PASSING, _errno.ENODEV)


class HostError(RevproxyError):
    """The operating system refused something with a file, or for lack of a resource. ``subject`` is the file, empty
    where none is known; ``remedy`` what to do next."""

    def __init__(self, subject: str, errno: int, detail: str, remedy: str = "") -> None:
        self.subject, self.errno, self.detail, self.remedy = subject, errno, detail, remedy
        super().__init__(": ".join(part for part in (subject, detail, remedy) if part))

    @property
    def transient(self) -> bool:  # type: ignore[override]  # as above
        return self.errno in _PASSING


class CompileError(RevproxyError):
    """The data plane did not compile; the text holds the compiler's messages."""


class ForeignProgramError(RevproxyError):
    """Somebody else's program is where ours would go, and the configuration does not allow a way around."""


class CapacityError(RevproxyError):
    """The configuration needs more proxies, targets, groups or routes than the maps hold."""


class CrowdedError(CapacityError):
    """There are more live connections than the configuration wants to track. They end some time."""

    transient = True


class LockedError(RevproxyError):
    """Another process of this instance holds the lock."""


class EditError(RevproxyError):
    """An edit of the files is not possible as asked for, or somebody else changed the file meanwhile."""


class StaleError(RevproxyError):
    """The live state is not the one the plan was made from."""


class TransactionError(RevproxyError):
    """A commit failed. ``cause`` is what failed; ``rolled_back`` whether the kernel was verified to be as before;
    ``residue`` lists what the undo could not take back."""

    def __init__(self, cause: Exception, *, rolled_back: bool, residue: Sequence[str] = ()) -> None:
        self.cause, self.rolled_back, self.residue = cause, rolled_back, tuple(residue)
        self.transient = isinstance(cause, RevproxyError) and cause.transient
        text = f"{cause}"
        text += "; rolled back" if rolled_back else "; roll-back incomplete: " + "; ".join(self.residue)
        super().__init__(text)


class MetricsError(RevproxyError):
    """Metrics are not served although they should be; what is applied is not concerned. It is tried again."""

    transient = True


class OverdueError(RevproxyError):
    """An unconfirmed commit is still in force although its time is up. Rolling it back is tried again."""

    transient = True


class UnfinishedError(RevproxyError):
    """A commit holds, packets see the new configuration, and clearing up behind it is not done yet. ``cause`` says why,
    if something failed; ``left`` names what still differs. It is tried again."""

    transient = True

    def __init__(self, revision: int, cause: RevproxyError | None, left: Sequence[str]) -> None:
        self.revision, self.cause, self.left = revision, cause, tuple(left)
        text = f"revision {revision} is applied, but clearing up behind it is not finished"
        if cause:
            text += f": {cause}"
        if self.left:
            text += "; still different: " + ", ".join(self.left)
        super().__init__(text + "; the next look at it tries again")


class NothingToConfirmError(RevproxyError):
    """There is no unconfirmed commit."""


class TestsFailedError(ConfigError):
    """Tests of the files do not hold."""

    __test__ = False  # no test itself, whatever pytest thinks of the name


class ProbeError(RevproxyError):
    """The programs do not do with packets what the configuration says. ``wrong``: the packets, what was expected and
    what came of them."""

    def __init__(self, wrong: Sequence[str]) -> None:
        self.wrong = tuple(wrong)
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        super().__init__(f"the probe failed: {wrong[0]}{more}")


class DaemonError(RevproxyError):
    """The daemon could not be reached or answered with an error."""


TOLD: Mapping[str, type[RevproxyError]] = {
    kind.__name__: kind
    for kind in (
        UsageError,
        CompileError,
        ForeignProgramError,
        CapacityError,
        LockedError,
        EditError,
        StaleError,
        NothingToConfirmError,
    )
}
"""Errors that are all text: by these names the daemon tells which one it was, so that it can be raised here."""
