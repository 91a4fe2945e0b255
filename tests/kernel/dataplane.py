"""The real programs on made-up packets: compiled, loaded, with maps that a test fills by hand.

:class:`DataPlane` lives in a network namespace of its own with two interfaces, ``cli`` and ``srv``, whose far ends
lie in the same namespace, permanent neighbours, and routes. Nothing is attached but a program that makes the
receive queues known to the kernel, and no packet is ever sent: they go through ``BPF_PROG_TEST_RUN``.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from reconciler.kernel import bpf, layout
from reconciler.kernel.compiler import ObjectCode, compile_programs
from reconciler.kernel.contable import ConnectionTable
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.maps import map_of
from reconciler.kernel.newmaps import create_map
from reconciler.kernel.program import load_set

T = TypeVar("T")
SOURCE = Path(__file__).parents[2] / "bpf"
CLIENT_MAC, PROXY_CLI_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
PROXY_SRV_MAC, SERVER_MAC = bytes.fromhex("020000000003"), bytes.fromhex("020000000004")

XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT = range(5)
TC_UNSPEC, TC_OK, TC_SHOT, TC_REDIRECT = 0xFFFFFFFF, 0, 2, 7


@cache
def object_code() -> ObjectCode:
    """Compiled once for all tests."""
    return compile_programs(SOURCE)


class Namespace:
    """A network namespace and a thread that is in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        subprocess.run(["ip", "netns", "add", name], check=True)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self.run(self._enter)

    def _enter(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            if libc.setns(fd, 0x40000000):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(fd)

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call in the namespace."""
        return self._thread.submit(function, *arguments).result()

    def command(self, text: str) -> str:
        """Run a command line in the namespace, return its output."""
        command = ["nsenter", f"--net=/run/netns/{self.name}", *text.split()]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def close(self) -> None:
        self._thread.shutdown()
        subprocess.run(["ip", "netns", "del", self.name], check=True)


def pack(dtype: np.dtype, **fields: Any) -> bytes:
    """One structure; fields that are not named are zero."""
    value = np.zeros((), dtype)
    for name, content in fields.items():
        value[name] = np.frombuffer(content, "u1") if isinstance(content, bytes) else content
    return value.tobytes()


def dest(kind: str, number: int = 0) -> int:
    return layout.CONSTANTS[f"DEST_{kind}"] << layout.CONSTANTS["DEST_KIND_SHIFT"] | number


class DataPlane:
    """Maps and programs; helper methods write both slots unless told otherwise."""

    def __init__(self, name: str, connections: int = 20_000) -> None:
        self.namespace = Namespace(name)
        self.fds: dict[str, int] = {}
        self.programs: dict[str, int] = {}
        self._inner: list[int] = []
        self._tables: dict[int, ConnectionTable] = {}
        try:
            self._make_links()
            self._make_maps(connections)
            self.programs = load_set(object_code(), self.fds, Gateway())
            self.settings()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for fd in [*self.programs.values(), *self._inner, *self.fds.values()]:
            os.close(fd)
        self.namespace.close()

    def _make_links(self) -> None:
        for near, far, near_mac, far_mac in (
            ("cli", "client", PROXY_CLI_MAC, CLIENT_MAC),
            ("srv", "server", PROXY_SRV_MAC, SERVER_MAC),
        ):
            self.namespace.command(
                f"ip link add {near} address {near_mac.hex(':')} type veth peer name {far} address {far_mac.hex(':')}"
            )
            # Generic receive offload makes veth set up its receive queues for XDP, which test runs ask for.
            self.namespace.command(f"ethtool -K {near} gro on")
            self.namespace.command(f"ip link set {far} up")
            self.namespace.command(f"ip link set {near} up")
        for address, device in (
            ("10.0.1.1/24", "cli"),
            ("10.0.2.1/24", "srv"),
            ("fd00:1::1/64", "cli"),
            ("fd00:2::1/64", "srv"),
        ):
            nodad = " nodad" if ":" in address else ""
            self.namespace.command(f"ip address add {address} dev {device}{nodad}")
        for address, device, mac in (
            ("10.0.1.100", "cli", CLIENT_MAC),
            ("fd00:1::100", "cli", CLIENT_MAC),
            ("10.0.2.254", "srv", SERVER_MAC),
            ("fd00:2::254", "srv", SERVER_MAC),
        ):
            self.namespace.command(f"ip neigh add {address} lladdr {mac.hex(':')} dev {device} nud permanent")
        for prefix, gateway in (
            ("default", "10.0.1.100"),
            ("10.9.0.0/16", "10.0.2.254"),
            ("fd09::/16", "fd00:2::254"),
        ):
            self.namespace.command(f"ip route add {prefix} via {gateway}")
        self.namespace.command("ip -6 route add default via fd00:1::100")
        self.namespace.command("sysctl -qw net.ipv4.conf.lo.forwarding=1 net.ipv6.conf.lo.forwarding=1")

    def _make_maps(self, connections: int) -> None:
        for name, spec in layout.MAPS.items():
            self.fds[name] = create_map(spec, connections, show_ways=False)

    # -- maps ------------------------------------------------------------------------------------------------

    def connections(self, version: int) -> ConnectionTable:
        """The connection table; not to be closed."""
        if version not in self._tables:
            table = map_of(layout.MAPS[f"connection{version}"], self.fds[f"connection{version}"], Gateway())
            assert isinstance(table, ConnectionTable)
            self._tables[version] = table
        return self._tables[version]

    def put(self, name: str, key: bytes | int, value: bytes) -> None:
        if name in layout.CONNECTIONS:
            assert isinstance(key, bytes)
            table = self.connections(int(name[-1]))
            table.put_many(np.frombuffer(key, table.key_dtype), np.frombuffer(value, table.value_dtype))
            return
        key = key if isinstance(key, bytes) else key.to_bytes(4, "little")
        k, v = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
        bpf.map_update(self.fds[name], ctypes.addressof(k), ctypes.addressof(v))

    def get(self, name: str, key: bytes | int) -> np.ndarray | None:
        """The value as a structured array of one, or of one for each CPU."""
        spec = layout.MAPS[name]
        if name in layout.CONNECTIONS:
            assert isinstance(key, bytes)
            table = self.connections(int(name[-1]))
            return table.get(np.frombuffer(key, table.key_dtype))
        key = key if isinstance(key, bytes) else key.to_bytes(4, "little")
        count = (os.cpu_count() or 1) if spec.type is layout.MapType.PERCPU_ARRAY else 1
        size = (spec.value.itemsize + 7) // 8 * 8 if count > 1 else spec.value.itemsize
        k, v = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(size * count)
        if not bpf.map_lookup(self.fds[name], ctypes.addressof(k), ctypes.addressof(v)):
            return None
        return np.frombuffer(v.raw, spec.value)

    def outcomes(self) -> dict[str, int]:
        """Every outcome that was counted at least once."""
        counts = {name: int(self.get("outcome", number).sum()) for number, name in enumerate(layout.OUTCOMES)}  # type: ignore[union-attr]
        return {name: count for name, count in counts.items() if count}

    # -- configuration ---------------------------------------------------------------------------------------

    def settings(
        self,
        *,
        fast_path: bool = True,
        unanswered_sec: int = 30,
        closing_sec: int = 10,
        ports: tuple[int, int] = (10000, 32767),
        stats: bool = False,
    ) -> None:
        flags = layout.CONSTANTS["SETTING_FAST_PATH"] if fast_path else 0
        flags |= layout.CONSTANTS["SETTING_STATS_EVENTS"] if stats else 0
        slot = (flags, unanswered_sec, closing_sec, *ports)
        self.put("settings", 0, pack(layout.settings_slots, slot=[slot, slot]))

    def switch(self, active: int, generation: int = 0) -> None:
        self.put("control", 0, pack(layout.control, active=active, generation=generation))

    def listener(self, ifname: str, ip: str, port: int, protocol: int, proxy: int | tuple[int, int]) -> None:
        address = ip_address(ip)
        slots = proxy if isinstance(proxy, tuple) else (proxy, proxy)
        key = pack(
            layout.listener_key4 if address.version == 4 else layout.listener_key6,
            ifindex=self.ifindex(ifname),
            addr_be=address.packed,
            port_be=port,
            protocol=protocol,
        )
        self.put(f"listener{address.version}", key, pack(layout.listener_slots, proxy=slots))
        self.open_port(port, "PORT_LISTEN")

    def open_port(self, port: int, bit: str) -> None:
        value = self.get("port", port)
        assert value is not None
        self.put("port", port, bytes([int(value[0]) | layout.CONSTANTS[bit]]))

    def proxy(self, number: int, **fields: Any) -> None:
        """Both slots the same. Fields of ``struct proxy`` by name."""
        flags = fields.pop("flags", 0) | layout.CONSTANTS["PROXY_PRESENT"]
        slot = pack(layout.proxy, flags=flags, idle_sec=fields.pop("idle_sec", 300), **fields)
        self.put("proxy", number, slot * 2)

    def target(self, number: int, ip: str, port: int, proxy: int = 1, flags: int = 0, source: str = "") -> None:
        address = ip_address(ip)
        padded = address.packed.ljust(16, b"\0")
        own = ip_address(source).packed if source else b""
        value = pack(
            layout.target,
            addr_be=padded,
            source_be=own.ljust(16, b"\0"),
            port_be=port,
            family=address.version,
            flags=flags,
            proxy=proxy,
        )
        self.put("target", number, value)
        if port:
            self.open_port(port, "PORT_TARGET")

    def group(self, number: int, table: list[int]) -> None:
        fd = bpf.map_create(layout.MapType.ARRAY, "group_table", 4, 4, len(table) + 1, layout.F_INNER_MAP)
        self._inner.append(fd)
        for index, entry in enumerate([len(table), *table]):
            k, v = ctypes.c_uint32(index), ctypes.c_uint32(entry)
            bpf.map_update(fd, ctypes.addressof(k), ctypes.addressof(v))
        self.put("group", number, fd.to_bytes(4, "little"))

    def route(self, proxy: int, prefix: str, destination: int) -> None:
        network = ip_network(prefix)
        key = pack(
            layout.route_key4 if network.version == 4 else layout.route_key6,
            prefixlen=32 + network.prefixlen,
            proxy=proxy,
            addr_be=network.network_address.packed,
        )
        slot = (destination, layout.CONSTANTS["ROUTE_PRESENT"])
        self.put(f"route{network.version}", key, pack(layout.route_slots, slot=[slot, slot]))

    def device(self, ifname: str) -> None:
        """Say that XDP can redirect to it."""
        self.put("device", self.ifindex(ifname), (1).to_bytes(4, "little"))

    def ifindex(self, name: str) -> int:
        return self.namespace.run(socket.if_nametoindex, name)

    # -- packets ---------------------------------------------------------------------------------------------

    def xdp(self, frame: bytes, ifname: str = "cli") -> tuple[int, bytes]:
        """Verdict and frame after ``xdp_ingress`` saw it coming in by the interface."""
        context = np.array([0, len(frame), 0, self.ifindex(ifname), 0, 0], "<u4").tobytes()
        run = self.namespace.run(bpf.prog_test_run, self.programs["xdp_ingress"], frame, context)
        return run.retval, run.data_out

    def tc(self, frame: bytes, ifname: str = "cli", *, egress: bool = False) -> tuple[int, bytes]:
        """Verdict and frame after ``tc_ingress`` (or ``tc_egress``) saw it on the interface."""
        context = np.zeros(48, "<u4")
        context[10] = self.ifindex(ifname)
        program = self.programs["tc_egress" if egress else "tc_ingress"]
        run = self.namespace.run(bpf.prog_test_run, program, frame, context.tobytes())
        return run.retval, run.data_out
