"""What live connections need of targets, proxies, ports and interfaces, read from the connection tables."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

import numpy as np

from reconciler.kernel import connections, host
from reconciler.kernel.busy import Busy, Gathering
from reconciler.kernel.maps import Maps
from reconciler.state.carried import Carried
from reconciler.state.facts import RuntimeFacts
from reconciler.state.objects import Mode, Observed

_LO: Final = 1
"""The number of ``lo`` in every network namespace (LOOPBACK_IFINDEX in include/net/net_namespace.h)."""


def read(maps: Maps, observed: Observed) -> tuple[RuntimeFacts, int]:
    """What they need, and how many entries had to be read for that."""
    gathering = Gathering()
    counts = connections.count(maps, see=gathering.add)
    needs = gathering.busy()
    names = {number: key for key, number in observed.allocation.targets.items()}
    live = {
        (names[number][0], str(names[number][1])): count for number, count in counts.targets.items() if number in names
    }
    facts = RuntimeFacts(
        busy_targets=needs.targets,
        busy_proxies=needs.proxies,
        busy_ports=needs.ports,
        busy_interfaces=interfaces(maps, needs) & observed.state.attachments.keys(),
        carried=Carried(
            needs.families,
            needs.fullnat,
            lo_local=Mode.FULLNAT in needs.loopback,
            guarded=observed.state.guarded if Mode.DNAT in needs.loopback else frozenset(),
        ),
        connections=live,
    )
    return facts, sum(counts.held.values())


def interfaces(maps: Maps, needs: Busy) -> frozenset[int]:
    """Interfaces by which live connections come or go: by the ways out they remember, by where answers came in, by
    the routes to their targets, and by the addresses their clients talk to. ``lo`` is not among them: it serves
    full NAT alone, whatever else goes through it."""
    ways = np.fromiter(needs.ways, np.uint32, len(needs.ways))
    found = {*needs.interfaces, *maps["way"].get_many(ways)[1]["ifindex"].tolist()}
    found.update(way for target in needs.served for way in host.route_to(ip_address(target)).ways)
    if needs.listens:
        for interface in host.host_facts().interfaces.values():
            if any(address.ip.packed in needs.listens for address in interface.addresses):
                found.add(interface.ifindex)
    return frozenset(found - {0, _LO})
