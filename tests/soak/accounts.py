"""What the soak counts to see whether anything grows: map entries, pins, a process's memory, files and threads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reconciler.kernel import groups
from reconciler.kernel.maps import Maps

_COUNTED = (
    *("listener4", "listener6", "route4", "route6", "group_member", "device", "proxy_name", "blob", "sysctl"),
    *("connection4", "connection6"),
)
_ARRAYS = {"proxy": "slot", "target": "family", "port": ""}


def entries(bpffs_dir: Path) -> dict[str, int]:
    """How many entries of each map say something, groups and pins included."""
    maps = Maps(bpffs_dir)
    maps.open()
    try:
        found = {name: len(maps[name].items()[0]) for name in _COUNTED}
        for name, field in _ARRAYS.items():
            values = maps[name].items()[1]
            raw = np.ascontiguousarray(values[field] if field else values).view(np.uint8).reshape(len(values), -1)
            found[name] = int(raw.any(axis=1).sum())
        found["group"] = len(groups.used_groups(maps))
        found["connections"] = found.pop("connection4") + found.pop("connection6")
    finally:
        maps.close()
    found["pins"] = sum(1 for _ in bpffs_dir.rglob("*"))
    return found


@dataclass(frozen=True)
class Footprint:
    """Of one process: memory of its own in KiB (what it shares with the kernel, such as the ring of events, left out),
    open files, threads."""

    memory_kib: int
    files: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        """Read it from /proc."""
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        words = {line.split(":")[0]: line.split()[1] for line in status if ":" in line and len(line.split()) > 1}
        return cls(int(words["RssAnon"]), len(list(Path(f"/proc/{pid}/fd").iterdir())), int(words["Threads"]))
