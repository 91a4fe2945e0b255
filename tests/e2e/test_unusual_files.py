"""Configuration directories as they come: odd names, somebody else's git tree, a merge half way, a file system that
tells nothing."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab import HTTP_PORT, Lab, wait_for
from reconciler.api.client import DaemonClient
from tests.e2e.instance import Instance, web
from tests.signing import Tree, need

SOMEBODY = 12345  # a user that there is not


def http(lab: Lab, number: int) -> str:
    return web(f"{lab.backends[number - 1].ip4}:{HTTP_PORT}")


def live(instance: Instance) -> set[str]:
    """The target addresses that are live."""
    status = DaemonClient(instance.run_dir / "revproxyd.sock").status()
    return {target.address for proxy in status.proxies for target in proxy.targets}


def becomes_live(instance: Instance, number: int) -> None:
    wanted = {f"{instance.lab.backends[number - 1].ip4}:{HTTP_PORT}"}
    wait_for(lambda: live(instance) == wanted, f"backend {number} live")


@pytest.fixture(scope="module")
def running() -> Iterator[Instance]:
    """A daemon whose directory has a name with everything in it that a shell or a URL would trip over."""
    with Lab(offload=False, xdp_peers=True) as lab, Instance(lab) as instance:
        odd = instance.config_dir.parent / "Größe 100% & \"mehr\" 配置 #1 'x'.d"
        instance.config_dir.rename(odd)
        instance.config_dir = odd
        instance.env["REVPROXY_CONFIG_DIR"] = str(odd)
        instance.env["HOME"] = str(lab.directory / "home")
        Path(instance.env["HOME"]).mkdir()
        instance.write(http(lab, 1))
        instance.start_daemon()
        yield instance


def test_a_path_with_spaces_and_letters_of_all_kinds(running: Instance) -> None:
    lab, name = running.lab, "ein Name mit Leerzeichen 名前.yaml"
    assert lab.curl(f"http://{lab.proxy4}/").startswith("backend1")
    (running.config_dir / "web.yaml").rename(running.config_dir / name)
    running.write(http(lab, 2), name)
    becomes_live(running, 2)
    (change,) = running.json("history")[-1:]
    assert name in change["files"]
    running.write("proxies: [", name)
    wait_for(lambda: running.run("status").returncode == 1, "refused")
    (problem,) = running.json("status")["errors"]
    assert problem["file"] == str(running.config_dir / name)
    assert f"{running.config_dir / name}:1:" in running.run("validate").stderr
    running.write(http(lab, 1), name)
    becomes_live(running, 1)
    running.ctl("target", "add", "web", f"{lab.backends[1].ip4}:{HTTP_PORT}")
    assert str(lab.backends[1].ip4) in (running.config_dir / name).read_text()
    (running.config_dir / name).unlink()
    running.write(http(lab, 1))
    becomes_live(running, 1)


def test_a_file_system_that_tells_nothing(running: Instance) -> None:
    """What another host writes comes by no inotify here; nor does what is written through memory, to a file that stays
    open."""
    lab, path = running.lab, running.config_dir / "web.yaml"
    one, two = (f"{each.ip4}".encode() for each in lab.backends[:2])
    for number in (2, 1):  # so that nothing is told any more
        running.write(http(lab, number))
        becomes_live(running, number)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        at = memory.find(one)
        memory[at : at + len(two)] = two
        becomes_live(running, 2)
        assert lab.curl(f"http://{lab.proxy4}/").startswith("backend2")
    running.write(http(lab, 1))
    becomes_live(running, 1)


def test_somebody_elses_git_tree_and_a_merge_half_way(running: Instance) -> None:
    """git calls the ownership dubious. Nobody's settings are asked or changed for it."""
    need("git")
    lab, tree = running.lab, Tree(running.config_dir)
    running.write(http(lab, 1))
    first = tree.commit(message="one")
    tree.git("checkout", "-q", "-b", "other")
    running.write(http(lab, 2))
    tree.commit(message="two")
    tree.git("checkout", "-q", "main")
    running.write(http(lab, 3))
    third = tree.commit(message="three")
    settings = (running.config_dir / ".git" / "config").read_bytes()
    for path in (running.config_dir, *running.config_dir.rglob("*")):
        os.chown(path, SOMEBODY, SOMEBODY)
    plain = subprocess.run(
        ["git", "-C", running.config_dir, "log", "-1"],
        env={**running.env, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "dubious ownership" in plain.stderr, "else this tests nothing"
    wait_for(lambda: running.json("status")["commit"] == third, "its commit is known")
    becomes_live(running, 3)
    # Half way through a merge the files hold both, and marks: nothing of it is applied.
    with pytest.raises(AssertionError):
        tree.git("-c", "safe.directory=*", "merge", "-q", "other")
    assert "<<<<<<<" in (running.config_dir / "web.yaml").read_text()
    wait_for(lambda: running.run("status").returncode == 1, "refused")
    (problem, *_) = running.json("status")["errors"]
    assert problem["file"].endswith("web.yaml")
    assert problem["line"] == 1 + (running.config_dir / "web.yaml").read_text().splitlines().index("<<<<<<< HEAD")
    assert "merge" in problem["message"]
    becomes_live(running, 3)
    assert lab.curl(f"http://{lab.proxy4}/").startswith("backend3")
    tree.git("-c", "safe.directory=*", "checkout", "-q", "--theirs", "web.yaml")
    becomes_live(running, 2)
    tree.git("-c", "safe.directory=*", "merge", "--abort")
    becomes_live(running, 3)
    assert running.json("status")["commit"] == third
    assert first != third
    assert (running.config_dir / ".git" / "config").read_bytes() == settings
    assert list(Path(running.env["HOME"]).iterdir()) == [], "no settings of git's"
    subprocess.run(["rm", "-rf", running.config_dir / ".git"], check=True)
