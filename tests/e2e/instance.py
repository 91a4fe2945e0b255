"""One revproxy in a lab's proxy host: its places, its programs, its files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from netlab import PATIENCE, Lab, wait_for
from netlab.process import Process
from tests.e2e import forkserver

PROGRAMS = Path(sys.executable).parent


class _Forked(Process):
    """A program in the background that the fork server started."""

    def __init__(self, request: forkserver.Request, log: Path) -> None:
        self.argv, self.log = request.argv, log
        with log.open("ab") as output:
            self._process = forkserver.Run(request, output.fileno(), output.fileno())  # type: ignore[assignment]


class Instance:
    """``revproxyd`` and ``revproxyctl`` with four places of their own. Use with ``with``: it is taken down at the end,
    and nothing may be left then."""

    def __init__(self, lab: Lab, name: str = "main", *, forked: bool = True) -> None:
        """``forked`` False: start the programs as they are installed, which takes half a second each, but is what a
        user has."""
        self.lab, self._forked = lab, forked
        base = lab.directory / name
        self.config_dir, self.run_dir, self.state_dir = base / "config.d", base / "run", base / "state"
        self.bpffs_dir = Path("/sys/fs/bpf") / f"{lab.name}-{name}"
        self.config_dir.mkdir(parents=True)
        self.env = {
            **os.environ,
            "REVPROXY_CONFIG_DIR": str(self.config_dir),
            "REVPROXY_RUN_DIR": str(self.run_dir),
            "REVPROXY_STATE_DIR": str(self.state_dir),
            "REVPROXY_BPFFS_DIR": str(self.bpffs_dir),
        }
        self.daemon: Process | None = None

    def __enter__(self) -> Instance:
        return self

    def __exit__(self, *_: object) -> None:
        if self.daemon and self.daemon.status is None:
            self.stop_daemon()
        self.ctl("down")
        self.lab.assert_clean(self.bpffs_dir)

    def write(self, text: str, name: str = "web.yaml") -> Path:
        """Write a configuration file the way editors do, by renaming."""
        path = self.config_dir / name
        draft = path.with_name(f".{name}.draft")
        draft.write_text(text)
        draft.rename(path)
        return path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """``revproxyctl`` in the proxy host, whatever its exit status."""
        if self._anew:
            command = self.lab.proxy.command(PROGRAMS / "revproxyctl", *words)
            return subprocess.run(
                command, env=self.env, capture_output=True, text=True, timeout=120 * PATIENCE, check=False
            )
        request = forkserver.request(self.lab.proxy.path, ("revproxyctl", *words), self.env)
        return forkserver.run(request, timeout_sec=120 * PATIENCE)

    @property
    def _anew(self) -> bool:
        """The programs are to be started anew, or to be made of other code than the fork server has imported."""
        return not self._forked or self.env.get("PYTHONPATH") != os.environ.get("PYTHONPATH")

    def ctl(self, *words: str, status: int = 0) -> str:
        """``revproxyctl``, which must end with this status; its standard output."""
        result = self.run(*words)
        assert result.returncode == status, f"revproxyctl {words}: {result.returncode}\n{result.stdout}{result.stderr}"
        assert "Traceback" not in result.stderr
        return result.stdout

    def json(self, *words: str, status: int | None = None) -> Any:
        """``revproxyctl --output json``, parsed."""
        result = self.run(*words, "--output", "json")
        assert status is None or result.returncode == status, f"{words}: {result.returncode}\n{result.stderr}"
        try:
            return json.loads(result.stdout)
        except ValueError as error:
            raise AssertionError(f"{words}: no JSON: {result.stdout!r} {result.stderr!r}") from error

    def apply(self, text: str | None = None, name: str = "web.yaml") -> None:
        """Write the file, and apply."""
        if text is not None:
            self.write(text, name)
        self.ctl("apply", "--yes")

    def start_daemon(self, *words: str, ready: bool = True) -> Process:
        """``revproxyd``; returns once its status is there, and Synced if ``ready``."""
        command = ("revproxyd", "--log-format", "json", *words)
        if self._anew:
            daemon = self.lab.spawn(self.lab.proxy, PROGRAMS / command[0], *command[1:], env=self.env)
        else:
            request = forkserver.request(self.lab.proxy.path, command, self.env, new_session=True)
            daemon = _Forked(request, self.lab.directory / f"{len(self.lab.processes)}-revproxyd.log")
            self.lab.processes.append(daemon)
        self.daemon = daemon
        socket = self.run_dir / "revproxyd.sock"
        wait_for(lambda: socket.exists() or daemon.status is not None, "revproxyd's socket", timeout_sec=30)
        assert daemon.status is None, f"revproxyd ended: {daemon.status}\n{daemon.output()}"
        if ready:
            self.wait_synced()
        return self.daemon

    def wait_synced(self, timeout_sec: float = 60) -> None:
        """Until ``status`` says Synced and ``diff`` finds nothing."""
        said: list[str] = []

        def synced() -> bool:
            said[:] = [done.stdout + done.stderr for done in (self.run("status"), self.run("diff")) if done.returncode]
            return not said

        try:
            wait_for(synced, "Synced", timeout_sec=timeout_sec)
        except TimeoutError as error:
            log = self.daemon.output() if self.daemon else "no daemon"
            raise TimeoutError("\n".join([str(error), *said, log])) from None

    def stop_daemon(self, number: int = signal.SIGTERM) -> int:
        """End the daemon; its exit status."""
        assert self.daemon is not None
        self.daemon.send(number)
        return self.daemon.wait(timeout_sec=20)


def web(
    *targets: str, extra: str = "", port: int = 80, protocol: str = "tcp", name: str = "web", settings: str = ""
) -> str:
    """A file with one proxy on ``eth0``. ``targets``: ``IP:PORT`` or ``[IP6]:PORT``; ``extra``: more lines of the
    proxy; ``settings``: a flow mapping."""
    lines = ["apiVersion: revproxy/v1"]
    if settings:
        lines.append(f"settings: {settings}")
    lines += [
        "proxies:",
        f"  - name: {name}",
        f"    listen: {{interfaces: [eth0], port: {port}, protocol: {protocol}}}",
        "    default_target:",
    ]
    for target in targets:
        ip, _, target_port = target.rpartition(":")
        lines.append(f'      - {{ip: "{ip.strip("[]")}", port: {target_port}}}')
    lines += [f"    {line}" for line in extra.splitlines()]
    return "\n".join(lines) + "\n"
