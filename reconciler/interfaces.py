"""What hangs on each interface: ours, how it runs and how it was to run, and what of others' is in its way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from reconciler import answers
from reconciler.errors import KernelError, RevproxyError
from reconciler.report import taken_over_note
from reconciler.state.xdp import obstacle

if TYPE_CHECKING:
    from reconciler.config.model import Config, Settings
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
    settings = config.settings if config else None
    asked = _asked(settings)
    sights = engine.live.interfaces()
    found = [
        detail(facts, status, settings, wanted.get(facts.ifindex), tuple(sorted(listens.get(facts.ifindex, ()))))
        for facts, status in sights
    ]
    found += [answers.InterfaceDetail(name, asked=asked, note="waiting for it to appear") for name in waiting]
    return tuple(sorted(found, key=lambda each: each.name))


def detail(
    facts: Interface,
    status: InterfaceStatus,
    settings: Settings | None,
    wanted: Attachment | None,
    listens: tuple[str, ...],
) -> answers.InterfaceDetail:
    """One interface as an answer. ``settings`` None: the files are wrong."""
    mode = status.xdp_mode.value
    attached, taken, asked = status.complete_tc, status.taken_over, _asked(settings)
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
        conflicts=tuple(conflicts(status, settings)),
        note=_note(facts, status, asked, wanted),
        taken_over=answers.Program(taken.id, taken.name, taken.tag) if taken else None,
    )


def _note(facts: Interface, status: InterfaceStatus, asked: str, wanted: Attachment | None) -> str:
    """Why it is not as one would expect."""
    if wanted is None:
        return "ours, but no longer asked for" if status.attachment else ""
    if status.attachment == wanted and wanted.taken_over:
        return taken_over_note(wanted)
    if status.attachment != wanted:
        return "to be put right" if status.attachment else "to be attached"
    if asked != "auto" or wanted.xdp.value != "off" or facts.kind == "loopback":
        return ""
    if status.foreign_xdp:
        return "served through TC beside somebody else's XDP program"
    if facts.kind == "veth":
        return f"served through TC: {_ON_VETH}"
    return "served through TC: " + ("native XDP was refused" if facts.xdp_native else "the driver has no native XDP")


def _asked(settings: Settings | None) -> str:
    return str(settings.xdp_mode) if settings else ""


def conflicts(status: InterfaceStatus, settings: Settings | None) -> Iterator[answers.Conflict]:
    """What of others' is where ours is or would go. ``settings`` None: nobody knows what is asked for."""
    foreign = status.foreign_xdp
    if foreign:
        takeover = settings is not None and settings.takeover
        yield _xdp_conflict(status.name, foreign, _asked(settings), takeover)
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


def _xdp_conflict(name: str, foreign: XdpProgram, asked: str, takeover: bool) -> answers.Conflict:
    effect = {
        "": "has the place of our XDP program",
        "auto": "has the place of our XDP program: served through TC behind it, seeing what it passes on",
        "off": "runs before our TC programs, which see what it passes on",
    }.get(asked, f"has the place that xdp_mode {asked} needs")
    gives_way = takeover and asked in ("auto", "native", "generic") and not obstacle(foreign)
    if gives_way:
        effect = "gives way to ours when the files are applied"
    kind = {"native": "xdpdrv", "generic": "xdpgeneric", "offload": "xdpoffload"}[foreign.mode]
    remedy = "" if foreign.link else f"ip link set dev {name} {kind} off"
    where, program = f"xdp {foreign.mode}", _program(foreign.program)
    return answers.Conflict(where, str(foreign), program, effect, remedy, gives_way=gives_way)


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
