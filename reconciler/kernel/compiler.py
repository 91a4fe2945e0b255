"""C -> instructions that name maps by number (:class:`ObjectCode`), in a child process."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from reconciler import child
from reconciler.errors import CompileError
from reconciler.kernel import codecache, layout

ENTRY_POINTS: Final = ("xdp_ingress", "tc_ingress", "tc_egress")
FUNCTIONS: Final = (*ENTRY_POINTS, *(name for names in layout.CALLS.values() for name in names), *layout.EDITORS)
TIMEOUT_SEC: Final = 600  # 1 s as a rule, minutes on a machine that is emulated or starved
MAP_BASE: Final = 0x52500000  # MAP_BASE of bpf/maps.h

_INSTRUCTION = np.dtype([("code", "u1"), ("registers", "u1"), ("offset", "<i2"), ("immediate", "<i4")])
_LD_IMM64, _PSEUDO_MAP_FD = 0x18, 1


@dataclass(frozen=True, slots=True)
class ObjectCode:
    """Compiled functions. ``tag``: digest of everything the instructions were made from."""

    tag: str
    functions: Mapping[str, bytes]

    def instructions(self, function: str, map_fds: Mapping[str, int]) -> bytes:
        """The function with the descriptors of ``map_fds`` (by map name) in place of map numbers.

        Raises KeyError for a map that is used and not given.
        """
        code = np.frombuffer(self.functions[function], dtype=_INSTRUCTION).copy()
        names = {spec.number: name for name, spec in layout.MAPS.items()}
        names |= {number: name for name, number in (*layout.CALLS_NUMBER.items(), *layout.EDITORS.items())}
        marked = (code["code"] == _LD_IMM64) & (code["registers"] >> 4 == _PSEUDO_MAP_FD)
        for index in np.flatnonzero(marked):
            code["immediate"][index] = map_fds[names[int(code["immediate"][index]) - MAP_BASE]]
        return code.tobytes()


def source_tag(source: Path, defines: Mapping[str, int]) -> str:
    """Hex digest of the C sources, the defines, the layout and the machine. Unchanged sources are not read again."""
    return _source_tag(source, tuple(sorted(defines.items())), layout.fingerprint(), _identity(source))


def _identity(source: Path) -> tuple[tuple[str, int, int, int, int], ...]:
    """Of every file below: what changes when its content does."""
    found = []
    for directory, _, names in os.walk(source):
        for name in names:
            path = os.path.join(directory, name)  # noqa: PTH118  # at each look, and Path takes five times as long
            status = os.stat(path)  # noqa: PTH116
            found.append((path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(sorted(found))


@lru_cache(maxsize=8)
def _source_tag(source: Path, defines: tuple[tuple[str, int], ...], fingerprint: str, _: object) -> str:
    digest = hashlib.sha256(f"{fingerprint} {os.uname().machine} {list(defines)}".encode())
    for path in sorted(source.rglob("*.[ch]")):
        digest.update(path.relative_to(source).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compile_programs(source: Path, defines: Mapping[str, int] | None = None) -> ObjectCode:
    """Compile ``source/revproxy.c``, or give what was made of the very same sources before (:mod:`.codecache`).

    Raises :class:`CompileError` with the compiler's messages.
    """
    chosen = tuple(sorted((defines or {}).items()))
    return _compile(source, chosen, source_tag(source, dict(chosen)))


@lru_cache(maxsize=2)  # as many sets as one instance uses: what it runs, and its probe
def _compile(source: Path, defines: tuple[tuple[str, int], ...], tag: str) -> ObjectCode:
    assertions = list(layout.assertions())
    name = hashlib.sha256(json.dumps([tag, _compiler(), assertions]).encode()).hexdigest()[:16]
    kept = codecache.read(codecache.directory(), name)
    if kept is not None and kept.keys() == set(FUNCTIONS):
        return ObjectCode(tag, kept)
    functions = _compile_in_child(source, defines, assertions)
    if source_tag(source, dict(defines)) != tag:
        changed = CompileError(f"{source} changed while it was being compiled")
        changed.transient = True  # an upgrade: the next attempt finds it whole
        raise changed
    codecache.write(codecache.directory(), name, functions)
    return ObjectCode(tag, functions)


def _compiler() -> str:
    """What else than the sources decides how the instructions turn out."""
    headers = Path("/usr/include/linux/version.h")
    return f"bcc {_bcc_version()}, headers {headers.read_text() if headers.exists() else 'none'}"


def usable_bcc() -> str | None:
    """The version of bcc, which is loaded; None where it can't be used."""
    try:
        from bcc import lib  # noqa: F401  # it needs libbcc, which the package alone does not bring
        from bcc.version import __version__
    except (ImportError, OSError, AttributeError):
        return None
    return str(__version__)


def _bcc_version() -> str:
    """Read, since importing it would load the compiler. Raises :class:`CompileError` where there is no bcc."""
    spec = importlib.util.find_spec("bcc")
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        with contextlib.suppress(OSError):
            return Path(directory, "version.py").read_text("utf-8").strip()
    raise CompileError("the Python module bcc is not there: apt install python3-bpfcc")


def _compile_in_child(source: Path, defines: tuple[tuple[str, int], ...], assertions: list[str]) -> dict[str, bytes]:
    request = {
        "source": str(source),
        "functions": FUNCTIONS,
        "defines": dict(defines),
        "assertions": assertions,
    }
    try:
        done = subprocess.run(
            child.command("reconciler.kernel.compile_child", json.dumps(request)),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SEC,
            env=child.environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"compiling {source}/revproxy.c took longer than {TIMEOUT_SEC} s") from error
    if done.returncode < 0:
        by = signal.Signals(-done.returncode).name
        ended = CompileError(f"compiling {source}/revproxy.c was ended by {by}: it takes 120 MiB of memory")
        ended.transient = True
        raise ended
    if done.returncode:
        raise CompileError(f"{source}/revproxy.c does not compile:\n{done.stderr.strip()}")
    return {name: base64.b64decode(code) for name, code in json.loads(done.stdout).items()}
