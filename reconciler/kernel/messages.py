"""The netlink messages spoken here that pyroute2 lacks, declared in its own way.

Addresses, routes and families are pyroute2's. Of links and filters it would do, were it not that its filters have
neither program id nor tag, that Debian 12's 0.7.2 sends XDP flags in the wrong byte order, and that decoding every
attribute of an interface takes several times as long as decoding these. Attributes not named here are skipped.

Formats: include/uapi/linux/if_link.h, rtnetlink.h, pkt_cls.h and netdev.h. The classes derive from ``nlmsg`` directly:
pyroute2 compiles a class's attributes once, and a subclass would get its parent's.
"""

from __future__ import annotations

from pyroute2.netlink import NLA_F_NESTED, nla, nlmsg


class LinkMessage(nlmsg):
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


class TcMessage(nlmsg):
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


class DeviceMessage(nlmsg):
    """An interface in the generic netlink family "netdev" (Documentation/netlink/specs/netdev.yaml)."""

    fields = (("cmd", "B"), ("version", "B"), ("reserved", "H"))
    nla_map = ((1, "NETDEV_A_DEV_IFINDEX", "uint32"), (3, "NETDEV_A_DEV_XDP_FEATURES", "uint64"))


class DoneMessage(nlmsg):
    """The end of a dump, with what went wrong after it had begun."""

    fields = (("error", "i"),)


class EventMessage(nlmsg):
    """The head of ``ifinfomsg``, ``ifaddrmsg``, ``ndmsg`` and ``tcmsg``: all have the interface in the same place."""

    fields = (("head", "I"), ("index", "i"))
