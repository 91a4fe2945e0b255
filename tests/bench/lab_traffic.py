"""What the lab benchmark measures with: packets from the generator to the receiver, what the proxy's core spent on
them, and how far the two CPUs are from each other."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from pyroute2 import IPRoute

from netlab import UDP_PORT, Lab, Namespace, wait_for
from reconciler.kernel import bpf
from tests.bench import lab_programs as programs

T = TypeVar("T")

FAR_CPU, PROXY_CPU = (sorted(os.sched_getaffinity(0)) * 2)[:2]
"""The generator's and the receiver's, and the proxy's."""

GENERATOR_PRIORITY = 1
FIRST = ("chrt", "--fifo", str(GENERATOR_PRIORITY + 1))
"""Before a command line: whatever else runs on this machine does not take turns with it."""

WINDOW = 192  # of the 256 frames that a veth's ring holds
LIVE_FRAMES, BATCH = 2, 64
SETTLE_SEC = 0.005  # nothing has arrived for so long: nothing more will
SEND_SEC = 3.0  # at most, for one number of packets
XDP_FLAGS_NATIVE = 4
CLIENT_NET = "10.92.0.0"  # clients' addresses: the last two octets vary


def ahead(pid: int, priority: int) -> None:
    """Before all other processes, whatever else runs on this machine; 0: the calling thread."""
    os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(priority))


def on_cpu_here(cpu: int, function: Callable[..., T], *arguments: object) -> T:
    """Bind the calling thread to this CPU, ahead of others, and call."""
    os.sched_setaffinity(0, {cpu})
    ahead(0, GENERATOR_PRIORITY)
    return function(*arguments)


def on_cpu(cpu: int, function: Callable[..., T], *arguments: object) -> T:
    """The same in a thread of its own."""
    answers: list[T] = []

    def body() -> None:
        answers.append(on_cpu_here(cpu, function, *arguments))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return answers[0]


class Words:
    """An array map of one entry, seen as 64-bit numbers."""

    def __init__(self, name: str, size_bytes: int) -> None:
        self.fd = bpf.map_create(2, name, 4, size_bytes, 1)
        self._key, self._value = ctypes.c_uint32(0), np.zeros(size_bytes // 8, "<u8")

    def read(self) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """What it holds now."""
        bpf.map_lookup(self.fd, ctypes.addressof(self._key), self._value.ctypes.data)
        return self._value.copy()

    def write(self, content: bytes) -> None:
        """Replace it, zeros behind."""
        self._value[:] = np.frombuffer(content.ljust(self._value.nbytes, b"\0"), "<u8")
        bpf.map_update(self.fd, ctypes.addressof(self._key), self._value.ctypes.data)

    def close(self) -> None:
        os.close(self.fd)


def cache_line_ns() -> float:
    """What it costs to hand a cache line from one CPU to the other: the least of a few tries, since in some of them the
    other side may come too late."""
    state = Words("bench_pingpong", 64)
    fds = [programs.ping_pong(state.fd, turn) for turn in (0, 1)]
    tries = []
    try:
        for _ in range(5):
            other = threading.Thread(
                target=on_cpu, args=(PROXY_CPU, bpf.prog_test_run, fds[1], bytes(64), None, 300_000)
            )
            other.start()
            tries.append(on_cpu(FAR_CPU, _handovers, state, fds[0]))
            other.join()
    finally:
        for fd in fds:
            os.close(fd)
        state.close()
    return min(tries)


def _handovers(state: Words, fd: int) -> float:
    """Nanoseconds for one, while the other side does its part."""
    start = int(state.read()[0])
    deadline = time.monotonic() + 0.1
    while int(state.read()[0]) < start + 2 and time.monotonic() < deadline:
        bpf.prog_test_run(fd, bytes(64), None, 2)
    before, clock = int(state.read()[0]), time.perf_counter_ns()
    bpf.prog_test_run(fd, bytes(64), None, 2_000)
    spent = time.perf_counter_ns() - clock
    return spent / max(int(state.read()[0]) - before, 1)


def busy_ns(pids: Sequence[int]) -> int:
    """CPU time of these processes, all their threads."""
    total = 0
    for pid in pids:
        for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            total += int(file.read_text().split()[0])
    return total


def _bind(pid: int, cpus: set[int]) -> None:
    """All threads of a process."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cpus)


def attach_xdp(namespace: Namespace, interface: str, fd: int) -> None:
    """Attach natively; -1 detaches."""

    def attach() -> None:
        with IPRoute() as route:
            (index,) = route.link_lookup(ifname=interface)
            attributes = [("IFLA_XDP_FD", fd), ("IFLA_XDP_FLAGS", XDP_FLAGS_NATIVE)]
            route.link("set", index=index, xdp={"attrs": attributes})

    namespace.call(attach)


def poll_in_threads(namespace: Namespace, interface: str, on: bool) -> list[int]:
    """Whether the interface's packets are received by threads of its own; their process ids."""
    before = _polling_threads()
    setting = f"/sys/class/net/{interface}/threaded"
    subprocess.run(
        ["ip", "netns", "exec", namespace.name, "sh", "-c", f"echo {int(on)} >{setting}"], check=True, timeout=30
    )
    if not on:
        return []
    return wait_for(lambda: sorted(_polling_threads() - before), f"a thread that polls {interface}")


def _polling_threads() -> set[int]:
    found = set()
    for file in Path("/proc").glob("[0-9]*/comm"):
        try:
            if file.read_text().startswith("napi/"):
                found.add(int(file.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
    return found


def frame(lab: Lab, destination: str, port: int) -> bytes:
    """The generator's packet: 64 bytes of UDP over IPv4 to the proxy host's hardware address."""

    def mac(namespace: Namespace) -> bytes:
        return bytes.fromhex(str(namespace.ip_json("link", "show", "dev", "eth0")[0]["address"]).replace(":", ""))

    def octets(address: str) -> bytes:
        return bytes(map(int, address.split(".")))

    length = programs.FRAME_BYTES - 14
    # What the generator varies is balanced by these: all ones stand for "a word and its complement".
    source = octets(CLIENT_NET)
    udp = b"\0\0" + port.to_bytes(2, "big") + (length - 20).to_bytes(2, "big") + b"\0\0" + b"\xff\xff\xff\xff"
    udp = udp.ljust(length - 20, b"\0")
    head = b"\x45\0" + length.to_bytes(2, "big") + b"\xff\xff\0\0" + bytes((programs.FIRST_TTL, 17)) + b"\0\0"
    head += source + octets(destination)
    pseudo = head[12:20] + b"\0\x11" + (length - 20).to_bytes(2, "big")
    udp = udp[:6] + _checksum(pseudo + udp) + udp[8:]
    head = head[:10] + _checksum(head) + head[12:]
    return mac(lab.proxy) + mac(lab.client) + b"\x08\0" + head + udp


def _checksum(data: bytes) -> bytes:
    total = sum(int.from_bytes(data[index : index + 2], "big") for index in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (0xFFFF ^ total).to_bytes(2, "big")


@contextlib.contextmanager
def kept_awake() -> Iterator[None]:
    """Both CPUs have something to do that everything else goes before: waking one that sleeps takes a virtual machine
    tens of microseconds, twice for a request, which is more than any proxy and spares the one that is busy itself."""
    with contextlib.ExitStack() as stack:
        for cpu in {FAR_CPU, PROXY_CPU}:
            command = ("taskset", "-c", str(cpu), "chrt", "--idle", "0", sys.executable, "-c", "while True: pass")
            spinner = stack.enter_context(subprocess.Popen(command))
            stack.callback(spinner.kill)
        yield


@dataclass(frozen=True)
class Sent:
    """What came of a number of packets. ``busy_ns``: CPU time of the proxy's core for them; ``wall_ns``: how long it
    took."""

    sent: int
    from_clients: int
    from_proxy: int
    busy_ns: int
    wall_ns: int

    @property
    def delivered(self) -> int:
        """How many arrived."""
        return self.from_clients + self.from_proxy


@dataclass
class PacketPath:
    """Generator and receiver in one lab, whose proxy host polls in a thread bound to one CPU. Use with ``with``.

    ``destination`` and ``port``: where the packets go. ``pids``: processes that are part of the proxy.
    """

    lab: Lab
    destination: str
    port: int
    pids: Sequence[int] = ()
    _threads: list[int] = field(default_factory=list)

    def __enter__(self) -> PacketPath:
        self.state, self.received = Words("bench_state", programs.STATE_BYTES), Words("bench_received", 64)
        self.generator = programs.generator(self.state.fd, self.received.fd)
        gateway = self.lab.proxy4.__class__("10.90.2.1")
        self.receiver = programs.receiver(self.received.fd, UDP_PORT, gateway)
        self.frame = frame(self.lab, self.destination, self.port)
        backends = self.lab.backends[0].namespace
        attach_xdp(backends, "eth0", self.receiver)
        for namespace, interface, cpu in self._links():
            for pid in poll_in_threads(namespace, interface, True):
                _bind(pid, {cpu})
                ahead(pid, GENERATOR_PRIORITY + 1)  # so that what is received makes room for what is sent
                if namespace is self.lab.proxy:
                    self._threads.append(pid)
        for pid in self.pids:
            _bind(pid, {PROXY_CPU})
        return self

    def _links(self) -> list[tuple[Namespace, str, int]]:
        return [
            (self.lab.proxy, "eth0", PROXY_CPU),
            (self.lab.proxy, "eth1", PROXY_CPU),
            (self.lab.backends[0].namespace, "eth0", FAR_CPU),
            (self.lab.client, "eth0", FAR_CPU),
        ]

    def __exit__(self, *_: object) -> None:
        attach_xdp(self.lab.backends[0].namespace, "eth0", -1)
        for namespace, interface, _cpu in self._links():
            poll_in_threads(namespace, interface, False)
        cpus = os.sched_getaffinity(0)
        for pid in self.pids:
            _bind(pid, cpus)
        for fd in (self.generator, self.receiver):
            os.close(fd)
        self.state.close()
        self.received.close()

    def send(self, count: int, flows: int = 0, first: int = 0, echo: bool = False) -> Sent:
        """Send ``count`` packets of ``flows`` flows (a power of two; 0: each its own) from number ``first`` on, and
        wait until all have arrived or no more do."""
        mask = flows - 1 if flows else (1 << 32) - 1
        numbers = np.array([0, count, 0, WINDOW, mask, first], "<u8")
        self.received.write(np.array([0, 0, int(echo)], "<u8").tobytes())
        self.state.write(self.frame + numbers.tobytes())
        pids = [*self._threads, *self.pids]
        busy, clock = busy_ns(pids), time.perf_counter_ns()
        self.lab.client.call(on_cpu_here, FAR_CPU, self._generate, count)
        arrived = self._settled()
        spent = time.perf_counter_ns() - clock
        used = busy_ns(pids) - busy
        sent = int(self.state.read()[programs.SENT // 8])
        return Sent(sent, arrived[0], arrived[1], used, spent)

    def _generate(self, count: int) -> None:
        """Until all are sent, or nothing goes any more. A full window makes iterations in vain, hence several runs."""
        (index,) = (int(self.lab.client.ip_json("link", "show", "dev", "eth0")[0]["ifindex"]),)
        context = np.array([0, len(self.frame), 0, index, 0, 0], "<u4").tobytes()
        deadline = time.monotonic() + SEND_SEC
        while time.monotonic() < deadline:
            bpf.prog_test_run(self.generator, self.frame, context, 3 * count, LIVE_FRAMES, BATCH)
            words = self.state.read()
            if int(words[programs.SENT // 8]) >= count:
                break
            # What has not arrived by now is lost, and does not take up room any more.
            words[programs.LOST // 8] = int(words[programs.SENT // 8]) - sum(self._settled())
            self.state.write(words.tobytes())

    def _settled(self) -> tuple[int, int]:
        """What has arrived, once no more does."""
        last = (-1, -1)
        while True:
            words = self.received.read()
            now = int(words[0]), int(words[1])
            if now == last:
                return now
            last = now
            time.sleep(SETTLE_SEC)
