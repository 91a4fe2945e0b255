"""The netlink messages spoken here that pyroute2 lacks, declared in its own way.

Addresses, routes and families are pyroute2's. Its links and filters would do, were it not that its filters have neither
program id nor tag, that 0.7.2 (Debian 12's) sends XDP flags in the wrong byte order, and that they decode all there is.

Formats: include/uapi/linux/if_link.h, rtnetlink.h, pkt_cls.h and netdev.h.
"""

from __future__ import annotations

import struct
from typing import Final

from pyroute2.netlink import NLA_F_NESTED, nla, nlmsg

_TYPE_MASK: Final = 0x3FFF


class SparseMessage(nlmsg):
    """Decodes only what ``nla_map`` names (by number), where pyroute2 makes objects of everything there is.

    An interface has fifty attributes, and hosts have hundreds of interfaces: that is most of the time of looking.
    """

    length: int  # of the message, as pyroute2 read it

    def decode_nlas(self, offset: int) -> None:
        """Have pyroute2 decode each of ours, with the message as if it ended there."""
        wanted, length = {number for number, *_ in self.nla_map}, self.length
        while offset + 4 <= self.offset + length:
            size, kind = struct.unpack_from("=HH", self.data, offset)
            if kind & _TYPE_MASK in wanted:
                self.length = offset + size - self.offset
                super().decode_nlas(offset)
                self.length = length
            offset += max(size + 3 & ~3, 4)


class LinkMessage(SparseMessage):
    """``struct ifinfomsg`` and what is asked of an interface, or set on it."""

    fields = (("family", "B"), ("pad", "x"), ("type", "H"), ("index", "i"), ("flags", "I"), ("change", "I"))
    nla_map = (
        (3, "IFLA_IFNAME", "asciiz"),
        (4, "IFLA_MTU", "uint32"),
        (18, "IFLA_LINKINFO", "info"),
        (29, "IFLA_EXT_MASK", "uint32"),
        (33, "IFLA_CARRIER", "uint8"),
        (43, "IFLA_XDP", "xdp"),
    )

    class info(nla):
        nla_map = ((1, "IFLA_INFO_KIND", "asciiz"),)

    class xdp(nla):
        nla_map = (
            (1, "IFLA_XDP_FD", "int32"),
            (2, "IFLA_XDP_ATTACHED", "uint8"),
            (3, "IFLA_XDP_FLAGS", "uint32"),
            (4, "IFLA_XDP_PROG_ID", "uint32"),
            (5, "IFLA_XDP_DRV_PROG_ID", "uint32"),
            (6, "IFLA_XDP_SKB_PROG_ID", "uint32"),
            (7, "IFLA_XDP_HW_PROG_ID", "uint32"),
            (8, "IFLA_XDP_EXPECTED_FD", "int32"),
        )


class TcMessage(SparseMessage):
    """``struct tcmsg`` of qdiscs and filters. The options are those of a BPF filter: of no other kind are they read."""

    fields = (("family", "B"), ("pad", "3x"), ("index", "i"), ("handle", "I"), ("parent", "I"), ("info", "I"))
    nla_map = (
        (1, "TCA_KIND", "asciiz"),
        (2, "TCA_OPTIONS", "bpf"),
        (11, "TCA_CHAIN", "uint32"),
        (13, "TCA_INGRESS_BLOCK", "uint32"),
        (14, "TCA_EGRESS_BLOCK", "uint32"),
    )

    class bpf(nla):
        nla_flags = NLA_F_NESTED
        nla_map = (
            (6, "TCA_BPF_FD", "int32"),
            (7, "TCA_BPF_NAME", "asciiz"),
            (8, "TCA_BPF_FLAGS", "uint32"),
            (10, "TCA_BPF_TAG", "cdata"),
            (11, "TCA_BPF_ID", "uint32"),
        )


class DeviceMessage(SparseMessage):
    """An interface in the generic netlink family "netdev" (Documentation/netlink/specs/netdev.yaml)."""

    fields = (("cmd", "B"), ("version", "B"), ("reserved", "H"))
    nla_map = ((1, "NETDEV_A_DEV_IFINDEX", "uint32"), (3, "NETDEV_A_DEV_XDP_FEATURES", "uint64"))


class DoneMessage(nlmsg):
    """The end of a dump, with what went wrong after it had begun."""

    fields = (("error", "i"),)


class EventMessage(nlmsg):
    """The head of ``ifinfomsg``, ``ifaddrmsg``, ``ndmsg`` and ``tcmsg``: all have the interface in the same place."""

    fields = (("head", "I"), ("index", "i"))
