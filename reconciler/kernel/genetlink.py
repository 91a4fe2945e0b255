"""What each interface can do with XDP, from the kernel's generic netlink family "netdev" (Linux 6.3 and later)."""

from __future__ import annotations

import errno
from typing import Final

from pyroute2.netlink import CTRL_CMD_GETFAMILY, GENL_ID_CTRL, NETLINK_GENERIC, ctrlmsg

from reconciler.kernel.messages import DeviceMessage
from reconciler.kernel.netlink import Netlink, Request, asking

_DEV_GET: Final = 1  # NETDEV_CMD_DEV_GET

XDP_FEATURES: Final = ("basic", "redirect", "ndo-xmit", "xsk-zerocopy", "hw-offload", "rx-sg", "ndo-xmit-sg")
"""Names of the bits of xdp-features, lowest first."""


def xdp_features() -> dict[int, frozenset[str]] | None:
    """By interface number, what its driver can do. None: this kernel does not say. Raises :class:`KernelError`."""
    with asking("list", "xdp features", NETLINK_GENERIC, {GENL_ID_CTRL: ctrlmsg}) as netlink:
        family = _family(netlink, "netdev")
        if family is None:
            return None
        netlink.read_as({family: DeviceMessage})
        answers = netlink.dump(Request(family, DeviceMessage, {"cmd": _DEV_GET, "version": 1}))
    features: dict[int, frozenset[str]] = {}
    for answer in answers:
        bits = answer.number("NETDEV_A_DEV_XDP_FEATURES")
        names = frozenset(name for bit, name in enumerate(XDP_FEATURES) if bits >> bit & 1)
        features[answer.number("NETDEV_A_DEV_IFINDEX")] = names
    return features


def family_number() -> int | None:
    """Of the family "netdev"; None where this kernel has none. Raises :class:`KernelError`."""
    with asking("find", "netlink family netdev", NETLINK_GENERIC, {GENL_ID_CTRL: ctrlmsg}) as netlink:
        return _family(netlink, "netdev")


def _family(netlink: Netlink, name: str) -> int | None:
    fields = {"cmd": CTRL_CMD_GETFAMILY, "version": 1}
    try:
        answer = netlink.get(Request(GENL_ID_CTRL, ctrlmsg, fields, (("CTRL_ATTR_FAMILY_NAME", name),)))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return answer.number("CTRL_ATTR_FAMILY_ID")
