"""What the tests of attachments and host facts build with: a namespace for a thread, interfaces, tiny programs.

An unnamed namespace ends with the last thread, process or descriptor in it, so there is nothing to take down.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess

from reconciler.kernel import bpf
from reconciler.kernel.gateway import FaultGateway, Gateway
from reconciler.kernel.identity import LoadedProgram, OwnPrograms

_CLONE_NEWNET = 0x40000000
XDP_PASS = 2
TC_UNSPEC, TC_OK, TC_SHOT = -1, 0, 2
GATEWAY = Gateway()


def enter_new_namespace() -> None:
    """Move the calling thread. Processes and threads that it starts are there too."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    command("ip link set lo up")


def command(text: str) -> str:
    """Run a command line where the calling thread is; return its output."""
    return subprocess.run(text.split(), check=True, capture_output=True, text=True).stdout


def add_veth(name: str = "va", peer: str = "vb", mtu: int = 1500) -> int:
    """A pair of interfaces, up. Returns the number of ``name``."""
    command(f"ip link add {name} mtu {mtu} type veth peer name {peer} mtu {mtu}")
    command(f"ip link set {name} up")
    command(f"ip link set {peer} up")
    return socket.if_nametoindex(name)


def load(kind: int, result: int, name: str) -> LoadedProgram:
    """A program that only returns ``result``. Its descriptor ends with the process of the tests."""
    code = struct.pack("=BBhi", 0xB7, 0, 0, result) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    return LoadedProgram.of(bpf.prog_load(kind, name, "GPL", code))


def load_xdp(name: str = "xdp_ingress", result: int = XDP_PASS) -> LoadedProgram:
    return load(bpf.PROG_TYPE_XDP, result, name)


def load_tc(name: str = "tc_ingress", result: int = TC_UNSPEC) -> LoadedProgram:
    return load(bpf.PROG_TYPE_SCHED_CLS, result, name)


def own_programs(
    instance: str = "/sys/fs/bpf/test", former: frozenset[int] = frozenset(), result: int = TC_UNSPEC
) -> OwnPrograms:
    """A set of programs as an instance has them loaded."""
    return OwnPrograms(instance, load_xdp(), load_tc("tc_ingress", result), load_tc("tc_egress", result), former=former)


def release(own: OwnPrograms) -> None:
    """Close the descriptors: what is attached nowhere is then gone."""
    for program in (own.xdp, own.tc_ingress, own.tc_egress):
        if program:
            os.close(program.fd)


def recorder() -> FaultGateway:
    """A gateway that only records."""
    return FaultGateway()
