"""What a command loads, in processes of their own: no more than it needs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = """\
apiVersion: revproxy/v1
proxies:
  - name: web
    listen: {interfaces: [eth0], port: 80, protocol: tcp}
    default_target: {ip: 10.0.0.1, port: 8080}
"""


def ctl(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from reconciler.cli import main; main()", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False, timeout=60
    )


def test_validate_says_valid_or_every_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    good = ctl("validate", tmp_path)
    assert (good.returncode, good.stdout) == (0, "")
    assert "1 proxy" in good.stderr
    (tmp_path / "b.yaml").write_text(GOOD.replace("listen", "lisen"))
    (tmp_path / "c.yaml").write_text("apiVersion: revproxy/v1\nproxies: [\n")
    bad = ctl("validate", REVPROXY_CONFIG_DIR=str(tmp_path))
    assert (bad.returncode, bad.stdout) == (1, "")
    assert f"{tmp_path}/b.yaml:4:5: " in bad.stderr
    assert f"{tmp_path}/c.yaml:" in bad.stderr
    as_json = ctl("--output", "json", "validate", tmp_path / "b.yaml")
    assert as_json.returncode == 1
    assert [each["line"] for each in json.loads(as_json.stdout) if "lisen" in each["message"]] == [4]
    assert json.loads(ctl("validate", tmp_path / "a.yaml", "-o", "json").stdout) == []


def test_validate_loads_nothing_of_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    program = (
        "import sys\n"
        "for name in ('bcc', 'pyroute2', 'watchdog', 'aiohttp', 'rich'): sys.modules[name] = None\n"
        "from reconciler.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "validate", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        (
            "sys.argv = ['revproxyctl', '--help']\nfrom reconciler.cli import main\n"
            "try:\n    main()\nexcept SystemExit:\n    pass\n",
            {"numpy", "rich", "aiohttp", "structlog", "jsonschema", "ruamel.yaml", "bcc", "watchdog"},
        ),
        (  # nor what only says what went wrong: each is a part of every command's time, and of the daemon's memory
            "import reconciler.engine, reconciler.runtime.live\n",
            {"bcc", "rich", "aiohttp", "structlog", "jsonschema", "watchdog"},
        ),
    ],
    ids=["help", "engine"],
)
def test_what_is_quick_to_load(code: str, heavy: set[str]) -> None:
    program = f"import sys\n{code}loaded = {heavy} & set(sys.modules)\nassert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from reconciler.cli import main; main()", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr == ""
