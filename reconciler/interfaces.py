"""What hangs on each interface: ours, how it runs and how it was to run, and what of others' is in its way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from reconciler import answers
from reconciler.errors import KernelError, RevproxyError

if TYPE_CHECKING:
    from reconciler.config.model import Config
    from reconciler.engine import Engine
    from reconciler.kernel.links import InterfaceStatus
    from reconciler.kernel.tc import Filter
    from reconciler.state.facts import Interface, ProgramInfo, XdpProgram
    from reconciler.state.objects import Attachment, KernelState

_ON_VETH: Final = "native XDP on a veth would turn its peer's segmentation offload off"


def interfaces(engine: Engine) -> tuple[answers.InterfaceDetail, ...]:
    """Every interface there is, and those that are waited for, by name. Raises :class:`KernelError`; where the files
    are wrong, what they ask for is left out."""
    wanted: Mapping[int, Attachment] = {}
    waiting: tuple[str, ...] = ()
    config: Config | None = None
    state: KernelState = engine.observe().state
    try:
        view = engine.view()
    except KernelError:
        raise
    except RevproxyError:
        pass
    else:
        config, state, waiting = view.config, view.observed.state, view.desired.waiting
        wanted = view.desired.state.attachments
    listens: dict[int, set[str]] = {}
    for key, name in state.listeners.items():
        listens.setdefault(key.ifindex, set()).add(name)
    asked = str(config.settings.xdp_mode) if config else ""
    sights = engine.live.interfaces()
    found = [
        detail(facts, status, asked, wanted.get(facts.ifindex), tuple(sorted(listens.get(facts.ifindex, ()))))
        for facts, status in sights
    ]
    found += [answers.InterfaceDetail(name, asked=asked, note="waiting for it to appear") for name in waiting]
    return tuple(sorted(found, key=lambda each: each.name))


def detail(
    facts: Interface, status: InterfaceStatus, asked: str, wanted: Attachment | None, listens: tuple[str, ...]
) -> answers.InterfaceDetail:
    """One interface as an answer."""
    mode = status.xdp_mode.value
    attached = status.complete_tc
    return answers.InterfaceDetail(
        name=facts.name,
        ifindex=facts.ifindex,
        kind=facts.kind,
        driver=facts.driver,
        mtu=facts.mtu,
        up=facts.up,
        xdp_native=facts.xdp_native,
        asked=asked,
        wanted=wanted.xdp.value if wanted else None,
        mode=mode,
        attached=attached,
        listens=listens,
        conflicts=tuple(conflicts(status, asked)),
        note=_note(facts, status, asked, wanted),
    )


def _note(facts: Interface, status: InterfaceStatus, asked: str, wanted: Attachment | None) -> str:
    """Why it is not as one would expect."""
    if wanted is None:
        return "ours, but no longer asked for" if status.attachment else ""
    if status.attachment != wanted:
        return "to be put right" if status.attachment else "to be attached"
    if asked != "auto" or wanted.xdp.value != "off" or facts.kind == "loopback":
        return ""
    if status.foreign_xdp:
        return "served through TC beside somebody else's XDP program"
    if facts.kind == "veth":
        return f"served through TC: {_ON_VETH}"
    return "served through TC: " + ("native XDP was refused" if facts.xdp_native else "the driver has no native XDP")


def conflicts(status: InterfaceStatus, asked: str) -> Iterator[answers.Conflict]:
    """What of others' is where ours is or would go. ``asked``: settings.xdp_mode; empty: unknown."""
    foreign = status.foreign_xdp
    if foreign:
        yield _xdp_conflict(status.name, foreign, asked)
    for way, ahead in (("ingress", status.ahead_ingress), ("egress", status.ahead_egress)):
        for each in ahead:
            yield _filter_conflict(status.name, way, each)
    if status.tc.qdisc == "ingress":
        yield answers.Conflict(
            "tc ingress",
            "an `ingress` qdisc",
            None,
            "takes the place of the clsact qdisc that ours needs",
            f"tc qdisc del dev {status.name} ingress",
            blocks=True,
        )


def _xdp_conflict(name: str, foreign: XdpProgram, asked: str) -> answers.Conflict:
    effect = {
        "": "has the place of our XDP program",
        "auto": "has the place of our XDP program: served through TC behind it, seeing what it passes on",
        "off": "runs before our TC programs, which see what it passes on",
    }.get(asked, f"has the place that xdp_mode {asked} needs")
    kind = {"native": "xdpdrv", "generic": "xdpgeneric", "offload": "xdpoffload"}[foreign.mode]
    remedy = "" if foreign.link else f"ip link set dev {name} {kind} off"
    return answers.Conflict(f"xdp {foreign.mode}", str(foreign), _program(foreign.program), effect, remedy)


def _filter_conflict(name: str, way: str, found: Filter) -> answers.Conflict:
    remedy = "" if found.kind == "tcx" else f"tc filter del dev {name} {way} preference {found.priority}"
    effect = "runs before ours and hides from it what it does not pass on"
    if found.at_our_preference:
        effect = "has the place of ours"
    if found.instance:  # one that works: not to be removed by hand
        effect += f", and is another revproxy's ({found.instance})"
        remedy = ""
    program = _program(found.program) if found.program else None
    return answers.Conflict(f"tc {way}", str(found), program, effect, remedy, blocks=found.at_our_preference)


def _program(found: ProgramInfo) -> answers.Program:
    return answers.Program(found.id, found.name, found.tag)
