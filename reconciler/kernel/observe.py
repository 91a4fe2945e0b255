"""What the kernel holds, in the words of ``state/objects.py``: :func:`observe`.

Maps that were written by hand or half lost give a state that differs from every desired one, never an error: a
destination whose target or group is gone is the empty :class:`Destination`; a proxy whose name is gone is called "?"
and its id; one with an unknown mode or balance has the idle limit ``UNKNOWN_SEC`` (``resolve.py``). What can't be told
in a :class:`KernelState` at all (a listener of no known protocol, a route of no proxy) makes it ``unfinished``, and
:func:`~reconciler.kernel.recover.recover` removes it.

A hundred thousand routes are read and resolved in 0.4 s, an empty set of maps in 0.06 s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from reconciler.kernel import codec, snapshot, store
from reconciler.kernel.codec import C
from reconciler.kernel.lastlook import InWords, RouteMemory
from reconciler.kernel.maps import Maps
from reconciler.kernel.recover import repairs
from reconciler.kernel.resolve import Resolver
from reconciler.kernel.snapshot import Snapshot
from reconciler.state.objects import (
    Allocation,
    Attachment,
    KernelState,
    Observed,
    ProgramState,
)


def observe(
    maps: Maps,
    *,
    program: ProgramState | None = None,
    attachments: Mapping[int, Attachment] | None = None,
    read_sysctls: Callable[[Iterable[str]], Mapping[str, str]] | None = None,
    memory: RouteMemory | None = None,
    routes_as_known: bool = False,
    keep_idle: bool = False,
) -> Observed:
    """Read everything. ``maps`` need not be open; with none pinned the state is empty but for the attachments.

    ``program`` and ``attachments`` come from those who look after them; ``read_sysctls`` gives the live values of
    the sysctls that our map remembers. ``memory``: of the same maps' last observation. ``routes_as_known`` and
    ``keep_idle``: see :func:`snapshot.take`. Raises :class:`KernelError` if the pinned maps can't be read.
    """
    if not maps.is_open:
        if not maps.exists:
            return Observed(KernelState(program=program, attachments=dict(attachments or {})), Allocation())
        maps.open()
    taken = snapshot.take(maps, routes_as_known=routes_as_known, keep_idle=keep_idle)
    words = _in_words(taken, memory or RouteMemory())
    if memory is not None:  # else it is for whoever looked last that mirrors say what has changed since
        for mirror in taken.mirrors.values():
            mirror.note_taken()
    remembered = _remembered(taken)
    live = read_sysctls(remembered) if read_sysctls else {}
    state = KernelState(
        program=program,
        settings=codec.unpack_settings(taken.settings[0]["slot"][taken.active]),
        proxies=words.proxies,
        listeners=words.listeners,
        routes=words.routes,
        attachments=dict(attachments or {}),
        sysctls=dict(live),
        devices=_flagged(taken, "DEVICE_XDP_REDIRECT"),
        guarded=_flagged(taken, "DEVICE_DROP_LOOPBACK"),
        no_tx=_flagged(taken, "DEVICE_NO_TX"),
        sources=words.sources,
        shares=words.shares,
        wrong_tables=words.wrong_tables,
    )
    seen = memory.blobs if memory is not None else store.Seen()
    whole = store.whole_digests(maps, taken.blobs, seen, as_known=routes_as_known)
    revision = store.decode_revision(taken.revision[0]["slot"][taken.active])
    return Observed(
        state=state,
        allocation=words.allocation,
        active=taken.active,
        revision=revision,
        unfinished=any(True for _ in repairs(taken)),
        exists=True,
        ports={int(port): int(taken.ports[port]) for port in np.flatnonzero(taken.ports)},
        blobs=whole,
        files_lost=bool(revision.manifest) and not (taken.manifest and taken.manifest <= whole),
        remembered=remembered,
    )


def _flagged(taken: Snapshot, flag: str) -> frozenset[int]:
    """The interfaces that have a flag."""
    rows = zip(*(part.tolist() for part in taken.devices), strict=True)
    return frozenset(int(index) for index, flags in rows if flags & C[flag])


def _remembered(taken: Snapshot) -> dict[str, tuple[str, str]]:
    keys, values = taken.sysctls
    return {
        key["name"].decode(errors="replace"): (
            value["before"].decode(errors="replace"),
            value["after"].decode(errors="replace"),
        )
        for key, value in zip(keys, values, strict=True)
    }


def _in_words(taken: Snapshot, memory: RouteMemory) -> InWords:
    """Those of ``memory`` if they were made from the same."""
    digest = _digest(taken)
    if memory.last is None or memory.last.digest != digest or memory.routes is not memory.last.routes:
        resolver = Resolver(taken)
        memory.last = InWords(
            digest=digest,
            proxies=resolver.proxies(),
            listeners=resolver.listeners(),
            routes=resolver.routes(memory),
            sources=resolver.sources(used_only=True),
            shares=resolver.shares(used_only=True),
            wrong_tables=resolver.wrong_tables(),
            allocation=resolver.allocation(),
        )
    return memory.last


def _digest(taken: Snapshot) -> bytes:
    """Of all that a resolver looks at; of routes their mirrors, whose generation grows with every difference."""
    entries = (*taken.listeners.values(), taken.members, taken.names)
    arrays = (taken.proxies, taken.targets, *(part for pair in entries for part in pair))
    rest = (
        taken.active,
        [(version, id(mirror), mirror.map_id, mirror.generation) for version, mirror in sorted(taken.mirrors.items())],
        [len(part) for part in arrays],
        sorted(taken.recipes.items()),
    )
    digest = hashlib.sha256(repr(rest).encode())
    for part in arrays:
        digest.update(part.tobytes())
    return digest.digest()
