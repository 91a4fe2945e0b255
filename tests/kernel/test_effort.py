"""How large the programs are and how hard the verifier has to work on them, well below where a kernel refuses.

What it measures is recorded as properties of the test (JUnit XML), from where ``tests/vm`` puts it into the manual.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from reconciler.kernel import bpf, layout
from reconciler.kernel.compiler import ENTRY_POINTS
from reconciler.kernel.program import LICENSE, MAX_CALLS, program_type
from tests.kernel.dataplane import DataPlane, object_code

KERNELS_LIMIT = 1_000_000
"""Instructions the verifier goes through before it gives up (BPF_COMPLEXITY_LIMIT_INSNS)."""
MOST_PROCESSED = 150_000
"""Of one program: over twice what the one that takes most took on any kernel tried (man/kernels.json), and far below
the kernel's limit, so that a kernel whose verifier goes through more of it is no surprise."""
MOST_INSTRUCTIONS = 8_192
"""Of one program as it is compiled. There is no such limit for root since Linux 5.2; jumps reach 32,767."""

_PROCESSED = re.compile(r"^processed (\d+) insns", re.MULTILINE)


def processed_by_verifier(function: str, fds: dict[str, int]) -> tuple[int, int, int]:
    """Loads it; instructions as compiled, as the verifier left them, and gone through by the verifier."""
    code = object_code().instructions(function, fds)
    log: list[str] = []
    fd = bpf.prog_load(program_type(function), function, LICENSE, code, log_level=4, log=log)
    try:
        found = _PROCESSED.search(log[0])
        assert found, f"no statistics in {log[0]!r}"
        return len(code) // 8, bpf.prog_info(fd).xlated_bytes // 8, int(found[1])
    finally:
        os.close(fd)


def test_programs_are_far_from_what_the_kernel_refuses(record_property: Callable[[str, object], None]) -> None:
    plane = DataPlane(f"rpeffort-{os.getpid()}")
    calls = {name: bpf.map_create(layout.MapType.PROG_ARRAY, name, 4, 4, MAX_CALLS) for name in layout.CALLS}
    try:
        functions = [*(each for names in layout.CALLS.values() for each in names), *ENTRY_POINTS]
        efforts = {each: processed_by_verifier(each, {**plane.fds, **calls}) for each in functions}
    finally:
        for fd in calls.values():
            os.close(fd)
        plane.close()
    for function, (instructions, translated, processed) in efforts.items():
        print(f"{function}: {instructions} instructions, {translated} translated, {processed} processed")
        record_property(f"effort {function}", f"{instructions} {translated} {processed}")
    record_property("ceilings", f"{MOST_INSTRUCTIONS} {MOST_PROCESSED}")
    assert MOST_PROCESSED < KERNELS_LIMIT / 5
    assert max(processed for _, _, processed in efforts.values()) <= MOST_PROCESSED, efforts
    assert max(instructions for instructions, _, _ in efforts.values()) <= MOST_INSTRUCTIONS, efforts


def test_a_program_that_costs_the_verifier_more_is_noticed() -> None:
    """The figure is the verifier's own: a loop of n rounds counts n times its instructions."""
    assert _loop(2000) - _loop(1000) >= 2000


def _loop(rounds: int) -> int:
    """Processed instructions of: r0 = 0; do r0 += 1 while r0 < rounds; return."""
    code = b"\xb7\0\0\0\0\0\0\0\x07\0\0\0\x01\0\0\0" + b"\xa5\0\xfe\xff" + rounds.to_bytes(4, "little")
    log: list[str] = []
    code += b"\x95\0\0\0\0\0\0\0"
    os.close(bpf.prog_load(bpf.PROG_TYPE_XDP, "rp_loop", LICENSE, code, log_level=4, log=log))
    found = _PROCESSED.search(log[0])
    assert found
    return int(found[1])
