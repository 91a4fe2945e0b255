"""Keys made for one test, and git commits signed with them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

IDENTITY = ("user.name=A. U. Thor", "user.email=a@example.com", "init.defaultBranch=main")


def need(*programs: str) -> None:
    """Skip the test, saying so, where one of the programs is missing."""
    missing = [each for each in programs if shutil.which(each) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@dataclass(frozen=True)
class Key:
    """A key that can sign. ``keyring``: what ``--require-signed`` takes; ``settings``: what git signs with."""

    keyring: Path
    settings: tuple[str, ...]
    environment: dict[str, str]


def ssh_key(directory: Path, name: str = "a") -> Key:
    """A fresh key of OpenSSH."""
    need("ssh-keygen")
    private = directory / f"ssh-{name}"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", private], check=True)
    keyring = directory / f"{name}.signers"
    keyring.write_text(f"a@example.com {private.with_suffix('.pub').read_text()}")
    return Key(keyring, ("gpg.format=ssh", f"user.signingKey={private}"), {})


@contextmanager
def gpg_key(directory: Path, name: str = "a", *, expires: str = "never") -> Iterator[Key]:
    """A fresh key of GnuPG."""
    need("gpg")
    home = Path(tempfile.mkdtemp(prefix="gpg-"))  # the agent's socket is there: a short path
    environment = {"GNUPGHOME": str(home)}
    try:
        made = ("--quick-generate-key", f"{name} <a@example.com>", "ed25519", "sign", expires)
        _run("gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", *made, env=environment)
        keyring = directory / f"{name}.gpg"
        keyring.write_bytes(_run("gpg", "--batch", "--armor", "--export", env=environment).encode())
        yield Key(keyring, (f"user.signingKey={name}",), environment)
    finally:
        _run("gpgconf", "--kill", "all", env=environment)
        shutil.rmtree(home, ignore_errors=True)


def _run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(
        command, env={**os.environ, **(env or {})}, cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


class Tree:
    """A work tree to commit in, signed or not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.git("init", "-q")

    def git(self, *words: str, key: Key | None = None) -> str:
        """``git`` in it, with nobody's settings."""
        settings = [*IDENTITY, *(key.settings if key else ())]
        options = [word for setting in settings for word in ("-c", setting)]
        env = {"GIT_CONFIG_GLOBAL": os.devnull, **(key.environment if key else {})}
        return _run("git", *options, *words, env=env, cwd=self.path).strip()

    def commit(self, key: Key | None = None, message: str = "change") -> str:
        """Commit everything; the id."""
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message, *(["-S"] if key else []), key=key)
        return self.git("rev-parse", "HEAD")
