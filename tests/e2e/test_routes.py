"""Ways out that change under traffic, on the wire: gateways, neighbours, links. With a daemon and without.

client ---- eth0 proxy eth1 ---- eth0 backends        the target's address belongs to neither network,
                      eth5 ---- eth5                  and both links lead to it
"""

from __future__ import annotations

import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import netlab
from netlab import HTTP_PORT, TCP_PORT, UDP_PORT, Lab, wait_for
from netlab.clients import connect
from tests.e2e.instance import Instance, web

TARGET = {4: "10.93.0.1", 6: "fd93::1"}
FIRST, SECOND = {4: "10.90.2.11", 6: "fd90:2::11"}, {4: "10.92.0.2", 6: "fd92::2"}  # the gateways to it
BACK_FIRST, BACK_SECOND = {4: "10.90.2.1", 6: "fd90:2::1"}, {4: "10.92.0.1", 6: "fd92::1"}
MODES = {"dnat": 7, "fullnat": 107}
# A way is remembered for a second; the rest is for a busy machine.
LIMIT_SEC = 1.5
INTERVAL_SEC = 0.01


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(backends=1, offload=False, xdp_peers=True, servers=False) as lab:
        backend = lab.backends[0].namespace
        lab.proxy.ip(
            f"link add eth5 type veth peer name eth5 netns {backend.name}",
            f"address add {BACK_SECOND[4]}/24 dev eth5",
            f"address add {BACK_SECOND[6]}/64 dev eth5 nodad",
            "link set eth5 up",
        )
        backend.run("ethtool", "-K", "eth5", "tx", "off", "rx", "off", "gro", "on")
        # Without this a route goes on leading to a link whose other end is down.
        backend.write_sysctls({f"net/ipv{version}/conf/all/ignore_routes_with_linkdown": "1" for version in (4, 6)})
        backend.ip(
            *(f"address add {TARGET[version]} dev lo" + " nodad" * (version == 6) for version in (4, 6)),
            f"address add {SECOND[4]}/24 dev eth5",
            f"address add {SECOND[6]}/64 dev eth5 nodad",
            "link set eth5 up",
            *(f"route add default via {BACK_SECOND[version]} metric 2048" for version in (4, 6)),
        )
        # What each link leads to, the second one only if there is no first.
        lab.proxy.ip(
            *(f"route add {TARGET[version]} via {FIRST[version]} metric 100" for version in (4, 6)),
            *(f"route add {TARGET[version]} via {SECOND[version]} metric 200" for version in (4, 6)),
        )
        servers = Path(netlab.__file__).with_name("servers.py")
        at = ",".join((*TARGET.values(), *SECOND.values()))
        ports = [str(word) for word in ("--http", HTTP_PORT, "--tcp", TCP_PORT, "--udp", UDP_PORT)]
        lab.spawn(backend, sys.executable, servers, "--at", f"far={at}", *ports).wait_output("ready")
        yield lab


def config() -> str:
    """Both modes, TCP and UDP; and somebody who is reached by the second link, so that it is served too."""
    lines = ["apiVersion: revproxy/v1", "settings: {xdp_mode: native}", "proxies:"]
    for mode, port in MODES.items():
        for protocol, target in (("tcp", TCP_PORT), ("udp", UDP_PORT)):
            for name, at, ips in (("moving", port, TARGET), ("other", port + 1, SECOND)):
                targets = ", ".join(f'{{ip: "{ip}", port: {target}}}' for ip in ips.values())
                lines += [
                    f"  - name: {name}-{protocol}-{mode}",
                    f"    mode: {mode}",
                    f"    listen: {{interfaces: [eth0], port: {at}, protocol: {protocol}}}",
                    f"    default_target: [{targets}]",
                ]
    return "\n".join(lines) + "\n"


class Traffic:
    """Datagrams and a stream through one proxy, all the time while the block runs."""

    def __init__(self, lab: Lab, version: int, mode: str) -> None:
        listen = (lab.proxy4 if version == 4 else lab.proxy6, MODES[mode])
        self.name = f"IPv{version} {mode}"
        self.datagrams = connect(lab.client, listen, kind=socket.SOCK_DGRAM)
        self.stream = connect(lab.client, listen, timeout_sec=40)
        self.sent: dict[int, float] = {}
        self.answered: set[int] = set()
        self.failures: list[BaseException] = []
        self.rounds = 0
        self.ending = threading.Event()
        self.threads = [threading.Thread(target=self._watch, args=(do,)) for do in (self._ask, self._stream)]

    def _watch(self, do: Callable[[], None]) -> None:
        try:
            while not self.ending.is_set():
                do()
        except BaseException as error:
            self.failures.append(error)

    def _ask(self) -> None:
        number = len(self.sent)
        self.sent[number] = time.monotonic()
        self.datagrams.send(b"%d" % number)
        until = self.sent[number] + INTERVAL_SEC
        while (left := until - time.monotonic()) > 0:
            if select.select([self.datagrams], [], [], left)[0]:
                self.answered.add(int(self.datagrams.recv(200).rpartition(b" ")[2]))

    def _stream(self) -> None:
        self.stream.sendall(said := b"%d;" % self.rounds * 200)
        heard = b""
        while len(heard) < len(said):
            chunk = self.stream.recv(len(said) - len(heard))
            assert chunk, "the stream has ended"
            heard += chunk
        assert heard == said
        self.rounds += 1
        time.sleep(INTERVAL_SEC)

    def __enter__(self) -> Traffic:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        for thread in self.threads:
            thread.join()
        self.datagrams.close()
        self.stream.close()

    def flows(self, number: int = 20, timeout_sec: float = 10) -> None:
        """Wait until so many datagrams sent from now on have been answered, and the stream has moved."""
        start, rounds = len(self.sent), self.rounds

        def moved() -> bool:
            answered = sum(each >= start for each in list(self.answered))
            return bool(self.failures) or (answered >= number and self.rounds > rounds)

        wait_for(moved, f"{self.name}: traffic", timeout_sec=timeout_sec)
        assert not self.failures, f"{self.name}: {self.failures}"

    def silence(self, since: float) -> float:
        """How long after that moment the last datagram was sent that got no answer, seconds. Those on their way now
        do not count."""
        end = max((self.sent[number] for number in self.answered), default=0.0)
        sent = [(number, at) for number, at in list(self.sent.items()) if since < at < end]
        return max((at - since for number, at in sent if number not in self.answered), default=0.0)


# -- what changes


def other_gateway(lab: Lab) -> None:
    """By the second link from now on; the answers go on coming by the first."""
    for version in (4, 6):
        lab.proxy.ip(f"route del {TARGET[version]} via {FIRST[version]} metric 100")


def other_neighbour(lab: Lab) -> None:
    """The gateway's hardware address is another."""
    mac = "02:00:00:00:99:99"
    lab.backends[0].namespace.ip(f"link set eth0 address {mac}")
    lab.proxy.ip(*(f"neigh replace {FIRST[version]} lladdr {mac} dev eth1 nud reachable" for version in (4, 6)))


def link_down(lab: Lab) -> None:
    """The first link, both ways."""
    lab.proxy.ip("link set eth1 down")


@pytest.mark.parametrize("daemon", [False, True], ids=["alone", "with-daemon"])
@pytest.mark.parametrize("change", [other_gateway, other_neighbour, link_down])
def test_traffic_follows_the_new_way_within_a_second(lab: Lab, change: Callable[[Lab], None], daemon: bool) -> None:
    with Instance(lab) as instance:
        instance.apply(config())
        if daemon:
            instance.start_daemon()
        with ExitStack() as ending:
            flows = [ending.enter_context(Traffic(lab, version, mode)) for version in (4, 6) for mode in MODES]
            for each in flows:
                each.flows()
            moment, before = time.monotonic(), lab.proxy.counters("eth5")["tx_packets"]
            change(lab)
            for each in flows:
                each.flows()
            if change is not other_neighbour:
                flows[0].flows(int(LIMIT_SEC / INTERVAL_SEC))  # an old way would be forgotten by now
                assert lab.proxy.counters("eth5")["tx_packets"] > before + 100, "not by the new way"
            silent = {each.name: each.silence(moment) for each in flows}
            assert max(silent.values()) < LIMIT_SEC, silent
        if daemon:
            instance.wait_synced()
        assert lab.checksum_errors() == {}


def test_a_machine_that_took_over_an_address_without_a_word_is_found(lab: Lab) -> None:
    """The kernel asks whether a neighbour is still there as long as it sees that it is in use."""
    mac, backend = "02:00:00:00:99:98", lab.backends[0].namespace
    quickly = {"base_reachable_time_ms": "1000", "delay_first_probe_time": "1", "retrans_time_ms": "200"}
    proxy = lab.proxy.ip_json("link", "show", "dev", "eth1")[0]["address"]
    for version in (4, 6):
        lab.proxy.write_sysctls({f"net/ipv{version}/neigh/eth1/{name}": value for name, value in quickly.items()})
        # It asks nobody for anything, which would tell of it.
        backend.ip(f"neigh replace {BACK_FIRST[version]} lladdr {proxy} dev eth0 nud permanent")
    with Instance(lab) as instance, ExitStack() as ending:
        instance.apply(config())
        flows = [ending.enter_context(Traffic(lab, version, "dnat")) for version in (4, 6)]
        for each in flows:
            each.flows()
        backend.ip(f"link set eth0 address {mac}")
        for each in flows:
            each.flows(timeout_sec=40)
        for version in (4, 6):
            (known,) = lab.proxy.ip_json("neigh", "show", FIRST[version], "dev", "eth1")
            assert known["lladdr"] == mac


CONNECTIONS = 16


def test_answers_come_by_every_next_hop(lab: Lab) -> None:
    """A route with several next hops: each connection goes by the one that its hash fell on, answers by either."""
    backend = lab.backends[0].namespace
    for namespace in (lab.proxy, backend):
        namespace.write_sysctls({f"net/ipv{version}/fib_multipath_hash_policy": "1" for version in (4, 6)})
    for version in (4, 6):
        for metric, gateway in ((100, FIRST), (200, SECOND)):
            lab.proxy.ip(f"route del {TARGET[version]} via {gateway[version]} metric {metric}")
        lab.proxy.ip(f"route add {TARGET[version]} nexthop via {FIRST[version]} nexthop via {SECOND[version]}")
        backend.ip(
            f"route del default via {BACK_FIRST[version]}",
            f"route add default nexthop via {BACK_FIRST[version]} nexthop via {BACK_SECOND[version]}",
        )
    with Instance(lab) as instance:
        for at, listen in ((TARGET[4], lab.proxy4), (f"[{TARGET[6]}]", lab.proxy6)):
            instance.apply(web(f"{at}:{TCP_PORT}", port=7))
            attached = {each["name"] for each in instance.json("interfaces") if each["attached"]}
            assert attached == {"eth0", "eth1", "eth5"}
            before = [lab.proxy.counters(interface)["rx_packets"] for interface in ("eth1", "eth5")]
            for _ in range(CONNECTIONS):
                with connect(lab.client, (listen, 7), timeout_sec=3) as stream:
                    stream.sendall(b"hello")
                    assert stream.recv(5) == b"hello"
            after = [lab.proxy.counters(interface)["rx_packets"] for interface in ("eth1", "eth5")]
            assert min(now - then for now, then in zip(after, before, strict=True)) > 0, "by one of them alone"
