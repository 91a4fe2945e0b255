"""Many entries of the outer map of groups written at the same time, where each write waits for packets in flight.

Before Linux 6.8 an update of a map of maps from user space ends with an RCU grace period for each entry, also in a
batch (``maybe_wait_bpf_programs`` in ``bpf_map_update_value``). Writes at the same time wait for the same grace
periods: on an emulated Linux 6.1, where one takes 25 ms, 200 groups took 5.0 s in a batch and take 0.7 s so. Since 6.8
a batch waits once.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from reconciler.errors import KernelError
from reconciler.kernel import bpf, groupscan, layout
from reconciler.kernel.arrays import Array, address
from reconciler.kernel.maps import CHUNK, Map

FEW: Final = 3
"""So few writes in a row wait no longer than finding out whether they wait, and then writing."""
WRITERS: Final = 64


def put_many(outer: Map, ids: Array, descriptors: Array) -> None:
    """What ``outer.put_many(ids, descriptors)`` does, in as many gateway calls, which may fail in part as those do.
    The ids differ: they are not written in order."""
    if len(ids) <= FEW or not groupscan.waits(outer):
        outer.put_many(ids, descriptors)
        return
    with ThreadPoolExecutor(min(WRITERS, len(ids))) as writers:
        for start in range(0, len(ids), CHUNK):
            keys = outer.keys_array(ids[start : start + CHUNK])
            values = np.ascontiguousarray(descriptors[start : start + CHUNK], layout.u32)

            def write(index: int, keys: Array = keys, values: Array = values) -> None:
                try:
                    bpf.map_update(outer.fd, address(keys[index:]), address(values[index:]))
                except KernelError as error:
                    raise KernelError("update", outer.subject, error.errno) from error

            def write_all(count: int = len(keys)) -> None:
                list(writers.map(write, range(count)))  # raises what one of them raised

            outer.gateway.call("update batch", outer.subject, write_all)
