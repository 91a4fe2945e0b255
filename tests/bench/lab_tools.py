"""The programs that the lab benchmark compares with and measures by, from Debian: installed ones, else unpacked copies.

Packages are only downloaded and unpacked, into ``.venv/bench-tools``: nothing is installed on the host, and no service
starts.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {
    "nft": "nftables",
    "haproxy": "haproxy",
    "nginx": "nginx-light",
    "ngx_stream_module.so": "libnginx-mod-stream",
    "wrk": "wrk",
}
UNPACKED = Path(__file__).parents[2] / ".venv" / "bench-tools"
_PLACES = ("usr/sbin", "usr/bin", "sbin", "bin", "usr/lib/nginx/modules")


@dataclass(frozen=True)
class Tools:
    """Where each program is; ``missing``: why some are not there, in words, empty if all are."""

    paths: dict[str, Path]
    missing: str

    def has(self, *names: str) -> bool:
        """Whether all of these are there."""
        return all(name in self.paths for name in names)

    @property
    def environment(self) -> dict[str, str]:
        """What unpacked programs need to find their libraries."""
        libraries = [str(path) for path in sorted((UNPACKED / "usr/lib").glob("*-linux-gnu*"))]
        return {"LD_LIBRARY_PATH": ":".join(libraries)} if libraries else {}


def find() -> Tools:
    """All programs, fetched if need be."""
    paths, problem = _present(), ""
    wanted = [package for name, package in PACKAGES.items() if name not in paths]
    if wanted:
        problem = _unpack(wanted)
        paths = _present()
    missing = [f"{name} (package {package})" for name, package in PACKAGES.items() if name not in paths]
    if not missing:
        return Tools(paths, "")
    return Tools(paths, f"missing: {', '.join(missing)}. {problem}".strip())


def _present() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name in PACKAGES:
        places = (root / place / name for root in (Path("/"), UNPACKED) for place in _PLACES)
        there = next((place for place in places if place.is_file()), None)
        if there:
            found[name] = there
    return found


def _unpack(packages: list[str]) -> str:
    """Why it failed, in words."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        return "There is no apt-get here: install what corresponds to these Debian packages."
    archives = UNPACKED / "archives"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    # The download goes to a directory of our own, so that apt's locks guard nothing of it.
    options = ["-o", "Debug::NoLocking=true", "-o", f"Dir::Cache::archives={archives}/"]
    command = ["apt-get", "-qq", "--yes", "--no-install-recommends", "--download-only", *options, "install", *packages]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            return f"apt-get said: {done.stderr.strip()[:300]} (old package lists? Try apt-get update.)"
        for archive in sorted(archives.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(archive), str(UNPACKED)], check=True, capture_output=True, text=True)
    except subprocess.SubprocessError as error:
        return f"Unpacking failed: {error}"
    shutil.rmtree(archives)
    return ""
