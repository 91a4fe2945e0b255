"""Our programs on interfaces: what is attached where, bringing an interface to a wanted state, and leaving it.

:func:`attach` and :func:`detach` look at the interface first and do what is missing, so both may be repeated, and
both take up where an interrupted call stopped. Each kernel-changing step is one call of the gateway.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pyroute2.netlink.rtnl import RTM_GETLINK

from reconciler.errors import ForeignProgramError, KernelError
from reconciler.kernel import tc, xdp
from reconciler.kernel.foreign import Kept, put_back, take_over
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.identity import LoadedProgram, OwnPrograms, maps_of
from reconciler.kernel.messages import LinkMessage
from reconciler.kernel.netlink import Answer, Request, asking
from reconciler.kernel.tc import Direction, Filter, TcStatus
from reconciler.kernel.xdp import XdpStatus
from reconciler.state.facts import XdpProgram
from reconciler.state.objects import Attachment, TakenOver, XdpMode

_SKIP_STATISTICS: Final = 8
_FLAG_UP, _FLAG_LOOPBACK = 0x1, 0x8


@dataclass(frozen=True, slots=True)
class Link:
    """One interface as the kernel lists it. ``xdp``: ids of XDP programs by mode."""

    ifindex: int
    name: str
    kind: str
    mtu: int
    up: bool
    carrier: bool
    loopback: bool
    xdp: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class InterfaceStatus:
    """Everything attached to one interface that matters here: ours, and what others have there."""

    xdp: XdpStatus
    tc: TcStatus
    own: OwnPrograms
    foreign_xdp: XdpProgram | None

    @property
    def ifindex(self) -> int:
        return self.xdp.ifindex

    @property
    def name(self) -> str:
        return self.xdp.name

    @property
    def xdp_mode(self) -> XdpMode:
        """How our XDP program runs here; off when it is not there, or is one of an earlier load."""
        found = self.xdp.own(self.own)
        return found[0] if found and self.own.xdp and found[1] == self.own.xdp.info.id else XdpMode.OFF

    @property
    def tc_ingress(self) -> Filter | None:
        """Our filter on packets that come in, with whatever program of ours."""
        return self.tc.own(Direction.INGRESS, self.own)

    @property
    def tc_egress(self) -> Filter | None:
        """Our filter on packets that go out."""
        return self.tc.own(Direction.EGRESS, self.own)

    @property
    def ahead_ingress(self) -> tuple[Filter, ...]:
        """Other people's filters that can keep incoming packets from ours."""
        return self.tc.ahead(Direction.INGRESS, self.own)

    @property
    def ahead_egress(self) -> tuple[Filter, ...]:
        """Other people's filters that can keep outgoing packets from ours."""
        return self.tc.ahead(Direction.EGRESS, self.own)

    @property
    def taken_over(self) -> TakenOver | None:
        """Whose XDP program ours has the place of. Once somebody else's has it, nothing is to be put back."""
        return self.own.taken_over.get(self.ifindex) if self.foreign_xdp is None else None

    @property
    def complete_tc(self) -> bool:
        """Both directions run the programs loaded now."""
        return _runs(self.tc_ingress, self.own.tc_ingress) and _runs(self.tc_egress, self.own.tc_egress)

    @property
    def attachment(self) -> Attachment | None:
        """What of ours is in force. Neither XDP nor TC in it: only remains or programs of an earlier load.
        None: nothing of ours is here, and nothing is to be put back."""
        if not (self.xdp.own(self.own) or self.tc_ingress or self.tc_egress or self.taken_over):
            return None
        return Attachment(self.ifindex, self.name, self.xdp_mode, self.complete_tc, self.taken_over)


@dataclass(frozen=True, slots=True)
class ObservedAttachments:
    """``attachments``: interfaces with anything of ours, by number. ``interfaces``: every interface, by number."""

    attachments: dict[int, Attachment]
    interfaces: dict[int, InterfaceStatus]

    @property
    def foreign_xdp(self) -> dict[int, XdpProgram]:
        """Other people's XDP programs by interface number."""
        return {index: each.foreign_xdp for index, each in self.interfaces.items() if each.foreign_xdp}

    def others(self) -> Iterator[object]:
        """Of each interface what others have in TC that can be in the way of ours."""
        for ifindex, each in self.interfaces.items():
            ahead = (*each.ahead_ingress, *each.ahead_egress)
            if ahead or each.tc.qdisc == "ingress" or each.tc.shared:
                yield ifindex, each.tc.qdisc, each.tc.shared, ahead

    def hidden(self) -> Iterator[str]:
        """Sentences about programs of others that may keep packets from ours, where ours are."""
        for ifindex in self.attachments:
            status = self.interfaces[ifindex]
            ways = ((status.tc_ingress, status.ahead_ingress), (status.tc_egress, status.ahead_egress))
            for found in (each for ours, ahead in ways if ours for each in ahead):
                yield f"{status.name}: {found} runs before ours and hides from it what it does not pass on"


# -- reading ---------------------------------------------------------------------------------------------------


def list_links(ifindex: int | None = None) -> dict[int, Link]:
    """All interfaces by number, or the one asked for (:class:`KernelError` ENODEV if there is none)."""
    request = Request(RTM_GETLINK, LinkMessage, {"index": ifindex or 0}, (("IFLA_EXT_MASK", _SKIP_STATISTICS),))
    with asking("list", "interfaces" if ifindex is None else f"interface {ifindex}") as netlink:
        answers = netlink.dump(request) if ifindex is None else (netlink.get(request),)
    return {link.ifindex: link for link in map(_parse_link, answers)}


def observe_attachments(own: OwnPrograms, links: Mapping[int, Link] | None = None) -> ObservedAttachments:
    """Look at every interface of the calling thread's network namespace. ``links``: as just listed."""
    links = list_links() if links is None else links
    interfaces: dict[int, InterfaceStatus] = {}
    with asking("list", "tc filters") as netlink:
        qdiscs = tc.ingress_qdiscs(netlink)
        for ifindex, link in links.items():
            try:
                found = tc.status(netlink, ifindex, link.name, qdiscs.get(ifindex))
            except OSError as error:
                if error.errno not in (errno.ENODEV, errno.EINVAL):
                    raise
                found = TcStatus(ifindex, link.name)  # interface or qdisc gone meanwhile
            interfaces[ifindex] = _interface_status(link, found, own)
    attachments = {index: each.attachment for index, each in interfaces.items() if each.attachment}
    return ObservedAttachments(attachments, interfaces)


def observe_interface(ifindex: int, own: OwnPrograms) -> InterfaceStatus:
    """Look at one interface; :class:`KernelError` ENODEV if it is gone."""
    link = list_links(ifindex)[ifindex]
    return _interface_status(link, tc.query(ifindex, link.name), own)


def stale(seen: ObservedAttachments, own: OwnPrograms) -> dict[int, str]:
    """Programs of others that are kept for no reason any more, by interface number, and why, in words: the interface is
    gone, or somebody else's program is there by now."""
    found: dict[int, str] = {}
    for ifindex, taken in own.taken_over.items():
        status = seen.interfaces.get(ifindex)
        if status is None:
            found[ifindex] = f"interface {ifindex} is gone: {taken} is not put back"
        elif status.foreign_xdp and status.foreign_xdp.taken_over() == taken:
            found[ifindex] = f"interface {status.name}: {taken} has its place"
        elif status.foreign_xdp:
            found[ifindex] = f"interface {status.name}: {taken} is not put back, {status.foreign_xdp} has its place"
    return found


def unpinned(
    own: OwnPrograms,
    links: Mapping[int, Link] | None = None,
    left: Callable[[], frozenset[int]] = frozenset,
) -> frozenset[int]:
    """Ids of XDP programs that are ours although no pin says so any more: they work with the maps of a filter that
    bears the instance's name, on the same interface, or with those of the program that is pinned, or with some that
    were ``left`` when everything was taken down. (An interface was in another namespace when it was exchanged.)
    ``links``: as just listed."""
    found: set[int] = set()
    for ifindex, link in (list_links() if links is None else links).items():
        strange = set(link.xdp.values()) - own.ids
        if strange:
            filters = tc.query(ifindex, link.name)
            ours = [each.program.id for each in (filters.own(way, own) for way in Direction) if each and each.program]
            ours += [own.xdp.info.id] if own.xdp else []
            maps = {number for each in ours for number in maps_of(each)} | left()
            found.update(number for number in strange if not maps.isdisjoint(maps_of(number)))
    return frozenset(found)


def _interface_status(link: Link, found: TcStatus, own: OwnPrograms) -> InterfaceStatus:
    status = XdpStatus(link.ifindex, link.name, link.xdp)
    return InterfaceStatus(status, found, own, status.foreign(own.ids) if link.xdp else None)


def _parse_link(answer: Answer) -> Link:
    flags = answer.field("flags")
    return Link(
        ifindex=answer.field("index"),
        name=answer.text("IFLA_IFNAME"),
        kind=answer.nested("IFLA_LINKINFO").text("IFLA_INFO_KIND"),
        mtu=answer.number("IFLA_MTU"),
        up=bool(flags & _FLAG_UP),
        carrier=bool(answer.number("IFLA_CARRIER")),
        loopback=bool(flags & _FLAG_LOOPBACK),
        xdp=xdp.parse(answer.nested("IFLA_XDP")),
    )


def _runs(found: Filter | None, program: LoadedProgram | None) -> bool:
    if found is None or program is None or found.program is None:
        return False
    return found.direct_action and found.program.id == program.info.id


# -- changing --------------------------------------------------------------------------------------------------


def attach(wanted: Attachment, own: OwnPrograms, gateway: Gateway, kept: Kept | None = None) -> None:
    """Bring an interface to ``wanted``, from whatever of ours is there, without a moment in which packets that
    are ours meet none of our programs.

    Programs of an earlier load are exchanged in place. Somebody else's XDP program is exchanged if ``wanted`` names
    it, and put back if ``wanted`` names none; ``kept``: where it is kept meanwhile, None: nothing may be taken over.
    Raises :class:`ForeignProgramError` if another has the place, :class:`KernelError` if the kernel refuses or the
    interface is gone. What was done before the error stays: attach what was there before, or detach, to take it back.
    """
    found = observe_interface(wanted.ifindex, own)
    _check_place(found, wanted, kept)
    if wanted.tc:
        tc.attach(found.tc, Direction.INGRESS, _loaded(own.tc_ingress, wanted), own, gateway)
        again = found.tc if found.tc_ingress else tc.query(wanted.ifindex, wanted.name, "clsact")
        tc.attach(again, Direction.EGRESS, _loaded(own.tc_egress, wanted), own, gateway)
    _attach_xdp(found, wanted, own, gateway, kept)
    if not wanted.tc:
        tc.detach(found.tc, own, gateway)


def detach(attachment: Attachment, own: OwnPrograms, gateway: Gateway, kept: Kept | None = None) -> None:
    """Take everything of ours off an interface, and put back what is ``kept`` for it; XDP first, since TC is complete
    without it. Nothing to do where nothing of ours is, or where the interface is gone."""
    try:
        found = observe_interface(attachment.ifindex, own)
    except KernelError as error:
        if error.errno == errno.ENODEV:
            return
        raise
    _leave_xdp(found, own, gateway, kept)
    tc.detach(found.tc, own, gateway)


def _check_place(found: InterfaceStatus, wanted: Attachment, kept: Kept | None) -> None:
    if wanted.xdp is XdpMode.OFF:
        return
    foreign, taken = found.foreign_xdp, found.taken_over
    if foreign and (kept is None or wanted.taken_over != foreign.taken_over()):
        raise ForeignProgramError(f"attach xdp {wanted.name}: {foreign} is attached there")
    if foreign and foreign.link:
        raise ForeignProgramError(f"attach xdp {wanted.name}: {foreign} can't be taken over")
    if taken and wanted.taken_over is None:
        raise ForeignProgramError(f"attach xdp {wanted.name}: {taken} is to be put back there")


def _attach_xdp(
    found: InterfaceStatus, wanted: Attachment, own: OwnPrograms, gateway: Gateway, kept: Kept | None
) -> None:
    if wanted.xdp is XdpMode.OFF:
        if wanted.taken_over is None:
            _leave_xdp(found, own, gateway, kept)
        else:
            _detach_xdp(found.xdp, own, gateway)
        return
    program = _loaded(own.xdp, wanted)
    if found.foreign_xdp and kept is not None:
        take_over(found.xdp, found.foreign_xdp, wanted.xdp, program, kept)
        return
    present = found.xdp.own(own)
    if present and present[0] is not wanted.xdp:  # the kernel has no exchange between native and generic
        _detach_xdp(found.xdp, own, gateway)
        xdp.attach(XdpStatus(found.ifindex, found.name, {}), wanted.xdp, program, None, gateway)
    elif present is None:
        xdp.attach(found.xdp, wanted.xdp, program, None, gateway)
    elif present[1] != program.info.id:
        with own.descriptor(present[1]) as expected_fd:
            xdp.attach(found.xdp, wanted.xdp, program, expected_fd, gateway)


def _leave_xdp(found: InterfaceStatus, own: OwnPrograms, gateway: Gateway, kept: Kept | None) -> None:
    """Detach ours, or put back the program whose place it has."""
    if kept is None or found.ifindex not in own.taken_over:
        _detach_xdp(found.xdp, own, gateway)
    elif found.taken_over:
        put_back(found.xdp, found.taken_over, own, kept)
    elif found.foreign_xdp and found.foreign_xdp.taken_over() == own.taken_over[found.ifindex]:
        kept.forget(found.ifindex)  # it was kept, but not exchanged


def _detach_xdp(found: XdpStatus, own: OwnPrograms, gateway: Gateway) -> None:
    present = found.own(own)
    if present:
        mode, program_id = present
        with own.descriptor(program_id) as expected_fd:
            xdp.detach(found, mode, expected_fd, gateway)


def _loaded(program: LoadedProgram | None, wanted: Attachment) -> LoadedProgram:
    if program is None:
        raise KernelError("attach", wanted.name, errno.ENOENT, "the program is not loaded")
    return program
