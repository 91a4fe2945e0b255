"""Two network namespaces joined by a tunnel: interfaces whose packets have no hardware header."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from netlab import Namespace

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 1, 0x1000
LONGEST = 65536


def _tunnel_end(namespace: Namespace, name: str) -> int:
    """A tun interface there, and the file that its packets come out of and go into."""

    def make() -> int:
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TUN | IFF_NO_PI))
        return file

    return namespace.call(make)


@contextmanager
def tunnel(name: str, *ends: tuple[Namespace, Sequence[str]]) -> Iterator[None]:
    """Interface ``name`` in both namespaces, with these addresses (``IP/LENGTH``) each. It goes at the end."""
    files = [_tunnel_end(namespace, name) for namespace, _ in ends]
    ending = threading.Event()

    def carry() -> None:
        across = dict(zip(files, reversed(files), strict=True))
        while not ending.is_set():
            for file in select.select(files, [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # an interface that is down takes none
                    os.write(across[file], os.read(file, LONGEST))

    thread = threading.Thread(target=carry, name=name)
    try:
        for namespace, addresses in ends:
            namespace.ip(
                *(f"address add {each} dev {name}" + " nodad" * (":" in each) for each in addresses),
                f"link set {name} up",
            )
        thread.start()
        yield
    finally:
        ending.set()
        if thread.ident is not None:
            thread.join()
        for file in files:
            os.close(file)
