"""The bar for long loads: on a terminal only, and it moves with what is read."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

from reconciler.config import files

ROUTES = 30_000


def write(directory: Path) -> None:
    routes = "".join(
        f"      - {{source: 20.{number >> 8}.{number & 255}.0/24, target: {{ip: 10.0.0.1}}}}\n"
        for number in range(ROUTES)
    )
    head = "  - name: web\n    listen: {interfaces: [eth0], port: 80}\n    default_target: {ip: 10.0.0.1}\n"
    text = f"apiVersion: revproxy/v1\nproxies:\n{head}    source_routes:\n{routes}"
    (directory / "a.yaml").write_text(text)


def test_reading_tells_how_far_it_is(tmp_path: Path) -> None:
    write(tmp_path)
    cache, told = files.Cache(), []
    cache.progress = lambda done, of: told.append((done, of))
    files.load(tmp_path, cache)
    size = (tmp_path / "a.yaml").stat().st_size
    assert told == sorted(told)
    assert {of for _, of in told} == {size}
    assert told[-1] == (size, size)
    assert len(told) > 5


def validate(directory: Path, stderr: int, *words: str) -> bytes:
    program = (
        "from reconciler.cli import main, progress; progress._PATIENCE_SEC = 0.1; main()"  # some machines are fast
    )
    command = [sys.executable, "-c", program, *words, "validate", str(directory)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, check=False)
    assert done.returncode == 0
    return done.stdout


def whole(terminal: int) -> bytes:
    """What has been written to it; each read gives some 4 KB at the most."""
    os.set_blocking(terminal, False)
    seen = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(terminal, 1 << 20):
            seen += part
    return seen


def test_bar_is_for_terminals(tmp_path: Path) -> None:
    write(tmp_path)
    terminal, end = pty.openpty()
    output = validate(tmp_path, end)
    seen = whole(terminal)
    assert b"reading files" in seen
    _, _, rest = seen.rpartition(b"\x1b[2K")  # gone
    assert b"reading files" not in rest
    assert b"valid" in rest
    with (tmp_path / "stderr").open("wb") as plain:
        assert validate(tmp_path, plain.fileno()) == output
    assert (tmp_path / "stderr").read_bytes().strip() == rest.strip().replace(b"\r", b"")
    os.close(terminal)
    os.close(end)
