"""Where pins live: on a shared bpffs, behind ``ip netns exec``, and where there is none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler import resources
from reconciler.errors import KernelError
from reconciler.kernel import bpffs
from reconciler.kernel.maps import Maps
from reconciler.kernel.program import Programs
from tests.kernel.kernelmaps import bpffs_directory


@pytest.fixture
def directory() -> Iterator[Path]:
    with bpffs_directory() as found:
        yield found


def test_directory_on_a_bpffs_is_used_as_it_is(directory: Path) -> None:
    assert bpffs.provide(directory / "not-there-yet") == directory / "not-there-yet"


NEW_SYS = 'umount -l /sys && mount -t sysfs sysfs /sys && exec "$0" -c "$1"'


def test_an_instance_has_one_name_however_its_pins_are_reached() -> None:
    for reached in ("/sys/fs/bpf/one", "/proc/4711/root/sys/fs/bpf/one", "/proc/self/root/sys/fs/bpf/one"):
        programs = Programs(Maps(Path(reached)), resources.bpf_dir())
        assert programs.own().instance == "/sys/fs/bpf/one"


def behind_a_new_sys(code: str) -> str:
    """What ``code`` prints in a mount namespace like that of ``ip netns exec``, with a sysfs of its own at /sys."""
    done = subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-c", NEW_SYS, sys.executable, code],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    return done.stdout.strip()


def test_behind_a_new_sys_the_pins_are_found_through_the_witness(directory: Path) -> None:
    (directory / "mark").mkdir()
    code = (
        "import pathlib; from reconciler.kernel import bpffs; "
        f"assert not pathlib.Path({str(directory)!r}).exists(); "
        f"found = bpffs.provide(pathlib.Path({str(directory)!r})); "
        "print(found, *(each.name for each in found.iterdir()))"
    )
    found, mark = behind_a_new_sys(code).split()
    # Its number may be another than we would take: there is one ancestor more.
    assert (str(bpffs.as_named(Path(found))), mark) == (str(directory), "mark")


def test_behind_a_new_sys_without_ancestors_somebody_else_shows_the_pins(directory: Path) -> None:
    (directory / "mark").mkdir()
    code = (
        "import pathlib; from reconciler.kernel import bpffs; bpffs._elders = lambda: []; "
        f"found = bpffs.provide(pathlib.Path({str(directory)!r})); "
        "print(found, *(each.name for each in found.iterdir()))"
    )
    found, mark = behind_a_new_sys(code).split()
    assert (str(bpffs.as_named(Path(found))), mark) == (str(directory), "mark")


def test_who_has_mounts_of_his_own_as_a_user_shows_no_pins(directory: Path) -> None:
    del directory  # there is a bpffs
    for words, shows in (([], True), (["unshare", "--user", "--mount"], False)):
        other = subprocess.Popen([*words, "sh", "-c", "echo ready; exec sleep 60"], stdout=subprocess.PIPE)
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"ready\n"
            assert bpffs.shows_pins(str(other.pid)) is shows
        finally:
            other.kill()
            other.communicate()


def test_behind_a_new_sys_the_pins_are_found_again_when_their_witness_has_ended(directory: Path) -> None:
    elder = subprocess.Popen(["sleep", "60"])
    code = (
        f"import os, pathlib, time; elder = {elder.pid}; "
        "from reconciler.kernel import bpffs; bpffs._elders = lambda: [str(elder)]; "
        "from reconciler.runtime.live import Live; "
        f"live = Live(pathlib.Path({str(directory)!r})); live.observe(); before = live.maps.root.parent; "
        "os.kill(elder, 9)\n"
        "while os.path.exists(f'/proc/{elder}/root/'): time.sleep(0.01)\n"
        "live.observe(); print(before, live.maps.root.parent)"
    )
    try:
        before, after = behind_a_new_sys(code).split()
    finally:
        elder.kill()
        elder.wait()
    assert before == f"/proc/{elder.pid}/root{directory}" != after
    assert bpffs.as_named(Path(after)) == directory


def test_behind_a_new_sys_a_mount_outlives_the_process(tmp_path: Path) -> None:
    own = tmp_path / "pins"
    code = f"import pathlib; from reconciler.kernel import bpffs; print(bpffs.provide(pathlib.Path({str(own)!r})))"
    try:
        assert behind_a_new_sys(code).endswith(str(own))
        assert bpffs.mount_of(own).point == own
        bpffs.release(own)
        assert bpffs.mount_of(own).point != own
    finally:
        subprocess.run(["umount", str(own)], check=False, capture_output=True)


def test_elsewhere_a_bpffs_is_mounted_and_taken_down(tmp_path: Path) -> None:
    own = tmp_path / "pins with space"
    try:
        assert bpffs.provide(own) == own
        mount = bpffs.mount_of(own)
        assert (mount.point, mount.type, mount.source) == (own, "bpf", bpffs.SOURCE)
        assert bpffs.provide(own) == own  # a second time nothing is mounted
        assert sum(each.point == own for each in bpffs.mounts()) == 1
        (own / "something").mkdir()
        bpffs.release(own)
        assert bpffs.mount_of(own).point == own, "what is in use stays"
        (own / "something").rmdir()
        bpffs.release(own)
        assert bpffs.mount_of(own).point != own
    finally:
        subprocess.run(["umount", str(own)], check=False, capture_output=True)


def test_names_that_are_no_text() -> None:
    """The kernel tells of them beside what we look for: mounts, and a process's name, cut after 15 bytes."""
    code = (
        "import os, pathlib, subprocess, sys, tempfile; from reconciler.kernel import bpffs, privilege\n"
        "pathlib.Path('/proc/self/comm').write_bytes(b'\\xd0')\n"
        "assert bpffs._ancestors()[0] == str(os.getppid())\n"
        "assert not privilege._ambient()\n"
        "with tempfile.TemporaryDirectory() as place:\n"
        "    for name in (b'\\xff', b'a\\x0cb\\xc2\\xa0c\\xe2\\x80\\xa8d'):\n"
        "        own = pathlib.Path(place, os.fsdecode(name))\n"
        "        own.mkdir()\n"
        "        subprocess.run(['mount', '-t', 'tmpfs', 'none', own], check=True)\n"
        "        assert bpffs.mount_of(own) == bpffs.Mount(own, 'tmpfs', 'none')\n"
        "        subprocess.run(['umount', own], check=True)\n"
        "print('fine')"
    )
    assert behind_a_new_sys(code) == "fine"


def test_nothing_is_mounted_over_files(tmp_path: Path) -> None:
    for own in (tmp_path, Path("/")):
        (tmp_path / "file").touch()
        with pytest.raises(KernelError, match=f"mount a bpffs on {own}: the directory is not empty"):
            bpffs.provide(own)
        assert bpffs.mount_of(own).type != "bpf"
    (tmp_path / "file").unlink()
    with pytest.raises(KernelError, match="mount a bpffs on /etc/passwd: ENOTDIR"):
        bpffs.provide(Path("/etc/passwd"))


def test_somebody_elses_mount_stays(tmp_path: Path) -> None:
    own = tmp_path / "pins"
    own.mkdir()
    subprocess.run(["mount", "-t", "bpf", "theirs", str(own)], check=True)
    try:
        assert bpffs.provide(own) == own
        bpffs.release(own)
        assert bpffs.mount_of(own).point == own
    finally:
        subprocess.run(["umount", str(own)], check=True)


def test_empty_directory_on_the_shared_bpffs_is_removed(directory: Path) -> None:
    own = directory / "instance"
    own.mkdir()
    (own / "deadbeef").mkdir()
    bpffs.release(own)
    assert own.is_dir()
    (own / "deadbeef").rmdir()
    bpffs.release(own)
    assert not own.exists()
    bpffs.release(own)


def test_dot_in_a_name_is_refused_with_the_reason(directory: Path) -> None:
    with pytest.raises(KernelError, match=r'no names with a dot in them, such as "a\.b"'):
        bpffs.provide(directory / "a.b" / "c")


def test_place_that_can_not_be_mounted_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KernelError, match="file"):
        bpffs.provide(tmp_path / "file" / "pins")
