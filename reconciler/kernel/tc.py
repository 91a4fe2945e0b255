"""Our TC filters on one interface: one direct-action BPF filter in each direction, below a clsact qdisc.

Ours are known by a fixed priority and handle together with either a program of ours or the instance's name, which
every filter carries. Other people's filters and qdiscs are never changed.

clsact is made where there is none, in the same send as the first filter, and the filter's name notes that it was:
so a process that dies at any point leaves either nothing or both, and the kernel alone remembers whose it is. It
is removed with our filters only if we made it and nobody else has a filter in it by then.

Linux documents this in tc-bpf(8); the format is that of include/uapi/linux/pkt_cls.h.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Final

from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL
from pyroute2.netlink.rtnl import (
    RTM_DELQDISC,
    RTM_DELTFILTER,
    RTM_GETQDISC,
    RTM_GETTFILTER,
    RTM_NEWQDISC,
    RTM_NEWTFILTER,
    TC_H_CLSACT,
)

from reconciler.errors import ForeignProgramError
from reconciler.kernel.bpffs import as_named
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.identity import (
    TCX_EGRESS,
    TCX_INGRESS,
    LoadedProgram,
    OwnPrograms,
    program_by_id,
    tcx_programs,
)
from reconciler.kernel.messages import TcMessage
from reconciler.kernel.netlink import Answer, Netlink, Request, asking
from reconciler.state.facts import ProgramInfo

PRIORITY: Final = 0x7270
HANDLE: Final = 0x7270

_CLSACT_HANDLE: Final = 0xFFFF0000
_DIRECT_ACTION: Final = 1
_ALL_PROTOCOLS: Final = socket.htons(3)  # ETH_P_ALL

_NAME_PREFIX: Final = "revproxy:"
_NAME_MADE_CLSACT: Final = ",clsact"
_NAME_BYTES: Final = 200  # of the kernel's 255


class Direction(Enum):
    """The value is the filters' parent (TC_H_MIN_INGRESS, TC_H_MIN_EGRESS)."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3


@dataclass(frozen=True, slots=True)
class Filter:
    """One TC filter, or a tcx program (``kind`` "tcx"), which runs before all of them.

    ``program`` None: it is not a BPF filter. ``direct_action``: the program's return value decides on the packet.
    """

    direction: Direction
    kind: str
    priority: int
    handle: int
    chain: int = 0
    name: str = ""
    program: ProgramInfo | None = None
    direct_action: bool = False

    @property
    def in_our_place(self) -> bool:
        return (self.kind, self.priority, self.handle, self.chain) == ("bpf", PRIORITY, HANDLE, 0)

    @property
    def at_our_preference(self) -> bool:
        """If it is not ours, ours can't be attached."""
        return self.kind != "tcx" and (self.priority, self.chain) == (PRIORITY, 0)

    @property
    def instance(self) -> str:
        """Which revproxy's it is, by its name; empty: none's. (0.1.0 wrote by which way it reached its pins.)"""
        if not self.name.startswith(_NAME_PREFIX):
            return ""
        found = self.name.removeprefix(_NAME_PREFIX).removesuffix(_NAME_MADE_CLSACT)
        return str(as_named(Path(found))) if found else ""

    @property
    def made_clsact(self) -> bool:
        """If it is ours, clsact is too."""
        return self.name.startswith(_NAME_PREFIX) and self.name.endswith(_NAME_MADE_CLSACT)

    def owned_by(self, own: OwnPrograms) -> bool:
        """Whether it is this instance's."""
        if not self.in_our_place:
            return False
        by_name = self.instance != "" and self.instance == _short(own.instance)
        return by_name or (self.program is not None and self.program.id in own.ids)

    def __str__(self) -> str:
        text = f"{self.direction.name.lower()} {self.kind}"
        if self.kind != "tcx":
            text += f" filter, preference {self.priority}"
        return text + (f", {self.program}" if self.program else "")


@dataclass(frozen=True, slots=True)
class TcStatus:
    """What TC has on one interface. ``qdisc``: clsact, ingress, or empty for neither. ``shared``: its filters are
    in a block shared with other interfaces. ``filters``: in the order in which packets meet them."""

    ifindex: int
    name: str
    qdisc: str = ""
    shared: bool = False
    filters: tuple[Filter, ...] = ()

    def own(self, direction: Direction, own: OwnPrograms) -> Filter | None:
        """Our filter, with whatever program of ours."""
        found = (each for each in self.filters if each.direction is direction and each.owned_by(own))
        return next(found, None)

    def ahead(self, direction: Direction, own: OwnPrograms) -> tuple[Filter, ...]:
        """Other people's filters that packets meet before ours, and that can keep packets from it: one for each
        preference and program."""
        found: dict[tuple[str, int, ProgramInfo | None], Filter] = {}
        for each in self.filters:
            before = each.chain == 0 and (each.kind == "tcx" or each.priority <= PRIORITY)
            if before and each.direction is direction and not each.owned_by(own):
                found.setdefault((each.kind, each.priority, each.program), each)
        return tuple(found.values())


# -- reading ---------------------------------------------------------------------------------------------------


def ingress_qdiscs(netlink: Netlink) -> dict[int, tuple[str, bool]]:
    """Of every interface that has one: (clsact or ingress, whether in a shared block)."""
    found: dict[int, tuple[str, bool]] = {}
    for answer in netlink.dump(Request(RTM_GETQDISC, TcMessage)):
        if answer.field("parent") == TC_H_CLSACT:  # which is TC_H_INGRESS
            shared = "TCA_INGRESS_BLOCK" in answer or "TCA_EGRESS_BLOCK" in answer
            found[answer.field("index")] = answer.text("TCA_KIND"), shared
    return found


def query(ifindex: int, name: str, qdisc: str = "") -> TcStatus:
    """Everything TC has at the entrance and exit of one interface.

    ``qdisc``: which it is known to have, not in a shared block. The kernel lists qdiscs of all interfaces only, so
    that is much to be spared on a host with many.
    """
    with asking("list tc filters", name) as netlink:
        known = (qdisc, False) if qdisc else ingress_qdiscs(netlink).get(ifindex)
        return status(netlink, ifindex, name, known)


def status(netlink: Netlink, ifindex: int, name: str, qdisc: tuple[str, bool] | None) -> TcStatus:
    """The same, where the qdisc (as :func:`ingress_qdiscs` gives it) is known already."""
    kind, shared = qdisc or ("", False)
    filters: list[Filter] = []
    for direction, where in ((Direction.INGRESS, TCX_INGRESS), (Direction.EGRESS, TCX_EGRESS)):
        filters += [
            Filter(direction, "tcx", 0, 0, program=program_by_id(program_id), direct_action=True)
            for program_id in tcx_programs(ifindex, where)
        ]
        if kind == "clsact" or (kind and direction is Direction.INGRESS):
            filters += _dump_filters(netlink, ifindex, direction)
    return TcStatus(ifindex, name, kind, shared, tuple(filters))


def _dump_filters(netlink: Netlink, ifindex: int, direction: Direction) -> list[Filter]:
    answers = netlink.dump(Request(RTM_GETTFILTER, TcMessage, {"index": ifindex, "parent": direction.value}))
    filters = [_parse_filter(answer, direction) for answer in answers if answer.type == RTM_NEWTFILTER]
    # A classifier's own head comes as handle 0 before its filters. It counts only where it is all there is.
    with_filters = {(each.chain, each.priority) for each in filters if each.handle}
    return [each for each in filters if each.handle or (each.chain, each.priority) not in with_filters]


def _parse_filter(answer: Answer, direction: Direction) -> Filter:
    found = Filter(
        direction=direction,
        kind=answer.text("TCA_KIND"),
        priority=answer.field("info") >> 16,
        handle=answer.field("handle"),
        chain=answer.number("TCA_CHAIN"),
    )
    if found.kind != "bpf":
        return found
    options = answer.nested("TCA_OPTIONS")
    program = None
    if "TCA_BPF_ID" in options:
        known = program_by_id(options.number("TCA_BPF_ID"))
        program = ProgramInfo(known.id, known.name, options.data("TCA_BPF_TAG").hex())
    direct_action = bool(options.number("TCA_BPF_FLAGS") & _DIRECT_ACTION)
    return replace(found, name=options.text("TCA_BPF_NAME"), program=program, direct_action=direct_action)


# -- changing --------------------------------------------------------------------------------------------------


def attach(found: TcStatus, direction: Direction, program: LoadedProgram, own: OwnPrograms, gateway: Gateway) -> None:
    """Make our filter in that direction run ``program``; an exchange leaves no gap. One call, none if it does.

    Raises :class:`ForeignProgramError` where somebody else's filter has our place, or where an ``ingress`` qdisc
    or a shared block leaves no room for it; :class:`KernelError` with the kernel's words for anything else.
    """
    present = found.own(direction, own)
    if present is None:
        _check_room(found, direction, own)
    elif present.direct_action and present.program and present.program.id == program.info.id:
        return
    made_clsact = any(each.made_clsact for each in found.filters if each.owned_by(own))
    operation = f"attach tc {direction.name.lower()}"
    if not found.qdisc:
        gateway.call(operation, found.name, lambda: _add_clsact_with_filter(found, direction, program, own))
        return
    name, flags = _filter_name(own, made_clsact), 0 if present else NLM_F_CREATE | NLM_F_EXCL
    request = _filter_request(found.ifindex, direction, program.fd, name, flags)
    gateway.call(operation, found.name, lambda: _send(request))


def detach(found: TcStatus, own: OwnPrograms, gateway: Gateway) -> None:
    """Remove our filters, and clsact with them if we made it and nothing of others is in it."""
    ours = [each for each in found.filters if each.owned_by(own)]
    if not ours:
        return
    others = [each for each in found.filters if each not in ours and each.kind != "tcx"]
    made_clsact = any(each.made_clsact for each in ours)
    if made_clsact and not others and not found.shared:
        request = _clsact_request(RTM_DELQDISC, found.ifindex)
        gateway.call("detach tc with clsact", found.name, lambda: _send(request))
        return
    for each in ours:
        remove = partial(_send, _delete_request(found.ifindex, each.direction))
        gateway.call(f"detach tc {each.direction.name.lower()}", found.name, remove)


def _check_room(found: TcStatus, direction: Direction, own: OwnPrograms) -> None:
    operation = f"attach tc {found.name}"
    if found.qdisc == "ingress":
        raise ForeignProgramError(
            f"{operation}: it has an `ingress` qdisc, which takes the place of the `clsact` that is needed here; "
            f"replace it (tc qdisc del dev {found.name} ingress) or leave this interface out"
        )
    if found.shared:
        raise ForeignProgramError(f"{operation}: its filters are in a block shared with other interfaces")
    for each in found.filters:
        if each.direction is direction and each.at_our_preference and not each.owned_by(own):
            whose = f" of another revproxy ({each.instance})" if each.instance else ""
            raise ForeignProgramError(f"{operation}: {each}{whose} has the place of ours")


def _filter_name(own: OwnPrograms, made_clsact: bool) -> str:
    return _NAME_PREFIX + _short(own.instance) + (_NAME_MADE_CLSACT if made_clsact else "")


def _short(instance: str) -> str:
    return instance.encode()[-_NAME_BYTES:].decode(errors="ignore")


def _clsact_request(kind: int, ifindex: int, flags: int = 0) -> Request:
    fields = {"index": ifindex, "handle": _CLSACT_HANDLE, "parent": TC_H_CLSACT}
    return Request(kind, TcMessage, fields, (("TCA_KIND", "clsact"),), flags)


def _filter_request(ifindex: int, direction: Direction, fd: int, name: str, flags: int) -> Request:
    options = (("TCA_BPF_FD", fd), ("TCA_BPF_NAME", name), ("TCA_BPF_FLAGS", _DIRECT_ACTION))
    attributes = (("TCA_KIND", "bpf"), ("TCA_OPTIONS", options))
    return Request(RTM_NEWTFILTER, TcMessage, _place(ifindex, direction), attributes, flags)


def _delete_request(ifindex: int, direction: Direction) -> Request:
    return Request(RTM_DELTFILTER, TcMessage, _place(ifindex, direction), (("TCA_KIND", "bpf"),))


def _place(ifindex: int, direction: Direction) -> dict[str, int]:
    info = PRIORITY << 16 | _ALL_PROTOCOLS
    return {"index": ifindex, "handle": HANDLE, "parent": direction.value, "info": info}


def _send(request: Request) -> None:
    with Netlink() as netlink:
        netlink.change(request)


def _add_clsact_with_filter(found: TcStatus, direction: Direction, program: LoadedProgram, own: OwnPrograms) -> None:
    """Both in one send, so that clsact never stands without the filter that tells that we made it."""
    new = NLM_F_CREATE | NLM_F_EXCL
    add_qdisc = _clsact_request(RTM_NEWQDISC, found.ifindex, new)
    add_filter = _filter_request(found.ifindex, direction, program.fd, _filter_name(own, True), new)
    with Netlink() as netlink:
        qdisc, added = netlink.batch((add_qdisc, add_filter))
        if isinstance(qdisc, OSError):
            if not isinstance(added, OSError):  # somebody else's clsact came meanwhile: take back the false claim
                netlink.change(_delete_request(found.ifindex, direction))
            raise qdisc
        if isinstance(added, OSError):
            netlink.change(_clsact_request(RTM_DELQDISC, found.ifindex))
            raise added
