"""Programs in the background, tied to what started them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from netlab.wait import PATIENCE, wait_for


class Process:
    """A started program with a session of its own, so that it can be ended with its children.

    ``log`` is the file that its stdout and stderr go to.
    """

    def __init__(
        self, argv: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.argv, self.log = tuple(argv), log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id, which is also its group's."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    def wait_output(self, text: str, *, timeout_sec: float = 10.0) -> None:
        """Wait until it has printed ``text``. Raises :class:`RuntimeError` with its output if it ends before."""

        def printed() -> bool:
            ended = self.status is not None  # before reading, so that its last words count
            if text in self.output():
                return True
            if ended:
                raise RuntimeError(f"{' '.join(self.argv)} ended with status {self.status}:\n{self.output()}")
            return False

        wait_for(printed, f"{text!r} from {self.argv}", timeout_sec=timeout_sec)

    def send(self, number: int) -> None:
        """Send a signal to the program alone; nothing happens if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def wait(self, *, timeout_sec: float = 10.0) -> int:
        """Wait for its end and return its status."""
        return self._process.wait(timeout_sec * PATIENCE)

    def stop(self, *, timeout_sec: float = 10.0) -> int:
        """SIGTERM, then SIGKILL to its group if it hasn't ended in time; returns its status."""
        self.send(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_sec * PATIENCE)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL to it and whatever it started in its session; returns its status."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return self._process.wait()
