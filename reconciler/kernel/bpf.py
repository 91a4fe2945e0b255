"""The kernel's bpf() calls, as small typed functions over libbpf.

Nothing here knows of this project's maps or programs. File descriptors are plain ints that the caller closes;
keys and values are addresses of memory that the caller owns. Every failure is a :class:`KernelError`.
"""

from __future__ import annotations

import ctypes as ct
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from reconciler.errors import KernelError
from reconciler.kernel.libbpf import function as _function
from reconciler.kernel.privilege import opening_by_id

ANY: Final = 0

PROG_TYPE_SCHED_CLS: Final = 3
PROG_TYPE_XDP: Final = 6

LOG_TAIL_LINES: Final = 24
_LOG_BYTES: Final = 16 << 20


class _MapCreateOpts(ct.Structure):
    _fields_ = [
        ("sz", ct.c_size_t),
        ("btf_fd", ct.c_uint32),
        ("btf_key_type_id", ct.c_uint32),
        ("btf_value_type_id", ct.c_uint32),
        ("btf_vmlinux_value_type_id", ct.c_uint32),
        ("inner_map_fd", ct.c_uint32),
        ("map_flags", ct.c_uint32),
        ("map_extra", ct.c_uint64),
        ("numa_node", ct.c_uint32),
        ("map_ifindex", ct.c_uint32),
    ]


class _MapBatchOpts(ct.Structure):
    _fields_ = [("sz", ct.c_size_t), ("elem_flags", ct.c_uint64), ("flags", ct.c_uint64)]


class _ProgLoadOpts(ct.Structure):
    _fields_ = [
        ("sz", ct.c_size_t),
        ("attempts", ct.c_int),
        ("expected_attach_type", ct.c_int),
        ("prog_btf_fd", ct.c_uint32),
        ("prog_flags", ct.c_uint32),
        ("prog_ifindex", ct.c_uint32),
        ("kern_version", ct.c_uint32),
        ("attach_btf_id", ct.c_uint32),
        ("attach_prog_fd", ct.c_uint32),
        ("attach_btf_obj_fd", ct.c_uint32),
        ("fd_array", ct.c_void_p),
        ("func_info", ct.c_void_p),
        ("func_info_cnt", ct.c_uint32),
        ("func_info_rec_size", ct.c_uint32),
        ("line_info", ct.c_void_p),
        ("line_info_cnt", ct.c_uint32),
        ("line_info_rec_size", ct.c_uint32),
        ("log_level", ct.c_uint32),
        ("log_size", ct.c_uint32),
        ("log_buf", ct.c_void_p),
    ]


class _TestRunOpts(ct.Structure):
    _fields_ = [
        ("sz", ct.c_size_t),
        ("data_in", ct.c_void_p),
        ("data_out", ct.c_void_p),
        ("data_size_in", ct.c_uint32),
        ("data_size_out", ct.c_uint32),
        ("ctx_in", ct.c_void_p),
        ("ctx_out", ct.c_void_p),
        ("ctx_size_in", ct.c_uint32),
        ("ctx_size_out", ct.c_uint32),
        ("retval", ct.c_uint32),
        ("repeat", ct.c_int),
        ("duration", ct.c_uint32),
        ("flags", ct.c_uint32),
        ("cpu", ct.c_uint32),
        ("batch_size", ct.c_uint32),
    ]


class _MapInfo(ct.Structure):
    _fields_ = [
        ("type", ct.c_uint32),
        ("id", ct.c_uint32),
        ("key_size", ct.c_uint32),
        ("value_size", ct.c_uint32),
        ("max_entries", ct.c_uint32),
        ("map_flags", ct.c_uint32),
        ("name", ct.c_char * 16),
    ]


class _ProgInfo(ct.Structure):
    _fields_ = [
        ("type", ct.c_uint32),
        ("id", ct.c_uint32),
        ("tag", ct.c_uint8 * 8),
        ("jited_prog_len", ct.c_uint32),
        ("xlated_prog_len", ct.c_uint32),
        ("jited_prog_insns", ct.c_uint64),
        ("xlated_prog_insns", ct.c_uint64),
        ("load_time", ct.c_uint64),
        ("created_by_uid", ct.c_uint32),
        ("nr_map_ids", ct.c_uint32),
        ("map_ids", ct.c_uint64),
        ("name", ct.c_char * 16),
    ]


_int, _u32, _ptr = ct.c_int, ct.c_uint32, ct.c_void_p
_map_create = _function("bpf_map_create", _int, ct.c_char_p, _u32, _u32, _u32, ct.POINTER(_MapCreateOpts))
_map_lookup_elem = _function("bpf_map_lookup_elem", _int, _ptr, _ptr)
_map_update_elem = _function("bpf_map_update_elem", _int, _ptr, _ptr, ct.c_uint64)
_map_delete_elem = _function("bpf_map_delete_elem", _int, _ptr)
_map_get_next_key = _function("bpf_map_get_next_key", _int, _ptr, _ptr)
_batch_opts = ct.POINTER(_MapBatchOpts)
_map_lookup_batch = _function("bpf_map_lookup_batch", _int, _ptr, _ptr, _ptr, _ptr, ct.POINTER(_u32), _batch_opts)
_map_update_batch = _function("bpf_map_update_batch", _int, _ptr, _ptr, ct.POINTER(_u32), _batch_opts)
_map_delete_batch = _function("bpf_map_delete_batch", _int, _ptr, ct.POINTER(_u32), _batch_opts)
_map_get_fd_by_id = _function("bpf_map_get_fd_by_id", _u32)
_prog_get_fd_by_id = _function("bpf_prog_get_fd_by_id", _u32)
_obj_get = _function("bpf_obj_get", ct.c_char_p)
_obj_pin = _function("bpf_obj_pin", _int, ct.c_char_p)
_obj_get_info_by_fd = _function("bpf_obj_get_info_by_fd", _int, _ptr, ct.POINTER(_u32))
_prog_load = _function(
    "bpf_prog_load", _int, ct.c_char_p, ct.c_char_p, ct.c_char_p, ct.c_size_t, ct.POINTER(_ProgLoadOpts)
)
_num_possible_cpus = _function("libbpf_num_possible_cpus")
_prog_test_run = _function("bpf_prog_test_run_opts", _int, ct.POINTER(_TestRunOpts))


def _check(result: int, operation: str, subject: str) -> int:
    """``result`` if it is none of an error. libbpf 1.0 returns -errno; before that -1 and errno."""
    if result >= 0:
        return result
    raise KernelError(operation, subject, _errno_of(result))


def _errno_of(result: int) -> int:
    return -result if result != -1 else ct.get_errno() or errno.EPERM


# -- objects -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says about a map. Sizes in bytes."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True, slots=True)
class ProgInfo:
    """What the kernel says about a program. ``tag``: 16 hex digits over its instructions; ``xlated_bytes``: 8 for
    each instruction after the verifier; ``map_ids``: the maps it uses."""

    type: int
    id: int
    tag: str
    name: str
    xlated_bytes: int
    jited_bytes: int
    map_ids: tuple[int, ...]


def obj_get(path: str) -> int:
    """A descriptor of the pinned object. :class:`KernelError` with ENOENT if nothing is pinned there."""
    return _check(_obj_get(os.fsencode(path)), "open pin", path)


def obj_pin(fd: int, path: str) -> None:
    """Pin the object. EEXIST if the name is taken; EPERM if it has a dot in it."""
    _check(_obj_pin(fd, os.fsencode(path)), "pin", path)


def map_info(fd: int) -> MapInfo:
    """Type, sizes, flags, id and name of a map."""
    info = _MapInfo()
    _object_info(fd, info, "map info")
    return MapInfo(
        info.type, info.id, info.key_size, info.value_size, info.max_entries, info.map_flags, info.name.decode()
    )


def prog_info(fd: int) -> ProgInfo:
    """Type, id, tag, name, sizes and maps of a program."""
    info = _ProgInfo()
    _object_info(fd, info, "program info")
    count = info.nr_map_ids
    ids = (ct.c_uint32 * max(count, 1))()
    if count:
        info = _ProgInfo(nr_map_ids=count, map_ids=ct.addressof(ids))
        _object_info(fd, info, "program info")
    return ProgInfo(
        type=info.type,
        id=info.id,
        tag=bytes(info.tag).hex(),
        name=info.name.decode(),
        xlated_bytes=info.xlated_prog_len,
        jited_bytes=info.jited_prog_len,
        map_ids=tuple(ids[:count]),
    )


def _object_info(fd: int, info: ct.Structure, operation: str) -> None:
    size = ct.c_uint32(ct.sizeof(info))
    _check(_obj_get_info_by_fd(fd, ct.byref(info), ct.byref(size)), operation, f"fd {fd}")


def map_by_id(map_id: int) -> int:
    """A descriptor of the map with this id."""
    with opening_by_id():
        return _check(_map_get_fd_by_id(map_id), "open", f"map id {map_id}")


def prog_by_id(prog_id: int) -> int:
    """A descriptor of the program with this id."""
    with opening_by_id():
        return _check(_prog_get_fd_by_id(prog_id), "open", f"program id {prog_id}")


# -- programs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TestRun:
    """Outcome of a program's run on made-up data. ``duration_ns``: average of one run."""

    retval: int
    data_out: bytes
    ctx_out: bytes
    duration_ns: int


def prog_load(
    program_type: int, name: str, license_text: str, insns: bytes, log_level: int = 0, log: list[str] | None = None
) -> int:
    """Load a program of ``len(insns) / 8`` instructions and return its descriptor.

    A refusal raises :class:`KernelError` with the verifier's last lines as ``detail``. With ``log_level`` (1 or 2
    the verifier's way, 4 its statistics) the text of a successful load is appended to ``log``.
    """
    result, text = _load(program_type, name, license_text, insns, log_level)
    if result >= 0:
        if log is not None:
            log.append(text)
        return result
    failed = _errno_of(result)
    if not log_level:
        result, text = _load(program_type, name, license_text, insns, 1)
        if result >= 0:  # a passing shortage: it did load this time
            return result
    raise KernelError("load", f"program {name}", failed, "\n".join(text.rstrip().splitlines()[-LOG_TAIL_LINES:]))


def _load(program_type: int, name: str, license_text: str, insns: bytes, log_level: int) -> tuple[int, str]:
    options = _ProgLoadOpts(sz=ct.sizeof(_ProgLoadOpts), attempts=5)
    log = ct.create_string_buffer(_LOG_BYTES if log_level else 1)
    if log_level:
        options.log_level, options.log_size, options.log_buf = log_level, len(log), ct.addressof(log)
    code = ct.create_string_buffer(insns, len(insns))  # aligned, unlike the inside of a bytes object
    count = len(insns) // 8
    result = _prog_load(
        program_type, name.encode()[:15], license_text.encode(), ct.cast(code, ct.c_char_p), count, ct.byref(options)
    )
    return result, log.value.decode(errors="replace")


def prog_test_run(
    fd: int,
    data: bytes,
    ctx_in: bytes | None = None,
    repeat: int = 1,
    flags: int = 0,
    batch_size: int = 0,
) -> TestRun:
    """Run a program on ``data`` (a frame from its Ethernet header on) without any interface.

    ``ctx_in``: ``struct xdp_md`` or ``struct __sk_buff``. The map writes the program does are real, and with
    ``repeat`` only the last run's data comes back. Raises :class:`KernelError`, ERANGE for a frame too long.
    """
    data_in = ct.create_string_buffer(data, len(data))
    data_out = ct.create_string_buffer(len(data) + 512)
    options = _TestRunOpts(sz=ct.sizeof(_TestRunOpts), repeat=repeat, flags=flags, batch_size=batch_size)
    options.data_in, options.data_size_in = ct.addressof(data_in), len(data)
    if not flags & 2:  # BPF_F_TEST_XDP_LIVE_FRAMES gives nothing back
        options.data_out, options.data_size_out = ct.addressof(data_out), len(data_out)
    if ctx_in is not None:
        context_in = ct.create_string_buffer(ctx_in, len(ctx_in))
        context_out = ct.create_string_buffer(len(ctx_in))
        options.ctx_in, options.ctx_size_in = ct.addressof(context_in), len(ctx_in)
        if not flags & 2:
            options.ctx_out, options.ctx_size_out = ct.addressof(context_out), len(ctx_in)
    _check(_prog_test_run(fd, ct.byref(options)), "test run", f"program fd {fd}")
    ctx_out = context_out.raw[: options.ctx_size_out] if ctx_in is not None else b""
    return TestRun(options.retval, data_out.raw[: options.data_size_out], ctx_out, options.duration)


def prog_returns(fd: int, data: int, size: int, piece: int) -> Iterator[int]:
    """Run a program on each ``piece`` bytes of the ``size`` at the address ``data``, the last ones of which may be
    fewer, and give what it returned each time: :func:`prog_test_run` without copies. Raises :class:`KernelError`."""
    options = _TestRunOpts(sz=ct.sizeof(_TestRunOpts), repeat=1)
    reference = ct.byref(options)
    for start in range(0, size, piece):
        options.data_in, options.data_size_in = data + start, min(piece, size - start)
        result = _prog_test_run(fd, reference)
        if result < 0:
            _check(result, "test run", f"program fd {fd}")
        yield options.retval


# -- maps: key, value, keys, values are addresses ------------------------------------------------------------


def map_create(
    map_type: int, name: str, key_size: int, value_size: int, max_entries: int, flags: int = 0, inner_map_fd: int = 0
) -> int:
    """Make a map and return its descriptor. Sizes in bytes; ``inner_map_fd`` is a template for maps of maps."""
    options = _MapCreateOpts(sz=ct.sizeof(_MapCreateOpts), map_flags=flags, inner_map_fd=inner_map_fd)
    result = _map_create(map_type, name.encode()[:15], key_size, value_size, max_entries, ct.byref(options))
    return _check(result, "create", f"map {name}")


def map_lookup(fd: int, key: int, value: int) -> bool:
    """Read one entry into ``value``. False if there is none."""
    return _found(_map_lookup_elem(fd, key, value), "lookup", fd)


def map_update(fd: int, key: int, value: int, flags: int = ANY) -> None:
    """Write one entry. E2BIG, ENOMEM or ENOSPC when the map is full."""
    _check(_map_update_elem(fd, key, value, flags), "update", f"map fd {fd}")


def map_delete(fd: int, key: int) -> bool:
    """Delete one entry. False if there was none."""
    return _found(_map_delete_elem(fd, key), "delete", fd)


def map_next_key(fd: int, key: int | None, next_key: int) -> bool:
    """The key after ``key`` (None: the first). False at the end."""
    return _found(_map_get_next_key(fd, key, next_key), "next key", fd)


def _found(result: int, operation: str, fd: int) -> bool:
    if result >= 0:
        return True
    if _errno_of(result) == errno.ENOENT:
        return False
    raise KernelError(operation, f"map fd {fd}", _errno_of(result))


def map_lookup_batch(
    fd: int, in_batch: int | None, out_batch: int, keys: int, values: int, count: int
) -> tuple[int, int]:
    """Read up to ``count`` entries from the position ``in_batch`` (None: the start) on.

    Returns how many were read and the errno: 0 for more to come, ENOENT for the end, ENOSPC when a hash bucket
    holds more than ``count`` entries. ``out_batch`` receives the next position.
    """
    number = ct.c_uint32(count)
    result = _map_lookup_batch(fd, in_batch, out_batch, keys, values, ct.byref(number), _elem_flags(0))
    return number.value, 0 if result >= 0 else _errno_of(result)


def map_update_batch(fd: int, keys: int, values: int, count: int, flags: int = ANY) -> tuple[int, int]:
    """Write ``count`` entries, in order. Returns how many were written and the errno (0: all)."""
    number = ct.c_uint32(count)
    result = _map_update_batch(fd, keys, values, ct.byref(number), _elem_flags(flags))
    return number.value, 0 if result >= 0 else _errno_of(result)


def map_delete_batch(fd: int, keys: int, count: int) -> tuple[int, int]:
    """Delete ``count`` entries, in order. Returns how many were deleted and the errno (0: all)."""
    number = ct.c_uint32(count)
    result = _map_delete_batch(fd, keys, ct.byref(number), _elem_flags(0))
    return number.value, 0 if result >= 0 else _errno_of(result)


def _elem_flags(flags: int) -> Any:
    return ct.byref(_MapBatchOpts(sz=ct.sizeof(_MapBatchOpts), elem_flags=flags))


def possible_cpus() -> int:
    """How many values a per-CPU map holds for each key."""
    return _check(_num_possible_cpus(), "count", "possible CPUs")
