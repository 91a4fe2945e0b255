"""What live connections ask of the host, whatever the files say by now: settings and interfaces stay as long as there
are connections that go through them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Carried:
    """What kinds of connections the tables hold. ``families``: IP versions of all of them; ``fullnat``: of those with
    full NAT, whose packets may need ``lo``. ``lo_local``: there are some with full NAT to 127.0.0.0/8.
    ``guarded``: ifindexes by which connections to there with the client's own address may be answered."""

    families: frozenset[int] = frozenset()
    fullnat: frozenset[int] = frozenset()
    lo_local: bool = False
    guarded: frozenset[int] = frozenset()
