"""``top`` in a real terminal of 80 columns and 24 lines, driven by its keys."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator

import pytest

from netlab import TCP_PORT, Lab, wait_for
from netlab.clients import connect, echo_tcp
from tests.e2e.instance import PROGRAMS, Instance

COLUMNS, LINES = 80, 24
PROXIES = 12


class Terminal:
    """A program on a terminal of its own; :meth:`screen` is what it shows now."""

    def __init__(self, instance: Instance, *words: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.before = termios.tcgetattr(slave)
        env = {**instance.env, "TERM": "xterm", "COLUMNS": "", "LINES": ""}
        env = {name: value for name, value in env.items() if value}
        command = instance.lab.proxy.command(PROGRAMS / "revproxyctl", *words)
        self.slave = slave
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True
        )
        self.output = ""

    def press(self, key: str) -> None:
        os.write(self.master, key.encode())

    def read(self) -> None:
        while select.select([self.master], [], [], 0.02)[0]:
            self.output += os.read(self.master, 65536).decode(errors="replace")

    def frame(self) -> list[str]:
        """The lines of the latest whole picture, without colours. Each begins at the top left."""
        self.read()
        whole = [frame for frame in self.output.split("\x1b[H") if "q quit" in frame]
        assert whole, self.output[-2000:]
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", whole[-1])
        return plain.replace("\r", "").rstrip("\n").split("\n")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def config(lab: Lab) -> str:
    proxies = "".join(
        f"  - name: proxy{number:02}\n    listen: {{interfaces: [eth0], port: {7000 + number}}}\n"
        f"    default_target: [{{ip: {lab.backends[0].ip4}, port: {TCP_PORT}}},"
        f" {{ip: {lab.backends[1].ip4}, port: {TCP_PORT}}}]\n"
        for number in range(PROXIES)
    )
    return f"apiVersion: revproxy/v1\nproxies:\n{proxies}"


@pytest.fixture
def terminal(lab: Lab, instance: Instance) -> Iterator[Terminal]:
    instance.write(config(lab))
    instance.start_daemon()
    opened = Terminal(instance, "top", "--interval", "0.3", "--sort", "name")
    yield opened
    opened.close()


def first(terminal: Terminal) -> str:
    """The name in the first row below the headings."""
    lines = terminal.frame()
    heading = next(place for place, line in enumerate(lines) if line.startswith("PROXY / TARGET"))
    return lines[heading + 1].split()[0]


def test_top_shows_sorts_and_quits(lab: Lab, terminal: Terminal) -> None:
    wait_for(lambda: first(terminal) == "proxy00", "the first picture", timeout_sec=30)
    lines = terminal.frame()
    assert len(lines) <= LINES, lines
    assert max(map(len, lines)) <= COLUMNS, lines
    assert "Synced" in lines[0]
    assert any("more rows" in line for line in lines)  # 36 rows do not fit
    with connect(lab.client, (lab.proxy4, 7005)) as held:
        held.sendall(b"x")
        terminal.press("c")
        wait_for(lambda: first(terminal) == "proxy05", "the one with a connection first", timeout_sec=20)
        row = next(line for line in terminal.frame() if line.startswith("proxy05"))
        assert row.split()[1] == "1"
    terminal.press("n")
    wait_for(lambda: first(terminal) == "proxy00", "by name", timeout_sec=20)
    terminal.press("r")
    wait_for(lambda: first(terminal) == "proxy11", "by name, reversed", timeout_sec=20)
    terminal.press("t")
    wait_for(lambda: not any(line.startswith("  10.90") for line in terminal.frame()), "no targets", timeout_sec=20)
    terminal.press("b")

    def busiest() -> bool:
        echo_tcp(lab.client, (lab.proxy4, 7003), 200_000)
        return first(terminal) == "proxy03"

    wait_for(busiest, "the busiest first", timeout_sec=20)
    fcntl.ioctl(terminal.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 60, 0, 0))

    def small() -> bool:
        lines = terminal.frame()
        return len(lines) <= 12 and max(map(len, lines)) <= 60

    wait_for(small, "a picture that fits the smaller terminal", timeout_sec=20)
    terminal.press("q")
    assert _ended(terminal) == 0
    assert "\x1b[?1049l" in terminal.output  # the screen is as it was
    assert termios.tcgetattr(terminal.slave) == terminal.before
    assert "Traceback" not in terminal.output


def test_ctrl_c_ends_it_quietly(terminal: Terminal) -> None:
    wait_for(lambda: first(terminal) == "proxy00", "the first picture", timeout_sec=30)
    os.killpg(terminal.process.pid, signal.SIGINT)
    assert _ended(terminal) in (0, 130)
    assert "Traceback" not in terminal.output
    assert termios.tcgetattr(terminal.slave) == terminal.before


def _ended(terminal: Terminal) -> int:
    def over() -> bool:
        terminal.read()
        return terminal.process.poll() is not None

    wait_for(over, "its end", timeout_sec=20)
    return terminal.process.wait()


def test_without_a_terminal_it_is_refused(instance: Instance) -> None:
    result = instance.run("top")
    assert result.returncode == 1
    assert "top needs a terminal" in result.stderr
    assert "stats --watch" in result.stderr
    assert instance.run("stats", "--watch", "--interval", "0").returncode == 2
