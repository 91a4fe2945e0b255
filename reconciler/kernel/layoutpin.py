"""What the layout of pinned maps is, pinned beside them: a map that holds the text of :func:`layout.description`.

With it another version can read maps that are laid out otherwise than its own."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Final

import numpy as np

from reconciler.kernel import bpf, layout
from reconciler.kernel.arrays import address
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.layout import MapType

NAME: Final = "layout"
_LENGTH_BYTES: Final = 4  # little-endian, before the compressed text


def is_pinned(root: Path) -> bool:
    """Something is, at ``root``."""
    return (root / NAME).exists()


def pin(root: Path, gateway: Gateway) -> None:
    """Describe our layout at ``root``, unless something is pinned there already."""
    path = root / NAME
    if is_pinned(root):
        return
    packed = zlib.compress(layout.description().encode(), 9)
    key = np.zeros(1, layout.u32)
    value = np.frombuffer(len(packed).to_bytes(_LENGTH_BYTES, "little") + packed, np.uint8).copy()
    fd = bpf.map_create(MapType.ARRAY, NAME, 4, len(value), 1)
    try:
        bpf.map_update(fd, address(key), address(value))
        gateway.call("pin", f"map {NAME}", lambda: bpf.obj_pin(fd, str(path)))
    finally:
        os.close(fd)


def unpin(root: Path, gateway: Gateway) -> None:
    """Take it away. Nothing pinned is fine."""
    path = root / NAME
    if path.exists():
        gateway.call("unpin", f"map {NAME}", lambda: path.unlink(missing_ok=True))


def read(root: Path) -> str:
    """The text at ``root``. Raises :class:`KernelError` where there is none, ValueError or zlib.error for something
    else."""
    fd = bpf.obj_get(str(root / NAME))
    try:
        info = bpf.map_info(fd)
        if (info.type, info.key_size, info.max_entries) != (MapType.ARRAY, 4, 1):
            raise ValueError("it is another map")
        key, value = np.zeros(1, layout.u32), np.zeros(info.value_size, np.uint8)
        bpf.map_lookup(fd, address(key), address(value))
    finally:
        os.close(fd)
    content = value.tobytes()
    return zlib.decompress(content[_LENGTH_BYTES:][: int.from_bytes(content[:_LENGTH_BYTES], "little")]).decode()
