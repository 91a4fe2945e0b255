"""Which connections are meant, in what order: the words of filters, and a :class:`Query` made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from reconciler.state.objects import Endpoint, IPNetwork

STATES: Final = ("syn", "unreplied", "established", "closing", "closed")
"""``closing``: a FIN from one side; ``closed``: from both, or a RST. ``syn`` (TCP) and ``unreplied`` come before
``established``."""
SORTS: Final = ("age", "idle", "bytes", "packets", "client", "target", "proxy", "state")
"""What connections can be sorted by: the first four with the largest first."""
_LIVE: Final = frozenset(STATES) - {"closed"}


@dataclass(frozen=True, slots=True)
class Query:
    """Which connections are meant; None: no matter. ``proxy``: a name. ``target``: with port 0 any port. ``client``: a
    network, ``client_port`` a port. ``states``: some of :data:`STATES`; by default those of live ones."""

    proxy: str | None = None
    target: Endpoint | None = None
    client: IPNetwork | None = None
    client_port: int | None = None
    states: frozenset[str] = _LIVE

    @property
    def is_plain(self) -> bool:
        """All live ones are meant."""
        return self == Query()
