"""The programs call no helper that the oldest kernel lacks, and a kernel that lacks one is refused by its name."""

from __future__ import annotations

import os
import re
import struct

import pytest

from reconciler.errors import KernelError
from reconciler.kernel.compiler import ObjectCode
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.helpers import HELPERS, OLDEST_KERNEL, TC, XDP
from reconciler.kernel.program import load_program, program_type
from tests.kernel.dataplane import DataPlane, object_code

NEWEST_OF_5_15 = 175  # bpf_task_pt_regs; numbers are given in order (include/uapi/linux/bpf.h)


def called(instructions: bytes) -> set[int]:
    """The numbers of the helpers that a program calls."""
    decoded = struct.iter_unpack("<BBhi", instructions)
    return {number for code, registers, _, number in decoded if code == 0x85 and registers >> 4 == 0}


def test_the_oldest_kernel_has_every_helper_that_is_called() -> None:
    allowed = {kind: {number for _, number, kinds in HELPERS if kind in kinds} for kind in (XDP, TC)}
    maps_and_ring = {1, 2, 3, 131, 132, 133}  # lookup, update, delete; ring buffer reserve, submit, discard
    found: set[int] = set()
    for name, code in object_code().functions.items():
        beside = called(code) - maps_and_ring - allowed[program_type(name)]
        assert not beside, f"{name} calls helpers {beside}, which doctor does not try"
        found |= called(code)
    assert max(found) <= NEWEST_OF_5_15, f"Linux {OLDEST_KERNEL} has no helper above {NEWEST_OF_5_15}"
    assert {12, 23, 69, 160} <= found, "the calls were not found at all"


def _calling(helper: int) -> ObjectCode:
    code = struct.pack("<BBhi", 0x85, 0, 0, helper) + b"\xb7\0\0\0\0\0\0\0" + b"\x95\0\0\0\0\0\0\0"
    return ObjectCode("", {"xdp_ingress": code})


@pytest.mark.parametrize(("helper", "name"), [(9999, "number 9999"), (11, "bpf_l4_csum_replace")])
def test_a_helper_that_is_not_there_is_named(helper: int, name: str) -> None:
    with pytest.raises(KernelError) as refused:
        load_program(_calling(helper), "xdp_ingress", {}, Gateway())
    words = f"Linux {os.uname().release} has no helper {name} for it; Linux {OLDEST_KERNEL} or later is needed"
    assert words in str(refused.value).splitlines()[0]
    assert f"#{helper}" in str(refused.value), "the verifier's words"


def test_this_kernel_takes_the_programs_or_is_too_old_and_told_so() -> None:
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    oldest = tuple(int(part) for part in OLDEST_KERNEL.split("."))
    name = f"rphelp-{os.getpid()}"
    if release >= oldest:
        DataPlane(name).close()
        return
    with pytest.raises(KernelError, match=f"has no helper .*; Linux {OLDEST_KERNEL} or later is needed"):
        DataPlane(name)
