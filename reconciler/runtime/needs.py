"""What live connections need, remembered: a table of a million takes seconds to read, in which an edit would wait.

What was read a while ago is not enough: connections have come since. But those can need only what was in force
meanwhile. So everything that was counts as needed, besides what was read; what is kept in vain by that is given back
when the tables are read again. Small tables are read each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from reconciler.state.carried import Carried
from reconciler.state.diff import destinations
from reconciler.state.facts import RuntimeFacts
from reconciler.state.local import is_loopback4
from reconciler.state.objects import Mode, Observed
from reconciler.state.operations import PORT_LISTEN, PORT_TARGET

LARGE: Final = 100_000
"""Entries of both families' tables from which on what was read is remembered: they take a tenth of a second."""
OLD_SEC: Final = 600.0
"""For so long others may interrupt their reading: what is not needed any more is to be given back at last."""


@dataclass(slots=True)
class Needs:
    """What was read last, and all that was in force since. ``clock``: seconds that only grow."""

    clock: Callable[[], float] = time.monotonic
    _facts: RuntimeFacts | None = None
    _read_at: float = field(default=0.0)

    def learn(self, facts: RuntimeFacts, entries: int) -> RuntimeFacts:
        """The tables were read just now, and have so many entries."""
        self._facts, self._read_at = facts if entries >= LARGE else None, self.clock()
        return facts

    @property
    def many(self) -> bool:
        """There were so many entries when they were read last."""
        return self._facts is not None

    @property
    def recent(self) -> bool:
        """They were read not long ago: to read them again can wait."""
        return self._facts is not None and self.clock() - self._read_at <= OLD_SEC

    def known(self, observed: Observed) -> RuntimeFacts | None:
        """No less than what connections need while this is in force. None: read them."""
        if self._facts is None:
            return None
        self._facts = widened(self._facts, observed)
        return self._facts


def widened(facts: RuntimeFacts, observed: Observed) -> RuntimeFacts:
    """``facts`` and all that connections may need which came while ``observed`` was in force."""
    state, allocation = observed.state, observed.allocation
    served = set(state.listeners.values())
    fullnat = {name for name, proxy in state.proxies.items() if proxy.mode is Mode.FULLNAT} & served
    carried = facts.carried
    to_loopback = {
        name
        for (name, _), destination in destinations(state).items()
        if name in fullnat and any(is_loopback4(endpoint.ip) for endpoint, _ in destination.members)
    }
    return replace(
        facts,
        busy_targets=facts.busy_targets | set(allocation.targets.values()),
        busy_proxies=facts.busy_proxies | set(allocation.proxies.values()),
        busy_ports=_joined(facts.busy_ports, observed.ports),
        busy_interfaces=facts.busy_interfaces | state.attachments.keys(),
        carried=Carried(
            families=carried.families | {key.ip.version for key in state.listeners},
            fullnat=carried.fullnat | {key.ip.version for key, name in state.listeners.items() if name in fullnat},
            lo_local=carried.lo_local or bool(to_loopback),
            guarded=carried.guarded | state.guarded,
        ),
    )


def _joined(one: Mapping[int, int], other: Mapping[int, int]) -> dict[int, int]:
    bits = PORT_LISTEN | PORT_TARGET
    return {port: (one.get(port, 0) | other.get(port, 0)) & bits for port in one.keys() | other.keys()}
