"""What only live connections needed, and they have ended: no difference, but something to be given back.

With files that are in force, an interface that nothing asks for is served because connections went through it, and a
sysctl is set because they needed it. Nobody has done anything to them; the next housekeeping gives them back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from reconciler.state.desired import Desired
from reconciler.state.objects import Attachment, Observed


@dataclass(frozen=True, slots=True)
class Lapsed:
    """What has lapsed: attachments by ifindex, ``sysctls`` with the values that they have, and interfaces that are
    ``guarded`` (:attr:`~reconciler.state.objects.KernelState.guarded`)."""

    attachments: Mapping[int, Attachment] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    guarded: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.attachments or self.sysctls or self.guarded)


def lapsed(desired: Desired, observed: Observed) -> Lapsed:
    """What the kernel has beyond ``desired``, which is what the files in force ask for. Values that the kernel's own
    memory has lost are not among it: that is somebody's doing."""
    old, new = observed.state, desired.state
    return Lapsed(
        {key: each for key, each in old.attachments.items() if key not in new.attachments},
        {
            name: old.sysctls[name]
            for name in observed.remembered
            if name not in new.sysctls and name in old.sysctls and name not in observed.forgotten
        },
        frozenset(key for key in old.guarded - new.guarded if key in desired.names),
    )


def keep(desired: Desired, observed: Observed, what: Lapsed) -> Desired:
    """``desired`` with what has lapsed still there."""
    new, old = desired.state, observed.state
    state = replace(
        new,
        attachments={**new.attachments, **what.attachments},
        sysctls={**new.sysctls, **what.sysctls},
        guarded=new.guarded | what.guarded,
        devices=new.devices | (old.devices & what.attachments.keys()),
        no_tx=new.no_tx | (old.no_tx & what.attachments.keys()),
    )
    return replace(desired, state=state)


def without(desired: Desired, what: Lapsed) -> Desired:
    """:func:`keep` the other way round."""
    kept = desired.state
    state = replace(
        kept,
        attachments={key: each for key, each in kept.attachments.items() if key not in what.attachments},
        sysctls={name: value for name, value in kept.sysctls.items() if name not in what.sysctls},
        guarded=kept.guarded - what.guarded,
        devices=kept.devices - what.attachments.keys(),
        no_tx=kept.no_tx - what.attachments.keys(),
    )
    return replace(desired, state=state)
