"""A kernel that is too old: what a user is told, and that nothing is left behind. Runs in such a machine only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netlab import HTTP_PORT, Lab
from reconciler.kernel.helpers import OLDEST_KERNEL
from tests.e2e.instance import Instance, web

WORDS = f"has no helper bpf_ktime_get_coarse_ns for it; Linux {OLDEST_KERNEL} or later is needed"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(offload=False, xdp_peers=True) as built:
        yield built


def test_apply_and_doctor_say_what_is_missing_and_nothing_is_left(lab: Lab) -> None:
    with Instance(lab) as instance:  # its end fails if a pin or a program is left
        instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}"))
        refused = instance.run("apply", "--yes")
        assert refused.returncode == 1
        assert WORDS in refused.stderr
        assert "Traceback" not in refused.stderr
        found = instance.json("doctor", status=1)["findings"]
        errors = {each["subject"] for each in found if each["level"] == "error"}
        assert {f"helper bpf_ktime_get_coarse_ns in {kind}" for kind in ("XDP", "TC")} <= errors, found
        lab.assert_clean(instance.bpffs_dir)


def test_the_daemon_stays_up_and_says_so(lab: Lab) -> None:
    with Instance(lab) as instance:
        instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}"))
        instance.start_daemon(ready=False)
        assert instance.daemon
        instance.daemon.wait_output(WORDS, timeout_sec=60)
        assert instance.json("status", status=1)["sync"] == "Degraded"
