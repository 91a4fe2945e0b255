"""The four places, and the lock that one instance holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.errors import LockedError, RevproxyError
from reconciler.kernel.pinslock import PinsLock
from reconciler.places import Places, instance_lock


def test_an_option_wins_over_the_variable_and_that_over_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"REVPROXY_CONFIG_DIR": "/env/config", "REVPROXY_RUN_DIR": "/env/run", "REVPROXY_STATE_DIR": ""}
    places = Places.choose({"config_dir": Path("mine/../config"), "bpffs_dir": None}, environ)
    assert places == Places(config_dir=tmp_path / "config", run_dir=Path("/env/run"))


def test_a_second_holder_is_told_who_has_the_lock(tmp_path: Path) -> None:
    places = Places(run_dir=tmp_path / "run")
    with instance_lock(places):
        with pytest.raises(LockedError, match=str(os.getpid())), instance_lock(places):
            pass
        with instance_lock(Places(run_dir=tmp_path / "other")):
            pass
    with instance_lock(places):
        pass


def test_the_lock_goes_with_its_process_however_that_ends(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, time\nfrom reconciler.places import *\n"
        "with instance_lock(Places(run_dir=pathlib.Path(sys.argv[1]))):\n"
        "    print('held', flush=True)\n    time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(LockedError), instance_lock(Places(run_dir=tmp_path)):
        pass
    holder.kill()
    holder.communicate()
    with instance_lock(Places(run_dir=tmp_path), wait_sec=5):
        pass


def test_a_full_disk_does_not_keep_the_lock_from_anybody(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, resource\nfrom reconciler.places import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "with instance_lock(Places(run_dir=pathlib.Path(sys.argv[1]))):\n    print('held', flush=True)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "held\n"


def test_a_run_directory_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    with pytest.raises(RevproxyError, match="too long"), instance_lock(Places(run_dir=tmp_path / ("x" * 100))):
        pass


def test_a_run_directory_that_can_not_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RevproxyError, match="--run-dir"), instance_lock(Places(run_dir=tmp_path / "file" / "run")):
        pass


def test_pins_are_locked_for_as_long_as_their_directory_is_the_same(tmp_path: Path) -> None:
    pins = tmp_path / "pins"
    one, other = PinsLock(), PinsLock()
    one.take(pins)  # there is none yet
    pins.mkdir()
    one.take(pins)
    one.take(pins)
    with pytest.raises(LockedError, match=rf"{pins} are in use by process {os.getpid()}:"):
        other.take(pins)
    pins.rename(tmp_path / "away")  # as where somebody has removed it, and it was made anew
    pins.mkdir()
    other.take(pins)
    with pytest.raises(LockedError):
        one.take(pins)
    other.release()
    one.take(pins)
    one.release()
    other.take(pins)
    other.release()
