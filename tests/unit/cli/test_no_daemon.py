"""``revproxyctl`` where there is nobody to ask: no daemon, no root, a socket that nobody listens on, that one may not
open, or behind which nothing moves. A word on it, and the exit status that the command has for trouble."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.api.client import DaemonClient
from reconciler.cli import app
from tests.clirunner import CliRunner

COMMANDS: dict[tuple[str, ...], int] = {
    ("status",): 1,
    ("diff",): 2,
    ("plan",): 2,
    ("plan", "--detailed-exitcode"): 1,
    ("apply", "--yes"): 1,
    ("confirm",): 1,
    ("rollback",): 1,
    ("test",): 1,
    ("stats",): 1,
    ("history",): 1,
    ("connections",): 1,
    ("connections", "--count"): 1,
    ("connections", "flush", "--all"): 1,
    ("events",): 1,
    ("drain", "10.0.0.1:80"): 1,
    ("undrain", "10.0.0.1:80"): 1,
    ("explain", "--from", "10.0.0.1", "--to", "10.0.0.2:80"): 1,
    ("suspend",): 1,
    ("resume",): 1,
    ("interfaces",): 1,
    ("down",): 1,
    ("target", "weight", "web", "10.0.0.1:80", "3"): 1,
}
"""Commands, and how they end where something is wrong."""

WEB = """\
apiVersion: revproxy/v1
proxies: [{name: web, listen: {interfaces: [eth0], port: 80}, default_target: {ip: 10.0.0.1, port: 80}}]
"""


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory that everybody may look into, with a run directory and files in it."""
    with tempfile.TemporaryDirectory(prefix="rp-none-", dir="/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        for each in ("run", "config.d", "state"):
            (path / each).mkdir()
        (path / "config.d/web.yaml").write_text(WEB)
        yield path


def places(base: Path) -> list[str]:
    names = {"run": "run", "config": "config.d", "state": "state", "bpffs": "bpf"}
    return [word for name, directory in names.items() for word in (f"--{name}-dir", str(base / directory))]


def listener(base: Path, mode: int = 0o660) -> socket.socket:
    found = socket.socket(socket.AF_UNIX)
    found.bind(str(base / "run/revproxyd.sock"))
    (base / "run/revproxyd.sock").chmod(mode)
    return found


def as_nobody(base: Path, words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "revproxyctl"
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]
    return subprocess.run(
        [*drop, str(program), *words, *places(base)], capture_output=True, text=True, check=False, timeout=60
    )


SOME = (("status",), ("diff",), ("plan", "--detailed-exitcode"), ("apply", "--yes"), ("connections", "--count"))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give it up")
@pytest.mark.parametrize("how", ["no daemon", "stale socket", "socket of others"])
def test_without_root(base: Path, how: str) -> None:
    word = "needs root"
    if how == "stale socket":
        listener(base, 0o666).close()
    with contextlib.ExitStack() as held:
        if how == "socket of others":
            held.enter_context(listener(base)).listen()
            group = max(grp.getgrall(), key=lambda each: 0 < each.gr_gid < 1000)
            os.chown(base / "run/revproxyd.sock", 0, group.gr_gid)
            word = "revproxyd.sock: permission denied: talking to revproxyd takes root, or a member of the group "
            word += group.gr_name
        for words in SOME[1:4]:
            done = as_nobody(base, words)
            assert (done.returncode, done.stdout) == (COMMANDS[words], ""), (words, done.stdout, done.stderr)
            assert word in done.stderr
            assert "Traceback" not in done.stderr
        assert as_nobody(base, ("validate",)).returncode == 0  # which needs nobody


@pytest.mark.parametrize("words", COMMANDS)
def test_a_daemon_that_hangs(base: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DaemonClient.__init__.__kwdefaults__, "timeout_sec", 0.1)
    with listener(base) as silent:
        silent.listen(8)
        done = CliRunner().invoke(app, [*words, *places(base)])
    assert done.exit_code == COMMANDS[words], done.output
    assert "did not answer within 0.1 s: it hangs. Packets go on: kill it, and start it anew" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}x"]
)
def test_something_else_behind_the_socket(base: Path, answer: bytes) -> None:
    script = "\n".join(
        (
            "import socket, sys",
            "listener = socket.socket(fileno=int(sys.argv[1]))",
            "while True:",
            "    taken = listener.accept()[0]",
            "    taken.recv(4096)",
            f"    taken.sendall({answer!r})",
            "    taken.close()",
        )
    )
    with listener(base) as other:
        other.listen(8)
        command = [sys.executable, "-c", script, str(other.fileno())]
        with subprocess.Popen(command, pass_fds=[other.fileno()]) as process:
            try:
                for words in SOME:
                    done = CliRunner().invoke(app, [*words, *places(base)])
                    assert done.exit_code == COMMANDS[words], done.output
                    assert "revproxyd at" in done.stderr
                    assert "internal error" not in done.stderr
            finally:
                process.kill()
