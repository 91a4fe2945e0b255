"""A host with a reverse proxy's engine in it and no traffic: what its kernel holds, to the last byte, and what the
attached programs make of a packet.

The calling thread moves into a network namespace of its own and back, so children forked meanwhile are in it too.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np

from reconciler.engine import Engine
from reconciler.kernel import bpf, layout, links, tc
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.identity import OwnPrograms
from reconciler.kernel.maps import Maps, map_of
from reconciler.places import Places
from reconciler.state.objects import Endpoint, IPAddress, Protocol
from tests.kernel.kernelmaps import connection_entry, dump

XDP_PASS, XDP_DROP = 2, 1
TC_UNSPEC, TC_SHOT = 0xFFFFFFFF, 2
INTERFACES = ("cli", "srv", "ext", "dmz")
SYSCTLS = ("ipv4/conf/*/forwarding", "ipv6/conf/*/forwarding", "ipv6/conf/*/accept_ra")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection, or a later one of it."""

    interface: str
    src: IPAddress
    dst: IPAddress
    sport: int
    dport: int
    protocol: Protocol = Protocol.TCP
    syn: bool = True

    def frame(self) -> bytes:
        """To the interface's own hardware address. The checksums are made up: nothing here looks at them."""
        addresses = self.src.packed + self.dst.packed
        ports = self.sport.to_bytes(2, "big") + self.dport.to_bytes(2, "big")
        if self.protocol is Protocol.TCP:
            transport = ports + bytes(8) + bytes((0x50, 0x02 if self.syn else 0x10)) + b"\x20\0\x12\x34\0\0"
        else:
            transport = ports + b"\0\x08\x12\x34"
        number, size = self.protocol.number, len(transport)
        if self.src.version == 4:
            head = b"\x45\0" + (20 + size).to_bytes(2, "big") + b"\0\0\0\0" + bytes((64, number)) + b"\0\0" + addresses
        else:
            head = b"\x60\0\0\0" + size.to_bytes(2, "big") + bytes((number, 64)) + addresses
        kind = b"\x08\0" if self.src.version == 4 else b"\x86\xdd"
        return mac(self.interface) + peer_mac(self.interface) + kind + head + transport + bytes(8)


@dataclass(frozen=True)
class Decision:
    """``pass``, ``drop``, or ``forward`` to a target. ``by``: the program that decided, "" if none did."""

    kind: str
    target: Endpoint | None = None
    by: str = ""

    def same(self, other: Decision) -> bool:
        """Whichever program it was."""
        return (self.kind, self.target) == (other.kind, other.target)


def mac(interface: str) -> bytes:
    """The hardware address of our end."""
    return bytes((2, 0, 0, 0, 0, INTERFACES.index(interface)))


def peer_mac(interface: str) -> bytes:
    """The hardware address of the far end."""
    return bytes((2, 0, 0, 0, 1, INTERFACES.index(interface)))


def address(interface: str, version: int) -> IPAddress:
    """The interface's own address."""
    number = INTERFACES.index(interface) + 1
    return ip_address(f"10.0.{number}.1" if version == 4 else f"fd00:{number}::1")


def _new_network() -> None:
    if _libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")


@contextmanager
def networks() -> Iterator[int]:
    """Move the calling thread into a network namespace of its own, and back. Yields a process in another one; both
    namespaces end with the block."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _new_network()
        far = subprocess.Popen(["sleep", "infinity"])
        try:
            _new_network()
            yield far.pid
        finally:
            far.kill()
            far.wait()
            if _libc.setns(home, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(home)


class ProxyHost:
    """Interfaces with addresses, ways to 10.9.0.0/16 and fd09::/16 by ``srv``, back to everybody else by ``cli``.
    Use with ``with``."""

    def __init__(self) -> None:
        self.ifindex: dict[str, int] = {}

    def __enter__(self) -> ProxyHost:
        self._networks = networks()
        far = self._networks.__enter__()
        try:
            self._build(far)
        except BaseException:
            self._networks.__exit__(None, None, None)
            raise
        self.directory = Path(tempfile.mkdtemp(prefix="revproxy-test-"))
        bpffs = Path(f"/sys/fs/bpf/revproxy-test-{os.getpid()}-{next(_numbers)}")
        self.places = Places(*(self.directory / name for name in ("config", "run", "state")), bpffs)
        return self

    def __exit__(self, *failure: object) -> None:
        shutil.rmtree(self.places.bpffs_dir, ignore_errors=True)
        shutil.rmtree(self.directory)
        self._networks.__exit__(None, None, None)

    def _build(self, far: int) -> None:
        enter = ["nsenter", f"--net=/proc/{far}/ns/net", "--"]
        self.ip(
            "link set lo up",
            *(
                f"link add {name} address {mac(name).hex(':')} type veth"
                f" peer name {name} address {peer_mac(name).hex(':')} netns {far}"
                for name in INTERFACES
            ),
            *(f"link set {name} addrgenmode none" for name in INTERFACES),
            *(f"address add {address(name, 4)}/24 dev {name}" for name in INTERFACES),
            *(f"address add {address(name, 6)}/64 dev {name} nodad" for name in INTERFACES),
        )
        # Where GRO is on, a veth has receive queues for XDP, and its peer takes frames redirected to it.
        for name in INTERFACES:
            for prefix in ([], enter):
                subprocess.run([*prefix, "ethtool", "-K", name, "gro", "on"], check=True)
                subprocess.run([*prefix, "ip", "link", "set", name, "up"], check=True)
        for version, everybody, targets in ((4, "default", "10.9.0.0/16"), (6, "default", "fd09::/16")):
            for name, prefix in (("cli", everybody), ("srv", targets)):
                gateway = address(name, version) + 99
                self.ip(
                    f"neigh add {gateway} lladdr {peer_mac(name).hex(':')} dev {name} nud permanent",
                    f"route add {prefix} via {gateway} dev {name}",
                )
        self.ifindex = {name: socket.if_nametoindex(name) for name in INTERFACES}

    def ip(self, *lines: str) -> None:
        """Carry out ``ip`` commands."""
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)

    # -- the product -------------------------------------------------------------------------------------------

    @contextmanager
    def engine(self, gateway: Gateway | None = None) -> Iterator[Engine]:
        """What a fresh process has."""
        made = Engine(self.places, gateway)
        try:
            yield made
        finally:
            made.close()

    # -- looking without it ------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Everything that a commit could leave changed: every byte of every map, which object is behind each pin,
        attached programs, filters, queueing disciplines, sysctls."""
        root = self.places.bpffs_dir
        maps = Maps(root, Gateway())
        try:
            # Written by the programs, whatever frame comes by.
            contents = dump(maps, leave_out=("hardware", "way", "port_turn", "syn_line"))
        finally:
            maps.close()
        pins = {str(path.relative_to(root)): self._object(path) for path in sorted(root.rglob("*"))}
        return {"maps": contents, "pins": pins, **self.attachments(), "sysctls": self.sysctls()}

    @staticmethod
    def _object(path: Path) -> object:
        if path.is_symlink():
            return str(path.readlink())
        if path.is_dir():
            return "directory"
        descriptor = bpf.obj_get(str(path))
        try:
            text = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        finally:
            os.close(descriptor)
        return [line for line in text.splitlines() if line.split(":")[0] in ("map_id", "prog_id", "max_entries")]

    def attachments(self) -> dict[str, Any]:
        """Of every interface: XDP programs, filters, queueing disciplines."""
        found = {each.name: each for each in links.observe_attachments(OwnPrograms("")).interfaces.values()}
        return {
            "xdp": {name: dict(each.xdp.programs) for name, each in found.items()},
            "filters": {
                name: [(f.direction, f.kind, f.priority, f.handle, f.name, f.program) for f in each.tc.filters]
                for name, each in found.items()
            },
            "qdiscs": {name: each.tc.qdisc for name, each in found.items()},
        }

    def sysctls(self) -> dict[str, str]:
        """Every setting that the product may touch."""
        root = Path("/proc/sys/net")
        files = sorted(file for pattern in SYSCTLS for file in root.glob(pattern))
        return {str(file.relative_to(root)): file.read_text().strip() for file in files}

    # -- packets -----------------------------------------------------------------------------------------------

    @contextmanager
    def programs(self) -> Iterator[Programs]:
        """The attached programs, for packets to be run through."""
        found: dict[str, dict[str, int]] = {}
        nobody = OwnPrograms("")
        try:
            for name, index in self.ifindex.items():
                status = links.observe_interface(index, nobody)
                ids = dict(status.xdp.programs)
                chosen = {"xdp": bpf.prog_by_id(next(iter(ids.values())))} if ids else {}
                found[name] = chosen
                for each in status.tc.filters:
                    if each.direction is tc.Direction.INGRESS and each.program:
                        chosen["tc"] = bpf.prog_by_id(each.program.id)
            yield Programs(self.ifindex, found)
        finally:
            for chosen in found.values():
                for descriptor in chosen.values():
                    os.close(descriptor)

    def decisions(self, packets: tuple[Packet, ...]) -> tuple[Decision, ...]:
        """What becomes of each, in this order. They open connections."""
        with self.programs() as programs:
            return tuple(programs.decide(packet) for packet in packets)

    def insert_connection(self, packet: Packet, target: Endpoint, proxy_id: int, target_id: int) -> None:
        """As if the program at the entrance had opened it: in the tables that this program uses."""
        ends = [f"[{ip}]:{port}" for ip, port in ((packet.src, packet.sport), (packet.dst, packet.dport))]
        now_ns = time.monotonic_ns()
        keys, values = connection_entry(
            packet.src.version,
            *ends,
            f"[{target.ip}]:{target.port}",
            ids=(proxy_id, target_id),
            protocol=packet.protocol.number,
            times_ns=(now_ns, now_ns),
        )
        name = f"connection{packet.src.version}"
        with self.programs() as programs:
            used = bpf.prog_info(programs.attached[packet.interface]["tc"]).map_ids
        for descriptor in map(bpf.map_by_id, used):
            if bpf.map_info(descriptor).name == name:
                table = map_of(layout.MAPS[name], descriptor, Gateway())
                table.put_many(keys, values)
            os.close(descriptor)


@dataclass(frozen=True)
class Programs:
    """Descriptors of what is attached at the entrance of each interface, by name and then "xdp" and "tc"."""

    ifindex: dict[str, int]
    attached: dict[str, dict[str, int]]

    def decide(self, packet: Packet) -> Decision:
        """What becomes of a client's packet."""
        kind, frame, by = self.run(packet)
        return Decision(kind, ends(frame)[1] if kind == "forward" else None, by)

    def run(self, packet: Packet) -> tuple[str, bytes, str]:
        """As the kernel would: XDP first, then, if that left it alone, TC. What became of it, the frame afterwards, and
        which program it was."""
        frame, index = packet.frame(), self.ifindex[packet.interface]
        there = self.attached[packet.interface]
        if "xdp" in there:
            context = np.array([0, len(frame), 0, index, 0, 0], "<u4")
            run = bpf.prog_test_run(there["xdp"], frame, context.tobytes())
            if run.retval == XDP_DROP:
                return "drop", frame, "xdp"
            if run.retval != XDP_PASS:
                return "forward", run.data_out, "xdp"
            # Of what it leaves to TC the destination is all that it may have touched: see bpf/hardware.h.
            assert run.data_out[6:] == frame[6:], "XDP passed what it had rewritten"
            frame = run.data_out
        if "tc" in there:
            context = np.zeros(48, "<u4")
            context[10] = index
            run = bpf.prog_test_run(there["tc"], frame, context.tobytes())
            if run.retval == TC_SHOT:
                return "drop", frame, "tc"
            if run.data_out != frame:
                return "forward", run.data_out, "tc"
            assert run.retval == TC_UNSPEC, "redirected as it was"
        return "pass", frame, ""


def ends(frame: bytes) -> tuple[Endpoint, Endpoint]:
    """A frame's source and destination."""
    start, size = (26, 4) if frame[12:14] == b"\x08\0" else (22, 16)
    middle, end = start + size, start + 2 * size
    source, destination = ip_address(frame[start:middle]), ip_address(frame[middle:end])
    ports = (int.from_bytes(frame[at : at + 2], "big") for at in (end, end + 2))
    return Endpoint(source, next(ports)), Endpoint(destination, next(ports))


def entries_of_others_targets(host: ProxyHost) -> list[str]:
    """Connections whose target id does not stand for where they go, or whose proxy id has no name, in words: none,
    since ids are used again only when no connection names them."""
    wrong: list[str] = []
    maps = Maps(host.places.bpffs_dir, Gateway())
    if not maps.exists:
        return wrong
    maps.open()
    try:
        targets = maps["target"].items()[1]
        names = {int(each) for each in maps["proxy_name"].items()[0]}
        for version, size in ((4, 4), (6, 16)):
            keys, values = maps[f"connection{version}"].items()
            for key, value in zip(keys, values, strict=True):
                reply = bool(value["c"]["flags"] & layout.CONSTANTS["CONNECTION_REPLY"])
                ip = bytes(key["saddr_be"] if reply else value["daddr_be"])
                port = int(key["sport_be"] if reply else value["dport_be"])
                target = targets[int(value["c"]["target"])]
                same = bytes(target["addr_be"])[:size] == ip and int(target["family"]) == version
                if not same or int(target["port_be"]) not in (0, port):
                    wrong.append(f"{ip_address(ip)} port {port} has the id of {bytes(target['addr_be'])!r}")
                if int(target["proxy"]) != int(value["c"]["proxy"]) or int(value["c"]["proxy"]) not in names:
                    wrong.append(f"{ip_address(ip)} port {port}: proxy {value['c']['proxy']}, not {target['proxy']}")
    finally:
        maps.close()
    return wrong
