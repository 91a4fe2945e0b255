"""Other instances in this network namespace: what they and we have set of ``lo``, which all share.

Who is here is told by the name that every TC filter of ours carries. Who came second found the setting as it needs it,
and knows nothing of what stood there before: who goes first tells it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np

from reconciler.errors import KernelError
from reconciler.kernel import bpffs, layout
from reconciler.kernel.codec import pack_sysctl_key, pack_text
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.links import InterfaceStatus
from reconciler.kernel.maps import Maps

_SHARED: Final = {
    "net/ipv4/conf/lo/forwarding": "listener4",
    "net/ipv6/conf/lo/forwarding": "listener6",
    "net/ipv6/conf/lo/force_forwarding": "listener6",
}
"""What everybody needs who has listeners of that family."""


def instances(interfaces: Iterable[InterfaceStatus], own: Path) -> list[Path]:
    """The bpffs directories of the other instances whose filters are on these, by name."""
    named = {Path(each.instance) for status in interfaces for each in status.tc.filters if each.instance}
    return sorted(named - {bpffs.as_named(own)})


def hand_over(others: Iterable[Path], name: str, before: str, after: str, gateway: Gateway) -> Path | None:
    """Leave a sysctl that we set to ``after`` to an instance that needs it as well, with what stood there before us, to
    be put back when it goes; which one, None if there is none. One of another version, or whose pins this process does
    not see, counts as none."""
    if name not in _SHARED:
        return None
    for each in others:
        maps = Maps(each, gateway)
        try:
            found = bpffs.locate(each)
            if found is None or not (maps := Maps(found, gateway)).exists:
                continue
            maps.open()
            if maps[_SHARED[name]].is_empty:
                continue
            key, value = pack_sysctl_key(name), np.zeros(1, layout.sysctl_value)
            if maps["sysctl"].get(key) is None:
                value["before"] = pack_text(before, layout.sysctl_value["before"])
                value["after"] = pack_text(after, layout.sysctl_value["after"])
                maps["sysctl"].put(key, value)
            return each
        except KernelError:
            continue
        finally:
            maps.close()
    return None
