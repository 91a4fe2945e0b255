"""``--require-signed``: a daemon, and commands without one, apply what a signed commit says and nothing else."""

from __future__ import annotations

from netlab import HTTP_PORT, Lab, wait_for
from tests.e2e.instance import Instance, web
from tests.e2e.watching import Requests
from tests.signing import Tree, gpg_key, need, ssh_key


def http(lab: Lab, number: int) -> str:
    return web(f"{lab.backends[number - 1].ip4}:{HTTP_PORT}")


def conditions(instance: Instance) -> dict[str, str]:
    return {each["type"]: each["reason"] for each in instance.json("status")["conditions"]}


def test_a_daemon_applies_signed_commits_only(lab: Lab, instance: Instance) -> None:
    need("git", "gpg", "ssh-keygen")
    with gpg_key(lab.directory) as key:
        other = ssh_key(lab.directory)
        tree = Tree(instance.config_dir)
        instance.write(http(lab, 1))
        first = tree.commit(key)
        instance.start_daemon("--require-signed", str(key.keyring), "--require-signed", str(other.keyring))
        with Requests(lab) as requests:
            assert instance.json("status", status=0)["commit"] == first
            # An edit that nobody has committed, then committed, then signed: the files stay the same.
            instance.write(http(lab, 2))
            wait_for(lambda: conditions(instance)["Degraded"] == "FilesNotSigned", "dirty")
            (error,) = instance.json("status", status=1)["errors"]
            assert f"not those of commit {first}: web.yaml differs" in error["message"]
            unsigned = tree.commit()
            wait_for(lambda: f"commit {unsigned} is not signed" in instance.ctl("status", status=1), "not signed")
            refused = instance.run("apply", "--yes")
            assert refused.returncode == 1
            assert f"commit {unsigned} is not signed" in refused.stderr
            assert instance.json("diff", status=2)["problems"]
            assert set(requests.answers) == {"backend1"}, "the last good stays in force"
            assert instance.json("history")[-1]["result"] == "refused"
            tree.git("commit", "-q", "--amend", "--no-edit", "-S", key=other)
            signed = tree.git("rev-parse", "HEAD")
            wait_for(lambda: instance.json("status")["commit"] == signed, "signed, by the other key")
        assert set(requests.answers) == {"backend1", "backend2"}
        instance.wait_synced()
        disagreeing = instance.run("--require-signed", str(other.keyring), "apply", "--yes")
        assert disagreeing.returncode == 1
        assert "--require-signed" in disagreeing.stderr


def test_so_do_commands_without_a_daemon(lab: Lab, instance: Instance) -> None:
    need("git", "ssh-keygen")
    key = ssh_key(lab.directory)
    instance.env["REVPROXY_REQUIRE_SIGNED"] = str(key.keyring)
    tree = Tree(instance.config_dir)
    instance.write(http(lab, 1))
    unsigned = tree.commit()
    refused = instance.run("apply", "--yes")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"{instance.config_dir}: commit {unsigned} is not signed" in refused.stderr
    tree.commit(key)
    instance.ctl("apply", "--yes")
    assert Requests(lab).ask() == "backend1"
