"""Debian's packages for machines of our own: kernels unpacked, root file systems put together, nothing installed here.

apt is used with lists and caches of its own below the cache folder, so that the host's are neither read nor changed. No
maintainer script runs, so a tree of another architecture is made like one of this host's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

MIRROR: Final = os.environ.get("REVPROXY_VM_MIRROR", "http://deb.debian.org")
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
ROOT_SUITE: Final = "bookworm"
SUITES: Final = ("bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports")
SECURITY: Final = ("bullseye-security", "bookworm-security", "trixie-security")

# What the tests call, beside the interpreter and bcc.
ROOT_PACKAGES: Final = (
    "base-files,base-passwd,bash,busybox-static,ca-certificates,coreutils,curl,ethtool,findutils,git,grep,gzip,"
    "iproute2,kmod,libc-bin,linux-libc-dev,mount,openssl,procps,python3,python3-bpfcc,sed,tar,util-linux"
)
FETCH_SEC: Final = 900
"""After so long a client of the archive is taken to hang."""
LISTS_SEC: Final = 86400
"""Lists older than that are fetched again: the archive drops a package when the next version is there."""


class Unavailable(Exception):
    """Something can't be had; the message says what, and what to do."""


def _sources() -> str:
    lines = [f"deb [signed-by={KEYRING}] {MIRROR}/debian {suite} main" for suite in SUITES]
    lines += [f"deb [signed-by={KEYRING}] {MIRROR}/debian-security {suite} main" for suite in SECURITY]
    return "\n".join(lines) + "\n"


def fetched(what: str, command: list[str], where: Path | None = None) -> str:
    """Run what needs the network. Its output; raises :class:`Unavailable` with its last words, or when it hangs."""
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False, timeout=FETCH_SEC)
        if done.returncode == 0:
            return done.stdout
        said = "\n".join(done.stderr.strip().splitlines()[-5:]) or f"exit status {done.returncode}"
    except subprocess.TimeoutExpired:
        said = f"not done in {FETCH_SEC} s"
    except OSError as error:
        said = str(error)
    raise Unavailable(f"{what}: {said}\nLook at the network; REVPROXY_VM_MIRROR names another Debian mirror.")


class Archive:
    """Debian's archive for one architecture (``amd64``, ``arm64``). ``folder`` holds the lists."""

    def __init__(self, folder: Path, arch: str) -> None:
        self.folder, self.arch = folder / f"apt-{arch}", arch

    def _apt(self, *words: str, where: Path | None = None) -> str:
        place = str(self.folder)
        settings = {
            "Dir::Etc::sourcelist": f"{place}/sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State": place,
            "Dir::State::lists": f"{place}/lists",
            "Dir::State::status": f"{place}/status",
            "Dir::Cache": f"{place}/cache",
            "APT::Architecture": self.arch,
            "APT::Architectures": self.arch,
            "APT::Sandbox::User": "root",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": "30",
        }
        options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        return fetched(" ".join(words), [words[0], *options, *words[1:]], where)

    def update(self) -> None:
        """Fetch the lists, if there are none of today."""
        complete = self.folder / "complete"
        if complete.exists() and time.time() - complete.stat().st_mtime < LISTS_SEC:
            return
        for part in ("lists/partial", "cache/archives/partial"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        (self.folder / "sources.list").write_text(_sources())
        (self.folder / "status").touch()
        self._apt("apt-get", "update")
        complete.touch()

    def kernels(self) -> dict[str, str]:
        """Package by release, like ``6.1.0-50-amd64``: those for ordinary machines."""
        self.update()
        names = self._apt("apt-cache", "pkgnames", "linux-image-").split()
        found = {}
        for name in names:
            release = name.removeprefix("linux-image-").removesuffix("-unsigned")
            flavour = release.rpartition("-")[2]
            if flavour == self.arch and release[0].isdigit() and not any(each in release for each in ("cloud", "rt")):
                found[release] = name
        return found

    def unpack(self, package: str, into: Path) -> None:
        """Download the package and unpack it, without what it depends on."""
        with _scratch(into.parent) as scratch:
            self._apt("apt-get", "download", f"{package}:{self.arch}", where=scratch)
            for deb in scratch.glob("*.deb"):
                subprocess.run(["dpkg-deb", "--extract", str(deb), str(into)], check=True)

    def known(self, package: str) -> bool:
        """Whether there is such a package."""
        return bool(self._apt("apt-cache", "pkgnames", package).split())


class _scratch:
    def __init__(self, parent: Path) -> None:
        self.path = parent / "scratch"

    def __enter__(self) -> Path:
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def version(release: str) -> tuple[int, ...]:
    """What releases are ordered by: ``6.12.95+deb12-amd64`` is (6, 12, 95, 12)."""
    digits = "".join(letter if letter.isdigit() else " " for letter in release.rpartition("-")[0])
    return tuple(int(part) for part in digits.split())


def choose(releases: list[str], wanted: str) -> str:
    """The newest release of the series ``wanted``, like ``6.1``; ``newest`` is the newest of all.

    >>> choose(["6.1.0-50-amd64", "6.1.0-9-amd64", "6.12.95+deb12-amd64"], "6.1")
    '6.1.0-50-amd64'
    """
    series = [each for each in releases if wanted == "newest" or each.startswith((f"{wanted}.", f"{wanted}-"))]
    if not series:
        have = sorted({version(each)[:2] for each in releases})
        raise Unavailable(
            f"Debian has no Linux {wanted}; it has {', '.join('.'.join(map(str, each)) for each in have)}."
        )
    return max(series, key=version)


def fetch_kernel(folder: Path, arch: str, wanted: str) -> Path:
    """The folder with the unpacked kernel (``boot``, ``lib/modules``); its ``release`` file says which it is. One
    process at a time fetches: the others wait."""
    place = folder / "kernels" / f"{wanted}-{arch}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return place if (place / "release").exists() else _fetch_kernel(folder, arch, wanted, place)


def _fetch_kernel(folder: Path, arch: str, wanted: str, place: Path) -> Path:
    archive = Archive(folder, arch)
    kernels = archive.kernels()
    release = choose(list(kernels), wanted)
    draft = place.with_name(f"{place.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    archive.unpack(kernels[release], draft)
    for part in ("binary", "modules", "base"):  # Linux 7 comes in several packages; base has modules.builtin
        if archive.known(f"linux-{part}-{release}"):
            archive.unpack(f"linux-{part}-{release}", draft)
    if not (draft / "lib").exists():
        (draft / "lib").symlink_to("usr/lib")
    subprocess.run(["/sbin/depmod", "--basedir", str(draft), release], check=True)
    (draft / "release").write_text(f"{release}\n")
    shutil.rmtree(place, ignore_errors=True)
    draft.rename(place)
    return place


def fetch_root(tree: Path, arch: str) -> None:
    """Unpack a Debian 12 with what tests need into the empty folder ``tree``."""
    links = "mkdir -p " + " ".join(f'"$1/usr/{name}"' for name in ("bin", "sbin", "lib", "lib64"))
    links += "".join(f'; ln -s usr/{name} "$1/{name}"' for name in ("bin", "sbin", "lib", "lib64"))
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract", f"--arch={arch}"]
    command += [f"--include={ROOT_PACKAGES}", f"--setup-hook={links}", ROOT_SUITE, str(tree)]
    command += [f"deb {MIRROR}/debian {ROOT_SUITE} main"]
    command += [f"deb {MIRROR}/debian-security {ROOT_SUITE}-security main"]
    fetched(f"mmdebstrap {arch}", command)
