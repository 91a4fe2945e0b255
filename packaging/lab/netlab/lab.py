"""The lab: client, proxy host and backends, each in a network namespace of its own, joined by veth pairs.

    client eth0 ---- eth0 proxy eth1 ---- eth0 backends          one namespace with several backend addresses
                              or
    client eth0 ---- eth0 proxy eth1 ---- eth0 backend1          a namespace and a link for each backend
                                eth2 ---- eth0 backend2

Client and backends have their default route through the proxy host, which forwards nothing by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from types import TracebackType
from typing import Self

from netlab.namespace import Namespace, namespace_names
from netlab.process import Process
from netlab.wait import wait_for

IPAddress = IPv4Address | IPv6Address

HTTP_PORT, TCP_PORT, UDP_PORT = 8080, 7000, 7001
_SERVERS = Path(__file__).with_name("servers.py")
_numbers = itertools.count(1)
_PREFIX = "rplab"


@dataclass(frozen=True, slots=True)
class Backend:
    """One backend: its addresses, the namespace they are in, and the proxy's interface towards it."""

    name: str
    ip4: IPv4Address
    ip6: IPv6Address
    namespace: Namespace
    proxy_interface: str

    def ip(self, version: int) -> IPAddress:
        """Its IPv4 or IPv6 address."""
        return self.ip4 if version == 4 else self.ip6


class Lab:
    """Built by :meth:`open` or ``with``, taken down by :meth:`close`, with every process that was spawned.

    ``name``: what the namespaces' names start with, ``NAME-client`` and so on; without it, a name unique on this
    host. ``backends``: how many; ``separate``: each in a namespace and behind an interface of its own.
    ``offload`` False: client and backends compute and verify every checksum in software, segment every packet, and
    put none together, so that what is wrong on the wire is seen. ``xdp_peers``: client and backends take frames
    that the proxy host's XDP programs redirect to them (on veth the receiving side must poll, as it does with GRO on).
    ``servers``: start HTTP, TCP echo and UDP echo servers at all backend addresses (HTTP_PORT, TCP_PORT, UDP_PORT).
    ``directory``: where its logs go, instead of a temporary directory of its own.
    """

    def __init__(
        self,
        name: str = "",
        *,
        backends: int = 3,
        separate: bool = False,
        offload: bool = True,
        xdp_peers: bool = False,
        servers: bool = True,
        directory: Path | None = None,
    ) -> None:
        self.name = name or f"{_PREFIX}{os.getpid()}x{next(_numbers)}"
        self.offload, self.xdp_peers, self.separate = offload, xdp_peers, separate
        self.client = Namespace(f"{self.name}-client")
        self.proxy = Namespace(f"{self.name}-proxy")
        self.client4, self.client6 = IPv4Address("10.90.1.2"), IPv6Address("fd90:1::2")
        self.proxy4, self.proxy6 = IPv4Address("10.90.1.1"), IPv6Address("fd90:1::1")
        self.backends = tuple(self._backend(number) for number in range(1, backends + 1))
        self.processes: list[Process] = []
        self._with_servers = servers
        self._directory, self._own_directory = directory, directory is None
        self._settings: dict[str, str] = {}

    def _backend(self, number: int) -> Backend:
        """Backend ``number``, counted from 1."""
        link = number if self.separate else 1
        return Backend(
            name=f"backend{number}",
            ip4=IPv4Address(f"10.90.{1 + link}.{10 + number}"),
            ip6=IPv6Address(f"fd90:{1 + link}::{10 + number}"),
            namespace=Namespace(f"{self.name}-backend{number}" if self.separate else f"{self.name}-backends"),
            proxy_interface=f"eth{link}",
        )

    # -- building up and taking down ---------------------------------------------------------------------------

    @property
    def namespaces(self) -> tuple[Namespace, ...]:
        """All of them: client, proxy, then the backends'."""
        return (self.client, self.proxy, *{b.namespace.name: b.namespace for b in self.backends}.values())

    @property
    def proxy_interfaces(self) -> tuple[str, ...]:
        """The proxy host's interfaces: towards the client, then towards the backends."""
        return ("eth0", *dict.fromkeys(backend.proxy_interface for backend in self.backends))

    @property
    def directory(self) -> Path:
        """A directory for this lab's files, removed when it is taken down unless it was given from outside."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        return self._directory

    def open(self) -> Self:
        """Build it. Raises :class:`FileExistsError` if namespaces of this name stand already."""
        remove_dead_labs()
        if standing := lab_namespaces(self.name):
            raise FileExistsError(f"network namespaces of another lab of this name: {', '.join(standing)}")
        try:
            for namespace in self.namespaces:
                namespace.create()
            self._link(self.client, "eth0", self.proxy4, self.proxy6, {self.client4: 24, self.client6: 64})
            for interface in self.proxy_interfaces[1:]:
                members = [backend for backend in self.backends if backend.proxy_interface == interface]
                addresses: dict[IPAddress, int] = {}
                for backend in members:
                    addresses |= {backend.ip4: 24, backend.ip6: 64}
                number = int(interface.removeprefix("eth")) + 1
                gateway4, gateway6 = IPv4Address(f"10.90.{number}.1"), IPv6Address(f"fd90:{number}::1")
                self._link(members[0].namespace, interface, gateway4, gateway6, addresses)
            self._settings = self._settings_now()
            if self._with_servers:
                self._start_servers()
        except BaseException:
            self.close()
            raise
        return self

    def _link(
        self,
        far: Namespace,
        interface: str,
        gateway4: IPv4Address,
        gateway6: IPv6Address,
        addresses: Mapping[IPAddress, int],
    ) -> None:
        """A veth pair: ``interface`` of the proxy host with the gateways' addresses, eth0 of ``far`` with its own."""
        self.proxy.ip(
            f"link add {interface} type veth peer name eth0 netns {far.name}",
            f"address add {gateway4}/24 dev {interface}",
            f"address add {gateway6}/64 dev {interface} nodad",
            f"link set {interface} up",
        )
        far.ip(
            *(f"address add {ip}/{length} dev eth0" + " nodad" * (ip.version == 6) for ip, length in addresses.items()),
            "link set eth0 up",
            f"route add default via {gateway4}",
            f"route add default via {gateway6}",
        )
        features = [] if self.offload else ["tx", "off", "rx", "off", "tso", "off", "gso", "off", "gro", "off"]
        if self.xdp_peers:
            features += ["gro", "on"]
        if features:
            far.run("ethtool", "-K", "eth0", *features)
        # A veth pair has a carrier once both ends are up; the kernel tells a moment later.
        wait_for(lambda: far.ip_json("link", "show", "dev", "eth0")[0]["operstate"] == "UP", f"{interface} up")

    def _start_servers(self) -> None:
        for namespace in self.namespaces[2:]:
            own = [backend for backend in self.backends if backend.namespace.name == namespace.name]
            at = [word for b in own for word in ("--at", f"{b.name}={b.ip4},{b.ip6}")]
            ports = ["--http", HTTP_PORT, "--tcp", TCP_PORT, "--udp", UDP_PORT]
            command = [sys.executable, str(_SERVERS), *at, *map(str, ports)]
            self.spawn(namespace, *command).wait_output("ready")

    def close(self) -> None:
        """End its processes, remove its namespaces and files. Raises :class:`RuntimeError` if a namespace stays."""
        for process in reversed(self.processes):
            process.kill()
        self.processes.clear()
        for namespace in self.namespaces:
            namespace.delete()
        if self._directory is not None and self._own_directory:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
        if standing := lab_namespaces(self.name):
            raise RuntimeError(f"network namespaces not removed: {', '.join(standing)}")

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- doing things in it ------------------------------------------------------------------------------------

    def spawn(
        self, namespace: Namespace, *argv: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Process:
        """Start a program in the background; it is killed when the lab is taken down."""
        log = self.directory / f"{len(self.processes)}-{Path(str(argv[0])).name}.log"
        process = Process(namespace.command(*argv), log, env=env, cwd=cwd)
        self.processes.append(process)
        return process

    def curl(self, url: str, *options: str, timeout_sec: float = 10.0) -> str:
        """The body that the client's curl gets. Raises :class:`netlab.CommandError` if it fails."""
        words = ["curl", "--silent", "--show-error", "--fail", "--max-time", f"{timeout_sec:g}", *options, url]
        return self.client.run(*words, timeout_sec=timeout_sec + 5).stdout

    def add_client_address(self, ip: IPAddress | str) -> None:
        """Give the client one more address, from any network, and the proxy host a route to it."""
        address = ip_address(ip)
        via = self.client4 if address.version == 4 else self.client6
        self.client.ip(f"address add {address} dev eth0" + " nodad" * (address.version == 6))
        self.proxy.ip(f"route add {address} via {via}")

    def add_proxy_address(self, ip: IPAddress | str, interface: str = "eth0") -> None:
        """Give the proxy host one more address, from any network; the client reaches it by its default route."""
        address = ip_address(ip)
        self.proxy.ip(f"address add {address} dev {interface}" + " nodad" * (address.version == 6))

    def set_forwarding(self, on: bool = True) -> None:
        """Turn plain routing by the proxy host's stack on or off, for both families."""
        value = "1" if on else "0"
        self.proxy.write_sysctls({"net/ipv4/ip_forward": value, "net/ipv6/conf/all/forwarding": value})

    def checksum_errors(self) -> dict[str, int]:
        """Packets with bad checksums counted by client and backends, as ``NAMESPACE COUNTER``; only those above 0."""
        return {
            f"{namespace.name.removeprefix(self.name + '-')} {counter}": number
            for namespace in self.namespaces
            if namespace.name != self.proxy.name
            for counter, number in namespace.checksum_errors().items()
            if number
        }

    # -- looking for what was left behind ----------------------------------------------------------------------

    def _settings_now(self) -> dict[str, str]:
        return self.proxy.forwarding() | self.proxy.leniency()

    def residue(self, *directories: Path) -> list[str]:
        """What stands in the proxy host that was not there when the lab was built, each in words.

        That is: XDP programs, queueing disciplines that hold TC programs, changed settings of what the stack forwards
        and accepts, and every entry of ``directories`` (pins, for instance).
        """
        links = self.proxy.ip_json("-details", "link", "show")
        found = [f"{link['ifname']}: XDP program {link['xdp']}" for link in links if "xdp" in link]
        disciplines = self.proxy.run("tc", "qdisc", "show").stdout.splitlines()
        found += [line.strip() for line in disciplines if line.split()[1] in ("clsact", "ingress")]
        now = self._settings_now()
        found += [f"{name}={value}" for name, value in now.items() if self._settings.get(name, value) != value]
        for directory in directories:
            with contextlib.suppress(FileNotFoundError):
                found += sorted(str(path) for path in directory.rglob("*"))
        return found

    def assert_clean(self, *directories: Path) -> None:
        """Raise :class:`AssertionError` naming everything that :meth:`residue` finds."""
        found = self.residue(*directories)
        if found:
            raise AssertionError("left behind: " + "; ".join(found))


def lab_namespaces(name: str) -> list[str]:
    """The names of the namespaces that stand of the lab called ``name``."""
    ours = re.compile(re.escape(name) + r"-(client|proxy|backends|backend\d+)")
    return [found for found in namespace_names(name) if ours.fullmatch(found)]


def remove_lab(name: str) -> list[str]:
    """Take down the namespaces of lab ``name`` without its object, whatever runs in them; returns their names."""
    standing = lab_namespaces(name)
    for namespace in standing:
        for pid in _pids(namespace):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _wait_empty(namespace)
        Namespace(namespace).delete()
    return standing


def _pids(namespace: str) -> list[int]:
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    if done.returncode:
        if not Namespace(namespace).path.exists():
            return []  # another process has just taken the same dead lab down
        done.check_returncode()
    return [int(word) for word in done.stdout.split()]


def _wait_empty(namespace: str) -> None:
    wait_for(lambda: not _pids(namespace), f"no process in {namespace}")


def remove_dead_labs() -> None:
    """Take down what labs left whose process was killed before it could."""
    for name in {namespace.rpartition("-")[0] for namespace in namespace_names(_PREFIX)}:
        pid = name.removeprefix(_PREFIX).partition("x")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            remove_lab(name)
