"""Random configurations one after the other: after each commit the kernel is what was asked for, and the attached
programs decide on random packets as a model in plain Python does.

``REVPROXY_TEST_SEED`` repeats a run, ``REVPROXY_TEST_COMMITS`` makes it longer.
"""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest

from reconciler.config.files import parse_sources
from reconciler.config.model import Config
from reconciler.engine import Engine
from reconciler.errors import ConfigError
from reconciler.runtime import probing
from reconciler.runtime.view import View
from reconciler.state.objects import Endpoint, Protocol
from tests.e2e.proxyhost import INTERFACES, Packet, Programs, ProxyHost, address, ends, entries_of_others_targets
from tests.kernel.kernelmaps import small_arrays
from tests.model import decide
from tests.thorough import examples

SEED = int(os.environ.get("REVPROXY_TEST_SEED", "20240"))
COMMITS = int(os.environ.get("REVPROXY_TEST_COMMITS", examples(60)))
PACKETS = 60  # after each commit
LISTENING = ("cli", "ext", "dmz")
PORTS = (53, 80, 443, 8080)
EXTRA = {4: "198.51.100.1", 6: "2001:db8:ff::1"}  # listened on, though no interface has them
TARGETS = {4: [f"10.9.0.{n}" for n in range(1, 6)], 6: [f"fd09::{n}" for n in range(1, 4)]}
TARGET_PORTS = (80, 5300, 8080, None)
PREFIXES = {
    4: ("0.0.0.0/0", "20.0.0.0/8", "20.1.0.0/16", "20.1.2.0/24", "20.1.2.3/32", "20.128.0.0/9"),
    6: ("::/0", "2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::3/128"),
}
CLIENTS = {
    4: ("30.0.0.1", "20.0.0.1", "20.1.0.1", "20.1.2.1", "20.1.2.3", "20.200.0.1"),
    6: ("2001:db9::1", "2001:db8::1", "2001:db8:1::1", "2001:db8:1::3"),
}
REMEMBER_SEC = 15  # less than any limit after which a connection may be forgotten


# -- configurations ----------------------------------------------------------------------------------------------


class Writer:
    """Writes configurations, each an edit of the one before."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.proxies: dict[str, dict[str, Any]] = {}
        self.settings: dict[str, Any] = {"max_connections": 2000}

    def next(self) -> Config:
        """Another valid one. Proxies that are in one another's way are left out."""
        if self.chance.random() < 0.2:
            self.settings = self._settings()
        for name in self.chance.sample([f"p{n}" for n in range(6)], self.chance.choice((1, 1, 2, 6))):
            if name in self.proxies and self.chance.random() < 0.3:
                del self.proxies[name]
            else:
                self._put(name, self._proxy(name, self.proxies.get(name)))
        return self.parse(self.proxies)

    def _put(self, name: str, proxy: dict[str, Any]) -> None:
        try:
            self.parse(self.proxies | {name: proxy})
        except ConfigError:
            return
        self.proxies[name] = proxy

    def parse(self, proxies: dict[str, dict[str, Any]]) -> Config:
        document = {"apiVersion": "revproxy/v1", "settings": self.settings, "proxies": list(proxies.values())}
        return parse_sources({"all.json": json.dumps(document).encode()})

    def _settings(self) -> dict[str, Any]:
        return {
            "fast_path": self.chance.random() < 0.7,
            "xdp_mode": self.chance.choice(("native", "native", "off", "generic", "auto")),
            "max_connections": self.chance.choice((2000, 2000, 3000)),
            "connection_timeout_sec": self.chance.choice((300, 400)),
        }

    def _proxy(self, name: str, before: dict[str, Any] | None) -> dict[str, Any]:
        """A new one, or ``before`` with one of its parts written anew."""
        families = self.chance.choice(((4,), (6,), (4, 6), (4, 6)))
        fresh: dict[str, Any] = {
            "name": name,
            "listen": self._listen(families),
            "default_target": [t for version in families for t in self._targets(version)],
            "balance": self.chance.choice(("maglev", "maglev", "source", "random")),
            "source_routes": self._routes(families),
        }
        if before is None or self.chance.random() < 0.3:
            return fresh
        part = self.chance.choice(("listen", "default_target", "balance", "source_routes", "source_routes"))
        return before | {part: fresh[part]}

    def _listen(self, families: tuple[int, ...]) -> dict[str, Any]:
        listen: dict[str, Any] = {
            "interfaces": self.chance.sample(LISTENING, self.chance.choice((1, 1, 2))),
            "port": self.chance.sample(PORTS, self.chance.choice((1, 1, 2))),
            "protocol": self.chance.choice(("tcp", "udp")),
        }
        if self.chance.random() < 0.4:
            own = [str(address(name, version)) for name in listen["interfaces"] for version in families]
            listen["addresses"] = sorted({*self.chance.sample(own, 1), *(EXTRA[version] for version in families)})
        return listen

    def _targets(self, version: int) -> list[dict[str, Any]]:
        found = []
        for ip in self.chance.sample(TARGETS[version], self.chance.choice((1, 1, 2, 3))):
            target: dict[str, Any] = {"ip": ip}
            if port := self.chance.choice(TARGET_PORTS):
                target["port"] = port
            if self.chance.random() < 0.5:
                target["weight"] = self.chance.choice((0, 1, 2, 7))
            found.append(target)
        return found

    def _routes(self, families: tuple[int, ...]) -> list[dict[str, Any]]:
        routes: list[dict[str, Any]] = []
        for version in families:
            for source in self.chance.sample(PREFIXES[version], self.chance.choice((0, 1, 2, 4))):
                deny = self.chance.random() < 0.25
                routes.append({"source": source} | ({"action": "deny"} if deny else {"target": self._targets(version)}))
        return routes


# -- packets -----------------------------------------------------------------------------------------------------


@dataclass
class Traffic:
    """Packets, and which connections there ought to be."""

    host: ProxyHost
    chance: random.Random
    open: dict[Packet, tuple[Endpoint, float]] = field(default_factory=dict)
    decided: dict[str, int] = field(default_factory=dict)
    sport: int = 2000

    def check(self, view: View) -> None:
        """New connections go where the model says, old ones where they went, and answers come back."""
        attached = view.observed.state.attachments
        with self.host.programs() as programs:
            for packet, (target, seen) in list(self.open.items()):
                own = packet.dst in (address(packet.interface, 4), address(packet.interface, 6))
                if time.monotonic() - seen > REMEMBER_SEC:
                    del self.open[packet]
                elif (own or self.host.ifindex[packet.interface] in attached) and self.chance.random() < 0.3:
                    self._old(programs, packet, target, view)
            for _ in range(PACKETS):
                self._new(programs, self._packet(view), view)

    def _packet(self, view: View) -> Packet:
        """The first one of a connection: mostly to a listener, or to something close by."""
        listeners = sorted(view.desired.state.listeners, key=repr)
        self.sport = self.sport + 1 if self.sport < 9999 else 2000
        names = {index: name for name, index in self.host.ifindex.items()}
        if listeners and self.chance.random() < 0.85:
            key = self.chance.choice(listeners)
            interface, dst, dport, protocol = names[key.ifindex], key.ip, key.port, key.protocol
        else:
            interface, protocol = self.chance.choice(INTERFACES), self.chance.choice(list(Protocol))
            own = [address(name, version) for name in INTERFACES for version in (4, 6)]
            dst = self.chance.choice([*own, *map(ip_address, EXTRA.values())])
            dport = self.chance.choice((*PORTS, 81))
        src = ip_address(self.chance.choice(CLIENTS[dst.version]))
        return Packet(interface, src, dst, self.sport, dport, protocol, syn=self.chance.random() < 0.8)

    def _new(self, programs: Programs, packet: Packet, view: View) -> None:
        ends_of = (packet.src, packet.dst, packet.protocol, packet.dport, packet.sport)
        verdict = decide(view.desired.state, self.host.ifindex[packet.interface], *ends_of)
        decision = programs.decide(packet)
        self.decided[decision.kind] = self.decided.get(decision.kind, 0) + 1
        assert decision.kind == verdict.kind, f"{packet}: {decision} instead of {verdict}"
        if decision.target is not None:
            assert decision.target in verdict.targets, f"{packet}: {decision} instead of {verdict}"
            self.open[packet] = (decision.target, time.monotonic())

    def _old(self, programs: Programs, packet: Packet, target: Endpoint, view: View) -> None:
        later = Packet(packet.interface, packet.src, packet.dst, packet.sport, packet.dport, packet.protocol, syn=False)
        assert programs.decide(later).target == target, f"{later} no longer goes to {target}"
        self.open[packet] = (target, time.monotonic())
        self.decided["old"] = self.decided.get("old", 0) + 1
        settings = view.desired.state.settings
        if settings is None or not settings.fast_path:
            return  # rewritten when it leaves the stack
        reply = Packet("srv", target.ip, packet.src, target.port, packet.sport, packet.protocol, syn=False)
        kind, frame, _ = programs.run(reply)
        listen, client = Endpoint(packet.dst, packet.dport), Endpoint(packet.src, packet.sport)
        assert (kind, ends(frame)) == ("forward", (listen, client)), f"{reply}: {kind} {ends(frame)}"
        self.decided["reply"] = self.decided.get("reply", 0) + 1


def commit(engine: Engine, config: Config) -> View | None:
    """Both sides afterwards; None if this host can't have such a configuration."""
    try:
        view = engine.view(config)
    except ConfigError:
        return None
    engine.commit(view, allow_empty=True)
    after = engine.view(config)
    assert after.changes == ()
    assert not after.observed.unfinished
    wanted, found = after.desired.state, after.observed.state
    for name in ("program", "settings", "proxies", "listeners", "routes", "attachments", "devices"):
        assert getattr(found, name) == getattr(wanted, name), name
    return after


def test_random_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "FIRST_PORT", 4000)  # the small port map ends at 10000
    chance = random.Random(SEED)
    with small_arrays(), ProxyHost() as host:
        before = host.snapshot()
        writer, traffic, commits = Writer(chance), Traffic(host, chance), 0
        while commits < COMMITS:
            config = writer.next()
            with host.engine() as engine:
                try:
                    view = commit(engine, config)
                    if view is None:
                        continue
                    commits += 1
                    traffic.check(view)
                    assert entries_of_others_targets(host) == []
                    if chance.random() < 0.1:
                        engine.flush()
                        traffic.open.clear()
                except AssertionError as error:
                    raise AssertionError(f"seed {SEED}, commit {commits}: {error}") from error
        print(f"seed {SEED}: {commits} commits, packets: {traffic.decided}")
        assert sum(traffic.decided[kind] for kind in ("pass", "forward", "drop")) >= 40 * COMMITS
        assert min(traffic.decided.get(kind, 0) for kind in ("pass", "forward", "drop", "old", "reply")) > COMMITS
        with host.engine() as engine:
            engine.down()
        assert host.snapshot() == before
