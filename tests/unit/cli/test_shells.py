"""Completion in the shells themselves, on a terminal: half a word, the tabulator, and what then stands in the line.

The set-up is what README.md says to put into the start-up file. A shell that is not installed is skipped by name:
`apt install zsh fish` has them tried.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.readme import block

PROGRAMS = Path(sys.executable).parent
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "bind 'set bell-style none'\n"),
    "zsh": (["zsh", "-f", "-i"], "unsetopt zle_bracketed_paste; autoload -U compinit; compinit -u\n"),
    "fish": (["fish", "--no-config", "-i"], ""),
}
PROXY, TARGET, ROUTE = "shown-in-shells", "10.77.66.55:8080", "192.168.244.0/24"
FILE = f"""\
apiVersion: revproxy/v1
proxies:
  - name: {PROXY}
    listen: {{interfaces: [eth0], port: 80}}
    default_target: {{ip: {TARGET.partition(":")[0]}, port: 8080}}
    source_routes: [{{source: {ROUTE}, action: deny}}]
"""


class Terminal:
    """A shell on a terminal of its own."""

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        words, setup = SHELLS[name]
        self.seen = ""
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.execvpe(words[0], words, environment)
        line = next(line for line in block("completion").splitlines() if f"{name}_source" in line)
        self.type(f"{setup}{line.partition('#')[0].strip()}\necho rea''dy\n")
        self.wait("ready")

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait(self, text: str, timeout_sec: float = 40.0) -> None:
        """Until the text is on the screen, whatever is drawn around and between."""
        deadline = time.monotonic() + timeout_sec
        while text not in self.seen:
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {text!r} within {timeout_sec:g} s: {self.seen!r}"
            read = os.read(self._terminal, 65536).decode(errors="replace")
            self.seen += re.sub(r"\x1b(\[[0-9;?<>=]*[a-zA-Z]|[()=>].?|\][^\x07]*\x07)|[\r\x07\x08]", "", read)

    def completes(self, line: str, rest: str) -> None:
        """``line`` and the tabulator bring ``rest``."""
        self.seen = ""
        self.type(f"{line}\t")
        self.wait(rest)
        self.type("\x15")  # away with the line
        self.type("echo do''ne\n")
        self.wait("done")

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._terminal)


@pytest.fixture(params=list(SHELLS))
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    name = request.param
    if not shutil.which(name):
        pytest.skip(f"NO {name.upper()} HERE: apt install {name}")
    config_dir = tmp_path / "config.d"
    config_dir.mkdir()
    (config_dir / "web.yaml").write_text(FILE)
    environment = {
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TERM": "vt100",
        "LC_ALL": "C.UTF-8",
        "REVPROXY_CONFIG_DIR": str(config_dir),
        "REVPROXY_RUN_DIR": str(tmp_path / "run"),
    }
    made = Terminal(name, environment)
    yield made
    made.close()


def test_names_are_completed_live(terminal: Terminal, tmp_path: Path) -> None:
    terminal.completes("revproxyctl vali", "date")
    terminal.completes("revproxyctl proxy show sho", PROXY)
    terminal.completes(f"revproxyctl target weight {PROXY} 10.", TARGET.partition(":")[0])
    (tmp_path / "config.d" / "web.yaml").write_text(FILE.replace(PROXY, "another-name"))
    terminal.completes("revproxyctl proxy show ano", "another-name")
