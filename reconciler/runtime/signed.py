"""``--require-signed``: files count only if they are, byte for byte, those of a git commit with a good signature.

The work tree may belong to somebody who is not to be trusted: neither its settings nor its object store are. Every
object on the way from the commit to the files is named by its content, so each is hashed here; and git checks the
signature of the commit in an empty repository of its own, where only what stands in this module is set.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import stat
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reconciler.errors import Problem, UnsignedError
from reconciler.runtime import git
from reconciler.runtime.snapshot import Fingerprints, is_config_file

if TYPE_CHECKING:
    from reconciler.config.model import SourceFile

_TIMEOUT_SEC: Final = 20.0
_SYMLINK, _DIRECTORY = b"120000", b"40000"
_MOST_FILES: Final = 5  # named in one message
_MOST_LINES: Final = 4  # of what git said
_LONGEST_TRUST_SEC: Final = 600.0
"""What was found good is looked at again after that long: a signature may expire by itself as well."""
_SSH_TIMES: Final = defaultdict(str, {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"})

Entry = tuple[bytes, str]  # mode and id, as in a tree


class _Unsigned(Exception):  # made an UnsignedError where it is known which directory it is about
    """Why files do not count."""


class Signatures:
    """Whose signatures count: ``keyrings`` are files of OpenPGP keys (a GnuPG keyring, or as ``gpg --export`` writes
    them) and of SSH keys (ALLOWED SIGNERS in ssh-keygen(1)); none: nothing has to be signed."""

    def __init__(self, keyrings: Sequence[Path], directory: Path, *, clock: Callable[[], float] = time.time) -> None:
        """``clock``: seconds since the epoch, by which keys expire."""
        self._keyrings, self._directory, self._clock = tuple(keyrings), directory, clock
        self._known: tuple[object, object] | None = None  # keys and files that were found good last
        self._good_until = 0.0

    def check(self, files: Iterable[SourceFile], commit: str | None = None) -> None:
        """Raise :class:`UnsignedError` unless the files are those of a commit that is signed by one of the keys.

        ``commit``: its id, empty if the files are of none; None: the one that is checked out.
        """
        if not self._keyrings:
            return
        contents = {Path(file.path).name: file.content for file in files}
        asked = (commit, {name: hashlib.sha256(content).digest() for name, content in contents.items()})
        try:
            keys = _read_keys(self._keyrings)
            if self._known == (keys, asked) and self._clock() < self._good_until:
                return
            self._known = None
            tree, prefix = _work_tree(self._directory)
            identity = _commit_id(tree, commit)
            raw = _object(tree, "commit", identity)
            _compare(contents, _files_of(tree, raw, prefix), identity)
            expiry = _verify(identity, raw, keys, self._clock())
        except _Unsigned as why:
            raise UnsignedError([Problem(str(self._directory), 0, 0, "", str(why))]) from None
        self._known, self._good_until = (keys, asked), min(expiry, self._clock() + _LONGEST_TRUST_SEC)


class FilesAndHead(Fingerprints):
    """The fingerprint also changes when another commit is checked out, or the same files are committed."""

    def take(self) -> bytes:
        """As :meth:`Fingerprints.take`, and what HEAD is."""
        return super().take() + hashlib.sha256(repr(list(_head(self.directory))).encode()).digest()


def _head(directory: Path) -> Iterator[object]:
    """What tells where HEAD is, without git being run."""
    found = git.git_directory(directory)
    if found is None:
        return
    common = _text(found / "commondir")
    shared = found / common.strip() if common else found
    head = _text(found / "HEAD")
    yield head
    if head.startswith("ref: "):
        yield _text(shared / head.removeprefix("ref: ").strip())
    for name in ("packed-refs", "reftable/tables.list"):
        try:
            status = (shared / name).stat()
        except OSError:
            continue
        yield status.st_mtime_ns, status.st_ino, status.st_size


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


# -- keys ----------------------------------------------------------------------------------------------------


def _read_keys(keyrings: Iterable[Path]) -> dict[Path, bytes]:
    """The keyrings' contents. Raises :class:`_Unsigned` for one that can't be read, or that anybody may change."""
    found = {}
    for path in keyrings:
        try:
            found[path] = path.read_bytes()
            mode = path.stat().st_mode
        except OSError as error:
            raise _Unsigned(f"the keyring {path} can't be read: {error.strerror or error}") from error
        if mode & stat.S_IWOTH:
            raise _Unsigned(f"the keyring {path} can be written by anybody: `chmod o-w {path}`")
        if not found[path].strip():
            raise _Unsigned(f"the keyring {path} is empty")
    return found


def _is_openpgp(content: bytes) -> bool:
    """Keys of GnuPG: armoured, packets (whose first byte has its highest bit set), or a keybox. Else it is text."""
    return content.startswith(b"-----BEGIN PGP") or content[0] & 0x80 != 0 or _is_keybox(content)


def _is_keybox(content: bytes) -> bool:
    return content[8:12] == b"KBXf"


def _verify(identity: str, raw: bytes, keys: Mapping[Path, bytes], now: float) -> float:
    """Have git check the signature, in a repository that holds nothing but this commit. Returns when the next of the
    keys expires."""
    with tempfile.TemporaryDirectory(prefix="revproxy-signed-") as name:
        home = Path(name)
        signers, settings = home / "allowed_signers", dict(git.SETTINGS)
        signers.write_bytes(b"\n".join(content for content in keys.values() if not _is_openpgp(content)) + b"\n")
        settings |= {"gpg.ssh.allowedSignersFile": str(signers)}
        environment = {"HOME": name, "XDG_CONFIG_HOME": name, "GNUPGHOME": name, "GIT_CONFIG_NOSYSTEM": "1"}
        environment |= {"GIT_CONFIG_GLOBAL": os.devnull}
        for number, content in enumerate(content for content in keys.values() if _is_openpgp(content)):
            _import(home, number, content, environment)
        repository = str(home / "repository")
        kind = "sha1" if len(identity) == 40 else "sha256"
        steps: tuple[tuple[tuple[str, ...], bytes], ...] = (
            (("init", "--quiet", "--bare", "--template=", f"--object-format={kind}", repository), b""),
            (("-C", repository, "hash-object", "-t", "commit", "-w", "--stdin"), raw),
            (("-C", repository, "verify-commit", identity), b""),
        )
        for words, given in steps:
            done = git.run(words, settings=settings, environment=environment, given=given, timeout_sec=_TIMEOUT_SEC)
            if done.returncode:
                raise _Unsigned(_refusal(identity, raw, done.stderr.decode(errors="replace")))
        expiries = [*_gpg_expiries(environment), *_ssh_expiries(signers.read_text(errors="replace"))]
    return min((each for each in expiries if each > now), default=math.inf)


def _gpg_expiries(environment: Mapping[str, str]) -> Iterator[float]:
    """Of keys and subkeys (doc/DETAILS of GnuPG, field 7)."""
    if not (Path(environment["GNUPGHOME"]) / "gpg.conf").exists():
        return  # there are none of GnuPG
    listed = _gpg(("gpg", "--batch", "--quiet", "--no-autostart", "--with-colons", "--list-keys"), b"", environment)
    for line in listed.decode(errors="replace").splitlines():
        fields = line.split(":")
        if fields[0] in ("pub", "sub") and len(fields) > 6 and fields[6].isdecimal():
            yield float(fields[6])


def _ssh_expiries(signers: str) -> Iterator[float]:
    """Of allowed signers, ``valid-before="YYYYMMDD[HHMM[SS]][Z]"``, in local time without the Z."""
    for digits, utc in re.findall(r'valid-before="(\d{8,14})(Z?)"', signers, re.IGNORECASE):
        with contextlib.suppress(ValueError):  # then ssh-keygen takes it for none either
            moment = datetime.strptime(digits, _SSH_TIMES[len(digits)])  # noqa: DTZ007  # told by the Z
            yield (moment.replace(tzinfo=UTC) if utc else moment).timestamp()


def _import(home: Path, number: int, content: bytes, environment: Mapping[str, str]) -> None:
    """Put a keyring's keys into a GnuPG of our own."""
    common = ("gpg", "--batch", "--quiet", "--no-autostart", "--no-auto-check-trustdb", "--trust-model", "always")
    (home / "gpg.conf").write_text("trust-model always\nno-auto-check-trustdb\nno-autostart\n")
    if _is_keybox(content):
        box = home / f"{number}.kbx"
        box.write_bytes(content)
        content = _gpg((*common, "--no-default-keyring", "--keyring", str(box), "--export"), b"", environment)
    _gpg((*common, "--import"), content, environment)


def _gpg(command: Sequence[str], given: bytes, environment: Mapping[str, str]) -> bytes:
    try:
        done = subprocess.run(
            command,
            input=given,
            capture_output=True,
            env={**os.environ, **environment},
            timeout=_TIMEOUT_SEC,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Unsigned(f"a keyring can't be read: gpg: {error}") from error
    if done.returncode:
        raise _Unsigned(f"a keyring can't be read: {_said(done.stderr.decode(errors='replace'))}")
    return done.stdout


def _refusal(identity: str, raw: bytes, said: str) -> str:
    if b"\ngpgsig" not in raw.partition(b"\n\n")[0]:
        return f"commit {identity} is not signed"
    return f"commit {identity} has no good signature by a key of the keyring: {_said(said) or 'git said no more'}"


def _said(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines[:_MOST_LINES])


# -- the commit and its files --------------------------------------------------------------------------------


def _work_tree(directory: Path) -> tuple[Path, tuple[bytes, ...]]:
    """The work tree that the directory is in, and its place there."""
    real = Path(os.path.realpath(directory))
    for parent in (real, *real.parents):
        if os.path.lexists(parent / ".git"):  # never raises
            return parent, tuple(map(os.fsencode, real.relative_to(parent).parts))
    raise _Unsigned("it is in no git work tree, so that no commit vouches for the files")


def _ask(tree: Path, *words: str) -> bytes | None:
    """What git says in the work tree; None if it fails. Raises :class:`_Unsigned` without git."""
    done = git.run(("-C", str(tree), *words), environment={"GIT_NO_REPLACE_OBJECTS": "1"})
    if done.returncode == git.NO_GIT:
        raise _Unsigned(f"git can't be asked: {done.stderr.decode(errors='replace')}")
    return done.stdout if done.returncode == 0 else None


def _commit_id(tree: Path, commit: str | None) -> str:
    if commit is not None and (len(commit) not in (40, 64) or set(commit) - set("0123456789abcdef")):
        raise _Unsigned("the files are of no commit" + (f": {commit}" if commit else ""))
    found = _ask(tree, "rev-parse", "--verify", "--quiet", f"{commit or 'HEAD'}^{{commit}}")
    if found is None:
        raise _Unsigned(f"the work tree {tree} has no commit {commit or 'yet'}")
    return found.decode().strip()


def _object(tree: Path, kind: str, identity: str) -> bytes:
    """An object's content, which must be what its id says."""
    content = _ask(tree, "cat-file", kind, identity)
    if content is None:
        raise _Unsigned(f"git has no {kind} {identity} in {tree}")
    if git.object_id(kind, content, len(identity)) != identity:
        raise _Unsigned(f"the {kind} {identity} in {tree} is damaged: its content has another id")
    return content


def _files_of(tree: Path, commit: bytes, prefix: Sequence[bytes]) -> dict[str, Entry]:
    """What the commit has in the directory, by name, as far as it would be a configuration file."""
    identity = commit.partition(b"\n")[0].removeprefix(b"tree ").decode()
    entries = _entries(tree, identity)
    for part in prefix:
        mode, identity = entries.get(part, (b"", ""))
        if mode != _DIRECTORY:
            raise _Unsigned("the directory is not part of the commit that is checked out")
        entries = _entries(tree, identity)
    names = {os.fsdecode(name): entry for name, entry in entries.items() if entry[0] != _DIRECTORY}
    return {name: entry for name, entry in names.items() if is_config_file(name)}


def _entries(tree: Path, identity: str) -> dict[bytes, Entry]:
    """Mode and id of each entry of a tree, by name (gitformat-pack(5))."""
    content, size, at = _object(tree, "tree", identity), len(identity) // 2, 0
    entries = {}
    while at < len(content):
        end = content.find(b"\0", at)
        if end < 0:
            raise _Unsigned(f"the tree {identity} in {tree} is damaged: it ends within an entry")
        mode, _, name = content[at:end].partition(b" ")
        at = end + 1 + size
        entries[name] = mode, content[end + 1 : at].hex()
    return entries


def _compare(contents: Mapping[str, bytes], committed: Mapping[str, Entry], identity: str) -> None:
    wrong = []
    for name in sorted(contents.keys() | committed.keys()):
        if name not in committed:
            wrong.append(f"{name} is not in it")
        elif name not in contents:
            wrong.append(f"{name} is missing here")
        elif committed[name][0] == _SYMLINK:
            wrong.append(f"{name} is a symbolic link, and what it leads to is not signed")
        elif git.object_id("blob", contents[name], len(identity)) != committed[name][1]:
            wrong.append(f"{name} differs")
    if wrong:
        more = f", and {len(wrong) - _MOST_FILES} more" if len(wrong) > _MOST_FILES else ""
        raise _Unsigned(f"the files are not those of commit {identity}: {', '.join(wrong[:_MOST_FILES])}{more}")
