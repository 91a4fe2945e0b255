"""What the data plane does with a packet, in plain Python: the reference that the programs are compared with.

Written from bpf/README.md and the RFCs, not from the C: it looks up routes instead of remembering ways out, has no
bitmap of ports, and computes with residues instead of carrying. :meth:`Model.packet` says the verdict and the frame
as it leaves; :attr:`Model.connections`, :attr:`Model.outcomes` and :attr:`Model.stats` are what has to be found in
the maps afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from tests.kernel import packetreading as reading
from tests.kernel.packetreading import ETHERNET, TCP, UDP, Key, Packet
from tests.kernel.packets import SEED, fold, hash3
from tests.kernel.packetsetting import Setting, Slot, Surroundings, Target, Way
from tests.kernel.packetstamps import restamp, stamp_of

XDP, INGRESS, EGRESS = "xdp", "tc_ingress", "tc_egress"
PASS, DROP, REDIRECT, TX = "pass", "drop", "redirect", "tx"

SECOND_NS = 1_000_000_000
HEARD_ANY, HEARD_SYN, HEARD_FIN, HEARD_RST, HEARD_PLAIN, HEARD_ON = 1, 2, 4, 8, 16, 32

# Of a group other members are tried, of a fullnat target other ports, when the answers would be another connection's.
CHOICES, CHOICE_STEP = 8, 0x9E3779B9
PORTS_TRIED, IN_TURN, DRAW_NS, PORT_TURNS = 32, 4, 1 << 29, 65536


@dataclass(slots=True)
class Entry:
    """One direction of a connection: the packet as it leaves, and what the table says of it."""

    source: bytes
    destination: bytes
    sport: int
    dport: int
    proxy: int
    target: int
    idle_sec: int
    reply: bool
    fullnat: bool
    last_ns: int
    own: int = 0
    peer: int = 0
    packets: int = 0
    bytes: int = 0
    stamp: int = 0

    def turned(self, protocol: int) -> Key:
        """The key of an answer to what leaves."""
        return (self.destination, self.source, self.dport, self.sport, protocol)

    @property
    def through_loopback(self) -> bool:
        """Whether the stack takes what leaves only as if it came in by lo: from an address of its own, or to ::1."""
        return self.fullnat or self.destination == bytes(15) + b"\1"

    @property
    def closing(self) -> bool:
        return bool((self.own | self.peer) & HEARD_RST or self.own & self.peer & HEARD_FIN)

    @property
    def gives_way(self) -> bool:
        """A SYN begins anew."""
        return self.closing or bool((self.own | self.peer) & HEARD_ON)

    @property
    def established(self) -> bool:
        return bool(self.own & self.peer & HEARD_ANY and (self.own | self.peer) & HEARD_PLAIN)


@dataclass(slots=True)
class Arrival:
    """A packet at a hook."""

    hook: str
    interface: str
    frame: bytes
    packet: Packet
    now: int
    heard: int
    length: int  # of what leaves as one packet: of a segment of a GSO packet
    bytes: int
    segments: int


class Model:
    """Starts without connections, and no port of full NAT had its turn. ``active`` is the slot that packets see,
    ``clock`` what the clock for TCP timestamps says."""

    def __init__(self, setting: Setting, surroundings: Surroundings) -> None:
        self.setting, self.surroundings = setting, surroundings
        self.turns: Counter[int] = Counter()
        self.active = self.clock = 0
        self.connections: dict[Key, Entry] = {}
        self.fragments: dict[tuple[bytes, bytes, bytes, int], tuple[int, int, int]] = {}
        self.addressed: set[str] = set()  # interfaces at which TC has seen a frame for this host
        self.outcomes: Counter[str] = Counter()
        self.stats: dict[int, Counter[str]] = {}
        self._listeners = [
            {(one.interface, ip_address(one.ip).packed, one.protocol, one.port): one.proxy for one in slot.listeners}
            for slot in setting.slots
        ]

        self._listening = {one.port for slot in setting.slots for one in slot.listeners}
        self._answering = {target.port for target in setting.targets.values()} | self._listening

    @property
    def slot(self) -> Slot:
        return self.setting.slots[self.active]

    # -- the way of a packet ---------------------------------------------------------------------------------

    def packet(
        self, hook: str, interface: str, frame: bytes, now: int, gso: tuple[int, int] = (0, 0)
    ) -> tuple[str, bytes]:
        """Verdict and frame. ``gso``: bytes of payload in a segment and number of segments of a packet that is still
        to be cut."""
        if hook == INGRESS and self._is_forged_loopback(interface, frame):
            self.outcomes["drop_loopback"] += 1
            return DROP, frame
        if hook != EGRESS and frame[0] & 1:
            return PASS, frame
        own = frame[:6] == self.surroundings.macs[interface]
        if not own and (hook == INGRESS or (hook == XDP and interface in self.addressed)):
            return PASS, frame
        if hook == INGRESS:
            self.addressed.add(interface)
        packet = reading.read_packet(frame)
        if packet is None or (hook == XDP and packet.fragment):
            return PASS, frame
        arrival = Arrival(hook, interface, frame, packet, now, HEARD_ANY, packet.length, packet.length, 1)
        if packet.fragment == "later":
            known = self._follow(packet)
            if not known:
                return PASS, frame
            arrival.heard |= HEARD_PLAIN
        elif reading.read_ports(frame, packet):
            arrival.heard |= heard(packet)
            if packet.fragment:
                self._remember_fragment(packet)
        elif hook == XDP:
            return PASS, frame
        else:
            return self._icmp(arrival)
        if hook == XDP and reading.has_only_pseudo_header(frame, packet):
            return PASS, frame
        if gso[0] and not packet.fragment:
            self._count_segments(arrival, gso)
        return self._egress(arrival) if hook == EGRESS else self._ingress(arrival)

    def _is_forged_loopback(self, interface: str, frame: bytes) -> bool:
        """Nobody on the wire has an address of 127.0.0.0/8; where the stack was told not to mind, we do."""
        ours = interface in self.setting.drop_loopback and frame[12:14] == b"\x08\x00" and len(frame) >= 34
        return ours and 127 in (frame[26], frame[30])

    def _count_segments(self, arrival: Arrival, gso: tuple[int, int]) -> None:
        frame, packet = arrival.frame, arrival.packet
        headers = packet.content + ((frame[packet.content + 12] >> 4) * 4 if packet.protocol == TCP else 8)
        arrival.bytes = len(frame) - ETHERNET
        arrival.length = headers - ETHERNET + gso[0]
        arrival.segments = gso[1] or -(-(len(frame) - headers) // gso[0])

    def _remember_fragment(self, packet: Packet) -> None:
        """Unless its ports are nobody's: such a packet is none of ours, whatever it says."""
        if packet.dport in self._listening or packet.sport in self._answering:
            self.fragments[fragment_key(packet)] = (packet.sport, packet.dport, packet.protocol)

    def _follow(self, packet: Packet) -> bool:
        """Give a later fragment the ports of its first."""
        known = self.fragments.get(fragment_key(packet))
        if known is None:
            return False
        packet.sport, packet.dport, packet.protocol = known
        return True

    def _ingress(self, arrival: Arrival) -> tuple[str, bytes]:
        packet = arrival.packet
        key = packet.key
        entry = self.connections.get(key)
        if entry is not None:
            again = packet.protocol == TCP and packet.flags & (reading.SYN | reading.ACK) == reading.SYN
            reuse = again and packet.fragment != "later" and entry.gives_way and not entry.reply
            if not reuse and self.alive(key, entry, arrival.now):
                return self._forward(arrival, key, entry)
        if packet.fragment == "later":
            return PASS, arrival.frame
        listener = (arrival.interface, packet.destination, packet.protocol, packet.dport)
        proxy = self._listeners[self.active].get(listener, 0)
        if not proxy or (arrival.hook == XDP and not self.slot.fast_path) or is_martian(packet.source):
            return PASS, arrival.frame
        return self._open(arrival, key, proxy)

    def _egress(self, arrival: Arrival) -> tuple[str, bytes]:
        key = arrival.packet.key
        entry = self.connections.get(key)
        if entry is None or not entry.reply or entry.fullnat or not self.alive(key, entry, arrival.now):
            return PASS, arrival.frame
        self._account(arrival, key, entry, "egress")
        return PASS, rewritten(arrival, entry)

    # -- connections -----------------------------------------------------------------------------------------

    def mate(self, key: Key, entry: Entry) -> Entry | None:
        """The other direction's entry."""
        return self.connections.get(entry.turned(key[4]))

    def limit_ns(self, entry: Entry) -> int:
        if entry.closing:
            return self.slot.closing_sec * SECOND_NS
        limit = entry.idle_sec if entry.established else min(entry.idle_sec, self.slot.unanswered_sec)
        return limit * SECOND_NS

    def alive(self, key: Key, entry: Entry, now: int) -> bool:
        """Something came for one of the directions within the limit."""
        limit, mate = self.limit_ns(entry), self.mate(key, entry)
        return now - entry.last_ns < limit or (mate is not None and now - mate.last_ns < limit)

    def _account(self, arrival: Arrival, key: Key, entry: Entry, outcome: str) -> None:
        mate = self.mate(key, entry)
        heard = arrival.heard
        if heard & HEARD_RST:  # what comes after it is news
            gone = HEARD_PLAIN
        else:  # it was not the end
            gone = HEARD_RST if heard & HEARD_PLAIN else 0
            heard |= HEARD_ON if gone & (entry.own | entry.peer) else 0
        entry.own, entry.peer = entry.own & ~gone | heard, entry.peer & ~gone
        if mate is not None:
            mate.peer, mate.own = mate.peer & ~gone | heard, mate.own & ~gone
        entry.last_ns = arrival.now
        entry.packets += arrival.segments
        entry.bytes += arrival.bytes
        stats = self.stats.setdefault(entry.target, Counter())
        direction = "reverse" if entry.reply else "forward"
        stats[f"packets_{direction}"] += arrival.segments
        stats[f"bytes_{direction}"] += arrival.bytes
        self.outcomes[outcome] += 1

    def _open(self, arrival: Arrival, key: Key, proxy: int) -> tuple[str, bytes]:
        """A packet to a listener that no live connection knows."""
        if proxy not in self.slot.proxies:
            return PASS, arrival.frame
        fresh = self._choose(arrival, key, proxy)
        if fresh is None:
            return PASS, arrival.frame
        if isinstance(fresh, str):
            self.outcomes[fresh] += 1
            return DROP, arrival.frame
        if arrival.hook == XDP and not self._can_finish(arrival, fresh):
            return PASS, arrival.frame
        self._remember(arrival, key, fresh)
        return self._forward(arrival, key, fresh)

    def _remember(self, arrival: Arrival, key: Key, fresh: Entry) -> None:
        for gone in (key, fresh.turned(key[4])):  # whoever is in the way is over, in both directions
            old = self.connections.pop(gone, None)
            if old is not None:
                self.connections.pop(old.turned(key[4]), None)
        self.connections[fresh.turned(key[4])] = Entry(
            key[1],
            key[0],
            key[3],
            key[2],
            fresh.proxy,
            fresh.target,
            fresh.idle_sec,
            True,
            fresh.fullnat,
            arrival.now,
            peer=arrival.heard,
            stamp=fresh.stamp,
        )
        self.connections[key] = fresh
        self.stats.setdefault(fresh.target, Counter())["connections"] += 1

    def _choose(self, arrival: Arrival, key: Key, number: int) -> Entry | str | None:
        """The entry for a new connection, or why there is none. None: XDP leaves it to TC without having looked."""
        proxy, slot = self.slot.proxies[number], self.slot
        kind, _, name = self._destination(number, key[0]).partition(":")
        if kind == "deny":
            return "drop_denied"
        refused = "drop_no_target"
        fullnat, begin = proxy.mode == "fullnat", None
        looks = arrival.hook != XDP or fullnat or key in self.connections
        for attempt, target_id in enumerate(self._candidates(key, proxy.balance, kind, name, fullnat)):
            target = self.setting.targets.get(target_id)
            if target is None or target.drained or len(ip_address(target.ip).packed) != len(key[0]):
                continue
            refused = "drop_conflict"
            source, sport = key[0], key[2]
            if fullnat:
                refused = "drop_no_port"
                if not target.source:
                    break
                source = ip_address(target.source).packed
                if not attempt and key[4] == TCP:
                    begin = self._port_turn(ip_address(target.ip), target.port or key[3], ip_address(source))
                sport = port_draw(key, attempt, slot.ports, arrival.now, begin)
            entry = self._entry(arrival, key, number, target_id, target, source, sport)
            if not looks and not self._can_finish(arrival, entry):
                return None
            looks = True
            if self._is_free(entry.turned(key[4]), key, arrival.now):
                return entry
        return refused

    def _port_turn(self, target: IPv4Address | IPv6Address, port: int, source: IPv4Address | IPv6Address) -> int:
        """The port to begin with at a target: each in its turn."""
        place = hash3(fold(target), port, fold(source), SEED)
        turn = self.turns[place % PORT_TURNS]
        self.turns[place % PORT_TURNS] += 1
        return place + turn & 0xFFFFFFFF

    def _entry(
        self, arrival: Arrival, key: Key, number: int, target_id: int, target: Target, source: bytes, sport: int
    ) -> Entry:
        proxy = self.slot.proxies[number]
        destination, dport = ip_address(target.ip).packed, target.port or key[3]
        return Entry(
            source,
            destination,
            sport,
            dport,
            number,
            target_id,
            proxy.idle_sec,
            False,
            proxy.mode == "fullnat",
            arrival.now,
            own=arrival.heard,
            stamp=stamp_of(arrival.frame, arrival.packet, self.clock) if proxy.mode == "fullnat" else 0,
        )

    def _destination(self, number: int, source: bytes) -> str:
        """The longest source prefix that leads anywhere, else the default."""
        proxy, address = self.slot.proxies[number], ip_address(source)
        holding = [ip_network(prefix) for prefix in proxy.routes]
        holding = [prefix for prefix in holding if prefix.version == address.version and address in prefix]
        default = proxy.dest4 if len(source) == 4 else proxy.dest6
        if not holding:
            return default
        return proxy.routes[str(max(holding, key=lambda prefix: prefix.prefixlen))] or default

    def _candidates(self, key: Key, balance: str, kind: str, name: str, fullnat: bool) -> Iterator[int]:
        """Target ids in the order in which they are tried."""
        by_source = balance == "source"
        table = self.setting.groups.get(int(name), []) if kind == "group" else []
        for attempt in range(PORTS_TRIED if fullnat else CHOICES):
            if kind == "target":
                yield int(name)
            elif table:
                step = 0 if fullnat else attempt * CHOICE_STEP
                yield table[(connection_hash(key, by_source) + step & 0xFFFFFFFF) % len(table)]

    def _is_free(self, reply: Key, key: Key, now: int) -> bool:
        """Whether answers with this key are no other live connection's."""
        other = self.connections.get(reply)
        if other is None or other.turned(reply[4]) == key or other.closing:
            return True
        return not self.alive(reply, other, now)

    # -- forwarding ------------------------------------------------------------------------------------------

    def _can_finish(self, arrival: Arrival, entry: Entry) -> bool:
        """Whether XDP can send it on."""
        way = self.surroundings.way(entry.destination)
        reachable = way.kind == "out" and self.setting.takes(arrival.interface, way.interface)
        return self.slot.fast_path and reachable and arrival.length <= way.mtu and arrival.packet.hop_limit > 1

    def _past_stack(self, destination: bytes, hop_limit: int, length: int) -> Way:
        """TC's way: out, to a neighbour to be found, to the stack, or to the stack as to a router."""
        way = self.surroundings.way(destination)
        if not self.slot.fast_path:
            return Way("stack")
        if way.kind in ("out", "neighbour") and (hop_limit <= 1 or length > way.mtu):
            return Way("router")
        return way

    def _forward(self, arrival: Arrival, key: Key, entry: Entry) -> tuple[str, bytes]:
        way = self.surroundings.way(entry.destination)
        if arrival.hook == XDP:
            if not self._can_finish(arrival, entry):
                return PASS, arrival.frame
            outcome, verdict = "redirect_xdp", self.setting.verdict(arrival.interface, way.interface)
        else:
            way = self._past_stack(entry.destination, arrival.packet.hop_limit, arrival.length)
            outcome, verdict = "redirect_tc", REDIRECT
            if way.kind in ("stack", "router"):
                by_loopback = entry.through_loopback or way.kind == "router"
                if (
                    entry.reply and not entry.through_loopback
                ):  # rewritten on its way out of the stack, if it comes there
                    return (REDIRECT, bytes(12) + arrival.frame[12:]) if by_loopback else (PASS, arrival.frame)
                way = to_stack(by_loopback)
                outcome, verdict = "stack", REDIRECT if by_loopback else PASS
        self._account(arrival, key, entry, outcome)
        return verdict, rewritten(arrival, entry, way)

    # -- ICMP errors -----------------------------------------------------------------------------------------

    def _icmp(self, arrival: Arrival) -> tuple[str, bytes]:
        """An error about a packet that we rewrote: its receiver must find in it what it sent (RFC 5508)."""
        packet, frame = arrival.packet, arrival.frame
        quoted = reading.read_quoted(frame, packet)
        if quoted is None or packet.destination != quoted.source:
            return PASS, frame
        key = (quoted.destination, quoted.source, quoted.dport, quoted.sport, quoted.protocol)
        entry = self.connections.get(key)
        if entry is None or not self.alive(key, entry, arrival.now):
            return PASS, frame
        # A router on the way keeps its address; the quoted packet's receiver is known by another one.
        source = entry.source if packet.source == quoted.destination else packet.source
        way = self._past_stack(entry.destination, packet.hop_limit, packet.length)
        if arrival.hook == EGRESS:
            if entry.through_loopback:
                return PASS, frame
            way = Way("stack")
        elif way.kind in ("stack", "router") or (packet.version == 6 and is_martian(source)):  # from there no way leads
            if entry.reply and not entry.through_loopback:
                return PASS, frame  # rewritten on its way out of the stack
            way = to_stack(entry.through_loopback)
        out = bytearray(frame)
        before = reading.total_of_icmp(out, packet)
        sums = reading.write_addresses(out, packet.content + 8, packet.version, entry.destination, entry.source)
        reading.write_ports(out, quoted.content, quoted.protocol, entry.dport, entry.sport, sums, packet.end)
        reading.write_addresses(out, ETHERNET, packet.version, source, entry.destination)
        reading.mend(out, packet.content + 2, before, reading.total_of_icmp(out, packet))
        self.outcomes["icmp"] += 1
        return send_on(out, packet.version, way)


def heard(packet: Packet) -> int:
    if packet.protocol == UDP:
        return HEARD_PLAIN
    fin = HEARD_FIN if packet.flags & reading.FIN else 0
    if packet.flags & reading.RST:
        return HEARD_RST | fin
    return fin | (HEARD_SYN if packet.flags & reading.SYN else HEARD_PLAIN)


def fragment_key(packet: Packet) -> tuple[bytes, bytes, bytes, int]:
    """What the fragments of one packet have in common (RFC 791; RFC 8200: the protocol is the first one's alone)."""
    return (packet.source, packet.destination, packet.fragment_id, packet.protocol if packet.version == 4 else 0)


def is_martian(source: bytes) -> bool:
    """A source that no packet from outside may have: this network, loopback, multicast, reserved (RFC 1122 3.2.1.3);
    unspecified, loopback, multicast, link-local, which no router passes on (RFC 4291 2.5, 2.7)."""
    if len(source) == 4:
        return source[0] in (0, 127) or source[0] >= 224
    return (source[:15] == bytes(15) and source[15] <= 1) or source[0] == 0xFF or word_is_link_local(source)


def word_is_link_local(source: bytes) -> bool:
    return source[0] == 0xFE and source[1] & 0xC0 == 0x80


def connection_hash(key: Key, by_source: bool) -> int:
    client = fold(ip_address(key[0]))
    if by_source:
        return hash3(client, 0, 0, SEED)
    return hash3(client, fold(ip_address(key[1])), key[2] << 16 | key[3], SEED + key[4])


def port_draw(key: Key, attempt: int, ports: tuple[int, int], now: int, begin: int | None) -> int:
    """A source port of full NAT: first those whose turn it is (``begin``; None: any), all of a small range, then any.
    Others at other times."""
    first, count = ports[0], ports[1] + 1 - ports[0]
    start = hash3(connection_hash(key, False), now // DRAW_NS & 0xFFFFFFFF, 0, SEED)
    if attempt < IN_TURN or count <= PORTS_TRIED:
        return first + ((start if begin is None else begin) + attempt & 0xFFFFFFFF) % count
    return first + hash3(start, attempt, 0, SEED) % count


def rewritten(arrival: Arrival, entry: Entry, way: Way | None = None) -> bytes:
    """The frame as it leaves; without a way, or towards the stack, no hop further."""
    packet, out = arrival.packet, bytearray(arrival.frame)
    restamp(out, packet, entry.stamp, reply=entry.reply)
    sums = reading.write_addresses(out, ETHERNET, packet.version, entry.source, entry.destination)
    if packet.fragment != "later":
        reading.write_ports(out, packet.content, packet.protocol, entry.sport, entry.dport, sums, packet.end)
    return send_on(out, packet.version, way or Way("stack"))[1]


def to_stack(by_loopback: bool) -> Way:
    return Way("stack", "lo", bytes(6), bytes(6)) if by_loopback else Way("stack")


def send_on(out: bytearray, version: int, way: Way) -> tuple[str, bytes]:
    if way.kind == "stack":
        out[:12] = way.destination_mac + way.source_mac or out[:12]
        return (REDIRECT if way.interface else PASS), bytes(out)
    reading.next_hop(out, version)
    if way.kind == "out":
        out[:12] = way.destination_mac + way.source_mac
    return REDIRECT, bytes(out)
