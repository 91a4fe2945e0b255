"""Random settings and random steps for the differential test, the same for the same seed.

A step is a packet at a hook, a connection made to look idle, or a switch to the other configuration. The generator
looks at the model's connections to send what belongs to them; it has no opinion on what ought to happen.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from tests.kernel import packetreading as reading
from tests.kernel.packetbuilding import ipv4, ipv6, packet_bytes, transport
from tests.kernel.packetmodel import EGRESS, INGRESS, XDP, Entry, Model
from tests.kernel.packetreading import ETHERNET, TCP, UDP, Key
from tests.kernel.packetsetting import Listener, Proxy, Setting, Slot, Target
from tests.kernel.packetstamps import random_options

STRANGER_MAC = bytes.fromhex("0200000000ff")
LISTEN = {4: ["10.0.1.1", "10.0.2.1", "203.0.113.10"], 6: ["fd00:1::1", "fd00:2::1", "2001:db8::10"]}
LISTEN_PORTS, CLIENT_PORTS, TARGET_PORTS = [80, 443, 53], [1024, 1025, 40000, 8080, 65535], [8080, 8080, 80, 53, 0]
TARGETS = {
    4: ["10.9.0.1", "10.9.0.2", "10.8.0.1", "10.7.0.1", "10.6.0.1", "10.0.2.77", "10.0.2.254", "10.0.2.1", "127.0.0.1"],
    6: ["fd09::1", "fd09::2", "fd08::1", "fd07::1", "fd06::1", "fd00:2::77", "fd00:2::254", "fd00:2::1", "::1"],
}
SOURCES = {4: "10.0.2.1", 6: "fd00:2::1"}
CLIENTS = {
    4: [
        "192.168.7.7",
        "192.168.7.8",
        "192.168.66.3",
        "172.16.5.1",
        "172.16.5.200",
        "10.0.1.100",
        "10.0.1.50",
        "10.9.0.77",
    ],
    6: ["fd77::7", "fd77::8", "fd66::3", "fdaa:5::1", "fdaa:5:8000::1", "fd00:1::100", "fd00:1::50", "fd09::77"],
}
MARTIANS = {4: ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"], 6: ["::1", "::", "ff02::1", "fe80::1"]}
PREFIXES = {
    4: ["0.0.0.0/0", "192.168.0.0/16", "192.168.66.0/24", "172.16.0.0/12", "172.16.5.128/25", "10.0.1.50/32"],
    6: ["::/0", "fd77::/16", "fd66::/64", "fdaa:5::/32", "fdaa:5:8000::/33", "fd00:1::50/128"],
}
PAYLOADS = [
    0,
    0,
    1,
    2,
    7,
    8,
    64,
    255,
    700,
    1200,
    1240,
    1252,
    1260,
    1272,
    1340,
    1352,
    1360,
    1372,
    1440,
    1452,
    1460,
    1500,
]


@dataclass(frozen=True)
class Step:
    """``do``: ``packet``, ``age`` (the entry under ``key`` was last used ``seconds`` ago) or ``switch``."""

    do: str
    hook: str = ""
    interface: str = ""
    frame: bytes = b""
    gso: tuple[int, int] = (0, 0)
    key: Key | None = None
    seconds: int = 0
    kind: str = ""  # what the generator meant

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"do": self.do}
        if self.do == "packet":
            out |= {"hook": self.hook, "interface": self.interface, "frame": self.frame.hex(), "kind": self.kind}
            if self.gso[0]:
                out["gso"] = list(self.gso)
        elif self.key is not None:
            source, destination, *rest = self.key
            out |= {"key": [source.hex(), destination.hex(), *rest], "seconds": self.seconds}
        return out

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Step:
        key = value.get("key")
        return cls(
            value["do"],
            value.get("hook", ""),
            value.get("interface", ""),
            bytes.fromhex(value.get("frame", "")),
            tuple(value.get("gso", (0, 0))),
            (bytes.fromhex(key[0]), bytes.fromhex(key[1]), *key[2:]) if key else None,
            value.get("seconds", 0),
            value.get("kind", ""),
        )


# -- settings ----------------------------------------------------------------------------------------------------


def random_setting(rng: random.Random) -> Setting:
    """Two configurations that share some of their listeners, targets and proxies."""
    targets = {}
    for version in (4, 6):
        for index, ip in enumerate(TARGETS[version]):
            source = SOURCES[version] if rng.random() < 0.9 else ""
            drained = rng.random() < 0.05
            targets[version * 100 + index] = Target(ip, rng.choice(TARGET_PORTS), source, drained)
    groups = {}
    for version in (4, 6):
        for number in (version, version + 10):
            members = rng.sample([n for n in targets if n // 100 == version], rng.randint(2, 4))
            groups[number] = rng.choices(members, k=rng.choice([1, 7, 251]))
    slots = (_random_slot(rng), _random_slot(rng))
    xdp = rng.choice([["cli", "srv"], ["cli", "srv"], ["cli"], ["srv"], []])
    no_tx = rng.choice([[], [], ["cli"], ["srv"], ["cli", "srv"]])
    return Setting(slots, targets, groups, xdp, rng.choice([[], ["cli", "srv"]]), no_tx)


def _random_slot(rng: random.Random) -> Slot:
    def destination(version: int) -> str:
        if rng.random() < 0.06:
            return rng.choice(["", "deny"])
        if rng.random() < 0.4:
            return f"group:{rng.choice([version, version + 10])}"
        good = rng.random() < 0.6
        return f"target:{version * 100 + (rng.randrange(2) if good else rng.randrange(len(TARGETS[version])))}"

    proxies = {}
    for number in range(1, 6):
        routes = {
            prefix: destination(version)
            for version in (4, 6)
            for prefix in rng.sample(PREFIXES[version], rng.choice([0, 0, 2, 4]))
        }
        mode, balance = rng.choice(["dnat", "dnat", "fullnat"]), rng.choice(["maglev", "source"])
        proxies[number] = Proxy(mode, balance, rng.choice([60, 300]), destination(4), destination(6), routes)
    listeners = [
        Listener(interface, ip, protocol, port, rng.randint(1, 5))
        for interface in ("cli", "srv")
        for version in (4, 6)
        for ip in LISTEN[version]
        for protocol in (TCP, UDP)
        for port in LISTEN_PORTS
        if rng.random() < (0.8 if interface == "cli" else 0.3)
    ]
    ports = rng.choice([(10000, 32767), (20000, 20003), (30000, 30000)])
    return Slot(listeners, proxies, rng.random() < 0.85, 30, 10, ports)


class Generator:
    """Steps for a model. ``macs`` and ``peers``: each interface's own hardware address and its neighbour's."""

    def __init__(self, rng: random.Random, model: Model, peers: dict[str, bytes]) -> None:
        self.rng, self.model, self.peers = rng, model, peers
        self.macs = model.surroundings.macs
        self._pending: list[Step] = []
        self._kinds: list[tuple[Callable[[], Step], int]] = [
            (self._client, 30),
            (self._known, 36),
            (self._fragments, 5),
            (self._icmp_error, 10),
            (self._foreign, 6),
            (self._age, 7),
            (self._switch, 1),
        ]

    def step(self) -> Step:
        """The next one; the model must have done those before."""
        if self._pending and self.rng.random() < 0.7:
            return self._pending.pop(0)
        chosen = self.rng.choices([kind for kind, _ in self._kinds], [weight for _, weight in self._kinds])[0]
        step = chosen()
        return self._spoil(step) if step.do == "packet" and self.rng.random() < 0.18 else step

    # -- kinds ---------------------------------------------------------------------------------------------------

    def _packet(self, kind: str, ip: bytes, interface: str, hook: str = "") -> Step:
        hook = hook or self.rng.choice([XDP, INGRESS])
        ethertype = b"\x08\x00" if ip[0] >> 4 == 4 else b"\x86\xdd"
        own, peer = self.macs[interface], self.peers[interface]
        head = peer + own if hook == EGRESS else own + peer
        padding = bytes(self.rng.choice([0, 0, 0, 0, 1, 6, 40]))
        return Step("packet", hook, interface, head + ethertype + ip + padding, kind=kind)

    def _listening(self) -> Listener:
        return self.rng.choice(self.model.setting.slots[self.model.active if self.rng.random() < 0.9 else 0].listeners)

    def _new_key(self) -> tuple[Key, str]:
        listener = self._listening()
        listen = ip_address(listener.ip)
        pool = CLIENTS if self.rng.random() < 0.97 else MARTIANS
        client = ip_address(self.rng.choice(pool[listen.version])).packed
        return (
            client,
            listen.packed,
            self.rng.choice(CLIENT_PORTS),
            listener.port,
            listener.protocol,
        ), listener.interface

    def _client(self) -> Step:
        key, interface = self._new_key()
        flags = self.rng.choice([2, 2, 2, 16, 24, 4, 17])
        return self._send("client", key, interface, flags)

    def _known(self) -> Step:
        key, entry = self._connection()
        if entry is None:
            return self._client()
        flags = self.rng.choice([2, 18, 16, 16, 24, 24, 24, 17, 17, 4, 20])
        return self._send("known", key, self._comes_by(key, entry), flags, hook=self._hook_for(entry), entry=entry)

    def _hook_for(self, entry: Entry) -> str:
        return EGRESS if self.rng.random() < (0.25 if entry.reply else 0.05) else self.rng.choice([XDP, INGRESS])

    def _connection(self) -> tuple[Key, Entry | None]:
        keys = list(self.model.connections)
        if not keys:
            return (b"", b"", 0, 0, 0), None
        key = self.rng.choice(keys)
        return key, self.model.connections[key]

    def _comes_by(self, key: Key, _entry: Entry) -> str:
        if self.rng.random() < 0.1:
            return self.rng.choice(["cli", "srv", "alt"])
        return self.model.surroundings.way(key[0]).interface or "cli"

    def _content(self, key: Key, flags: int, entry: Entry | None) -> bytes:
        rng = self.rng
        payload = rng.randbytes(rng.choice(PAYLOADS))
        check = rng.choices(["right", "wrong", "none", "partial"], [80, 6, 8 if key[4] == UDP else 1, 4])[0]
        if key[4] == UDP and entry is not None and len(payload) % 2 == 0 and payload and rng.random() < 0.1:
            payload = self._zero_after(key, entry, payload)
        return transport(key, flags, payload, check, random_options(rng), rng)

    def _zero_after(self, key: Key, entry: Entry, payload: bytes) -> bytes:
        """A payload with which the rewritten packet's checksum comes out as zero."""
        leaves = (entry.source, entry.destination, entry.sport, entry.dport, key[4])
        check = reading.word(transport(leaves, 0, payload[:-2] + b"\0\0", "right"), 6)
        return payload[:-2] + check.to_bytes(2, "big")

    def _send(
        self, kind: str, key: Key, interface: str, flags: int, hook: str = "", entry: Entry | None = None
    ) -> Step:
        rng = self.rng
        ttl = rng.choices([64, 2, 1, 0, 255], [90, 3, 3, 2, 2])[0]
        more: dict[str, Any] = {}
        if len(key[0]) == 4 and rng.random() < 0.08:
            more["options"] = b"\1" * rng.choice([4, 8, 40])
        elif len(key[0]) == 16 and rng.random() < 0.15:
            more["extensions"] = self._extensions()
        content = self._content(key, flags, entry)
        step = self._packet(kind, packet_bytes(key, content, ttl, **more), interface, hook)
        if step.hook != XDP and key[4] == TCP and len(content) > 300 and rng.random() < 0.2:
            size = rng.choice([100, 200, 1000])
            return Step(**{**step.__dict__, "gso": (size, rng.choice([0, -(-(len(content) - 20) // size)]))})
        return step

    def _extensions(self) -> list[tuple[int, bytes]]:
        rng, chain = self.rng, []
        for _ in range(rng.choice([1, 1, 2, 3, 4, 5])):
            number = rng.choices([0, 60, 44, 43, 51, 59], [40, 40, 8, 4, 4, 4])[0]
            size = rng.choice([0, 0, 0, 1, 2, 7]) if number != 44 else 0
            body = bytes([size]) + b"\1" * (6 + size * 8)
            if number == 44:
                body = b"\0\0\0" + rng.randbytes(4)
            chain.append((number, body))
        return chain

    # -- fragments and ICMP errors -----------------------------------------------------------------------------

    def _fragments(self) -> Step:
        """The pieces of one packet, later sent in some order, some twice, some missing."""
        rng = self.rng
        key, entry = self._connection()
        if entry is None or rng.random() < 0.3:
            key, interface = self._new_key()
            hook = INGRESS
        else:
            interface, hook = self._comes_by(key, entry), EGRESS if entry.reply and rng.random() < 0.3 else INGRESS
        content = transport(key, rng.choice([2, 16, 17]), rng.randbytes(rng.randint(40, 400)), "right")
        number = rng.choice([1, 2, 3, 0xABCD])
        size = rng.choice([8, 16, 64, 128])
        pieces = [
            self._packet("fragment", self._piece(key, content, at, size, number), interface, hook)
            for at in range(0, len(content), size)
        ][:6]
        if rng.random() < 0.3:
            rng.shuffle(pieces)
        if rng.random() < 0.2:
            pieces.append(self._packet("overlap", self._piece(key, content, 8, 24, number), interface, hook))
        if rng.random() < 0.2:
            pieces.insert(rng.randrange(len(pieces)), self._age())
        if rng.random() < 0.1:
            pieces = [Step(**{**piece.__dict__, "hook": XDP}) for piece in pieces]
        self._pending.extend(pieces)
        return self._pending.pop(0)

    def _piece(self, key: Key, content: bytes, at: int, size: int, number: int) -> bytes:
        piece, more = content[at : at + size], at + size < len(content)
        if len(key[0]) == 4:
            return ipv4(key[0], key[1], key[4], piece, number=number, where=at // 8 | more << 13)
        header = [(44, b"\0" + (at | more).to_bytes(2, "big") + number.to_bytes(4, "big"))]
        if number == 3:
            header.insert(0, (0, b"\0" + b"\1" * 6))
        if number != 2:
            return ipv6(key[0], key[1], key[4], piece, extensions=header)
        # Destination options of the part that was cut: the first piece has them, the others only say so.
        if at == 0:
            return ipv6(key[0], key[1], key[4], piece, extensions=[*header, (60, b"\0" + b"\1" * 6)])
        return ipv6(key[0], key[1], 60, piece, extensions=header)

    def _icmp_error(self) -> Step:
        """About something that left by an entry, from its receiver or from a router; or about something else."""
        rng = self.rng
        key, entry = self._connection()
        if entry is None:
            return self._foreign()
        left: Key = (entry.source, entry.destination, entry.sport, entry.dport, key[4])
        if rng.random() < 0.1:
            left = key
        quoted = packet_bytes(left, self._content(left, 16, None), rng.choice([1, 64]))
        if len(left[0]) == 4 and rng.random() < 0.1:
            flags = rng.choice([0x2000, 0x4000, 0x0001])
            quoted = ipv4(left[0], left[1], left[4], self._content(left, 16, None), where=flags)
        elif len(left[0]) == 16 and rng.random() < 0.15:
            where = rng.choice([0x0001, 0x0001, 0x0000, 0x0009])
            piece = b"\0" + where.to_bytes(2, "big") + rng.randbytes(4)
            quoted = packet_bytes(left, self._content(left, 16, None), extensions=[(44, piece)])
        elif rng.random() < 0.05:
            more: dict[str, Any] = {"options": b"\1" * 4} if len(left[0]) == 4 else {"extensions": self._extensions()}
            quoted = packet_bytes(left, self._content(left, 16, None), **more)
        header = 20 if len(left[0]) == 4 else 40
        quoted = quoted[: rng.choice([header + 8, header + 8, header + 12, header + 18, header + 20, 528, 1232])]
        sources = {4: ["10.0.2.254", "192.0.2.1"], 6: ["fd00:2::254", "2001:db8:9::1"]}
        router = ip_address(rng.choice(sources[4 if header == 20 else 6])).packed
        speaker = left[1] if rng.random() < 0.5 else router
        listener = left[0] if rng.random() < 0.95 else router
        ip = self._icmp_packet(speaker, listener, quoted)
        hook = rng.choices([INGRESS, EGRESS, XDP], [70, 20, 10])[0]
        return self._packet("icmp error", ip, self.model.surroundings.way(left[1]).interface or "srv", hook)

    def _icmp_packet(self, source: bytes, destination: bytes, quoted: bytes) -> bytes:
        rng = self.rng
        version = 4 if len(source) == 4 else 6
        kind = rng.choice([3, 3, 11, 12, 5, 8] if version == 4 else [1, 1, 2, 3, 4, 5, 128])
        message = bytearray(bytes([kind, rng.choice([0, 1, 3, 4])]) + b"\0\0" + rng.randbytes(4) + quoted)
        protocol = reading.ICMP4 if version == 4 else reading.ICMP6
        pseudo = reading.pseudo_header(source, destination, protocol, len(message)) if version == 6 else 0
        check = -(pseudo + reading.total(message)) % 65535
        message[2:4] = (check if rng.random() < 0.9 else 0x4321).to_bytes(2, "big")
        ttl = rng.choice([64, 64, 64, 2, 1])
        more: dict[str, Any] = {}
        if rng.random() < 0.05:
            more = {"options": b"\1" * 8} if version == 4 else {"extensions": [(60, b"\0" + b"\1" * 6)]}
        return (ipv4 if version == 4 else ipv6)(source, destination, protocol, bytes(message), ttl, **more)

    # -- others ----------------------------------------------------------------------------------------------------

    def _foreign(self) -> Step:
        rng = self.rng
        key, interface = self._new_key()
        source, destination, sport, dport, protocol = key
        version = 4 if len(source) == 4 else 6
        kind = rng.randrange(6)
        if kind == 0:
            arp = (
                rng.choice([b"\xff" * 6, self.macs[interface]])
                + self.peers[interface]
                + b"\x08\x06"
                + rng.randbytes(28)
            )
            return Step("packet", rng.choice([XDP, INGRESS, EGRESS]), interface, arp, kind="arp")
        if kind == 1:
            length = rng.randrange(40, 1400)
            ethertype = rng.choice([b"\x08\x00", b"\x86\xdd", b"\x88\xcc"])
            frame = self.macs[interface] + self.peers[interface] + ethertype + rng.randbytes(length)
            return Step("packet", rng.choice([XDP, INGRESS, EGRESS]), interface, frame, kind="garbage")
        if kind == 2:
            protocol, content = (1, b"\x08\0") if version == 4 else (58, b"\x80\0")
            key = (source, destination, 0, 0, protocol)
            return self._packet("echo", packet_bytes(key, content + rng.randbytes(30)), interface)
        if kind == 3:
            dport = rng.choice([81, 8080, 22, 0])
        elif kind == 4:
            destination = ip_address(rng.choice(CLIENTS[version] + TARGETS[version])).packed
        else:
            interface = rng.choice(["cli", "srv", "alt"])
        return self._send("foreign", (source, destination, sport, dport, protocol), interface, 2)

    def _age(self) -> Step:
        """One direction, often the other one right after, was idle for shorter or longer than some limit."""
        key, entry = self._connection()
        if entry is None:
            return self._client()
        seconds = self.rng.choice([2, 5, 15, 25, 36, 50, 66, 290, 310, 4000])
        if self.rng.random() < 0.6:
            self._pending.insert(0, Step("age", key=entry.turned(key[4]), seconds=seconds))
        return Step("age", key=key, seconds=seconds)

    def _switch(self) -> Step:
        return Step("switch")

    # -- damage ----------------------------------------------------------------------------------------------------

    def _spoil(self, step: Step) -> Step:
        rng, frame = self.rng, bytearray(step.frame)
        kind = rng.choice(["cut", "flip", "flip", "flip", "flips", "length", "mac", "vlan"])
        if kind == "cut":
            del frame[rng.randrange(14, len(frame)) :]
        elif kind in ("flip", "flips"):
            for _ in range(1 if kind == "flip" else rng.randint(2, 12)):
                bit = rng.randrange(12 * 8, min(len(frame), 120) * 8)
                frame[bit // 8] ^= 1 << bit % 8
        elif kind == "length":
            at = ETHERNET + (2 if frame[14] >> 4 == 4 else 4)
            value = rng.choice([0, 19, 20, 21, 27, 28, 39, 40, 41, 48, 60, 65535, rng.randrange(1500)])
            frame[at : at + 2] = value.to_bytes(2, "big")
        elif kind == "mac":
            frame[:6] = rng.choice([STRANGER_MAC, b"\xff" * 6, b"\x01\x00\x5e\0\0\1", b"\x33\x33\0\0\0\1"])
        else:
            frame[12:12] = rng.choice([b"\x81\0\0\x05", b"\x88\xa8\0\x05\x81\0\0\x06"])
        return Step(**{**step.__dict__, "frame": bytes(frame), "gso": (0, 0), "kind": f"{step.kind}, {kind}"})


def cut_everywhere(step: Step) -> list[Step]:
    """The packet at each hook, cut after each byte from the Ethernet header on."""
    return [
        Step("packet", hook, step.interface, step.frame[:length], kind=f"{step.kind}, cut at {length}")
        for hook in (XDP, INGRESS, EGRESS)
        for length in range(14, min(len(step.frame), 180))
    ]
