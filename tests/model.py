"""What the data plane should do with a packet that opens a connection, in plain Python: the reference that the
programs are compared with. Written from the description of the configuration, not from the C."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reconciler.state import maglev
from reconciler.state.objects import (
    Balance,
    Destination,
    Endpoint,
    IPAddress,
    IPNetwork,
    KernelState,
    ListenerKey,
    Protocol,
)

HASH_SEED = 0x72657670


@dataclass(frozen=True)
class Verdict:
    """``pass``: not ours. ``forward``: to one of ``targets`` (ports filled in). ``drop``: ``reason`` is denied or
    no_target. ``rule``: the source prefix that decided; None for the default."""

    kind: Literal["pass", "forward", "drop"]
    proxy: str | None = None
    rule: IPNetwork | None = None
    targets: frozenset[Endpoint] = frozenset()
    reason: str = ""


PASS = Verdict("pass")


def decide(
    state: KernelState,
    ifindex: int,
    src: IPAddress,
    dst: IPAddress,
    protocol: Protocol,
    dport: int,
    sport: int | None = None,
) -> Verdict:
    """What happens to such a packet. With ``sport`` there is one target only, unless the balance is random."""
    name = state.listeners.get(ListenerKey(ifindex, dst, protocol, dport))
    if name is None:
        return PASS
    proxy = state.proxies[name]
    rule, destination = longest_route(state, name, src)
    if destination is None:
        destination = proxy.default4 if src.version == 4 else proxy.default6
    if destination is not None and destination.deny:
        return Verdict("drop", name, rule, reason="denied")
    usable = [endpoint for endpoint, weight in destination.members if weight] if destination else []
    if destination is None or not usable:
        return Verdict("drop", name, rule, reason="no_target")
    if len(usable) > 1 and proxy.balance == Balance.SOURCE:
        usable = [_from_table(destination, _hash3(_fold(src), 0, 0, HASH_SEED))]
    elif len(usable) > 1 and proxy.balance == Balance.MAGLEV and sport is not None:
        ports = sport << 16 | dport
        usable = [_from_table(destination, _hash3(_fold(src), _fold(dst), ports, HASH_SEED + protocol.number))]
    targets = frozenset(Endpoint(endpoint.ip, endpoint.port or dport) for endpoint in usable)
    return Verdict("forward", name, rule, targets)


def longest_route(state: KernelState, proxy: str, src: IPAddress) -> tuple[IPNetwork | None, Destination | None]:
    """The proxy's longest source prefix that holds the address, and where it leads."""
    best: tuple[IPNetwork | None, Destination | None] = (None, None)
    for key, destination in state.routes.items():
        if key.proxy != proxy or key.version != src.version or src not in key.source:
            continue
        if best[0] is None or key.source.prefixlen > best[0].prefixlen:
            best = (key.source, destination)
    return best


def _from_table(destination: Destination, value: int) -> Endpoint:
    keys = [str(endpoint) for endpoint, _ in destination.members]
    table = maglev.table(keys, [weight for _, weight in destination.members])
    return destination.members[int(table[value % len(table)])][0]


def _fold(ip: IPAddress) -> int:
    """An address as one word."""
    if ip.version == 4:
        return int(ip)
    words = [int.from_bytes(ip.packed[at : at + 4], "big") for at in (0, 4, 8, 12)]
    return _hash3(words[0], words[1], _hash3(words[2], words[3], 0, HASH_SEED), HASH_SEED)


def _hash3(x: int, y: int, z: int, seed: int) -> int:
    """Three words by Bob Jenkins' lookup3."""

    def rotate(value: int, by: int) -> int:
        return (value << by | value >> 32 - by) & 0xFFFFFFFF

    start = 0xDEADBEEF + (3 << 2) + seed
    a, b, c = ((start + word) & 0xFFFFFFFF for word in (x, y, z))
    c = ((c ^ b) - rotate(b, 14)) & 0xFFFFFFFF
    a = ((a ^ c) - rotate(c, 11)) & 0xFFFFFFFF
    b = ((b ^ a) - rotate(a, 25)) & 0xFFFFFFFF
    c = ((c ^ b) - rotate(b, 16)) & 0xFFFFFFFF
    a = ((a ^ c) - rotate(c, 4)) & 0xFFFFFFFF
    b = ((b ^ a) - rotate(a, 14)) & 0xFFFFFFFF
    return ((c ^ b) - rotate(b, 24)) & 0xFFFFFFFF
