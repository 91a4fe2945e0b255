"""The four places of an instance on this host, what lies in them, and the lock that keeps two writers apart."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.errors import LockedError, RevproxyError

CONFIG_DIR: Final = Path("/etc/revproxy/config.d")
RUN_DIR: Final = Path("/run/revproxy")
STATE_DIR: Final = Path("/var/lib/revproxy")
BPFFS_DIR: Final = Path("/sys/fs/bpf/revproxy")

VARIABLES: Final[Mapping[str, str]] = {
    "config_dir": "REVPROXY_CONFIG_DIR",
    "run_dir": "REVPROXY_RUN_DIR",
    "state_dir": "REVPROXY_STATE_DIR",
    "bpffs_dir": "REVPROXY_BPFFS_DIR",
}
"""The environment variable that names each place."""

READ_SOCKET: Final = "revproxyd-read.sock"
READ_GROUP: Final = "REVPROXY_READ_GROUP"
"""The environment variable of ``--read-group``."""

REQUIRE_SIGNED: Final = "REVPROXY_REQUIRE_SIGNED"
"""The environment variable of ``--require-signed``: files, separated by colons."""

# The kernel allows 108 bytes for the path of a unix socket, the closing zero included.
SOCKET_PATH_BYTES: Final = 107


@dataclass(frozen=True, slots=True)
class Places:
    """Where an instance keeps its things. Instances with different places run side by side.

    ``require_signed``: whose signatures the files need, see :mod:`reconciler.runtime.signed`; empty: none.
    """

    config_dir: Path = CONFIG_DIR
    run_dir: Path = RUN_DIR
    state_dir: Path = STATE_DIR
    bpffs_dir: Path = BPFFS_DIR
    require_signed: tuple[Path, ...] = ()

    @classmethod
    def choose(
        cls,
        options: Mapping[str, Path | None],
        environ: Mapping[str, str] = os.environ,
        *,
        require_signed: Sequence[Path] = (),
    ) -> Places:
        """The places by option, else by environment variable, else by default; made absolute.

        ``options`` is keyed like the fields; a missing or None entry means the option was not given.
        """
        chosen = {}
        for place, variable in VARIABLES.items():
            value = options.get(place)
            if value is None and environ.get(variable):
                value = Path(environ[variable])
            if value is not None:
                chosen[place] = Path(os.path.abspath(value))  # noqa: PTH100  # resolve() would follow symlinks
        keyrings = require_signed or [Path(each) for each in environ.get(REQUIRE_SIGNED, "").split(os.pathsep) if each]
        signed = tuple(Path(os.path.abspath(each)) for each in keyrings)  # noqa: PTH100  # as above
        return cls(**chosen, require_signed=signed)

    @property
    def socket(self) -> Path:
        """The daemon's unix socket."""
        return self.run_dir / "revproxyd.sock"

    @property
    def read_socket(self) -> Path:
        """The daemon's unix socket for those who may only read."""
        return self.socket.with_name(READ_SOCKET)

    @property
    def pid(self) -> Path:
        """The daemon's process id, as text."""
        return self.run_dir / "revproxyd.pid"

    @property
    def lock(self) -> Path:
        """Locked by whoever may change the kernel: the daemon all its life, the command line for one change."""
        return self.run_dir / "lock"

    @property
    def last_good(self) -> Path:
        """Copy of the files of the last configuration that was applied."""
        return self.state_dir / "last-good"

    @property
    def history(self) -> Path:
        """One line of JSON for each revision, applied or refused."""
        return self.state_dir / "history.jsonl"

    @property
    def revisions(self) -> Path:
        """The files of each applied revision, in a directory of its number."""
        return self.state_dir / "revisions"

    @property
    def control(self) -> Path:
        """What was said to the reconciler and outlives it: suspended, held files, a commit to be confirmed."""
        return self.state_dir / "control.json"

    def prepare_run_dir(self) -> None:
        """Make the run directory. Raises :class:`RevproxyError` if it can't be made or its path is too long."""
        if len(os.fsencode(self.read_socket)) > SOCKET_PATH_BYTES:
            raise RevproxyError(
                f"--run-dir {self.run_dir}: too long for a unix socket (the kernel allows {SOCKET_PATH_BYTES} bytes"
                f" for {self.read_socket})"
            )
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
        except OSError as error:
            raise RevproxyError(f"--run-dir {self.run_dir}: {error.strerror}") from error


@contextmanager
def instance_lock(places: Places, *, wait_sec: float = 0.0) -> Iterator[None]:
    """Hold the instance's lock, which the kernel takes back when the process ends, however it ends.

    Waits up to ``wait_sec`` for another holder; raises :class:`LockedError` if it is still there then. The file
    stays: removing it would let two processes hold locks on two files of one name.
    """
    places.prepare_run_dir()
    try:
        descriptor = os.open(places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RevproxyError(f"{places.lock}: {error.strerror}") from error
    try:
        _take(descriptor, places, wait_sec)
        with suppress(OSError):  # on a full disk: who holds it is for messages only, and `down` has to work there too
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, places: Places, wait_sec: float) -> None:
    deadline = time.monotonic() + wait_sec
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                raise RevproxyError(f"{places.lock}: {error.strerror}") from error
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                raise LockedError(
                    f"{places.run_dir} is in use by process {holder}: another revproxyd, or a command at work"
                ) from None
            time.sleep(0.05)
        else:
            return
