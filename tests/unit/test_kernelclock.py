"""Clocks of the kernel, told alike in every time namespace."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from reconciler import kernelclock

SHIFT_SEC = 100_000
NAMESPACE = ("unshare", "--fork", "--time", f"--monotonic={SHIFT_SEC}", f"--boottime={SHIFT_SEC}")
CODE = "from reconciler import kernelclock as k; import time; print(k.monotonic_ns(), k.boot_sec(), time.monotonic())"


@pytest.mark.root
@pytest.mark.skipif(not Path("/proc/self/timens_offsets").exists(), reason="this kernel has no time namespaces")
def test_a_time_namespace_shifts_nothing() -> None:
    """Or a daemon in a container would take every connection for expired, and no commit for confirmed in time."""
    before = kernelclock.monotonic_ns(), kernelclock.boot_sec()
    done = subprocess.run([*NAMESPACE, sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    monotonic_ns, boot_sec, shifted = map(float, done.stdout.split())
    assert shifted > time.monotonic() + SHIFT_SEC / 2, "the namespace is one"
    assert before[0] < monotonic_ns < kernelclock.monotonic_ns()
    assert before[1] < boot_sec < kernelclock.boot_sec()


def test_without_a_namespace_they_are_the_process_s_own() -> None:
    assert time.monotonic_ns() <= kernelclock.monotonic_ns() <= time.monotonic_ns()
    assert abs(time.clock_gettime(time.CLOCK_BOOTTIME) - kernelclock.boot_sec()) < 1
