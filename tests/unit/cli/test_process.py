"""How the programs behave as processes: interrupted at any moment, with streams that are closed or full."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.cli import app
from reconciler.cli.session import Session
from reconciler.trouble import explained
from tests.clirunner import CliRunner

GOOD = """\
apiVersion: revproxy/v1
proxies:
  - name: web
    listen: {interfaces: [eth0], port: 80}
    default_target: {ip: 10.0.0.1}
"""
START = "from reconciler.start import {0}\n{0}()\n"
INTERRUPTED_WHILE = """\
import os, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {0!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "web.yaml").write_text(GOOD)
    return tmp_path


@pytest.mark.parametrize(
    ("program", "module"),
    [("revproxyctl", "reconciler.answers"), ("revproxyctl", "click"), ("revproxyd", "structlog")],
)
def test_ctrl_c_while_it_starts(program: str, module: str) -> None:
    code = INTERRUPTED_WHILE.format(module) + START.format(program)
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_what_fails_while_an_object_is_cleared_away_is_no_traceback() -> None:
    code = "class Odd:\n    def __del__(self): raise OSError(24, 'too many')\nOdd()\n"
    start = "import sys\nfrom reconciler import start\nstart._prepare()\nsys.argv[0] = '/bin/revproxyctl'\n"
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=True)
    assert done.stderr == "revproxyctl: ignored: OSError: [Errno 24] too many\n"


@pytest.mark.parametrize("quiet", [True, False])
def test_ctrl_c_in_a_command(monkeypatch: pytest.MonkeyPatch, quiet: bool) -> None:
    def client(_: Session) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "client", client)
    result = CliRunner().invoke(app, ["status", *["-q"] * quiet])
    assert result.exit_code == 128 + signal.SIGINT
    assert (result.stdout, result.stderr) == ("", "" if quiet else "revproxyctl: interrupted\n")


def run(redirection: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", START.format("revproxyctl"), *words]
    shell = ["bash", "-c", f'"$@" {redirection}', "bash", *command]
    return subprocess.run(shell, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("stream", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(files: Path, stream: str) -> None:
    done = run(stream, "--config-dir", str(files), "--run-dir", str(files / "run"), "proxy", "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert ("web" in done.stdout) == (">&-" not in stream.split())


@pytest.mark.parametrize("name", ["ünï.yaml", "→.yaml", os.fsdecode(b"b\xff.yaml")], ids=["umlaut", "arrow", "bytes"])
@pytest.mark.parametrize(
    "locale",
    [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "latin-1"}],
    ids=["ascii", "latin-1"],
)
@pytest.mark.parametrize("output", ["table", "json", "yaml"])
def test_names_of_files_that_the_locale_can_not_write(
    tmp_path: Path, name: str, locale: dict[str, str], output: str
) -> None:
    (tmp_path / name).write_text(GOOD.replace("listen", "lisen"))
    command = [sys.executable, "-c", START.format("revproxyctl"), "validate", str(tmp_path), "--output", output]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **locale}, check=False)
    assert done.returncode == 1
    assert b"unknown key 'lisen'" in done.stdout + done.stderr
    assert b"internal error" not in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(("columns", "term"), [("20", "vt100"), ("1", "vt100"), ("x", "vt100"), ("20", "dumb")])
def test_a_narrow_terminal(files: Path, columns: str, term: str) -> None:
    several = '[{ip: 10.0.0.1}, {ip: 10.0.0.2, port: 8080}, {ip: "2001:db8:1::1234:5678", port: 8080}]'
    (files / "web.yaml").write_text(GOOD.replace("{ip: 10.0.0.1}", several))
    places = ["--config-dir", str(files), "--run-dir", str(files / "run")]
    command = [sys.executable, "-c", START.format("revproxyctl"), *places, "proxy", "list"]
    shell = ["script", "-qec", shlex.join(command), "/dev/null"]
    env = {**os.environ, "COLUMNS": columns, "TERM": term}
    done = subprocess.run(shell, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout
    for word in ("web", "10.0.0.1", "10.0.0.2:8080", "[2001:db8:1::1234:5678]:8080", f"{files}/web.yaml"):
        assert word in done.stdout, "no word is broken"


def test_top_is_refused_where_nothing_can_be_drawn(tmp_path: Path) -> None:
    command = [sys.executable, "-c", START.format("revproxyctl"), "top"]
    shell = ["script", "-qec", shlex.join(command), "/dev/null"]
    places = {f"REVPROXY_{place}_DIR": str(tmp_path / place) for place in ("CONFIG", "RUN", "STATE", "BPFFS")}
    env = {**os.environ, **places, "TERM": "dumb"}
    done = subprocess.run(shell, capture_output=True, text=True, env=env, timeout=30, check=False)
    assert done.returncode == 1
    assert "top needs a terminal that can be drawn on (TERM is dumb); for scripts there is" in done.stdout


@pytest.mark.parametrize("content", ["", "{"])
def test_an_installation_whose_schema_is_broken(files: Path, tmp_path: Path, content: str) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text(content)
    code = "import pathlib\nfrom reconciler import resources\n"
    code += f"resources.schema_file = lambda: pathlib.Path({str(broken)!r})\n"
    command = [sys.executable, "-c", code + START.format("revproxyctl"), "validate", str(files / "web.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"revproxyctl: {broken}: is no JSON: ")
    assert done.stderr.endswith("install it anew\n")


@pytest.mark.parametrize("output", ["json", "yaml", "table"])
def test_a_full_disk_behind_the_output(files: Path, output: str) -> None:
    done = run(">/dev/full", "proxy", "list", "--config-dir", str(files), "--output", output)
    assert done.returncode == 1
    assert done.stderr == "revproxyctl: standard output: No space left on device: make room there\n"
    (files / "bad.yaml").write_text("nonsense: 1\n")
    wrong = run(">/dev/full", "proxy", "list", "--config-dir", str(files), "--output", output)
    assert wrong.returncode == 1
    assert "bad.yaml:1:1: unknown key 'nonsense'" in wrong.stderr, "what is wrong is told all the same"
    told = "revproxyctl: standard output: No space left on device\n" in wrong.stderr
    assert told == (output != "table"), "the error is data too, which nobody gets"


@pytest.mark.parametrize("words", ["revproxyctl --help", "revproxyctl --version", "revproxyd --help"])
def test_a_full_disk_behind_the_help(words: str) -> None:
    program, option = words.split()
    command = [sys.executable, "-c", START.format(program), option]
    shell = ["bash", "-c", '"$@" >/dev/full', "bash", *command]
    done = subprocess.run(shell, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"{program}: standard output: No space left on device\n")


@pytest.mark.parametrize("words", [["validate", ""], ["--require-signed", "", "validate"]])
def test_an_empty_path_is_not_the_current_directory(words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "it is empty" in result.stderr


@pytest.mark.parametrize(("key", "status", "word"), [(b"\x03", 130, b"interrupted"), (b"\x04", 1, b"Aborted!")])
def test_ctrl_c_at_the_question(key: bytes, status: int, word: bytes) -> None:
    code = (
        "import sys\nfrom reconciler import answers, client\n"
        "found = answers.Difference((answers.Change('create', 'proxy', 'web'),), 1)\n"
        "client.Client.diff = lambda _: found\n"
        "client.Client.apply = lambda *_, **__: sys.exit(99)\n"
    )
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-c", code + START.format("revproxyctl"), "apply"])
    text = b""
    try:
        while b"?" not in text:
            text += os.read(terminal, 1000)
        with contextlib.suppress(OSError):  # EIO: all is read
            for _ in range(6):
                # Lost if it comes just before readline waits for it; a second one, while it ends, is another matter.
                os.write(terminal, key)
                while select.select([terminal], [], [], 10 if key == b"\x03" else 0.2)[0]:
                    text += os.read(terminal, 1000)
            os.kill(child, signal.SIGKILL)
    finally:
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(terminal)
    assert (ended, word in text) == (status, True), text


def test_a_directory_that_is_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 64998)
    text = str(explained(PermissionError(13, "Permission denied", "/etc/nothing/there")))
    assert text == (
        "/etc/nothing/there: Permission denied: /etc is root's, and this process runs as user 64998: run it as that"
        " user or root"
    )


@pytest.mark.parametrize(
    ("raised", "text", "transient"),
    [
        (OSError(28, "No space left on device", "/var/lib/x"), "/var/lib/x: No space left on device: make room", False),
        (OSError(24, "Too many open files"), "Too many open files: raise this process's limit of open files", True),
        (OSError("libbcc.so: cannot open"), "libbcc.so: cannot open", False),
        (OSError(5, "Input/output error", "a", None, "b"), "a -> b: Input/output error", False),
    ],
)
def test_an_error_of_the_system_in_words(raised: OSError, text: str, transient: bool) -> None:
    found = explained(raised)
    assert str(found).startswith(text)
    assert found.transient is transient
