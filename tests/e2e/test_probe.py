"""Before a commit's switch the real programs are tried on it; what they get wrong, or tests of the files that don't
hold, undo it. On a host with real interfaces and programs, without traffic."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from reconciler.config.files import parse_sources
from reconciler.engine import Engine
from reconciler.errors import ConfigError, KernelError, ProbeError, TransactionError
from reconciler.kernel import layout
from reconciler.kernel.gateway import FaultGateway, Gateway
from reconciler.kernel.maps import Maps
from reconciler.kernel.probe import OWN, SHARED
from reconciler.runtime import probing
from reconciler.state.objects import Endpoint, Protocol
from tests.e2e.proxyhost import Packet, ProxyHost, address
from tests.model import decide

T = TypeVar("T")
HEAD = "apiVersion: revproxy/v1\nsettings: {{xdp_mode: {mode}, fast_path: {fast}, max_connections: 1000}}\n"
PROXIES = """\
proxies:
  - name: web
    listen: {interfaces: [cli], port: 80}
    default_target: [{ip: 10.9.0.1, port: 8080, weight: 2}, {ip: 10.9.0.2, port: 8080}, {ip: "fd09::1", port: 8080}]
    source_routes:
      - {source: 20.0.0.0/8, target: {ip: 10.9.0.3, port: 8080}}
      - {source: 20.1.0.0/16, action: deny}
      - {source: "2001:db8:1::/48", action: deny}
  - name: names
    mode: fullnat
    listen: {interfaces: [ext], addresses: [10.0.3.1, "fd00:3::1"], port: 53, protocol: udp}
    default_target: [{ip: 10.9.0.9, port: 53}, {ip: "fd09::9", port: 53}]
  - name: sticky
    balance: source
    listen: {interfaces: [cli, dmz], port: 90}
    default_target: [{ip: 10.9.0.4}, {ip: 10.9.0.5}, {ip: 10.9.0.6, port: 91}]
"""
TESTS = """\
tests:
  - {from: 20.1.2.3, to: "10.0.1.1:80", expect: {action: deny}}
  - {from: 20.2.2.3, to: "10.0.1.1:80", interface: cli, expect: {target: "10.9.0.3:8080"}}
  - {from: 20.2.2.3, to: "10.0.3.1:53", protocol: udp, expect: {proxy: names}}
  - {from: 20.2.2.3, to: "10.0.3.1:54", protocol: udp, expect: {action: pass}}
  - {from: "2001:db8::5", to: "[fd00:1::1]:80", expect: {target: "[fd09::1]:8080"}}
"""
BASE = HEAD.format(mode="native", fast="true") + PROXIES


@pytest.fixture
def host() -> Iterator[ProxyHost]:
    with ProxyHost() as made:
        yield made
        with made.engine() as engine:
            engine.down()
        assert not made.places.bpffs_dir.exists()


def commit(engine: Engine, text: str) -> None:
    engine.commit(engine.view(parse_sources({"all.yaml": text.encode()})))


# -- tests of the files ------------------------------------------------------------------------------------------


def test_tests_that_hold_let_the_change_through(host: ProxyHost) -> None:
    with host.engine() as engine:
        commit(engine, BASE + TESTS)
        assert engine.observe().revision.number == 1


@pytest.mark.parametrize(
    ("was", "line", "expected", "actual"),
    [
        ("expect: {action: deny}", 20, "proxy web", "deny (proxy web, 20.1.0.0/16)"),
        ('target: "10.9.0.3:8080"', 21, "target 10.9.0.1:8080", "target 10.9.0.3:8080 (proxy web, 20.0.0.0/8)"),
        ("proxy: names", 22, "deny", "target 10.9.0.9:53 (proxy names, default_target)"),
        ('to: "10.0.3.1:54"', 23, "pass", "target 10.9.0.9:53 (proxy names, default_target)"),
    ],
)
def test_a_test_that_does_not_hold_stops_the_change(
    host: ProxyHost, was: str, line: int, expected: str, actual: str
) -> None:
    wanted = {
        "proxy web": "expect: {proxy: web}",
        "target 10.9.0.1:8080": 'target: "10.9.0.1:8080"',
        "deny": "action: deny",
        "pass": 'to: "10.0.3.1:53"',
    }[expected]
    with host.engine() as engine:
        commit(engine, BASE + TESTS)
    before = host.snapshot()
    assert was in TESTS
    other = BASE.replace("weight: 2", "weight: 3") + TESTS.replace(was, wanted)
    with host.engine() as engine, pytest.raises(ConfigError) as caught:
        commit(engine, other)
    (problem,) = caught.value.problems
    assert (problem.file, problem.line, problem.column) == ("all.yaml", line, 5)
    assert f"expected {expected}, got {actual}; rolled back" in problem.message
    assert host.snapshot() == before


def test_a_new_test_that_does_not_hold_is_told_of_without_any_other_change(host: ProxyHost) -> None:
    with host.engine() as engine:
        commit(engine, BASE)
        before = host.snapshot()
        with pytest.raises(ConfigError, match=r"all\.yaml:21:5: the test fails"):
            commit(engine, BASE + TESTS.replace("10.9.0.3", "10.9.0.1"))
        assert host.snapshot() == before
        commit(engine, BASE + TESTS)


def test_what_is_drained_fails_no_test_of_another_change(host: ProxyHost) -> None:
    with host.engine() as engine:
        commit(engine, BASE + TESTS)
        engine.drain("10.9.0.3:8080")  # the only one of its route
        engine.drain("10.9.0.9:53")
        commit(engine, BASE.replace("weight: 2", "weight: 3") + TESTS)
        assert engine.observe().revision.number == 2
        for right, wrong in (
            ("proxy: names", "action: deny"),
            ("action: deny", "proxy: web"),
            ("10.0.3.1:54", "10.0.3.1:53"),
        ):
            with pytest.raises(ConfigError, match="the test fails"):
                commit(engine, BASE + TESTS.replace(right, wrong))
        assert engine.observe().revision.number == 2


def test_a_first_commit_whose_test_fails_leaves_nothing(host: ProxyHost) -> None:
    with host.engine() as engine:
        with pytest.raises(ConfigError, match=r"all\.yaml:21:5: the test fails"):
            commit(engine, BASE + TESTS.replace("10.9.0.3", "10.9.0.1"))
        assert not engine.observe().exists
    assert not list(host.places.bpffs_dir.rglob("probe"))


# -- a stage that is not what it should be -----------------------------------------------------------------------


class Corrupting(Gateway):
    """Lets something go wrong in a map just after a commit has written to it, as a mistake of ours would."""

    def __init__(self, directory: Path, name: str, damage: Callable[[Maps], None]) -> None:
        self.directory, self.subject, self.damage = directory, f"map {name}", damage
        self.done = False

    def call(self, operation: str, subject: str, function: Callable[[], T]) -> T:
        result = super().call(operation, subject, function)
        if subject == self.subject and operation.startswith("update"):
            maps = Maps(self.directory, Gateway())
            maps.open()
            self.damage(maps)
            maps.close()
            self.done = True
        return result


def other_address(maps: Maps) -> None:
    """Of the target 10.9.0.7."""
    keys, values = maps["target"].items()
    chosen = np.flatnonzero((values["addr_be"][:, :4] == [10, 9, 0, 7]).all(axis=1))
    values["addr_be"][chosen, 3] = 8
    maps["target"].put_many(keys[chosen], values[chosen])


def denied_passes(maps: Maps) -> None:
    """The standby slot of the route 20.7.0.0/16 leads to the default."""
    keys, values = maps["route4"].items()
    chosen = np.flatnonzero((keys["addr_be"] == [20, 7, 0, 0]).all(axis=1))
    values["slot"]["dest"][chosen] = 0
    maps["route4"].put_many(keys[chosen], values[chosen])


def another_proxys(maps: Maps) -> None:
    """The listener on port 82 is the proxy of the one on port 80."""
    keys, values = maps["listener4"].items()
    first = values["proxy"][keys["port_be"] == 80].max()
    values["proxy"][keys["port_be"] == 82, :] = first
    maps["listener4"].put_many(keys, values)


def another_mode(maps: Maps) -> None:
    """The standby slots of all proxies say full NAT."""
    keys, values = maps["proxy"].items()
    values["slot"]["mode"][(values["slot"]["flags"] & layout.CONSTANTS["PROXY_PRESENT"]) != 0] ^= 1
    maps["proxy"].put_many(keys, values)


DAMAGE: dict[str, tuple[Callable[[Maps], None], str, str]] = {
    "target": (
        other_address,
        BASE.replace("{ip: 10.9.0.2, port: 8080}", "{ip: 10.9.0.7, port: 8080}"),
        "expected target 10.9.0.1:8080 or 10.9.0.7:8080",
    ),
    "route4": (
        denied_passes,
        BASE.replace("source_routes:\n", "source_routes:\n      - {source: 20.7.0.0/16, action: deny}\n"),
        "expected deny",
    ),
    "listener4": (
        another_proxys,
        BASE
        + "  - name: late\n    listen: {interfaces: [dmz], port: 82}\n    default_target: {ip: 10.9.0.1, port: 8080}\n",
        "(proxy late)",
    ),
    "proxy": (another_mode, BASE.replace("weight: 2", "weight: 3"), "expected target"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_corrupted_stage_is_found_and_rolled_back(host: ProxyHost, name: str) -> None:
    damage, after, expected = DAMAGE[name]
    with host.engine() as engine:
        commit(engine, BASE)
    before = host.snapshot()
    root = host.places.bpffs_dir
    gateway = Corrupting(root, name, damage)
    with host.engine(gateway) as engine, pytest.raises(TransactionError) as caught:
        commit(engine, after)
    assert gateway.done
    cause = caught.value.cause
    assert isinstance(cause, ProbeError), caught.value
    assert expected in str(cause)
    if name != "proxy":  # there, proxies that the commit does not touch were damaged too
        assert caught.value.rolled_back
        assert host.snapshot() == before
    with host.engine() as engine:
        engine.recover(engine.observe())
        commit(engine, after)


def test_a_target_that_loses_its_route_meanwhile_holds_no_change_up(host: ProxyHost) -> None:
    """Of this host's address towards it the commit lets go last."""
    target = ("names", Endpoint(ip_address("10.9.0.9"), 53))
    with host.engine() as engine:
        commit(engine, BASE)
        assert target in engine.observe().state.sources
        host.ip("route add unreachable 10.9.0.9/32")
        commit(engine, BASE.replace("port: 53, protocol: udp", "port: 54, protocol: udp"))
        assert target not in engine.observe().state.sources


def test_of_a_large_change_samples_are_tried(host: ProxyHost, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[probing.Verification] = []

    class Watched(probing.Verification):
        def __call__(self, slot: int) -> None:
            made.append(self)
            super().__call__(slot)

    monkeypatch.setattr(probing, "Verification", Watched)
    routes = "".join(
        f"      - {{source: 30.{n // 256}.{n % 256}.0/24, target: {{ip: 10.9.0.3}}}}\n" for n in range(3000)
    )
    with host.engine() as engine:
        commit(engine, BASE)
        commit(engine, BASE.replace("source_routes:\n", f"source_routes:\n{routes}"))
        commit(
            engine, BASE.replace("source_routes:\n", f"source_routes:\n{routes}").replace("30.0.7.0/24", "30.0.7.0/25")
        )
    first, large, small = made
    assert first.tried == first.trials > 5
    assert large.trials == probing.MAX_PACKETS
    assert 300 < large.packets <= probing.MAX_PACKETS
    assert small.tried == small.trials == 2
    assert small.packets <= 4


# -- explain -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["native", "off"])
@pytest.mark.parametrize("fast", ["true", "false"])
def test_explain_says_what_the_model_and_the_attached_programs_say(host: ProxyHost, mode: str, fast: str) -> None:
    chance = random.Random(7)
    with host.engine() as engine:
        commit(engine, HEAD.format(mode=mode, fast=fast) + PROXIES)
        state = engine.observe().state
        for number in range(60):
            version = chance.choice((4, 4, 6))
            sources = (
                ("20.0.0.1", "20.1.2.3", "30.3.3.3", "127.0.0.1") if version == 4 else ("2001:db8:1::1", "2001:db9::1")
            )
            interface = chance.choice(("cli", "ext", "dmz"))
            packet = Packet(
                interface,
                ip_address(chance.choice(sources)),
                address(interface, version),
                3000 + number,
                chance.choice((80, 90, 53, 81)),
                chance.choice(tuple(Protocol)),
            )
            said = engine.explain(
                str(Endpoint(packet.src, packet.sport)),
                str(Endpoint(packet.dst, packet.dport)),
                protocol=str(packet.protocol),
                interface=interface,
            )
            ends = (packet.src, packet.dst, packet.protocol, packet.dport, packet.sport)
            model = decide(state, host.ifindex[interface], *ends)
            if packet.src.is_loopback:
                assert said.verdict == "pass", (packet, said)
                continue
            kind = "forward" if said.target else said.verdict
            assert (kind, said.proxy) == (model.kind, model.proxy), (packet, said)
            if model.kind != "pass":
                assert said.rule == (str(model.rule) if model.rule else "default_target"), (packet, said)
            real = host.decisions((packet,))[0]
            assert kind == real.kind, (packet, said, real)
            assert said.target == (str(real.target) if real.target else None), (packet, said)
            if real.by:
                assert said.program == f"{real.by}_ingress", (packet, said)
            if real.kind == "forward":
                # From now on it is a connection, and goes where that goes.
                again = engine.explain(
                    str(Endpoint(packet.src, packet.sport)),
                    str(Endpoint(packet.dst, packet.dport)),
                    protocol=str(packet.protocol),
                    interface=interface,
                )
                assert (again.rule, again.target, again.proxy) == ("connection", said.target, said.proxy)


def test_nothing_asked_leaves_a_trace(host: ProxyHost) -> None:
    (host.places.config_dir).mkdir(parents=True)
    (host.places.config_dir / "all.yaml").write_text(BASE + TESTS)
    with host.engine() as engine:
        engine.apply()
        before = host.snapshot()
        for source in ("20.0.0.1:77", "20.1.0.1", "30.0.0.1"):
            engine.explain(source, "10.0.1.1:80")
        tested = engine.test()
        assert (tested.failed, len(tested.tests)) == (0, 5)
        assert host.snapshot() == before
        assert engine.stats().opened == 0
        assert not any(engine.stats().drops.values())


# -- its programs ------------------------------------------------------------------------------------------------


def probe_pins(host: ProxyHost) -> list[str]:
    return sorted(path.name for path in host.places.bpffs_dir.glob("*/probe/*"))


def test_every_map_is_either_the_probes_own_or_only_read() -> None:
    """A new map has to be put into one of the two, or programs don't use it."""
    unused = {"group_member", "proxy_name", "blob", "revision", "sysctl", "retired_stats"}
    assert {*OWN, *SHARED, *unused} == set(layout.MAPS)
    assert not OWN & SHARED


def test_programs_of_the_probe_are_loaded_once(host: ProxyHost) -> None:
    with host.engine() as engine:
        commit(engine, BASE)
    pins = probe_pins(host)
    assert any("_tc4" in each or "_xdp4" in each for each in pins)
    gateway = FaultGateway()
    with host.engine(gateway) as engine:
        commit(engine, BASE.replace("weight: 2", "weight: 3"))
    assert probe_pins(host) == pins
    assert not [call for call in gateway.calls if call[0] in ("load", "pin")]


def test_a_probe_for_maps_that_are_gone_is_made_anew(host: ProxyHost) -> None:
    served = HEAD.format(mode="off", fast="true") + PROXIES
    with host.engine() as engine:
        commit(engine, served)
    for pin in (*host.places.bpffs_dir.glob("*/maps/*"), *host.places.bpffs_dir.glob("*/progs/current")):
        pin.unlink()
    for directory in host.places.bpffs_dir.glob("*/progs/*"):
        shutil.rmtree(directory)
    with host.engine() as engine:
        commit(engine, served.replace("weight: 2", "weight: 3") + TESTS)
        (host.places.config_dir).mkdir(parents=True)
        (host.places.config_dir / "all.yaml").write_text(served + TESTS)
        assert engine.test().failed == 0


def test_what_is_left_of_a_probe_goes(host: ProxyHost) -> None:
    with host.engine() as engine:
        commit(engine, BASE)
        root = next(host.places.bpffs_dir.glob("*/probe"))
        (root / "fresh").mkdir()
        (root / "0123456789abcdef_tc4").mkdir()
        assert engine.observe().unfinished
        engine.recover(engine.observe())
        assert not engine.observe().unfinished
        assert not (root / "fresh").exists()
        assert not (root / "0123456789abcdef_tc4").exists()
        assert probe_pins(host)


def test_a_pin_that_fails_costs_nothing_but_time(host: ProxyHost) -> None:
    recording = FaultGateway()
    with host.engine(recording) as engine:
        commit(engine, BASE)
        engine.down()
    renames = [n for n, (what, where) in enumerate(recording.calls, 1) if what == "rename" and "/probe/" in where]
    assert renames
    with host.engine(FaultGateway(fail_at=renames[0])) as engine:
        commit(engine, BASE)
    with host.engine() as engine:
        assert not engine.observe().unfinished
        commit(engine, BASE.replace("weight: 2", "weight: 3") + TESTS)
    assert probe_pins(host)


def test_where_nothing_is_loaded_nothing_can_be_tried(host: ProxyHost) -> None:
    (host.places.config_dir).mkdir(parents=True)
    (host.places.config_dir / "all.yaml").write_text(BASE + TESTS)
    with host.engine() as engine:
        assert engine.explain("20.0.0.1", "10.0.1.1:80").verdict == "pass"
        with pytest.raises(Exception, match="nothing of this instance is in the kernel"):
            engine.test()


def test_a_kernel_that_refuses_the_probe_stops_the_commit(host: ProxyHost) -> None:
    recording = FaultGateway()
    with host.engine(recording) as engine:
        commit(engine, BASE)
        engine.down()
    loads = [number for number, (what, _) in enumerate(recording.calls, 1) if what == "load"]
    with host.engine(FaultGateway(fail_at=loads[-1])) as engine:
        with pytest.raises(TransactionError) as caught:
            commit(engine, BASE)
        assert isinstance(caught.value.cause, KernelError)
        assert caught.value.rolled_back
        assert not engine.observe().exists
