"""What each capability of the service's unit is for: without it, with all the others, the kernel refuses just that."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from reconciler.errors import KernelError
from reconciler.kernel import bpf, layout, privilege
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.newmaps import create_map
from reconciler.kernel.program import load_set
from tests.kernel.dataplane import object_code

FOUR = {"CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_BPF", "CAP_PERFMON"}
RETURN_PASS = b"\xb7\0\0\0\2\0\0\0\x95\0\0\0\0\0\0\0"


def make_a_map() -> None:
    os.close(bpf.map_create(layout.MapType.HASH, "rp_test", 4, 4, 2, 0, 0))


def run_a_program() -> None:
    fd = bpf.prog_load(bpf.PROG_TYPE_XDP, "rp_test", "GPL", RETURN_PASS)
    try:
        assert bpf.prog_test_run(fd, bytes(64)).retval == 2
    finally:
        os.close(fd)


def load_all() -> None:
    fds = {name: create_map(spec, 4096) for name, spec in layout.MAPS.items()}
    try:
        for fd in load_set(object_code(), fds, Gateway()).values():
            os.close(fd)
    finally:
        for fd in fds.values():
            os.close(fd)


def open_by_id() -> None:
    fd = bpf.map_create(layout.MapType.HASH, "rp_test", 4, 4, 2, 0, 0)
    try:
        os.close(bpf.map_by_id(bpf.map_info(fd).id))
    finally:
        os.close(fd)


def refusal(capabilities: set[str], call: Callable[[], None]) -> int:
    """The error number that it ends with in a thread with these capabilities; 0 if it works."""
    found: list[int] = []

    def run() -> None:
        held = privilege._held()
        bits = sum(1 << privilege._NEEDED[name] for name in capabilities)
        held[0].effective, held[1].effective = bits & 0xFFFFFFFF, bits >> 32
        assert privilege._libc.capset(privilege._header(), held) == 0
        try:
            call()
            found.append(0)
        except KernelError as error:
            found.append(error.errno or -1)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize(
    ("capability", "call", "expected"),
    [
        ("CAP_BPF", make_a_map, errno.EPERM),
        ("CAP_NET_ADMIN", run_a_program, errno.EPERM),
        ("CAP_PERFMON", load_all, errno.EACCES),  # the verifier's: pointers may not do what they do
        ("CAP_SYS_ADMIN", open_by_id, errno.EPERM),
    ],
)
def test_each_capability_is_needed_beside_the_others(capability: str, call: Callable[[], None], expected: int) -> None:
    object_code()
    # CAP_SYS_ADMIN counts as two of the others: the daemon has it in the one call only that takes it.
    at_most = FOUR if call is open_by_id else FOUR - {"CAP_SYS_ADMIN"}
    assert refusal(at_most, call) == 0
    assert refusal(at_most - {capability}, call) == expected


def test_it_is_effective_for_the_call_and_in_the_thread_only(monkeypatch: pytest.MonkeyPatch) -> None:
    bit = 1 << privilege._NEEDED["CAP_SYS_ADMIN"]
    monkeypatch.setattr(privilege, "_lowered", True)
    seen: list[tuple[int, list[str]]] = []

    def run() -> None:
        def look() -> None:
            seen.append((privilege._held()[0].effective & bit, privilege.missing()))

        privilege._set(privilege._held(), raised=False)
        look()
        with suppress(ZeroDivisionError), privilege.opening_by_id():
            look()
            raise ZeroDivisionError
        look()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(0, []), (bit, []), (0, [])]
    assert privilege._held()[0].effective & bit, "this thread's own is as it was"
