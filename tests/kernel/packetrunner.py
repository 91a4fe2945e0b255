"""Steps through the model and through the real programs, with everything compared: verdicts, frames, connections,
outcomes and per-target statistics. And the first sequence that differs made as short as it can be."""

from __future__ import annotations

import copy
import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

import numpy as np

from reconciler.errors import KernelError
from reconciler.kernel import bpf, layout
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.maps import map_of
from tests.kernel.dataplane import (
    CLIENT_MAC,
    PROXY_CLI_MAC,
    PROXY_SRV_MAC,
    SERVER_MAC,
    TC_REDIRECT,
    TC_SHOT,
    TC_UNSPEC,
    XDP_DROP,
    XDP_PASS,
    XDP_REDIRECT,
    XDP_TX,
    DataPlane,
    dest,
    pack,
)
from tests.kernel.packetgenerator import Step
from tests.kernel.packetmodel import DRAW_NS, DROP, EGRESS, PASS, REDIRECT, SECOND_NS, TX, XDP, Entry, Model
from tests.kernel.packetreading import Key
from tests.kernel.packetsetting import Setting, Slot, Surroundings, Way
from tests.kernel.packetstamps import clock_between

C = layout.CONSTANTS
ALT_MAC, OTHER_MAC = bytes.fromhex("020000000005"), bytes.fromhex("020000000006")
PEERS = {"cli": CLIENT_MAC, "srv": SERVER_MAC, "alt": OTHER_MAC}
MACS = {"cli": PROXY_CLI_MAC, "srv": PROXY_SRV_MAC, "alt": ALT_MAC}
XDP_VERDICTS = {XDP_DROP: DROP, XDP_PASS: PASS, XDP_TX: TX, XDP_REDIRECT: REDIRECT}
TC_VERDICTS = {TC_SHOT: DROP, TC_UNSPEC: PASS, TC_REDIRECT: REDIRECT}
CHECK_WHOLE_SUM = 4  # BPF_F_TEST_SKB_CHECKSUM_COMPLETE, Linux 6.15: a sum over the whole packet must stay right

COMMANDS = """
ip link set lo up
ip link add alt address 02:00:00:00:00:05 type veth peer name other address 02:00:00:00:00:06
ip link set alt mtu 1400
ip link set other up
ip link set alt up
ip address add 10.0.3.1/24 dev alt
ip address add fd00:3::1/64 dev alt nodad
ip neigh add 10.0.3.254 lladdr 02:00:00:00:00:06 dev alt nud permanent
ip neigh add fd00:3::254 lladdr 02:00:00:00:00:06 dev alt nud permanent
ip route add 10.8.0.0/16 via 10.0.2.254 mtu lock 1300
ip route add 10.7.0.0/16 via 10.0.3.254
ip route add unreachable 10.6.0.0/16
ip route add fd08::/16 via fd00:2::254 mtu lock 1300
ip route add fd07::/16 via fd00:3::254
ip route add unreachable fd06::/16
"""


def surroundings() -> Surroundings:
    """What :class:`DataPlane` and :data:`COMMANDS` set up, the longest prefix first."""

    def out(interface: str, mtu: int = 1500) -> Way:
        return Way("out", interface, PEERS[interface], MACS[interface], mtu)

    stack, cli, srv = Way("stack"), out("cli"), out("srv")
    return Surroundings(
        MACS,
        [
            *((own, stack) for own in ("10.0.1.1/32", "10.0.2.1/32", "10.0.3.1/32", "127.0.0.0/8")),
            *((own, stack) for own in ("fd00:1::1/128", "fd00:2::1/128", "fd00:3::1/128", "::1/128")),
            *((nowhere, Way("router")) for nowhere in ("10.6.0.0/16", "fd06::/16")),
            *((to, stack) for to in ("10.0.1.255/32", "10.0.2.255/32", "10.0.3.255/32")),
            *((to, cli) for to in ("10.0.1.100/32", "fd00:1::100/128")),
            *((to, srv) for to in ("10.0.2.254/32", "10.9.0.0/16", "fd00:2::254/128", "fd09::/16")),
            *((to, out("srv", 1300)) for to in ("10.8.0.0/16", "fd08::/16")),
            *((to, out("alt", 1400)) for to in ("10.0.3.254/32", "10.7.0.0/16", "fd00:3::254/128", "fd07::/16")),
            *((link, Way("neighbour", "cli", mtu=1500)) for link in ("10.0.1.0/24", "fd00:1::/64")),
            *((link, Way("neighbour", "srv", mtu=1500)) for link in ("10.0.2.0/24", "fd00:2::/64")),
            *((link, Way("neighbour", "alt", mtu=1400)) for link in ("10.0.3.0/24", "fd00:3::/64")),
            *((everything, cli) for everything in ("0.0.0.0/0", "::/0")),
        ],
    )


def coarse_ns() -> int:
    """The clock that the programs read: CLOCK_MONOTONIC_COARSE."""
    return time.clock_gettime_ns(6)


class Difference(AssertionError):
    """The model and the programs disagree. ``at``: which step, its number beyond the last for what was left behind."""

    def __init__(self, at: int, message: str) -> None:
        super().__init__(f"step {at}: {message}")
        self.at = at


@dataclass
class Traces:
    """What the model expected, to be saved with a sequence."""

    steps: list[dict[str, Any]]
    outcomes: dict[str, int]
    not_applicable: int = 0


class Runner:
    """Real programs for the packets of one setting after the other."""

    def __init__(self, name: str) -> None:
        self.plane = DataPlane(name)
        try:
            for line in COMMANDS.strip().splitlines():
                self.plane.namespace.command(line)
            self.maps = {name: map_of(spec, self.plane.fds[name], Gateway()) for name, spec in layout.MAPS.items()}
            self.indexes = {name: self.plane.ifindex(name) for name in MACS}
        except BaseException:
            self.plane.close()
            raise
        self.surroundings = surroundings()
        self.generation = 0
        self.turns: Counter[int] = Counter()  # those of the last model
        self.whole_sum = CHECK_WHOLE_SUM if self._can_check_whole_sum() else 0
        self._tables: list[int] = []
        self._contexts: dict[tuple[str, tuple[int, int]], bytes] = {}

    def _can_check_whole_sum(self) -> bool:
        try:
            bpf.prog_test_run(self.plane.programs["tc_egress"], bytes(64), flags=CHECK_WHOLE_SUM)
        except KernelError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    def close(self) -> None:
        self._close_tables()
        self.plane.close()

    def _close_tables(self) -> None:
        for fd in self._tables:
            os.close(fd)
        self._tables = []

    # -- the setting -------------------------------------------------------------------------------------------

    def install(self, setting: Setting) -> Model:
        """Put it into emptied maps. A model of the same."""
        for version in (4, 6):
            self.maps[f"connection{version}"].delete_many(self.maps[f"connection{version}"].keys())
        for name in ("fragment4", "fragment6", "listener4", "listener6", "device"):
            self._empty(name)
        for name in ("route4", "route6"):
            self._empty(name)
        zeros = np.zeros((), layout.proxy_slots).tobytes()
        for number in range(1, 6):
            slots = b"".join(self._proxy(slot, number) for slot in setting.slots)
            self.plane.put("proxy", number, slots or zeros)
        self._settings(setting)
        self._listeners(setting)
        self._routes(setting)
        self._targets(setting)
        for interface, index in self.indexes.items():
            flags = C["DEVICE_XDP_REDIRECT"] if interface in setting.xdp else 0
            flags |= C["DEVICE_DROP_LOOPBACK"] if interface in setting.drop_loopback else 0
            flags |= C["DEVICE_NO_TX"] if interface in setting.no_tx else 0
            self.plane.put("device", index, flags.to_bytes(4, "little"))
            self.plane.put("hardware", index, bytes(8))
        self._switch(0)
        self.base_outcomes, self.base_stats = self._outcomes(), self._stats(setting)
        for place in self.turns:
            self.plane.put("port_turn", place, bytes(4))
        model = Model(setting, self.surroundings)
        self.turns = model.turns
        return model

    def _empty(self, name: str) -> None:
        for key in self.maps[name].items()[0]:
            raw = np.ascontiguousarray(key)
            bpf.map_delete(self.plane.fds[name], raw.ctypes.data)

    def _proxy(self, slot: Slot, number: int) -> bytes:
        proxy = slot.proxies[number]
        flags = C["PROXY_PRESENT"]
        for prefix in proxy.routes:
            flags |= C["PROXY_ROUTES6" if ":" in prefix else "PROXY_ROUTES4"]
        return pack(
            layout.proxy,
            flags=flags,
            mode=C[f"MODE_{proxy.mode.upper()}"],
            balance=C[f"BALANCE_{proxy.balance.upper()}"],
            idle_sec=proxy.idle_sec,
            dest4=destination(proxy.dest4),
            dest6=destination(proxy.dest6),
        )

    def _settings(self, setting: Setting) -> None:
        slots = [
            (C["SETTING_FAST_PATH"] if slot.fast_path else 0, slot.unanswered_sec, slot.closing_sec, *slot.ports)
            for slot in setting.slots
        ]
        self.plane.put("settings", 0, pack(layout.settings_slots, slot=slots))

    def _listeners(self, setting: Setting) -> None:
        both: dict[tuple[str, str, int, int], list[int]] = {}
        for index, slot in enumerate(setting.slots):
            for one in slot.listeners:
                both.setdefault((one.interface, one.ip, one.port, one.protocol), [0, 0])[index] = one.proxy
        for (interface, ip, port, protocol), numbers in both.items():
            version = ip_address(ip).version
            key = pack(
                layout.STRUCTURES[f"listener_key{version}"],
                ifindex=self.indexes[interface],
                addr_be=ip_address(ip).packed,
                port_be=port,
                protocol=protocol,
            )
            self.plane.put(f"listener{version}", key, pack(layout.listener_slots, proxy=numbers))
            self.plane.open_port(port, "PORT_LISTEN")
            self.plane.open_port(port, "PORT_TARGET")  # for targets that keep the client's port

    def _routes(self, setting: Setting) -> None:
        for number in range(1, 6):
            routes = [slot.proxies[number].routes for slot in setting.slots]
            for prefix in {*routes[0], *routes[1]}:
                network = ip_network(prefix)
                key = pack(
                    layout.STRUCTURES[f"route_key{network.version}"],
                    prefixlen=32 + network.prefixlen,
                    proxy=number,
                    addr_be=network.network_address.packed,
                )
                values = [(destination(covering(slot, prefix)), prefix in slot) for slot in routes]
                self.plane.put(f"route{network.version}", key, pack(layout.route_slots, slot=values))

    def _targets(self, setting: Setting) -> None:
        self._close_tables()
        for number, target in setting.targets.items():
            flags = C["TARGET_DRAINED"] if target.drained else 0
            self.plane.target(number, target.ip, target.port, flags=flags, source=target.source)
        for number, table in setting.groups.items():
            fd = bpf.map_create(layout.MapType.ARRAY, "group_table", 4, 4, len(table) + 1, layout.F_INNER_MAP)
            self._tables.append(fd)
            for index, entry in enumerate([len(table), *table]):
                key, value = np.array([index], "<u4"), np.array([entry], "<u4")
                bpf.map_update(fd, key.ctypes.data, value.ctypes.data)
            self.plane.put("group", number, fd.to_bytes(4, "little"))

    def _switch(self, active: int) -> None:
        if active == 0:
            self.generation += 1
        self.plane.switch(active, self.generation)

    # -- steps -------------------------------------------------------------------------------------------------

    def run(self, setting: Setting, steps: Callable[[Model], Sequence[Step]] | Sequence[Step]) -> Traces:
        """Every step through both, in the namespace. :class:`Difference` at the first that differs."""
        return self.plane.namespace.run(self._run, setting, steps)

    def _run(self, setting: Setting, steps: Any) -> Traces:
        model = self.install(setting)
        traces = Traces([], {})
        for number, step in enumerate(steps(model) if callable(steps) else steps):
            trace = step.to_json()
            if step.do == "switch":
                model.active ^= 1
                self.plane.switch(model.active, self.generation)
            elif step.do == "age":
                self._age(model, step)
            else:
                self._packet(model, step, number, trace, traces)
            traces.steps.append(trace)
        self._compare(model, len(traces.steps))
        traces.outcomes = {name: count for name, count in model.outcomes.items() if count}
        return traces

    def _packet(self, model: Model, step: Step, number: int, trace: dict[str, Any], traces: Traces) -> None:
        before, started = coarse_ns(), time.monotonic_ns()
        try:
            verdict, frame = self.programs_say(step)
        except KernelError as error:
            if error.errno != errno.EINVAL:
                raise Difference(number, f"{describe(step)}: {error}") from error
            traces.not_applicable += 1  # the kernel makes no packet of it
            return
        now = coarse_ns()
        model.clock = clock_between(frame, started, time.monotonic_ns())
        if before // DRAW_NS != now // DRAW_NS:  # which of the two did the programs see?
            tried = copy.deepcopy(model)
            if tried.packet(step.hook, step.interface, step.frame, before, step.gso) == (verdict, frame):
                now = before
        want_verdict, want = model.packet(step.hook, step.interface, step.frame, now, step.gso)
        if (verdict, frame) != (want_verdict, want):
            raise Difference(number, explain(step, (want_verdict, want), (verdict, frame)))
        trace["verdict"] = verdict
        if frame != step.frame:
            trace["out"] = frame.hex()

    def programs_say(self, step: Step) -> tuple[str, bytes]:
        """Verdict and frame of one test run."""
        context = self._context(step)
        if step.hook == XDP:
            run = bpf.prog_test_run(self.plane.programs["xdp_ingress"], step.frame, context)
            return XDP_VERDICTS.get(run.retval, str(run.retval)), run.data_out
        program = self.plane.programs["tc_egress" if step.hook == EGRESS else "tc_ingress"]
        run = bpf.prog_test_run(program, step.frame, context, flags=self.whole_sum)
        return TC_VERDICTS.get(run.retval, str(run.retval)), run.data_out

    def _context(self, step: Step) -> bytes:
        if step.hook == XDP:
            return np.array([0, len(step.frame), 0, self.indexes[step.interface], 0, 0], "<u4").tobytes()
        known = self._contexts.get((step.interface, step.gso))
        if known is None:
            context = np.zeros(48, "<u4")
            context[10] = self.indexes[step.interface]
            context[41], context[44] = step.gso[1], step.gso[0]
            known = self._contexts[step.interface, step.gso] = context.tobytes()
        return known

    def _age(self, model: Model, step: Step) -> None:
        assert step.key is not None
        entry = model.connections.get(step.key)
        if entry is None:
            return
        entry.last_ns = max(1, time.monotonic_ns() - step.seconds * SECOND_NS)  # the clock begins at boot
        name, key = key_bytes(step.key)
        value = self.plane.get(name, key)
        if value is not None:  # if not, the comparison at the end says so
            value = value.copy()
            value["c"]["last_ns"] = entry.last_ns
            self.plane.put(name, key, value.tobytes())

    # -- what is left behind -----------------------------------------------------------------------------------

    def _compare(self, model: Model, number: int) -> None:
        found = self._connections()
        expected = {key: expected_entry(entry) for key, entry in model.connections.items()}
        for key in expected.keys() | found.keys():
            got = found.get(key)
            if got is None or got[0] != expected.get(key):
                entry = got and got[0]
                raise Difference(number, f"connection {show(key)}: expected {expected.get(key)}, found {entry}")
            if abs(got[1] - model.connections[key].last_ns) > 1.5 * SECOND_NS:
                raise Difference(number, f"connection {show(key)}: last used at another time")
        outcomes = {name: count - self.base_outcomes[name] for name, count in self._outcomes().items()}
        outcomes = {name: count for name, count in outcomes.items() if count}
        if outcomes != dict(model.outcomes):
            raise Difference(number, f"outcomes: expected {dict(model.outcomes)}, found {outcomes}")
        for target, counts in self._stats(model.setting).items():
            grown = {name: count - self.base_stats[target][name] for name, count in counts.items()}
            grown = {name: count for name, count in grown.items() if count}
            want = {name: count for name, count in model.stats.get(target, Counter()).items() if count}
            if grown != want:
                raise Difference(number, f"target {target}: expected {want}, found {grown}")

    def _connections(self) -> dict[Key, tuple[tuple[Any, ...], int]]:
        found = {}
        for version in (4, 6):
            keys, values = self.maps[f"connection{version}"].items()
            for key, value in zip(keys, values, strict=True):
                c = value["c"]
                found[read_tuple(key, int(key["protocol"]))] = (
                    (
                        *read_tuple(value, 0)[:4],
                        *(int(c[name]) for name in ("proxy", "target", "idle_sec")),
                        bool(c["flags"] & C["CONNECTION_REPLY"]),
                        bool(c["flags"] & C["CONNECTION_FULLNAT"]),
                        *(int(c[name]) for name in ("own", "peer", "packets", "bytes", "stamp")),
                    ),
                    int(c["last_ns"]),
                )
        return found

    def _outcomes(self) -> Counter[str]:
        counts = self.maps["outcome"].items()[1].sum(axis=1)
        return Counter({name: int(counts[number]) for number, name in enumerate(layout.OUTCOMES)})

    def _stats(self, setting: Setting) -> dict[int, dict[str, int]]:
        out = {}
        for number in setting.targets:
            value = self.plane.get("target_stats", number)
            assert value is not None
            out[number] = {name: int(value[name].sum()) for name in layout.target_stats.names or ()}
        return out


def destination(text: str) -> int:
    kind, _, number = text.partition(":")
    return dest(kind.upper(), int(number or 0)) if kind else 0


def covering(routes: dict[str, str], prefix: str) -> str:
    """What the longest prefix of these that holds the given one says: a route absent in a slot carries that."""
    network = ip_network(prefix)
    holding = [ip_network(one) for one in routes]
    holding = [one for one in holding if one.version == network.version and network.subnet_of(one)]  # type: ignore[arg-type]
    return routes[str(max(holding, key=lambda one: one.prefixlen))] if holding else ""


def key_bytes(key: Key) -> tuple[str, bytes]:
    version = 4 if len(key[0]) == 4 else 6
    dtype = layout.STRUCTURES[f"connection_key{version}"]
    packed = pack(dtype, saddr_be=key[0], daddr_be=key[1], sport_be=key[2], dport_be=key[3], protocol=key[4])
    return f"connection{version}", packed


def read_tuple(row: Any, protocol: int) -> Key:
    return (
        row["saddr_be"].tobytes(),
        row["daddr_be"].tobytes(),
        int(row["sport_be"]),
        int(row["dport_be"]),
        protocol,
    )


def expected_entry(entry: Entry) -> tuple[Any, ...]:
    return (
        entry.source,
        entry.destination,
        entry.sport,
        entry.dport,
        entry.proxy,
        entry.target,
        entry.idle_sec,
        entry.reply,
        entry.fullnat,
        entry.own,
        entry.peer,
        entry.packets,
        entry.bytes,
        entry.stamp,
    )


def show(key: Key) -> str:
    return f"{ip_address(key[0])}.{key[2]} > {ip_address(key[1])}.{key[3]} protocol {key[4]}"


def describe(step: Step) -> str:
    return f"{step.kind} at {step.hook} of {step.interface}"


def explain(step: Step, expected: tuple[str, bytes], found: tuple[str, bytes]) -> str:
    lines = [f"{describe(step)}: expected {expected[0]}, found {found[0]}", f"  arrived  {step.frame[:140].hex()}"]
    if expected[1] != found[1]:
        where = [i for i, (one, two) in enumerate(zip(expected[1], found[1], strict=False)) if one != two]
        lines.append(f"  expected {expected[1][:140].hex()}")
        lines.append(f"  found    {found[1][:140].hex()}")
        lines.append(f"  differ at {where[:20]}, lengths {len(expected[1])} and {len(found[1])}")
    return "\n".join(lines)


def shortest(steps: Sequence[Step], fails: Callable[[Sequence[Step]], bool]) -> list[Step]:
    """Leave out what is not needed for ``fails`` to stay true, in ever smaller parts."""
    kept, size = list(steps), max(1, len(steps) // 2)
    while True:
        at = 0
        while at < len(kept):
            fewer = kept[:at] + kept[at + size :]
            if fewer and fails(fewer):
                kept = fewer
            else:
                at += size
        if size == 1:
            return kept
        size //= 2
