"""Runs packets through a pinned XDP program as fast as Python can, and says which configuration each one saw.

    packet_runner.py NETNS PIN IFINDEX FRAME_HEX PORTS COUNT

The frame is UDP over IPv4 without a checksum. Every packet has a source of its own in 20.0.0.0/8, so that it is a new
connection, and the next of PORTS ports from 9000 on. A target's third octet tells what chose it: 2n+1 the default of
configuration n, 2n+2 its route for 20.0.0.0/9. Starts at a line on standard input, ends
at a second one but not before COUNT packets, and prints JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import sys
from collections import Counter
from pathlib import Path

XDP_REDIRECT = 4
SOURCE, PORT, DESTINATION = 26, 36, 30


def main() -> None:
    namespace, pin, ifindex, frame_hex, ports, count = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/run/netns/{namespace}").open() as file:
        assert libc.setns(file.fileno(), 0x40000000) == 0
    from reconciler.kernel import bpf

    program = bpf.obj_get(pin)
    frame = bytes.fromhex(frame_hex)
    data_in, data_out = ctypes.create_string_buffer(frame, len(frame)), ctypes.create_string_buffer(256)
    context = (ctypes.c_uint32 * 6)(0, len(frame), 0, int(ifindex), 0, 0)
    options = bpf._TestRunOpts(sz=ctypes.sizeof(bpf._TestRunOpts), repeat=1)
    options.data_in, options.data_size_in = ctypes.addressof(data_in), len(frame)
    options.data_out = ctypes.addressof(data_out)
    options.ctx_in, options.ctx_size_in = ctypes.addressof(context), ctypes.sizeof(context)
    print("ready", flush=True)
    sys.stdin.readline()

    wrong: Counter[str] = Counter()
    seen: Counter[int] = Counter()
    changes: list[tuple[int, int]] = []
    current, number, run, reference = -1, 0, bpf._prog_test_run, ctypes.byref(options)
    stopped = False
    while number < int(count) or not stopped:
        if number % 4096 == 0:
            stopped = stopped or bool(select.select([sys.stdin], [], [], 0)[0])
        source, port = 0x14000000 + number * 7 % 0x1000000, 9000 + number % int(ports)
        data_in[SOURCE : SOURCE + 4] = source.to_bytes(4, "big")
        data_in[PORT : PORT + 2] = port.to_bytes(2, "big")
        options.data_size_out = 256
        if run(program, reference):
            wrong["the run failed"] += 1
        elif options.retval != XDP_REDIRECT:
            wrong[f"verdict {options.retval}"] += 1
        else:
            first, second, third, last = data_out[DESTINATION : DESTINATION + 4]  # type: ignore[misc]
            configuration, by_route = divmod(third - 1, 2)
            if (first, second, last) != (10, 9, port - 9000 + 1):
                wrong[f"target {first}.{second}.{third}.{last} for port {port}"] += 1
            elif by_route != (source < 0x14800000):
                wrong[f"rule {by_route} for source {source:x}"] += 1
            seen[configuration] += 1
            if configuration != current:
                changes.append((number, configuration))
                current = configuration
        number += 1
    os.close(program)
    print(json.dumps({"packets": number, "seen": seen, "changes": changes, "wrong": wrong.most_common(10)}))


if __name__ == "__main__":
    main()
