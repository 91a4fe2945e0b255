"""The demonstration holds, says so, and notices when something does not."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab import PATIENCE, namespace_names
from tests.e2e.instance import web

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "packaging" / "lab" / "demo.py"
VENV = Path(sys.prefix)
TITLES = (
    "1. revproxyd on an example configuration",
    "2. traffic reaches the targets",
    "3. an edit goes live under a long download",
    "4. a broken file is refused, and traffic goes on",
    "5. kill -9",
    "6. down leaves nothing behind",
    "Every step held",
)
SHOWN = (
    r"proxy# revproxyd &",
    r"proxy# revproxyctl status",
    r"sync: +Synced",
    r"client\$ curl .*http://10\.90\.1\.1/hello",
    r"✓ all 60 requests were answered",
    r"proxy# revproxyctl diff",
    r"--- live/target/web/10\.90\.2\.1\d:8080",
    r"proxy# revproxyctl plan",
    r"✓ the edit is live, and the download goes on: ",
    r"✓ the download came to its end: 50,000,000 of 50,000,000 bytes",
    r"\S+/10-web\.yaml:\d+:\d+: unknown key 'prot'",
    r"✓ meanwhile: \d+ requests answered, none failed",
    r'proxy# kill -9 "\$\(cat run/revproxyd\.pid\)"',
    r"✓ without any revproxyd: \d+ requests answered, none failed",
    r"state_adopted",
    r"proxy# revproxyctl down",
    r"✓ no XDP program, no TC program, no pin; forwarding settings as they were before",
)
README_DEMO = re.compile(r"<!-- make demo -->\n+```text\n(.*?)```", re.DOTALL)


def run(*words: str | Path, python: Path = Path(sys.executable)) -> subprocess.CompletedProcess[str]:
    """The demonstration, to its end; of its labs nothing may be left then."""
    result = subprocess.run([python, DEMO, *words], capture_output=True, text=True, timeout=170 * PATIENCE, check=False)
    assert_nothing_left(result.stdout)
    return result


def assert_nothing_left(output: str) -> None:
    """No namespace, pin, file or process of the lab that the demonstration named."""
    for name in set(re.findall(r"(rplab\d+x\d+)-client", output)):
        assert namespace_names(name) == []
        assert list(Path("/sys/fs/bpf").glob(f"{name}*")) == []
        assert list(Path("/tmp").glob(f"{name}-*")) == []
        assert [command for command in command_lines() if name in command] == []


def command_lines() -> Iterator[str]:
    """Of every process on this machine."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield file.read_text(errors="replace").replace("\0", " ")


@pytest.fixture(scope="module")
def played() -> subprocess.CompletedProcess[str]:
    """One run that nothing gets in the way of."""
    return run()


def test_every_step_is_shown_and_holds(played: subprocess.CompletedProcess[str]) -> None:
    assert played.returncode == 0, played.stdout + played.stderr
    assert played.stderr == ""
    headings = re.findall(r"^== (.*?) =+$", played.stdout, re.MULTILINE)
    assert headings == list(TITLES)
    position = 0
    for pattern in SHOWN:
        found = re.compile(pattern).search(played.stdout, position)
        assert found, f"{pattern} is not in the rest:\n{played.stdout[position:]}"
        position = found.end()
    assert "✗" not in played.stdout
    assert "\033" not in played.stdout, "no colour where there is no terminal"


def test_the_readme_shows_lines_of_a_real_run(played: subprocess.CompletedProcess[str]) -> None:
    """Up to numbers, which differ from run to run."""

    def shape(line: str) -> str:
        return " ".join(re.sub(r"\d+", "0", line.replace(",", "")).split())

    real = {shape(line) for line in played.stdout.splitlines()}
    pasted = README_DEMO.search((ROOT / "README.md").read_text())
    assert pasted
    lines = [line for line in pasted[1].splitlines() if line.strip() not in ("", "[...]")]
    assert len(lines) > 15
    assert [line for line in lines if shape(line) not in real] == []


def broken_environment(directory: Path, **programs: str) -> Path:
    """An environment like this one, but for programs that are replaced by a shell script; its interpreter."""
    (directory / "bin").mkdir(parents=True)
    shutil.copy(VENV / "pyvenv.cfg", directory)
    (directory / "lib").symlink_to(VENV / "lib")
    (directory / "bin" / "python").symlink_to("/usr/bin/python3")
    for name in ("revproxyd", "revproxyctl"):
        script = directory / "bin" / name
        if name in programs:
            script.write_text("#!/bin/bash\n" + programs[name].replace("REAL", str(VENV / "bin" / name)))
            script.chmod(0o755)
        else:
            script.symlink_to(VENV / "bin" / name)
    return directory / "bin" / "python"


def test_a_daemon_that_ends_at_once_is_noticed(tmp_path: Path) -> None:
    python = broken_environment(tmp_path / "venv", revproxyd="echo not today; exit 3\n")
    result = run(python=python)
    assert result.returncode == 1
    assert f"✗ step {TITLES[0]}: revproxyd ended with status 3" in result.stdout
    assert "not today" in result.stdout.partition("✗")[2], "the end of the daemon's log"
    assert TITLES[1] not in result.stdout


def test_targets_that_do_not_answer_are_noticed(tmp_path: Path) -> None:
    config = tmp_path / "config.d"
    config.mkdir()
    (config / "10-web.yaml").write_text(web("10.90.2.99:8080"))
    result = run("--config", config, "--step", "2")
    assert result.returncode == 1
    assert f"✗ step {TITLES[1]}: `curl" in result.stdout
    assert "commit_applied" in result.stdout.partition("✗")[2], "the end of the daemon's log"


def test_a_connection_that_moves_is_noticed(tmp_path: Path) -> None:
    """Flushed connections are decided anew, so that the download loses its target."""
    python = broken_environment(
        tmp_path / "venv",
        revproxyctl='REAL "$@"; s=$?; [ "$1" = connections ] && REAL -q connections flush --all; exit $s\n',
    )
    result = run("--step", "3", python=python)
    assert result.returncode == 1
    assert f"✗ step {TITLES[2]}" in result.stdout


def test_something_left_behind_is_noticed(tmp_path: Path) -> None:
    """A ``down`` that takes the daemon down and nothing else."""
    script = '[ "$1" = down ] || exec REAL "$@"; kill "$(cat "$REVPROXY_RUN_DIR/revproxyd.pid")"\n'
    result = run("--step", "6", python=broken_environment(tmp_path / "venv", revproxyctl=script))
    assert result.returncode == 1
    assert f"✗ step {TITLES[5]}" in result.stdout


def test_interrupted_it_takes_everything_down() -> None:
    process = subprocess.Popen([sys.executable, DEMO], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout
    output = ""
    for line in process.stdout:
        output += line
        if "sync: " in line:
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output += process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "interrupted" in output
    assert TITLES[1] not in output
    assert_nothing_left(output)


def test_without_root_it_says_so() -> None:
    command = ["unshare", "--user", sys.executable, str(DEMO)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert result.stderr == "demo: network namespaces and BPF take root: run it as root\n"
    assert result.stdout == ""


def test_a_config_directory_that_is_not_there(tmp_path: Path) -> None:
    result = run("--config", tmp_path / "absent")
    assert result.returncode == 1
    assert result.stderr == f"demo: {tmp_path}/absent: no such directory\n"


def test_colour_on_a_terminal_unless_refused() -> None:
    """Screen alone: the rest of the demonstration has no part in it."""
    code = "from demonstration.screen import Screen; Screen().verified('so')"
    environ = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    environ["PYTHONPATH"] = str(DEMO.parent)
    for more, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        ours, theirs = os.openpty()
        subprocess.run([sys.executable, "-c", code], stdout=theirs, env=environ | more, check=True, timeout=60)
        printed = os.read(ours, 1000).decode()
        os.close(ours)
        os.close(theirs)
        assert "✓" in printed
        assert ("\033[" in printed) is coloured
