"""``revproxyctl`` and ``revproxyd`` without the half second that a Python process takes to import them.

A process that has imported everything forks for each run; the fork enters the network namespace, takes the
environment and the streams it is given, and calls the program's ``main``. So the run is a process of its own like any
other. What is not tried that way (the installed scripts, a bare start-up) is in ``test_commands`` and the demo, which
start them as a user does.

As ``multiprocessing``'s own fork server does it, which however can hand over neither streams nor a namespace.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import os
import pickle
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MAINS = {"revproxyctl": "reconciler.cli", "revproxyd": "reconciler.daemon"}
CLONE_NEWNET = 0x40000000
LONGEST_REQUEST = 1 << 16
STATUS_BYTES = 4


@dataclass(frozen=True)
class Request:
    """What to run: one of :data:`MAINS` and its arguments, in a network namespace, in this environment."""

    argv: tuple[str, ...]
    namespace: Path
    env: dict[str, str]
    cwd: str
    new_session: bool = False


class Run:
    """A program that was started. ``pid`` is its process id; ``status`` as :class:`subprocess.Popen` has it."""

    def __init__(self, request: Request, stdout: int, stderr: int) -> None:
        self._link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.connect(_address())
        streams = array.array("i", [stdout, stderr])
        self._link.sendmsg([pickle.dumps(request)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        self.pid = self._number()
        self._status: int | None = None

    def _number(self) -> int:
        data = self._link.recv(STATUS_BYTES)
        assert data, "the fork server has ended"
        return int.from_bytes(data, sys.byteorder, signed=True)

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status. Raises :class:`subprocess.TimeoutExpired`; the program goes on then."""
        if self._status is None:
            # Zero would mean not to block, which recv() tells by another error.
            self._link.settimeout(timeout and max(timeout, 0.001) if timeout else timeout)
            try:
                self._status = self._number()
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0) from None
            self._link.close()
        return self._status

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def run(request: Request, *, timeout_sec: float) -> subprocess.CompletedProcess[str]:
    """Run it to its end. Raises :class:`subprocess.TimeoutExpired`; it is killed then."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        started = Run(request, stdout.fileno(), stderr.fileno())
        try:
            status = started.wait(timeout_sec)
        except subprocess.TimeoutExpired:
            os.kill(started.pid, signal.SIGKILL)
            raise
        texts = []
        for stream in (stdout, stderr):
            stream.seek(0)
            texts.append(stream.read().decode())
    return subprocess.CompletedProcess(request.argv, status, *texts)


@cache
def _address() -> bytes:
    """Where this process's fork server listens; it is started, and ends with this process."""
    name = b"\0revproxy-tests-%d-%s" % (os.getpid(), os.urandom(8).hex().encode())
    here, there = socket.socketpair()
    subprocess.Popen(
        [sys.executable, "-m", __name__, name[1:].decode(), str(there.fileno())],
        pass_fds=[there.fileno()],
        stdin=subprocess.DEVNULL,
    )
    there.close()
    assert here.recv(1), "the fork server did not start"
    _keep.append(here)
    return name


_keep: list[socket.socket] = []  # the server ends when it sees this closed


class Server:
    """The process that forks. It ends with the one that started it, its children don't."""

    def __init__(self, name: str, parent: socket.socket) -> None:
        self._selector = selectors.DefaultSelector()
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(b"\0" + name.encode())
        self._listening.listen(64)
        self._parent = parent
        self._links: dict[int, tuple[int, socket.socket]] = {}  # by the child's pidfd

    def serve(self) -> None:
        """Until the parent is gone."""
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(self._parent, selectors.EVENT_READ)
        self._parent.send(b"!")
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._parent:
                    return
                if key.fileobj is self._listening:
                    self._start()
                else:
                    self._reap(key.fd)

    def _start(self) -> None:
        link, _ = self._listening.accept()
        data, streams, _, _ = socket.recv_fds(link, LONGEST_REQUEST, 2)
        if not data:
            return
        pid = os.fork()
        if pid == 0:
            self._become(pickle.loads(data), streams)
        for stream in streams:
            os.close(stream)
        link.send(pid.to_bytes(STATUS_BYTES, sys.byteorder, signed=True))
        pidfd = os.pidfd_open(pid)
        self._links[pidfd] = pid, link
        self._selector.register(pidfd, selectors.EVENT_READ)

    def _reap(self, pidfd: int) -> None:
        pid, link = self._links.pop(pidfd)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(BrokenPipeError):
            link.send(status.to_bytes(STATUS_BYTES, sys.byteorder, signed=True))
        link.close()

    def _become(self, request: Request, streams: list[int]) -> None:
        """In the child: the program, from its first line to its exit status."""
        status = 1
        try:
            self._selector.close()
            for opened in (self._listening, self._parent, *(link for _, link in self._links.values())):
                opened.close()
            for pidfd in self._links:
                os.close(pidfd)
            if request.new_session:
                os.setsid()
            for place, stream in enumerate(streams, 1):
                os.dup2(stream, place)
                os.close(stream)
            _enter(request.namespace)
            os.chdir(request.cwd)
            os.environ.clear()
            os.environ.update(request.env)
            sys.argv = list(request.argv)
            status = _exit_status(MAINS[Path(request.argv[0]).name])
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)


def _exit_status(module: str) -> int:
    try:
        result = importlib.import_module(module).main()
    except SystemExit as end:
        result = end.code
    if isinstance(result, str):
        print(result, file=sys.stderr)
        return 1
    return int(result or 0)


def _enter(namespace: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with namespace.open() as file:
        if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(namespace))


def request(
    namespace: Path, argv: tuple[str | Path, ...], env: Mapping[str, str] | None, *, new_session: bool = False
) -> Request:
    """For this process's own environment and folder, with ``env`` added."""
    return Request(tuple(map(str, argv)), namespace, {**os.environ, **(env or {})}, str(Path.cwd()), new_session)


def main() -> None:
    """Import everything, then serve."""
    import reconciler

    for found in pkgutil.walk_packages(reconciler.__path__, "reconciler."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    gc.collect()
    gc.freeze()
    Server(sys.argv[1], socket.socket(fileno=int(sys.argv[2]))).serve()


if __name__ == "__main__":
    main()
