"""What a process does with memory that it needs no longer. In processes of their own, since it is for good."""

from __future__ import annotations

import subprocess
import sys

import pytest

LARGE = """
import ctypes, re
from reconciler.daemon import memory
assert memory.settle()
del (lambda: bytearray(20 << 20))()[:]
found = bytearray(1 << 20)
at = ctypes.addressof((ctypes.c_char * len(found)).from_buffer(found))
heap = re.search(r"^([0-9a-f]+)-([0-9a-f]+) .*\\\\[heap\\\\]$", open("/proc/self/maps").read(), re.M)
assert not int(heap[1], 16) <= at < int(heap[2], 16)
"""

GIVEN_BACK = """
from reconciler.daemon import memory
memory.settle()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
class Ring:
    def __init__(self, held):
        self.held, self.self = held, self
held = [bytes(64 << 10) for _ in range(600)]
stays = bytes(64 << 10)
ring = Ring(held)
before = resident()
del held, ring
assert before - resident() < 10 << 20
memory.give_back()
assert before - resident() > 20 << 20, (before, resident())
"""


@pytest.mark.parametrize("program", [LARGE.replace("\\\\", "\\"), GIVEN_BACK], ids=["large pieces", "given back"])
def test_memory_goes_back(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
