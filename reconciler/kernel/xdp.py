"""XDP on one interface: what is attached, and guarded attaching, exchanging and detaching.

Every request names the program it expects to find, so that nobody else's is ever replaced or removed, also if it
came a moment ago. The kernel checks (``dev_xdp_attach`` in net/core/dev.c).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pyroute2.netlink.rtnl import RTM_SETLINK

from reconciler.errors import ForeignProgramError
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.identity import LoadedProgram, OwnPrograms, held_by_link, program_by_id, program_info
from reconciler.kernel.messages import LinkMessage
from reconciler.kernel.netlink import Answer, Netlink, Request
from reconciler.state.facts import XdpProgram
from reconciler.state.objects import XdpMode

_UPDATE_IF_NOEXIST: Final = 1
_REPLACE: Final = 16
_MODE_FLAGS: Final = {XdpMode.GENERIC: 2, XdpMode.NATIVE: 4}
_MODE_IDS: Final = {
    "native": "IFLA_XDP_DRV_PROG_ID",
    "generic": "IFLA_XDP_SKB_PROG_ID",
    "offload": "IFLA_XDP_HW_PROG_ID",
}
_ATTACHED_MODES: Final = {1: "native", 2: "generic", 3: "offload"}


@dataclass(frozen=True, slots=True)
class XdpStatus:
    """What is attached on one interface: ids of programs by mode (native, generic, offload)."""

    ifindex: int
    name: str
    programs: Mapping[str, int]

    def own(self, programs: OwnPrograms) -> tuple[XdpMode, int] | None:
        """Mode and id of our program, if one is there."""
        for mode in (XdpMode.NATIVE, XdpMode.GENERIC):
            if self.programs.get(mode.value) in programs.ids:
                return mode, self.programs[mode.value]
        return None

    def foreign(self, own_ids: frozenset[int]) -> XdpProgram | None:
        """Somebody else's program, if there is one. (With several, the first of native, generic, offload.)"""
        for mode, program_id in self.programs.items():
            if program_id not in own_ids:
                link = held_by_link(self.ifindex, program_id)
                return XdpProgram(self.ifindex, mode, program_by_id(program_id), link)
        return None


def parse(values: Answer) -> dict[str, int]:
    """Ids of programs by mode, from a link's IFLA_XDP attribute (nothing in it: none)."""
    programs = {mode: values.number(name) for mode, name in _MODE_IDS.items() if name in values}
    mode = _ATTACHED_MODES.get(values.number("IFLA_XDP_ATTACHED"))
    if not programs and mode and "IFLA_XDP_PROG_ID" in values:
        programs[mode] = values.number("IFLA_XDP_PROG_ID")
    return programs


def attach(
    status: XdpStatus,
    mode: XdpMode,
    program: LoadedProgram,
    expected_fd: int | None,
    gateway: Gateway,
    operation: str = "attach",
) -> None:
    """Attach ``program``, or exchange the one of ``expected_fd`` for it without a gap.

    ``expected_fd`` None: nothing may be there. ``operation``: what errors call it. Raises
    :class:`ForeignProgramError` if something else is there, and :class:`KernelError` with the driver's own words if it
    can't (MTU, features, queues).
    """

    expected = frozenset((program_info(expected_fd).id,)) if expected_fd is not None else frozenset()
    foreign = status.foreign(expected)
    if foreign:
        raise ForeignProgramError(f"attach xdp {status.name}: {foreign} is attached there")
    flags = _MODE_FLAGS[mode] | (_UPDATE_IF_NOEXIST if expected_fd is None else _REPLACE)
    gateway.call(
        f"{operation} xdp {mode.value}", status.name, lambda: _set(status.ifindex, program.fd, flags, expected_fd)
    )


def detach(status: XdpStatus, mode: XdpMode, expected_fd: int, gateway: Gateway) -> None:
    """Remove the program of ``expected_fd``; :class:`KernelError` EEXIST if another is in its place by now."""
    flags = _MODE_FLAGS[mode] | _REPLACE
    gateway.call(f"detach xdp {mode.value}", status.name, lambda: _set(status.ifindex, -1, flags, expected_fd))


def _set(ifindex: int, fd: int, flags: int, expected_fd: int | None = None) -> None:
    values: tuple[tuple[str, int], ...] = (("IFLA_XDP_FD", fd), ("IFLA_XDP_FLAGS", flags))
    if expected_fd is not None:
        values += (("IFLA_XDP_EXPECTED_FD", expected_fd),)
    with Netlink() as netlink:
        netlink.change(Request(RTM_SETLINK, LinkMessage, {"index": ifindex}, (("IFLA_XDP", values),)))
