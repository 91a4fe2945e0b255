"""How our programs go on one interface: which XDP mode, and whether somebody else's XDP program gives way.

Pure. ``settings.takeover`` decides about a foreign program: without it the interface is served through TC (``auto``)
or the files can't be applied (``native``, ``generic``); with it our program takes its place, and it is put back once
ours goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.errors import ForeignProgramError
from reconciler.state.facts import HostFacts, Interface, RuntimeFacts, XdpProgram
from reconciler.state.objects import Attachment, TakenOver, XdpMode

if TYPE_CHECKING:
    from reconciler.config.model import Settings


def attachment(
    settings: Settings, host: HostFacts, runtime: RuntimeFacts, interface: Interface, warnings: list[str]
) -> Attachment:
    """What is to be attached to ``interface``. Raises :class:`ForeignProgramError` if a program of somebody else has
    the place that the files insist on, and may not or can't be taken over."""
    choice = str(settings.xdp_mode)
    served = Attachment(interface.ifindex, interface.name, XdpMode.OFF)
    if choice == "off" or interface.kind == "loopback":
        return served
    foreign, taken = host.foreign_xdp.get(interface.ifindex), host.taken_over.get(interface.ifindex)
    why = _in_the_way(settings, foreign, taken)
    if why:
        if choice != "auto":
            raise ForeignProgramError(f"{interface.name} {why}; xdp_mode {choice} needs its place")
        warnings.append(f"{interface.name} {why}: served through TC")
        return served
    if foreign is not None:
        taken = foreign.taken_over()
    mode = _mode(choice, runtime, interface, taken, warnings)
    return Attachment(interface.ifindex, interface.name, mode, taken_over=taken) if mode is not XdpMode.OFF else served


def _in_the_way(settings: Settings, foreign: XdpProgram | None, taken: TakenOver | None) -> str:
    """Why ours can't have the place; empty if it can."""
    if foreign is None:
        return f"gets {taken} back" if taken and not settings.takeover else ""
    text = f"carries {foreign}"
    if not settings.takeover:
        return text
    why = obstacle(foreign)
    return f"{text}, which can't be taken over: {why}" if why else ""


def obstacle(foreign: XdpProgram) -> str:
    """Why a foreign program can't be taken over; empty if it can."""
    if foreign.link:
        return "only its owner can take a bpf_link away"
    return "it runs on the card" if foreign.mode == "offload" else ""


def _mode(
    choice: str, runtime: RuntimeFacts, interface: Interface, taken: TakenOver | None, warnings: list[str]
) -> XdpMode:
    """``auto`` takes a foreign program's place in its own mode where it would have chosen TC: whatever that costs (on a
    veth, the peer's segmentation offload) is paid already."""
    if choice != "auto":
        return XdpMode(choice)
    if interface.ifindex in runtime.refused_xdp:
        warnings.append(f"{interface.name} refused a native XDP program: served through TC")
        return XdpMode.OFF
    if interface.xdp_native and interface.kind != "veth":
        return XdpMode.NATIVE
    return XdpMode(taken.mode) if taken else XdpMode.OFF
