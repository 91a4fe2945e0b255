"""Which program is which: our own by descriptor, anyone's by id, and what hangs on an interface by a bpf_link."""

from __future__ import annotations

import ctypes as ct
import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from reconciler.errors import KernelError
from reconciler.kernel import bpf
from reconciler.kernel.libbpf import function as _function
from reconciler.kernel.privilege import opening_by_id
from reconciler.state.facts import ProgramInfo
from reconciler.state.objects import TakenOver

_LINK_TYPE_XDP: Final = 6
TCX_INGRESS: Final = 46
TCX_EGRESS: Final = 47
_MAX_TCX: Final = 64


@dataclass(frozen=True, slots=True)
class LoadedProgram:
    """A program of ours: an open descriptor, which the owner keeps open and closes, and what it is."""

    fd: int
    info: ProgramInfo

    @classmethod
    def of(cls, fd: int) -> LoadedProgram:
        """Ask the kernel what ``fd`` is."""
        return cls(fd, program_info(fd))


@dataclass(frozen=True, slots=True)
class OwnPrograms:
    """What this instance attaches, and how it knows its own again.

    ``instance`` names it in every filter (the directory of its pins, say): a filter of that name is ours even if
    its program is not known any more. ``former``: ids of earlier loads of our programs that may still be attached
    and are to be exchanged. The programs are None where nothing is loaded: then things can be observed and
    detached, not attached. ``taken_over``: XDP programs of others that are kept to be put back, by interface number.
    """

    instance: str
    xdp: LoadedProgram | None = None
    tc_ingress: LoadedProgram | None = None
    tc_egress: LoadedProgram | None = None
    former: frozenset[int] = frozenset()
    taken_over: Mapping[int, TakenOver] = field(default_factory=dict)

    @property
    def current(self) -> frozenset[int]:
        """Ids of the programs that ought to be attached."""
        loaded = (self.xdp, self.tc_ingress, self.tc_egress)
        return frozenset(program.info.id for program in loaded if program)

    @property
    def ids(self) -> frozenset[int]:
        """Ids of everything that is ours."""
        return self.current | self.former

    @contextmanager
    def descriptor(self, program_id: int) -> Iterator[int]:
        """A descriptor of one of ``ids``. Only a former one needs the privilege to open programs by id."""
        for program in (self.xdp, self.tc_ingress, self.tc_egress):
            if program and program.info.id == program_id:
                yield program.fd
                return
        with open_program(program_id) as descriptor:
            yield descriptor


def program_info(fd: int) -> ProgramInfo:
    """Id, name and tag of an open program."""
    info = bpf.prog_info(fd)
    return ProgramInfo(info.id, info.name, info.tag)


@contextmanager
def open_program(program_id: int) -> Iterator[int]:
    """A descriptor of the program with this id, for as long as the block runs."""
    descriptor = bpf.prog_by_id(program_id)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def program_by_id(program_id: int) -> ProgramInfo:
    """Name and tag of anyone's program; only the id where it is gone meanwhile or may not be looked at."""
    try:
        with open_program(program_id) as descriptor:
            return program_info(descriptor)
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.EPERM):
            return ProgramInfo(program_id)
        raise


def maps_of(program_id: int) -> frozenset[int]:
    """Ids of the maps that a program works with; none where it is gone meanwhile or may not be looked at."""
    try:
        with open_program(program_id) as descriptor:
            return frozenset(bpf.prog_info(descriptor).map_ids)
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.EPERM):
            return frozenset()
        raise


# -- what libbpf knows and netlink does not ----------------------------------------------------------------------


class _XdpLinkInfo(ct.Structure):
    """``struct bpf_link_info`` of an XDP link, with room for what later kernels add."""

    _fields_ = [
        ("type", ct.c_uint32),
        ("id", ct.c_uint32),
        ("prog_id", ct.c_uint32),
        ("zero", ct.c_uint32),
        ("ifindex", ct.c_uint32),
        ("rest", ct.c_uint8 * 44),
    ]


_u32_pointer = ct.POINTER(ct.c_uint32)
_prog_query = _function("bpf_prog_query", ct.c_int, ct.c_int, ct.c_uint32, _u32_pointer, _u32_pointer, _u32_pointer)
_link_next_id = _function("bpf_link_get_next_id", ct.c_uint32, _u32_pointer)
_link_by_id = _function("bpf_link_get_fd_by_id", ct.c_uint32)
_info_by_fd = _function("bpf_obj_get_info_by_fd", ct.c_int, ct.POINTER(_XdpLinkInfo), _u32_pointer)


def tcx_programs(ifindex: int, where: int) -> tuple[int, ...]:
    """Ids of the programs that run before every TC filter (tcx, Linux 6.6), in order. Empty on older kernels."""
    ids = (ct.c_uint32 * _MAX_TCX)()
    count = ct.c_uint32(_MAX_TCX)
    result = _prog_query(ifindex, where, 0, None, ids, ct.byref(count))
    if result < 0:
        return ()
    return tuple(ids[: count.value])


def held_by_link(ifindex: int, program_id: int) -> bool | None:
    """Whether a bpf_link keeps this XDP program on the interface; None if that can't be found out."""
    with opening_by_id():
        return _held_by_link(ifindex, program_id)


def _held_by_link(ifindex: int, program_id: int) -> bool | None:
    link_id = ct.c_uint32(0)
    while (result := _link_next_id(link_id.value, ct.byref(link_id))) >= 0:
        descriptor = _link_by_id(link_id.value)
        if descriptor < 0:
            continue
        info, size = _XdpLinkInfo(), ct.c_uint32(ct.sizeof(_XdpLinkInfo))
        try:
            if _info_by_fd(descriptor, ct.byref(info), ct.byref(size)) < 0:
                return None
        finally:
            os.close(descriptor)
        if (info.type, info.prog_id, info.ifindex) == (_LINK_TYPE_XDP, program_id, ifindex):
            return True
    return False if errno.ENOENT in (-result, ct.get_errno()) else None
