"""A digest of what the kernel holds: two states with the same one are the same to a plan. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

from reconciler.state.diff import listener_order
from reconciler.state.objects import Observed
from reconciler.state.operations import (
    ClosePort,
    FreeBlob,
    FreeGroup,
    FreeProxyName,
    FreeTarget,
    Operation,
    PutBlob,
    PutGroup,
    SetShare,
    StageRevision,
    SwapTable,
    Switch,
)

# What these say follows from the rest, from the time, or from connections, health and drains, which move by themselves.
_PASSING: Final = (
    ClosePort,
    FreeBlob,
    FreeGroup,
    FreeProxyName,
    FreeTarget,
    PutBlob,
    SetShare,
    StageRevision,
    SwapTable,
    Switch,
)


def of_state(observed: Observed) -> str:
    """Everything that decides what happens to packets, and which revision it is. Numbers that stand for targets and
    proxies, and what only live connections still need, are not part of it."""
    digest = hashlib.sha256()
    for part in _parts(observed):
        digest.update(repr(part).encode() + b"\n")
    return digest.hexdigest()


def _parts(observed: Observed) -> Iterator[Any]:
    state = observed.state
    yield observed.exists, observed.revision.number, observed.revision.manifest.hex()
    yield state.program, state.settings
    yield from sorted(state.proxies.items())
    yield from ((key, state.listeners[key]) for key in sorted(state.listeners, key=listener_order))
    # A few destinations stand for many routes: each is written out once.
    texts: dict[int, str] = {}
    for key in sorted(state.routes):
        destination = state.routes[key]
        yield tuple.__repr__(key), texts.setdefault(id(destination), repr(destination))
    yield from sorted(state.attachments.items())
    yield from sorted(state.sysctls.items())
    yield sorted(state.devices), sorted(state.guarded), sorted(state.no_tx)
    yield from sorted((repr(key), str(address)) for key, address in state.sources.items())


def of_operations(operations: Iterable[Operation]) -> str:
    """What a plan would do, apart from clearing up and from the number and time of the revision."""
    digest = hashlib.sha256()
    for operation in operations:
        if isinstance(operation, PutGroup):
            operation = replace(operation, effective=())
        if not isinstance(operation, _PASSING):
            digest.update(repr(operation).encode() + b"\n")
    return digest.hexdigest()
