"""The maps and the structures in them, as user space sees them: names, types, sizes, numpy dtypes.

The C side is ``bpf/types.h``. :func:`assertions` yields C static assertions for every structure and field
declared here; the compiler appends them to each compilation, so a difference is a compile error and not a
corrupted map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np

SLOTS: Final = 2

u8, u16, u32, u64 = np.dtype("u1"), np.dtype("<u2"), np.dtype("<u4"), np.dtype("<u8")
be16 = np.dtype(">u2")


def _slots(slot: np.dtype) -> np.dtype:
    return np.dtype([("slot", slot, (SLOTS,))])


control = np.dtype([("active", u32), ("generation", u32)])
settings = np.dtype(
    [("flags", u32), ("unanswered_sec", u32), ("closing_sec", u32), ("port_first", u16), ("port_last", u16)]
)
settings_slots = _slots(settings)
listener_key4 = np.dtype([("ifindex", u32), ("addr_be", u8, (4,)), ("port_be", be16), ("protocol", u8), ("zero", u8)])
listener_key6 = np.dtype([("ifindex", u32), ("addr_be", u8, (16,)), ("port_be", be16), ("protocol", u8), ("zero", u8)])
listener_slots = np.dtype([("proxy", u32, (SLOTS,))])
proxy = np.dtype(
    [("flags", u8), ("mode", u8), ("balance", u8), ("zero", u8), ("idle_sec", u32), ("dest4", u32), ("dest6", u32)]
)
proxy_slots = _slots(proxy)
route_key4 = np.dtype([("prefixlen", u32), ("proxy", u32), ("addr_be", u8, (4,))])
route_key6 = np.dtype([("prefixlen", u32), ("proxy", u32), ("addr_be", u8, (16,))])
route = np.dtype([("dest", u32), ("flags", u32)])
route_slots = _slots(route)
target = np.dtype(
    [
        ("addr_be", u8, (16,)),
        ("source_be", u8, (2, 16)),
        ("port_be", be16),
        ("family", u8),
        ("flags", u8),
        ("proxy", u32),
        ("source", u32),
    ]
)
target_stats = np.dtype(
    [
        ("connections", u64),
        ("packets_forward", u64),
        ("bytes_forward", u64),
        ("packets_reverse", u64),
        ("bytes_reverse", u64),
    ]
)
group_member_key = np.dtype([("group", u32), ("target", u32)])
_tuple4 = [("saddr_be", u8, (4,)), ("daddr_be", u8, (4,)), ("sport_be", be16), ("dport_be", be16)]
_tuple6 = [("saddr_be", u8, (16,)), ("daddr_be", u8, (16,)), ("sport_be", be16), ("dport_be", be16)]
connection_key4 = np.dtype([*_tuple4, ("protocol", u8), ("zero", u8, (3,))])
connection_key6 = np.dtype([*_tuple6, ("protocol", u8), ("zero", u8, (3,))])
connection = np.dtype(
    [
        ("created", u32),
        ("stamp", u32),
        ("last_ns", u64),
        ("packets", u64),
        ("bytes", u64),
        ("proxy", u16),
        ("target", u16),
        ("idle_sec", u32),
        ("flags", u8),
        ("own", u8),
        ("peer", u8),
        ("way_generation", u8),
        ("way", u16),
        ("way_time", u16),
    ]
)
way = np.dtype(
    [
        ("asked_ns", u64),
        ("ifindex", u32),
        ("mtu", u16),
        ("dmac", u8, (6,)),
        ("smac", u8, (6,)),
        ("flags", u8),
        ("left", u8),
        ("shown", u32),
    ]
)
way_head = np.dtype([("places", u32), ("show_after", u32)])
connection4 = np.dtype([("c", connection), *_tuple4, ("in_ifindex", u32)])
connection6 = np.dtype([("c", connection), *_tuple6, ("in_ifindex", u32)])
BLOCK_PLACES: Final = 28
LINES: Final = 32
entry4 = np.dtype([("key", connection_key4), ("value", connection4)])
entry6 = np.dtype([("key", connection_key6), ("value", connection6)])
line = np.dtype([("lock", u64), ("tags", u64, (BLOCK_PLACES // 4,))])
block4 = np.dtype([("entry", entry4, (BLOCK_PLACES,))])
block6 = np.dtype([("entry", entry6, (BLOCK_PLACES,))])
table = np.dtype(
    [
        ("lines", u32),
        ("first", u32),
        ("blocks", u32),
        ("entries", u32),
        ("batch", u32),
        ("full", u32),
        ("flooded", u32),
        ("secret", u32, (11,)),
        ("zero", u32, (14,)),
        ("room", u64),
    ]
)
edit_frame = np.dtype([("done", u32), ("operation", u32), ("error", u32), ("unused", u32)])
fragment_key4 = np.dtype(
    [("saddr_be", u8, (4,)), ("daddr_be", u8, (4,)), ("id", u32), ("protocol", u8), ("zero", u8, (3,))]
)
fragment_key6 = np.dtype(
    [("saddr_be", u8, (16,)), ("daddr_be", u8, (16,)), ("id", u32), ("protocol", u8), ("zero", u8, (3,))]
)
fragment = np.dtype([("sport_be", be16), ("dport_be", be16), ("protocol", u8), ("zero", u8, (3,))])
connection_event = np.dtype(
    [
        ("created_ns", u64),
        ("time_ns", u64),
        ("packets_forward", u64),
        ("bytes_forward", u64),
        ("packets_reverse", u64),
        ("bytes_reverse", u64),
        ("proxy", u32),
        ("target", u32),
        ("client_be", u8, (16,)),
        ("listen_be", u8, (16,)),
        ("target_be", u8, (16,)),
        ("client_port_be", be16),
        ("listen_port_be", be16),
        ("target_port_be", be16),
        ("kind", u8),
        ("family", u8),
        ("protocol", u8),
        ("zero", u8, (7,)),
    ]
)
CREATED_SHIFT: Final = 22
CREATED_AHEAD: Final = 256
"""Of a connection's ``created``: its unit is 2**22 ns, and another CPU's clock may be ahead by so many."""

flood_count = np.dtype([("window", u32), ("number", u32)])
syn_line = np.dtype([("word", u64, (8,))])
scratch = np.dtype(
    [
        ("now", u64),
        ("tick", u64),
        ("clock_ns", u64),
        ("active", u32),
        ("proxy", u32),
        ("replace", u32),
        ("refused", u32),
        ("hash", u32),
        ("port_hash", u32),
        ("target", u32),
        ("round", u32),
        ("fresh", connection6),
        ("reply", connection6),
        ("key", connection_key6),
        ("client", connection_key6),
        ("fib", u64, (8,)),
        ("answered", u32),
        ("begun", u32),
        ("look", u32),
        ("port_begin", u32),
        ("begun_lately", flood_count),
        ("evicted_lately", flood_count),
    ]
)
proxy_name = np.dtype([("name", "S64")])
BLOB_CHUNK: Final = 4096
blob_key = np.dtype([("digest", u8, (16,)), ("chunk", u32)])
blob_chunk = np.dtype([("chunks", u32), ("length", u32), ("data", u8, (BLOB_CHUNK,))])
revision = np.dtype([("number", u64), ("applied_ns", u64), ("manifest", u8, (16,))])
revision_slots = _slots(revision)
sysctl_key = np.dtype([("name", "S120")])
sysctl_value = np.dtype([("before", "S60"), ("after", "S60")])

STRUCTURES: Final[dict[str, np.dtype]] = {
    name: dtype for name, dtype in globals().items() if isinstance(dtype, np.dtype) and dtype.names
}

# Flags and enumerations of types.h; assertions() checks their values too.
CONSTANTS: Final[dict[str, int]] = {
    "SETTING_FAST_PATH": 1,
    "SETTING_STATS_EVENTS": 2,
    "DEST_KIND_SHIFT": 28,
    "DEST_NONE": 0,
    "DEST_TARGET": 1,
    "DEST_GROUP": 2,
    "DEST_DENY": 3,
    "PROXY_PRESENT": 1,
    "PROXY_ROUTES4": 2,
    "PROXY_ROUTES6": 4,
    "MODE_DNAT": 0,
    "MODE_FULLNAT": 1,
    "BALANCE_MAGLEV": 0,
    "BALANCE_SOURCE": 1,
    "BALANCE_RANDOM": 2,
    "ROUTE_PRESENT": 1,
    "TARGET_DRAINED": 1,
    "TARGET_MISSING_SHIFT": 1,
    "CREATED_SHIFT": CREATED_SHIFT,
    "CREATED_AHEAD": CREATED_AHEAD,
    "CONNECTION_REPLY": 1,
    "CONNECTION_FULLNAT": 2,
    "CONNECTION_RESET": 4,
    "CONNECTION_TOLD": 8,
    "BLOCK_PLACES": BLOCK_PLACES,
    "LINES": LINES,
    "EDIT_ENTER": 0,
    "EDIT_REMOVE": 1,
    "EVENT_OPENED": 0,
    "EVENT_FIN": 1,
    "EVENT_RST": 2,
    "EVENT_IDLE": 3,
    "EVENT_UNANSWERED": 4,
    "EVENT_FLUSHED": 5,
    "EVENT_EVICTED": 6,
    "HEARD_ANY": 1,
    "HEARD_SYN": 2,
    "HEARD_FIN": 4,
    "HEARD_RST": 8,
    "HEARD_PLAIN": 16,
    "HEARD_ON": 32,
    "OUT_XDP": 1,
    "OUT_NO_TX": 2,
    "PORT_LISTEN": 1,
    "PORT_TARGET": 2,
    "DEVICE_XDP_REDIRECT": 1,
    "DEVICE_DROP_LOOPBACK": 2,
    "DEVICE_NO_TX": 4,
    "BLOB_CHUNK": BLOB_CHUNK,
}
globals().update(CONSTANTS)

OUTCOMES: Final = (
    "redirect_xdp",
    "redirect_tc",
    "stack",
    "egress",
    "icmp",
    "drop_denied",
    "drop_no_target",
    "drop_conflict",
    "drop_no_port",
    "drop_table_full",
    "reclaimed",
    "drop_error",
    "drop_loopback",
    "reset",
    "event_lost",
    "drop_flood",
)
OUTCOME_COUNT: Final = 16


class MapType(IntEnum):
    """The kernel's map types (``enum bpf_map_type``) that are used here."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    RINGBUF = 27


F_NO_PREALLOC: Final = 1
F_MMAPABLE: Final = 0x400
"""Of a large array: reading it is copying memory, where calls would take a microsecond an entry."""
F_INNER_MAP: Final = 0x1000


@dataclass(frozen=True, slots=True)
class MapSpec:
    """What a map is wanted to be. ``number`` is its place in ``bpf/maps.h``; ``per_connection`` maps hold
    ``max_entries`` times the setting ``max_connections`` instead of a fixed number."""

    name: str
    number: int
    type: MapType
    key: np.dtype
    value: np.dtype
    max_entries: int
    flags: int = 0
    per_connection: bool = False
    configuration: bool = False  # two-slot value


MAX_PROXIES: Final = 16384
MAX_TARGETS: Final = 65536
MAX_GROUPS: Final = 16384
MAX_DEVICES: Final = 4096
HARDWARE_PLACES: Final = 4096
PORT_TURNS: Final = 65536
SYN_LINES: Final = 65536
WAYS: Final = 32768  # a connection's entry has 16 bits for one

MAPS: Final[dict[str, MapSpec]] = {
    spec.name: spec
    for spec in (
        MapSpec("control", 1, MapType.ARRAY, u32, control, 1),
        MapSpec("settings", 2, MapType.ARRAY, u32, settings_slots, 1, configuration=True),
        MapSpec("port", 3, MapType.ARRAY, u32, u8, 65536, F_MMAPABLE),
        MapSpec("listener4", 4, MapType.HASH, listener_key4, listener_slots, 65536, F_NO_PREALLOC, configuration=True),
        MapSpec("listener6", 5, MapType.HASH, listener_key6, listener_slots, 65536, F_NO_PREALLOC, configuration=True),
        MapSpec("proxy", 6, MapType.ARRAY, u32, proxy_slots, MAX_PROXIES, F_MMAPABLE, configuration=True),
        MapSpec("route4", 7, MapType.LPM_TRIE, route_key4, route_slots, 1 << 20, F_NO_PREALLOC, configuration=True),
        MapSpec("route6", 8, MapType.LPM_TRIE, route_key6, route_slots, 1 << 20, F_NO_PREALLOC, configuration=True),
        MapSpec("target", 9, MapType.ARRAY, u32, target, MAX_TARGETS, F_MMAPABLE),
        MapSpec("target_stats", 10, MapType.PERCPU_ARRAY, u32, target_stats, MAX_TARGETS),
        MapSpec("group", 11, MapType.ARRAY_OF_MAPS, u32, u32, MAX_GROUPS),
        MapSpec("group_member", 12, MapType.HASH, group_member_key, u32, 1 << 20, F_NO_PREALLOC),
        MapSpec("connection4", 13, MapType.ARRAY, u32, block4, 2, F_MMAPABLE, per_connection=True),
        MapSpec("connection6", 14, MapType.ARRAY, u32, block6, 2, F_MMAPABLE, per_connection=True),
        MapSpec("device", 15, MapType.HASH, u32, u32, MAX_DEVICES, F_NO_PREALLOC),
        MapSpec("outcome", 16, MapType.PERCPU_ARRAY, u32, u64, OUTCOME_COUNT),
        MapSpec("proxy_name", 17, MapType.HASH, u32, proxy_name, MAX_PROXIES, F_NO_PREALLOC),
        MapSpec("blob", 18, MapType.HASH, blob_key, blob_chunk, 65536, F_NO_PREALLOC),
        MapSpec("revision", 19, MapType.ARRAY, u32, revision_slots, 1, configuration=True),
        MapSpec("sysctl", 20, MapType.HASH, sysctl_key, sysctl_value, 4096, F_NO_PREALLOC),
        MapSpec("scratch", 21, MapType.PERCPU_ARRAY, u32, scratch, 1),
        MapSpec("fragment4", 24, MapType.LRU_HASH, fragment_key4, fragment, 16384),
        MapSpec("fragment6", 25, MapType.LRU_HASH, fragment_key6, fragment, 16384),
        MapSpec("event_ring", 26, MapType.ARRAY_OF_MAPS, u32, u32, 1),
        MapSpec("retired_stats", 27, MapType.ARRAY, u32, target_stats, MAX_PROXIES),
        MapSpec("hardware", 30, MapType.ARRAY, u32, u64, HARDWARE_PLACES),
        MapSpec("way", 31, MapType.ARRAY, u32, way, WAYS),
        MapSpec("port_turn", 32, MapType.ARRAY, u32, u32, PORT_TURNS),
        MapSpec("syn_line", 33, MapType.ARRAY, u32, syn_line, SYN_LINES),
    )
}


CONNECTIONS: Final = ("connection4", "connection6")
# What programs that edit a table read: what of it lies in a map of the one's who runs them.
EDITORS: Final = {"edit4": 102, "edit6": 103}

# Programs that others of the same set call, by the map that holds them and the place in it. These maps belong to one
# set of programs, not to the instance.
CALLS: Final[dict[str, tuple[str, ...]]] = {
    "xdp_calls": (
        "xdp_open4",
        "xdp_open6",
        "xdp_reclaim4",
        "xdp_reclaim6",
        "xdp_stamp4",
        "xdp_stamp6",
        "xdp_enter4",
        "xdp_enter6",
    ),
    "tc_calls": (
        "tc_open4",
        "tc_open6",
        "tc_fragment4",
        "tc_fragment6",
        "tc_icmp4",
        "tc_icmp6",
        "tc_egress_fragment4",
        "tc_egress_fragment6",
        "tc_egress_icmp4",
        "tc_egress_icmp6",
        "tc_forward4",
        "tc_forward6",
        "tc_reset4",
        "tc_reset6",
        "tc_reclaim4",
        "tc_reclaim6",
        "tc_enter4",
        "tc_enter6",
    ),
}
CALLS_NUMBER: Final = {"xdp_calls": 100, "tc_calls": 101}


def assertions() -> Iterator[str]:
    """C source lines that fail to compile when ``types.h`` differs from this module."""
    for name, dtype in STRUCTURES.items():
        yield f'_Static_assert(sizeof(struct {name}) == {dtype.itemsize}, "sizeof {name}");'
        for field, (_, offset, *_rest) in (dtype.fields or {}).items():
            yield f'_Static_assert(__builtin_offsetof(struct {name}, {field}) == {offset}, "offset {name}.{field}");'
    for name, value in CONSTANTS.items():
        yield f'_Static_assert({name} == {value}, "{name}");'
    for index, name in enumerate(OUTCOMES):
        yield f'_Static_assert(OUTCOME_{name.upper()} == {index}, "outcome {name}");'
    for spec in MAPS.values():
        yield f'_Static_assert(MAP_{spec.name.upper()} == {spec.number}, "map {spec.name}");'
    yield f'_Static_assert(HARDWARE_PLACES == {HARDWARE_PLACES}, "hardware places");'
    for name, number in (*CALLS_NUMBER.items(), *EDITORS.items()):
        yield f'_Static_assert(MAP_{name.upper()} == {number}, "map {name}");'


def description() -> str:
    """Every map's name, type, key, value, number of entries and flags, a Python literal a line: what another version
    needs to read the maps."""
    rows = (
        (spec.name, int(spec.type), spec.key.descr, spec.value.descr, spec.max_entries, spec.flags)
        for spec in MAPS.values()
    )
    return "".join(f"{row!r}\n" for row in rows)


def fingerprint() -> str:
    """Hex digest of :func:`description`: part of the pin path, so that a program never opens maps of another
    layout."""
    return hashlib.sha256(description().encode()).hexdigest()[:12]
