"""Where the demonstration happens: a lab, a copy of the configuration, and command lines carried out as a user
would type them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from demonstration.screen import Screen
from netlab import PATIENCE, Lab, Namespace, wait_for
from netlab.process import Process

PROGRAMS = Path(sys.executable).parent
BPFFS = Path("/sys/fs/bpf")
PINS = "-demo"
COMMAND_SEC = 60.0  # times PATIENCE
READY_SEC = 40.0  # the same
_LOG_TAIL_LINES = 25

Host = Literal["client", "proxy"]
_PROMPTS: dict[Host, str] = {"client": "client$", "proxy": "proxy#"}


class StepFailed(Exception):
    """Something that a step claims did not hold; ``details`` help to find out why."""

    def __init__(self, what: str, details: str = "") -> None:
        super().__init__(what)
        self.details = details


class Stage:
    """The lab with one revproxy in it. Built with ``with``, and taken down at its end, whatever was on the way.

    ``config``: a directory of configuration files, of which a copy is used.
    """

    def __init__(self, screen: Screen, config: Path) -> None:
        self.screen, self.lab, self.config = screen, Lab(), config
        self.daemon: Process | None = None
        self.bpffs_dir = BPFFS / f"{self.lab.name}{PINS}"
        self._read_bytes = 0

    @property
    def directory(self) -> Path:
        """Where command lines are carried out."""
        return self.lab.directory

    @property
    def places(self) -> dict[str, str]:
        """The variables that tell both programs where this instance's files are."""
        return {
            "REVPROXY_CONFIG_DIR": str(self.directory / "config.d"),
            "REVPROXY_RUN_DIR": str(self.directory / "run"),
            "REVPROXY_STATE_DIR": str(self.directory / "state"),
            "REVPROXY_BPFFS_DIR": str(self.bpffs_dir),
            "REVPROXY_CACHE_DIR": os.environ.get("REVPROXY_CACHE_DIR", str(self.directory / "cache")),
        }

    def __enter__(self) -> Stage:
        remove_dead_pins()
        self.lab.open()
        try:
            shutil.copytree(self.config, self.directory / "config.d")
        except BaseException:
            self.lab.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.daemon is not None:
            self.daemon.kill()
        if self.bpffs_dir.exists():
            with contextlib.suppress(StepFailed):
                self._run("proxy", "revproxyctl down")
            shutil.rmtree(self.bpffs_dir, ignore_errors=True)  # in case `down` is what did not work
        self.lab.close()

    # -- command lines -----------------------------------------------------------------------------------------

    def client(self, line: str, *, status: int = 0) -> str:
        """Show a command line and what it prints, on the client; returns its standard output."""
        return self._show("client", line, status)

    def proxy(self, line: str, *, status: int = 0) -> str:
        """The same on the proxy host."""
        return self._show("proxy", line, status)

    def _show(self, host: Host, line: str, status: int) -> str:
        self.screen.command(_PROMPTS[host], line)
        result = self._run(host, line)
        self.screen.output(result.stdout)
        self.screen.output(result.stderr)
        if result.returncode != status:
            raise StepFailed(f"`{line}` ended with status {result.returncode}, not {status}", result.stderr)
        return result.stdout + result.stderr

    def ask(self, line: str) -> Any:
        """What a command on the proxy host says as JSON, without showing it. Its exit status does not matter."""
        result = self._run("proxy", f"{line} --output json")
        try:
            return json.loads(result.stdout)
        except ValueError as error:
            raise StepFailed(f"`{line} --output json` printed no JSON", result.stdout + result.stderr) from error

    def background(self, host: Host, line: str) -> Process:
        """Show a command line and start it; it goes on until it ends by itself or with the lab."""
        self.screen.command(_PROMPTS[host], f"{line} &")
        return self.lab.spawn(self._namespace(host), *_shell(line), **self._where(host))

    def _run(self, host: Host, line: str) -> subprocess.CompletedProcess[str]:
        try:
            where = self._where(host)
            return self._namespace(host).run(*_shell(line), check=False, timeout_sec=COMMAND_SEC, **where)
        except subprocess.TimeoutExpired as error:
            raise StepFailed(f"`{line}` did not end within {COMMAND_SEC * PATIENCE:g} s") from error

    def _namespace(self, host: Host) -> Namespace:
        return self.lab.client if host == "client" else self.lab.proxy

    def _where(self, host: Host) -> dict[str, Any]:
        path = {"PATH": f"{PROGRAMS}:{os.environ.get('PATH', os.defpath)}"}
        return {"cwd": self.directory, "env": path | self.places if host == "proxy" else path}

    # -- what must hold ----------------------------------------------------------------------------------------

    def verify(self, holds: object, text: str, details: object = "") -> None:
        """Say that something holds, or end the step: :class:`StepFailed` with ``details``."""
        if not holds:
            raise StepFailed(f"not so: {text}", str(details))
        self.screen.verified(text)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait until ``condition`` is true; :class:`StepFailed` if that takes too long."""
        try:
            wait_for(condition, what, timeout_sec=READY_SEC)
        except TimeoutError as error:
            raise StepFailed(str(error)) from error

    # -- the daemon --------------------------------------------------------------------------------------------

    def start_daemon(self) -> Process:
        """``revproxyd`` in the background."""
        self.daemon, self._read_bytes = self.background("proxy", "revproxyd"), 0
        return self.daemon

    def wait_log(self, event: str) -> None:
        """Wait until the daemon has logged ``event`` since this was last called, and show what it has logged."""
        daemon = self.daemon
        if daemon is None:
            raise StepFailed("revproxyd was not started")
        fresh = ""

        def logged() -> bool:
            nonlocal fresh
            ended = daemon.status  # before reading, so that its last words count
            fresh = daemon.output()[self._read_bytes :]
            if event not in fresh and ended is not None:
                raise StepFailed(f"revproxyd ended with status {ended} before it logged {event}")
            return event in fresh and fresh.endswith("\n")

        self.wait(logged, f"{event} in the log of revproxyd")
        self._read_bytes += len(fresh)
        self.screen.output(fresh)

    def daemon_log(self) -> str:
        """The end of what the daemon has logged."""
        if self.daemon is None or not self.daemon.log.exists():
            return "revproxyd was not started"
        lines = self.daemon.output().splitlines()[-_LOG_TAIL_LINES:]
        state = "runs" if self.daemon.status is None else f"ended with status {self.daemon.status}"
        return "\n".join([f"revproxyd {state}; the end of its log:", *lines])


def _shell(line: str) -> tuple[str, ...]:
    return "bash", "-o", "pipefail", "-c", line


def remove_dead_pins() -> None:
    """Take away what a demonstration left that was killed before it could. Its lab is taken down by the next one."""
    for directory in BPFFS.glob(f"rplab*{PINS}"):
        pid = directory.name.removeprefix("rplab").partition("x")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(directory, ignore_errors=True)
