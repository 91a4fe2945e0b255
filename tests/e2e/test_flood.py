"""A flood of SYNs from sources that never answer, on the wire: who is connected stays so, who comes gets in, and each
packet is accounted for."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import ip_address

import numpy as np
import pytest

from netlab import TCP_PORT, Lab, wait_for
from netlab.clients import connect
from tests.e2e.instance import Instance

ROOM, ESTABLISHED, FLOOD, CHUNK = 1000, 100, 60_000, 1000
SOURCES = 60_000  # forged addresses that share a prefix
LIBC = ctypes.CDLL(None, use_errno=True)
MESSAGE = np.dtype(
    {"names": ["parts", "number"], "formats": ["u8", "u8"], "offsets": [16, 24], "itemsize": 64}
)  # struct mmsghdr
ETHERNET = {4: b"\x08\0", 6: b"\x86\xdd"}


def config(lab: Lab) -> str:
    """One table for what is flooded and what is not."""
    targets = ", ".join(f'{{ip: "{lab.backends[0].ip(version)}", port: {TCP_PORT}}}' for version in (4, 6))
    lines = ["apiVersion: revproxy/v1", f"settings: {{max_connections: {ROOM}, xdp_mode: native}}", "proxies:"]
    for name, port in (("used", 7), ("flooded", 8)):
        lines += [
            f"  - name: {name}",
            f"    listen: {{interfaces: [eth0], port: {port}, protocol: tcp}}",
            f"    default_target: [{targets}]",
        ]
    return "\n".join(lines) + "\n"


class Flood:
    """SYNs to the flooded proxy, each from another source. Every one has right checksums."""

    def __init__(self, lab: Lab, version: int) -> None:
        self.socket = lab.client.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self.socket.bind(("eth0", 0))
        near, own = (
            bytes.fromhex(namespace.ip_json("link", "show", "dev", "eth0")[0]["address"].replace(":", ""))
            for namespace in (lab.proxy, lab.client)
        )
        self.version, self.ethernet = version, near + own + ETHERNET[version]
        self.target = (lab.proxy4 if version == 4 else lab.proxy6).packed
        self.sent = 0

    def close(self) -> None:
        """Give the socket back."""
        self.socket.close()

    def send(self, number: int) -> None:
        """So many packets, going on where the last ones ended."""
        while number:
            prefix, first = divmod(self.sent, SOURCES)
            some = min(number, SOURCES - first)
            self._send(prefix, range(first + 1, first + 1 + some))
            self.sent += some
            number -= some

    def _send(self, prefix: int, words: range) -> None:
        """What the last word of the source adds to a checksum, source port and IP identification take away."""
        frame = np.frombuffer(self._frame(prefix), np.uint8)
        frames = np.repeat(frame[np.newaxis], len(words), 0)
        word = np.asarray(words, ">u2")
        last, port = (28, 34) if self.version == 4 else (36, 54)
        for offset in (last, port, *([18] if self.version == 4 else [])):
            value = (word if offset == last else 0xFFFF - word).astype(">u2")
            frames[:, offset : offset + 2] = value.view(np.uint8).reshape(-1, 2)
        parts = np.zeros(len(words), [("base", "u8"), ("length", "u8")])
        parts["base"] = frames.ctypes.data + np.arange(len(words)) * frames.shape[1]
        parts["length"] = frames.shape[1]
        messages = np.zeros(len(words), MESSAGE)
        messages["parts"] = parts.ctypes.data + np.arange(len(words)) * parts.itemsize
        messages["number"] = 1
        done = 0
        while done < len(words):
            sent = LIBC.sendmmsg(
                self.socket.fileno(), ctypes.c_void_p(messages[done:].ctypes.data), len(words) - done, 0
            )
            if sent > 0:
                done += sent
                continue
            # Until the other end of the cable has taken it: what its queue has no room for is refused.
            if ctypes.get_errno() != errno.ENOBUFS:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            time.sleep(0.0001)

    def _frame(self, prefix: int) -> bytes:
        """With a source whose last word is 0."""
        source = ip_address(f"198.{18 + prefix}.0.0" if self.version == 4 else f"2001:db8:{prefix}::").packed
        tcp = struct.pack("!HHIIBBHHH", 0xFFFF, 8, 1, 0, 0x50, 2, 8192, 0, 0)
        pseudo = source + self.target + struct.pack("!II", len(tcp), socket.IPPROTO_TCP)
        tcp = tcp[:16] + checksum(pseudo + tcp) + tcp[18:]
        if self.version == 6:
            return self.ethernet + struct.pack("!IHBB", 6 << 28, len(tcp), socket.IPPROTO_TCP, 64) + pseudo[:32] + tcp
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0xFFFF, 0x4000, 64, socket.IPPROTO_TCP, 0) + pseudo[:8]
        return self.ethernet + head[:10] + checksum(head) + head[12:] + tcp


def checksum(data: bytes) -> bytes:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", 0xFFFF - ((total & 0xFFFF) + (total >> 16)))


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def flood(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Flood]:
    flood = Flood(lab, request.param)
    yield flood
    flood.close()


def test_a_flood_of_syns_keeps_nobody_out_and_disconnects_nobody(lab: Lab, instance: Instance, flood: Flood) -> None:
    instance.apply(config(lab))
    used = (lab.proxy4 if flood.version == 4 else lab.proxy6, 7)
    with ExitStack() as closing:
        connected = [closing.enter_context(connect(lab.client, used)) for _ in range(ESTABLISHED)]
        talk(connected, b"before")
        before = instance.json("stats", status=0)
        with Sending(flood, FLOOD) as sending:
            while flood.sent < FLOOD and not sending.failures:
                talk(connected, b"meanwhile")
        talk(connected, b"after")

        after = instance.json("stats", status=0)
        opened = after["proxies"]["flooded"]["opened"] - before["proxies"]["flooded"]["opened"]
        dropped = {reason: after["drops"][reason] - before["drops"][reason] for reason in after["drops"]}
        refused, noted = dropped.pop("table_full"), dropped.pop("flood")
        # An answer whose connection makes room for another while TC looks at it is dropped for the same reason.
        assert 0 <= opened + refused + noted - flood.sent <= 20, "each SYN made a connection or was counted as dropped"
        assert refused > 0, "the table was never full"
        assert opened > ROOM, "no room was made"
        assert not any(dropped.values()), dropped
        assert len(instance.json("connections")) <= ROOM

        # Those who come during a flood get in.
        newcomers: list[socket.socket] = []
        with Sending(flood, pause_sec=0.05):  # the cable is not what this is about
            for _ in range(20):
                newcomers.append(closing.enter_context(connect(lab.client, used, timeout_sec=30)))
                talk(newcomers, b"new")
        talk([*connected, *newcomers], b"in the end")
    assert lab.checksum_errors() == {}


def test_who_comes_while_syns_come_faster_than_connections_are_begun_gets_in(
    lab: Lab, instance: Instance, flood: Flood
) -> None:
    instance.apply(config(lab))
    used = (lab.proxy4 if flood.version == 4 else lab.proxy6, 7)

    def noted() -> int:
        return int(instance.json("stats", status=0)["drops"]["flood"])

    with ExitStack() as closing:
        connected = [closing.enter_context(connect(lab.client, used)) for _ in range(ESTABLISHED)]
        newcomers: list[socket.socket] = []
        with Sending(flood, ahead=True):
            wait_for(noted, timeout_sec=20)
            before = noted()
            with ThreadPoolExecutor(20) as pool:
                while noted() < before + 10 * CHUNK:
                    came = pool.map(lambda _: connect(lab.client, used, timeout_sec=30), range(20))
                    newcomers += [closing.enter_context(each) for each in came]
                    assert len(newcomers) < ROOM // 2, "that was no flood"
            talk(connected, b"meanwhile")
        talk([*connected, *newcomers], b"in the end")


def talk(connected: list[socket.socket], text: bytes) -> None:
    """Everybody says something and hears it again."""
    for number, each in enumerate(connected):
        each.sendall(said := text + f" {number};".encode() * 50)
        heard = b""
        while len(heard) < len(said):
            heard += each.recv(len(said) - len(heard))
        assert heard == said


class Sending:
    """A flood from a thread of its own, for as long as the block runs and ``at_least`` packets. ``ahead``: of whatever
    else runs on this machine."""

    def __init__(self, flood: Flood, at_least: int = 0, pause_sec: float = 0.0, *, ahead: bool = False) -> None:
        self.flood, self.at_least, self.pause_sec, self.ahead = flood, at_least, pause_sec, ahead
        self.ending = threading.Event()
        self.failures: list[BaseException] = []
        self.thread = threading.Thread(target=self._run, name="flood")

    def _run(self) -> None:
        try:
            if self.ahead:
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            start = self.flood.sent
            while not self.ending.is_set() or self.flood.sent - start < self.at_least:
                self.flood.send(CHUNK)
                time.sleep(self.pause_sec)
        except BaseException as error:
            self.failures.append(error)

    def __enter__(self) -> Sending:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        self.thread.join()
        assert not self.failures, self.failures
