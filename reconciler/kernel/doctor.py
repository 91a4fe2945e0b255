"""Tries what the data plane needs of the kernel: tiny maps are made, tiny programs loaded and run, nothing is kept."""

from __future__ import annotations

import ctypes as ct
import errno
import os
import struct
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from typing import Final

from pyroute2.netlink.rtnl import RTM_GETNEIGH, RTM_NEWNEIGH
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from reconciler.errors import KernelError
from reconciler.kernel import bpf, layout
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.genetlink import xdp_features
from reconciler.kernel.helpers import HELPERS, TC, XDP, refused_helper
from reconciler.kernel.netlink import Request, asking
from reconciler.state.facts import JUST_IN_TIME, Trial
from reconciler.state.objects import IPAddress

_TAIL_CALL_MAP: Final = 3  # BPF_MAP_TYPE_PROG_ARRAY
_FRAME: Final = bytes(64)
_KINDS: Final = {XDP: "XDP", TC: "TC"}
_STATE_NAMES: Final = ("incomplete", "reachable", "stale", "delay", "probe", "failed", "noarp", "permanent")
_STATES: Final = {1 << bit: name for bit, name in enumerate(_STATE_NAMES)}  # NUD_... of linux/neighbour.h


def _instruction(code: int, destination: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhi", code, destination, 0, immediate)


def _returning(result: int) -> bytes:
    return _instruction(0xB7, 0, result) + _instruction(0x95)


def trials(gateway: Gateway) -> tuple[Trial, ...]:
    """Everything that was tried, in words, with the kernel's refusal if it refused."""
    found = [_tried(f"map type {kind.name.lower()}", partial(_make_map, kind, gateway)) for kind in _types()]
    found.append(_tried("map type prog_array", lambda: _closed(_map(_TAIL_CALL_MAP, 4, 4, 0, gateway))))
    found.append(_tried("batched map access", lambda: _batch(gateway)))
    for kind, name in _KINDS.items():
        found.append(_tried(f"{name} programs, loaded and test-run", partial(_run, kind, gateway)))
        found.append(_tried(f"{name} programs, {JUST_IN_TIME}", partial(_compiled, kind, gateway)))
        found += [
            _tried(f"helper {helper} in {name}", partial(_call, kind, number, gateway))
            for helper, number, kinds in HELPERS
            if kind in kinds
        ]
    found.append(_tried("what drivers can do with XDP (netlink family netdev)", _features))
    return tuple(found)


def _tried(name: str, attempt: Callable[[], None]) -> Trial:
    try:
        attempt()
    except KernelError as error:
        return Trial(name, str(error).splitlines()[0])
    return Trial(name)


def _types() -> list[layout.MapType]:
    return sorted({spec.type for spec in layout.MAPS.values()})


def _map(kind: int, key_size: int, value_size: int, flags: int, gateway: Gateway, inner: int = 0) -> int:
    create = partial(bpf.map_create, kind, "rp_doctor", key_size, value_size, 2, flags, inner)
    return gateway.call("create", "map", create)


def _closed(descriptor: int) -> None:
    os.close(descriptor)


def _make_map(kind: layout.MapType, gateway: Gateway) -> None:
    """With the flags that are used, as far as they can refuse."""
    flags = layout.F_NO_PREALLOC if kind in (layout.MapType.HASH, layout.MapType.LPM_TRIE) else 0
    key_size = 8 if kind is layout.MapType.LPM_TRIE else 4
    if kind is not layout.MapType.ARRAY_OF_MAPS:
        _closed(_map(kind, key_size, 8, flags, gateway))
        return
    inner = _map(layout.MapType.ARRAY, 4, 4, layout.F_INNER_MAP, gateway)
    try:
        _closed(_map(kind, 4, 4, 0, gateway, inner))
    finally:
        os.close(inner)


def _batch(gateway: Gateway) -> None:
    descriptor = _map(layout.MapType.HASH, 4, 8, 0, gateway)
    keys, values, place = (ct.c_uint32 * 2)(), (ct.c_uint64 * 2)(), ct.c_uint32()
    try:
        _, failed = bpf.map_lookup_batch(
            descriptor, None, ct.addressof(place), ct.addressof(keys), ct.addressof(values), 2
        )
        if failed not in (0, errno.ENOENT):
            raise KernelError("read a batch", "of a map", failed)
    finally:
        os.close(descriptor)


def _run(kind: int, gateway: Gateway) -> None:
    result = 2 if kind == XDP else 0
    program = gateway.call("load", "program", lambda: bpf.prog_load(kind, "rp_doctor", "GPL", _returning(result)))
    try:
        found = bpf.prog_test_run(program, _FRAME)
    finally:
        os.close(program)
    if found.retval != result:
        raise KernelError("test run", "program", detail=f"it returned {found.retval}, not {result}")


def _compiled(kind: int, gateway: Gateway) -> None:
    program = gateway.call("load", "program", lambda: bpf.prog_load(kind, "rp_doctor", "GPL", _returning(0)))
    try:
        if not bpf.prog_info(program).jited_bytes:
            raise KernelError("compile", "program", detail="the kernel interprets it")
    finally:
        os.close(program)


def _call(kind: int, helper: int, gateway: Gateway) -> None:
    """A program that calls the helper without arguments: a kernel that has it complains of them, or of nothing."""
    code = _instruction(0x85, 0, helper) + _returning(0)
    try:
        _closed(gateway.call("load", "program", lambda: bpf.prog_load(kind, "rp_doctor", "GPL", code)))
    except KernelError as error:
        if refused_helper(error):
            raise KernelError("load", "program", error.errno, "this kernel does not have it") from error
        if error.errno == errno.EPERM:
            raise


def _features() -> None:
    if xdp_features() is None:
        raise KernelError("ask", "drivers", detail="only Linux 6.3 and later tell; a list of drivers is used instead")


def neighbours() -> dict[tuple[int, IPAddress], str]:
    """The state of every neighbour by interface number and address, in the kernel's words."""
    with asking("list", "neighbours", formats={RTM_NEWNEIGH: ndmsg}) as netlink:
        answers = netlink.dump(Request(RTM_GETNEIGH, ndmsg))
    found = {}
    for answer in answers:
        address = answer.text("NDA_DST")
        if address:
            found[answer.field("ifindex"), ip_address(address)] = _STATES.get(answer.field("state"), "none")
    return found
