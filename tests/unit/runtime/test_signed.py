"""Only what a commit with a good signature says counts, whatever the repository it is in has been made to say."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import subprocess
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from netlab import wait_for
from reconciler.config.files import read
from reconciler.errors import UnsignedError
from reconciler.runtime import git, signed
from reconciler.runtime.signed import FilesAndHead, Signatures
from tests.signing import Key, Tree, gpg_key, need, ssh_key


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Key]]:
    directory = tmp_path_factory.mktemp("keys")
    need("git")
    with gpg_key(directory, "gpg") as one, gpg_key(directory, "stranger") as other:
        yield {"gpg": one, "ssh": ssh_key(directory), "strange gpg": other, "strange ssh": ssh_key(directory, "b")}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """With two files in a directory of it."""
    made = Tree(tmp_path / "tree")
    (made.path / "edge" / "config.d").mkdir(parents=True)
    for name in ("a.yaml", "b.json", "notes.txt"):
        (config(made) / name).write_text(f"# {name}\n")
    return made


def config(tree: Tree) -> Path:
    return tree.path / "edge" / "config.d"


def check(tree: Tree, *keyrings: Path, commit: str | None = None) -> None:
    Signatures(keyrings, config(tree)).check(read(config(tree)), commit)


def refusal(tree: Tree, *keyrings: Path, commit: str | None = None) -> str:
    with pytest.raises(UnsignedError) as caught:
        check(tree, *keyrings, commit=commit)
    (problem,) = caught.value.problems
    assert problem.file == str(config(tree))
    return problem.message


@pytest.mark.parametrize("kind", ["gpg", "ssh"])
def test_signed_by_a_key_of_the_keyring_it_counts(tree: Tree, keys: dict[str, Key], kind: str) -> None:
    identity = tree.commit()
    assert refusal(tree, keys[kind].keyring) == f"commit {identity} is not signed"
    identity = tree.commit(keys[kind])
    check(tree, keys[kind].keyring)
    check(tree, keys["gpg"].keyring, keys["ssh"].keyring)
    assert f"commit {identity} has no good signature" in refusal(tree, keys[f"strange {kind}"].keyring)
    assert f"commit {identity} has no good signature" in refusal(tree, keys["ssh" if kind == "gpg" else "gpg"].keyring)
    check(tree)  # no keyring: nothing has to be signed


def test_a_keybox_is_a_keyring_too(tree: Tree, keys: dict[str, Key]) -> None:
    tree.commit(keys["gpg"])
    check(tree, Path(keys["gpg"].environment["GNUPGHOME"]) / "pubring.kbx")


def test_a_key_that_has_expired_signs_nothing_any_more(tree: Tree, tmp_path: Path) -> None:
    with gpg_key(tmp_path, "old", expires="seconds=2") as key:
        identity = tree.commit(key)

        def refused() -> bool:
            try:
                check(tree, key.keyring)
            except UnsignedError as error:
                return f"commit {identity} has no good signature" in str(error)
            return False

        wait_for(refused, "expired", timeout_sec=15)


def test_a_key_that_expires_later_is_noticed_at_the_next_look(tree: Tree, tmp_path: Path) -> None:
    """Although the same files were found good with the same keyring."""
    now = [time.time()]
    with gpg_key(tmp_path, "old", expires="seconds=3") as key:
        tree.commit(key)
        signatures = Signatures([key.keyring], config(tree), clock=lambda: now[0])
        signatures.check(read(config(tree)))
        now[0] += 2  # not yet: nothing is asked of gpg, whose own clock says when
        wait_for(lambda: time.time() > now[0] + 2, "the key's time is up")
        signatures.check(read(config(tree)))
        now[0] = time.time()
        with pytest.raises(UnsignedError, match="has no good signature"):
            signatures.check(read(config(tree)))


def test_an_allowed_signer_that_expires_later_is_noticed_at_the_next_look(tree: Tree, tmp_path: Path) -> None:
    key, now = ssh_key(tmp_path), [time.time()]
    name, rest = key.keyring.read_text().split(" ", 1)
    until = datetime.fromtimestamp(now[0] + 4, UTC)
    key.keyring.write_text(f'{name} valid-before="{until:%Y%m%d%H%M%SZ}" {rest}')
    tree.commit(key)
    signatures = Signatures([key.keyring], config(tree), clock=lambda: now[0])
    signatures.check(read(config(tree)))
    # git asks whether it was good when the commit says that it was made: so the commit goes on counting.
    now[0] += 5
    asked = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(signed, "_verify", lambda *args: asked.append(args) or math.inf)
        signatures.check(read(config(tree)))
    assert asked, "asked again"


def test_a_key_that_is_revoked_later_is_noticed_at_the_next_look(tree: Tree, tmp_path: Path) -> None:
    with gpg_key(tmp_path, "lost") as key:
        tree.commit(key)
        signatures = Signatures([key.keyring], config(tree))
        signatures.check(read(config(tree)))
        (made,) = (Path(key.environment["GNUPGHOME"]) / "openpgp-revocs.d").iterdir()
        revocation = made.read_text().partition("\n:-----BEGIN")[2]
        gpg = ("gpg", "--batch", "--quiet")
        environment = {**os.environ, **key.environment}
        subprocess.run([*gpg, "--import"], input=f"-----BEGIN{revocation}", text=True, env=environment, check=True)
        exported = subprocess.run([*gpg, "--armor", "--export"], capture_output=True, env=environment, check=True)
        key.keyring.write_bytes(exported.stdout)
        with pytest.raises(UnsignedError, match="has no good signature"):
            signatures.check(read(config(tree)))


def test_only_the_commits_own_files_count(tree: Tree, keys: dict[str, Key]) -> None:
    identity, ring = tree.commit(keys["ssh"]), keys["ssh"].keyring
    start = f"the files are not those of commit {identity}: "
    for change, words in (
        (lambda at: (at / "a.yaml").write_text("other\n"), "a.yaml differs"),
        (lambda at: (at / "b.json").unlink(), "b.json is missing here"),
        (lambda at: (at / "c.yml").write_text("new\n"), "c.yml is not in it"),
    ):
        change(config(tree))
        assert refusal(tree, ring) == start + words
        tree.git("checkout", "-q", ".")
        tree.git("clean", "-q", "-f")
        check(tree, ring)
    (config(tree) / "notes.txt").write_text("no configuration\n")
    check(tree, ring)


def test_a_link_leads_to_what_nobody_has_signed(tree: Tree, keys: dict[str, Key], tmp_path: Path) -> None:
    (tmp_path / "elsewhere.yaml").write_text("anything\n")
    (config(tree) / "c.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    tree.commit(keys["ssh"])
    assert "c.yaml is a symbolic link" in refusal(tree, keys["ssh"].keyring)


def test_outside_of_a_commit_nothing_counts(tree: Tree, keys: dict[str, Key]) -> None:
    ring = keys["ssh"].keyring
    assert "has no commit yet" in refusal(tree, ring)
    shutil.rmtree(tree.path / ".git")
    assert "in no git work tree" in refusal(tree, ring)
    other = Tree(tree.path)
    (other.path / ".gitignore").write_text("edge\n")
    other.commit(keys["ssh"])
    assert "not part of the commit" in refusal(tree, ring)


def test_keyrings_that_are_none(tree: Tree, keys: dict[str, Key], tmp_path: Path) -> None:
    tree.commit(keys["ssh"])
    assert "can't be read: No such file" in refusal(tree, tmp_path / "none")
    (tmp_path / "empty").touch()
    assert "is empty" in refusal(tree, tmp_path / "empty")
    (tmp_path / "rubbish").write_bytes(b"-----BEGIN PGP PUBLIC KEY BLOCK-----\nrubbish\n")
    assert "can't be read: gpg:" in refusal(tree, tmp_path / "rubbish")
    (tmp_path / "rubbish").write_text("no signers\n")
    assert "no good signature" in refusal(tree, tmp_path / "rubbish")
    shutil.copy(keys["ssh"].keyring, tmp_path / "open")
    (tmp_path / "open").chmod(0o666)
    assert "can be written by anybody" in refusal(tree, tmp_path / "open")


def test_what_the_repository_sets_has_no_say(tree: Tree, keys: dict[str, Key], tmp_path: Path) -> None:
    """Programs that would call everything good, signers of its own, and objects put in another's place."""
    good, ring = tree.commit(keys["ssh"]), keys["ssh"].keyring
    bad = tree.commit(keys["strange ssh"])
    yes = tmp_path / "yes"
    yes.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\necho '[GNUPG:] GOODSIG 1 x' >&2\nexit 0\n")
    yes.chmod(0o755)
    for name in ("gpg.program", "gpg.ssh.program", "gpg.openpgp.program", "core.fsmonitor", "core.sshCommand"):
        tree.git("config", name, str(yes))
    tree.git("config", "gpg.ssh.allowedSignersFile", str(keys["strange ssh"].keyring))
    assert f"{bad} has no good signature" in refusal(tree, ring)
    tree.git("replace", bad, good)
    (tree.path / ".git" / "info" / "grafts").write_text(f"{bad} {good}\n")
    assert f"{bad} has no good signature" in refusal(tree, ring)
    tree.git("update-ref", "HEAD", good)
    check(tree, ring)
    assert not (tmp_path / "ran").exists()


def test_objects_are_what_their_ids_say(tree: Tree, keys: dict[str, Key]) -> None:
    """Somebody who may write the object store puts another tree where the signed one was."""
    tree.commit(keys["ssh"])
    check(tree, keys["ssh"].keyring)
    signed_tree = tree.git("rev-parse", "HEAD:edge/config.d")
    (config(tree) / "a.yaml").write_text("forged\n")
    tree.git("add", "-A")
    forged = tree.git("rev-parse", f"{tree.git('write-tree')}:edge/config.d")
    place = tree.path / ".git" / "objects" / signed_tree[:2] / signed_tree[2:]
    place.unlink()
    shutil.copy(tree.path / ".git" / "objects" / forged[:2] / forged[2:], place)
    assert f"{signed_tree} in {tree.path} is damaged" in refusal(tree, keys["ssh"].keyring)
    body = b"x"
    place.unlink()
    place.write_bytes(zlib.compress(b"tree %d\0" % len(body) + body))
    assert "damaged" in refusal(tree, keys["ssh"].keyring)


def test_a_tree_that_is_none(tree: Tree, keys: dict[str, Key], tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"x")
    none = tree.git("hash-object", "-t", "tree", "-w", "--literally", str(tmp_path / "body"))
    tree.git("update-ref", "HEAD", tree.git("commit-tree", "-m", "change", none))
    assert refusal(tree, keys["ssh"].keyring) == f"the tree {none} in {tree.path} is damaged: it ends within an entry"


def test_files_of_a_commit_that_is_not_checked_out(tree: Tree, keys: dict[str, Key]) -> None:
    """As plans and revisions have them."""
    first = tree.commit(keys["ssh"])
    old = read(config(tree))
    (config(tree) / "a.yaml").write_text("later\n")
    unsigned = tree.commit()
    signatures = Signatures((keys["ssh"].keyring,), config(tree))
    signatures.check(old, first)
    for commit, words in (
        (unsigned, "are not those of"),
        ("", "are of no commit"),
        (f"{first}-dirty", "are of no commit"),
        ("--output=/tmp/x", "are of no commit"),
        ("1" * 40, "has no commit"),
    ):
        with pytest.raises(UnsignedError, match=words):
            signatures.check(old, commit)


def test_what_was_found_good_is_not_asked_again(
    tree: Tree, keys: dict[str, Key], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.commit(keys["ssh"])
    signatures = Signatures((keys["ssh"].keyring,), config(tree))
    signatures.check(read(config(tree)))
    run, asked = git.run, []
    monkeypatch.setattr(git, "run", lambda *words, **options: asked.append(words) or run(*words, **options))
    signatures.check(read(config(tree)))
    assert asked == []
    (config(tree) / "a.yaml").write_text("other\n")
    with pytest.raises(UnsignedError):
        signatures.check(read(config(tree)))
    assert asked


def test_a_commit_of_the_same_files_changes_what_the_watcher_sees(tree: Tree, keys: dict[str, Key]) -> None:
    tree.commit()
    fingerprints = FilesAndHead(config(tree))
    seen = [fingerprints.take(), fingerprints.take()]
    tree.git("commit", "-q", "--amend", "-S", "--no-edit", key=keys["ssh"])
    seen.append(fingerprints.take())
    tree.git("pack-refs", "--all")
    tree.git("checkout", "-q", "--detach")
    seen.append(fingerprints.take())
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3


def test_a_repository_of_the_other_kind_of_ids(tmp_path: Path, keys: dict[str, Key]) -> None:
    made = Tree(tmp_path / "tree")
    shutil.rmtree(made.path / ".git")
    made.git("init", "-q", "--object-format=sha256")
    (made.path / "edge" / "config.d").mkdir(parents=True)
    (config(made) / "a.yaml").write_text("one\n")
    identity = made.commit(keys["ssh"])
    assert len(identity) == hashlib.sha256().digest_size * 2
    check(made, keys["ssh"].keyring)
    assert identity in refusal(made, keys["strange ssh"].keyring)
