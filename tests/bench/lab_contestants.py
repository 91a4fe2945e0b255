"""What is compared in the lab: each contestant forwards in a lab of its own, so that taking turns costs no time.

Every one says by counters of its own which way packets took: :meth:`Contestant.check` fails a measurement that took
another way than the one it is named after.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from netlab import UDP_PORT, Lab, wait_for
from reconciler.kernel import layout
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.maps import Maps
from tests.bench import lab_programs
from tests.bench.lab_tools import Tools
from tests.bench.lab_traffic import CLIENT_NET, FIRST, attach_xdp
from tests.e2e.instance import Instance

CONGESTION_CONTROL = "reno"
"""Everywhere: the one that every network namespace has."""

LISTEN_UDP, LISTEN_WEB, LISTEN_BULK = 7, 80, 81
WEB_PORT, BULK_PORT = 8080, 8081
TABLE = 262_144  # connections, as many as conntrack has by default
_OUTCOMES = layout.OUTCOMES
_ALL_PORTS = "source_ports: {first: 1024, last: 65535}"  # as the others have


def build_lab(offload: bool) -> Lab:
    """A lab whose proxy host forwards and knows its neighbours. ``offload``: with checksum and segmentation offload at
    the ends, as containers have; without, as from a wire."""
    lab = Lab(offload=offload, xdp_peers=not offload, servers=False).open()
    lab.set_forwarding(True)
    for namespace in lab.namespaces:
        namespace.write_sysctls(
            {
                "net/ipv4/tcp_congestion_control": CONGESTION_CONTROL,
                "net/ipv4/ip_local_port_range": "1024 65535",
                "net/ipv4/tcp_max_syn_backlog": "4096",
            }
        )
    if not offload:
        for interface in lab.proxy_interfaces:  # as network cards have it; on veth, frames sent by XDP need it
            lab.proxy.run("ethtool", "-K", interface, "gro", "on")
    macs = [n.ip_json("link", "show", "dev", "eth0")[0]["address"] for n in (lab.client, lab.backends[0].namespace)]
    lab.proxy.ip(
        f"route add {CLIENT_NET}/16 via {lab.client4}",
        f"neigh replace {lab.client4} lladdr {macs[0]} dev eth0 nud permanent",
        *(f"neigh replace {b.ip4} lladdr {macs[1]} dev {b.proxy_interface} nud permanent" for b in lab.backends),
    )
    return lab


class Contestant:
    """One way to forward, in ``lab``. Use with ``with``, after the lab was opened."""

    name = ""
    title = ""
    udp = True
    all_new = True

    def __init__(self, lab: Lab, tools: Tools) -> None:
        self.lab, self.tools = lab, tools
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Contestant:
        try:
            self.start()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def start(self) -> None:
        """Set it up."""

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        return []

    def address(self, listen: int, port: int) -> tuple[str, int]:
        """Where clients send to, given the listener's port and the backends'."""
        del port
        return str(self.lab.proxy4), listen

    def counters(self) -> dict[str, int]:
        """What it has done so far."""
        return {"forwarded by the stack": self.lab.proxy.call(_forwarded)}

    def check(self, done: dict[str, int], packets: int) -> None:
        """AssertionError if ``packets`` (at least) did not go the way this is about. ``done``: what the counters have
        moved by."""
        raise NotImplementedError

    def _stack_forwards_nothing(self, done: dict[str, int], packets: int) -> None:
        stack = done["forwarded by the stack"]
        assert stack <= packets // 100 + 10, f"{self.name}: {packets} packets, of which the stack forwarded {stack}"


def _forwarded() -> int:
    names, numbers = (
        line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines() if line.startswith("Ip:")
    )
    return int(numbers[names.index("ForwDatagrams")])


class Forwarding(Contestant):
    """The kernel as a router, straight to a backend."""

    name, title = "forwarding", "plain forwarding"

    def address(self, listen: int, port: int) -> tuple[str, int]:
        del listen
        return str(self.lab.backends[0].ip4), port

    def check(self, done: dict[str, int], packets: int) -> None:
        stack = done["forwarded by the stack"]
        assert stack >= packets * 0.999, f"{self.name}: {packets} packets, of which the stack forwarded {stack}"


class Nftables(Contestant):
    """DNAT by a map of three targets, in turns."""

    name, title = "nftables", "nftables DNAT"

    def start(self) -> None:
        rules = "\n".join(
            f"{protocol} dport {listen} dnat to numgen inc mod {len(self.lab.backends)} map {{ "
            + ", ".join(f"{number} : {backend.ip4}" for number, backend in enumerate(self.lab.backends))
            + f" }} : {port}"
            for protocol, listen, port in _services()
        )
        chain = f"chain prerouting {{\ntype nat hook prerouting priority dstnat\n{rules}\n}}"
        self.lab.proxy.run(
            self.tools.paths["nft"], "-f", "-", stdin=f"table ip bench {{\n{chain}\n}}\n", env=self.tools.environment
        )

    def check(self, done: dict[str, int], packets: int) -> None:
        stack = done["forwarded by the stack"]
        assert stack >= packets * 0.999, f"{self.name}: {packets} packets, of which the stack forwarded {stack}"
        assert int(self.lab.proxy.read_sysctl("net/netfilter/nf_conntrack_count")), "nftables: no connection tracked"


def _services() -> tuple[tuple[str, int, int], ...]:
    return (("udp", LISTEN_UDP, UDP_PORT), ("tcp", LISTEN_WEB, WEB_PORT), ("tcp", LISTEN_BULK, BULK_PORT))


class BareRedirect(Forwarding):
    """The least that forwarding by XDP can be: see :func:`lab_programs.bare_redirect`."""

    name, title = "bare", "bare XDP FIB redirect"

    def start(self) -> None:
        fd = lab_programs.bare_redirect()
        self._undo.callback(os.close, fd)
        for interface in self.lab.proxy_interfaces:
            attach_xdp(self.lab.proxy, interface, fd)

    def check(self, done: dict[str, int], packets: int) -> None:
        self._stack_forwards_nothing(done, packets)


class _UserSpace(Contestant):
    all_new = False

    def check(self, done: dict[str, int], packets: int) -> None:
        assert self._process.status is None, f"{self.name} ended: {self._process.output()}"
        self._stack_forwards_nothing(done, packets)

    def _spawn(self, listening: Callable[[], bool], *argv: str | Path) -> None:
        self._process = self.lab.spawn(self.lab.proxy, *FIRST, *argv, env=self.tools.environment)
        wait_for(lambda: self._process.status is not None or listening(), f"{self.name} listening")
        assert self._process.status is None, f"{self.name} ended: {self._process.output()}"

    def _listens(self) -> bool:
        return f":{LISTEN_BULK}" in self.lab.proxy.run("ss", "-Hltn").stdout

    @property
    def pids(self) -> list[int]:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return [self._process.pid, *map(int, children)]


class Haproxy(_UserSpace):
    """TCP mode, a thread for each CPU."""

    name, title, udp = "haproxy", "HAProxy (TCP mode)", False

    def start(self) -> None:
        sections = [
            f"listen port{listen}\n  bind {self.lab.proxy4}:{listen} backlog 4096\n"
            + "".join(f"  server {backend.name} {backend.ip4}:{port}\n" for backend in self.lab.backends)
            for protocol, listen, port in _services()
            if protocol == "tcp"
        ]
        defaults = "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
        path = self.lab.directory / "haproxy.cfg"
        threads = len(os.sched_getaffinity(0))
        path.write_text(f"global\n  maxconn 2000\n  nbthread {threads}\n{defaults}" + "".join(sections))
        self._spawn(self._listens, self.tools.paths["haproxy"], "-db", "-f", path)


class NginxStream(_UserSpace):
    """The stream module, a worker for each CPU."""

    name, title = "nginx", "nginx stream"

    def start(self) -> None:
        servers = []
        for protocol, listen, port in _services():
            name = f"{protocol}{listen}"
            upstream = " ".join(f"server {backend.ip4}:{port};" for backend in self.lab.backends)
            how = "udp reuseport" if protocol == "udp" else "reuseport backlog=4096"
            servers.append(f"upstream {name} {{ {upstream} }}")
            servers.append(f"server {{ listen {self.lab.proxy4}:{listen} {how}; proxy_pass {name}; }}")
        stream = "stream {\naccess_log off;\n" + "\n".join(servers) + "\n}\n"
        self._spawn(self._listens, *nginx_command(self.lab, self.tools, "stream", stream, len(os.sched_getaffinity(0))))


def nginx_command(lab: Lab, tools: Tools, name: str, body: str, workers: int) -> list[str | Path]:
    """An nginx in the foreground with all its files in the lab's directory."""
    path = lab.directory / f"nginx-{name}.conf"
    module = f"load_module {tools.paths['ngx_stream_module.so']};\n" if name == "stream" else ""
    path.write_text(
        f"{module}daemon off;\nuser root;\npid {path}.pid;\nerror_log stderr warn;\nworker_processes {workers};\n"
        f"events {{ worker_connections 4096; }}\nworker_rlimit_nofile 10000;\n{body}"
    )
    return [tools.paths["nginx"], "-e", "stderr", "-p", lab.directory, "-c", path]


class Revproxy(Contestant):
    """revproxy; the subclasses say which way and mode."""

    settings, mode, outcome = "", "dnat", ""

    def start(self) -> None:
        self.instance = self._undo.enter_context(_StandingInstance(self.lab))
        proxies = "".join(
            f"  - name: {protocol}{listen}\n    mode: {self.mode}\n"
            f"    listen: {{interfaces: [eth0], port: {listen}, protocol: {protocol}}}\n    default_target:\n"
            + "".join(f"      - {{ip: {backend.ip4}, port: {port}}}\n" for backend in self.lab.backends)
            for protocol, listen, port in _services()
        )
        settings = f"{{{self.settings}, max_connections: {TABLE}}}"
        self.instance.apply(f"apiVersion: revproxy/v1\nsettings: {settings}\nproxies:\n{proxies}")
        self._maps = Maps(self.instance.bpffs_dir, Gateway())
        self._maps.open()
        self._undo.callback(self._maps.close)

    def counters(self) -> dict[str, int]:
        sums = self._maps["outcome"].sums()
        return super().counters() | {name: int(sums[number]) for number, name in enumerate(_OUTCOMES)}

    def check(self, done: dict[str, int], packets: int) -> None:
        # One finished checksum in 65536 looks unfinished to XDP, and such a packet is TC's.
        assert done[self.outcome] >= packets * 0.999, f"{self.name}: {packets} packets, and counted: {done}"
        others = sum(done[name] for name in _OUTCOMES if name not in (self.outcome, "reclaimed"))
        assert others <= done[self.outcome] // 100 + 10, f"{self.name}: {packets} packets, and counted: {done}"
        self._stack_forwards_nothing(done, packets)


class _StandingInstance(Instance):
    """One in a lab that forwards by itself, which is not what an instance leaves behind."""

    def __exit__(self, *_: object) -> None:
        self.ctl("down")


class RevproxyXdp(Revproxy):
    """Native XDP both ways."""

    name, title, settings, outcome = "xdp", "revproxy (XDP)", "xdp_mode: native", "redirect_xdp"


class RevproxyTc(Revproxy):
    """TC both ways, past the stack."""

    name, title, settings, outcome = "tc", "revproxy (TC)", "xdp_mode: off", "redirect_tc"


class RevproxyFullnat(RevproxyXdp):
    """Full NAT in native XDP. It has fewer ports than the test of new flows has flows."""

    name, title, mode, all_new = "fullnat", "revproxy (XDP, fullnat)", "fullnat", False
    settings = f"{RevproxyXdp.settings}, {_ALL_PORTS}"


class RevproxyFullnatTc(RevproxyTc):
    """Full NAT in TC."""

    name, title, mode, all_new = "fullnat-tc", "revproxy (TC, fullnat)", "fullnat", False
    settings = f"{RevproxyTc.settings}, {_ALL_PORTS}"


def can_run(kind: type[Contestant], tools: Tools) -> bool:
    """Whether its programs are there."""
    needs = {"nftables": ("nft",), "haproxy": ("haproxy",), "nginx": ("nginx", "ngx_stream_module.so")}
    return tools.has(*needs.get(kind.name, ()))
