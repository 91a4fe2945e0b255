"""Without a daemon: a process in the background that rolls an unconfirmed commit back when its time is up.

It ends when the commit is confirmed, or when a daemon or another command has done it. If it is killed, the next daemon
or the next command that changes something does it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from reconciler import child
from reconciler.errors import LockedError
from reconciler.places import Places, instance_lock
from reconciler.runtime.control import ControlFile
from reconciler.trouble import EXPLAINED

_GLANCE_SEC: Final = 0.5
_TRIES: Final = 20
_PAUSE_SEC: Final = 3.0


def start(places: Places) -> None:
    """Start one that outlives this process, in the network namespace of the calling thread."""
    directories = (places.config_dir, places.run_dir, places.state_dir, places.bpffs_dir)
    subprocess.Popen(
        child.command("reconciler.waiter", *map(str, directories)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=child.environment(),
        start_new_session=True,
        close_fds=True,
    )


def wait(places: Places) -> bool:
    """Wait until nothing is unconfirmed any more; True: the time is up, and nobody has rolled it back yet."""
    control = ControlFile(places.control)
    while (unconfirmed := control.read().unconfirmed) is not None:
        left_sec = unconfirmed.left_sec()
        if left_sec <= 0:
            return True
        time.sleep(min(left_sec, _GLANCE_SEC))
    return False


def _roll_back(places: Places) -> None:
    from reconciler.engine import Engine

    with instance_lock(places, wait_sec=_PAUSE_SEC):
        engine = Engine(places)
        try:
            engine.revisions.expire()
        finally:
            engine.close()


def main(directories: list[str]) -> int:
    """Exit status 0: nothing is left to do."""
    config, run, state, bpffs = map(Path, directories)
    places = Places(config, run, state, bpffs)
    for _ in range(_TRIES):
        if not wait(places):
            return 0
        try:
            _roll_back(places)
        except LockedError:
            time.sleep(_GLANCE_SEC)  # a daemon, which does it itself, or a command, which ends
        except EXPLAINED:  # `status` says so
            time.sleep(_PAUSE_SEC)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
