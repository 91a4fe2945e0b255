"""Real maps in a bpffs directory of the test's own, and stand-ins for what is not a map.

:class:`FakeHost` and :class:`FakePrograms` keep their state in a file, so that it outlives a killed child, and change
it through the gateway, so that their steps are among those a fault test enumerates.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import numpy as np

from reconciler.kernel import groups, layout
from reconciler.kernel.codec import pack_settings
from reconciler.kernel.context import Context
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.maps import Maps
from reconciler.kernel.observe import observe
from reconciler.kernel.store import digest_of
from reconciler.state.allocate import Limits
from reconciler.state.desired import Desired
from reconciler.state.facts import RuntimeFacts
from reconciler.state.objects import (
    Attachment,
    Balance,
    DataPlaneSettings,
    Destination,
    Endpoint,
    KernelState,
    ListenerKey,
    Mode,
    Observed,
    ProgramState,
    Protocol,
    ProxyState,
    Revision,
    RouteKey,
    XdpMode,
)
from reconciler.state.operations import LoadProgram
from reconciler.state.plan import Plan, make_plan

MAX_CONNECTIONS = 1000
ARRAYS = (layout.MapType.ARRAY, layout.MapType.PERCPU_ARRAY)
SMALL = {
    **{"target": 512, "target_stats": 512, "proxy": 64, "proxy_name": 64, "port": 10000, "group": 512},
    **{"group_member": 4096, "listener4": 1024, "listener6": 1024, "blob": 256, "sysctl": 64, "device": 64},
}
_numbers = itertools.count()


@contextmanager
def small_arrays() -> Iterator[None]:
    """Maps that are the same in all but size: making and reading all of them takes two milliseconds, not sixty."""
    whole = dict(layout.MAPS)
    layout.MAPS.update({name: replace(whole[name], max_entries=entries) for name, entries in SMALL.items()})
    try:
        yield
    finally:
        layout.MAPS.update(whole)


@contextmanager
def bpffs_directory() -> Iterator[Path]:
    """A directory on /sys/fs/bpf that is gone afterwards, with everything in it."""
    directory = Path(f"/sys/fs/bpf/test-{os.getpid()}-{next(_numbers)}")
    directory.mkdir()
    try:
        yield directory
    finally:
        _remove(directory)


def _remove(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir():
            _remove(path)
        else:
            path.unlink()
    directory.rmdir()


@contextmanager
def private_maps(gateway: Gateway | None = None) -> Iterator[Maps]:
    """A whole set of maps, open."""
    with bpffs_directory() as directory:
        maps = Maps(directory, gateway)
        maps.create(MAX_CONNECTIONS)
        try:
            yield maps
        finally:
            maps.close()


@contextmanager
def connection_tables() -> Iterator[Maps]:
    """Maps in which connections that nobody answered are over after 30 s, and those that were closed after 10."""
    with small_arrays(), private_maps() as maps:
        settings = np.zeros(1, layout.settings_slots)
        settings["slot"][:] = pack_settings(DataPlaneSettings(unanswered_sec=30, closing_sec=10))
        maps["settings"].put(0, settings)
        yield maps


def dump(maps: Maps, leave_out: Iterable[str] = ()) -> dict[str, Any] | None:
    """Every byte of every map, groups by the content of their tables; None if there are no maps."""
    if not maps.exists:
        return None
    if not maps.is_open:
        maps.open()
    found: dict[str, Any] = {}
    for name in layout.MAPS.keys() - set(leave_out):
        if name == "group":
            tables = {int(n): groups.read_table(maps, int(n)) for n in groups.used_groups(maps)}
            found[name] = {number: table.tolist() for number, table in tables.items() if table is not None}
        else:
            keys, values = maps[name].items()
            raw = np.ascontiguousarray(values).view(np.uint8).reshape(len(keys), maps[name].value_size)
            # An array has all its keys always: only those that say something.
            told = raw.any(axis=1) if maps[name].spec.type in ARRAYS else np.ones(len(keys), np.bool_)
            found[name] = {key.tobytes(): value.tobytes() for key, value in zip(keys[told], values[told], strict=True)}
    return found


@dataclass
class Stored:
    """State in a file."""

    path: Path
    gateway: Gateway = field(default_factory=Gateway)

    def read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def change(self, operation: str, subject: str, key: str, value: Any) -> None:
        """Set ``key``, or remove it for None, in one step."""
        state = self.read()
        state.pop(key, None)
        if value is not None:
            state[key] = value

        def store() -> None:
            fresh = self.path.with_suffix(".new")
            fresh.write_text(json.dumps(state))
            fresh.rename(self.path)

        self.gateway.call(operation, subject, store)


@dataclass
class FakeHost(Stored):
    """Interfaces and sysctls of a host that has only what it is told."""

    live: Mapping[str, str] = field(default_factory=dict)

    def attach(self, wanted: Attachment) -> None:
        self.change("attach", wanted.name, f"interface {wanted.ifindex}", [wanted.name, wanted.xdp, wanted.tc])

    def detach(self, attachment: Attachment) -> None:
        self.change("detach", attachment.name, f"interface {attachment.ifindex}", None)

    def attachments(self) -> dict[int, Attachment]:
        found = {}
        for key, value in self.read().items():
            kind, _, ifindex = key.partition(" ")
            if kind == "interface":
                found[int(ifindex)] = Attachment(int(ifindex), value[0], XdpMode(value[1]), value[2])
        return found

    def busy_interfaces(self) -> frozenset[int]:
        return frozenset()

    def read_sysctl(self, name: str) -> str | None:
        return self.read().get(f"sysctl {name}", self.live.get(name))

    def write_sysctl(self, name: str, value: str) -> None:
        self.change("write", f"sysctl {name}", f"sysctl {name}", None if value == self.live.get(name) else value)


@dataclass
class FakePrograms(Stored):
    """A program set that is nothing but its name; it makes real maps."""

    maps: Maps = None  # type: ignore[assignment]

    def stage(self, operation: LoadProgram) -> None:
        if not self.maps.exists:
            self.maps.create(operation.after.max_connections)
        self.change("load", "program", "staged", [operation.after.tag, operation.after.max_connections])

    def withdraw(self, operation: LoadProgram) -> None:
        pass

    def undo(self, operation: LoadProgram) -> None:
        self.change("unload", "program", "staged", None)
        if operation.before is None:
            self.maps.remove()

    def finish(self, operation: LoadProgram) -> None:
        self.change("adopt", "program", "current", [operation.after.tag, operation.after.max_connections])

    def current(self) -> ProgramState | None:
        found = self.read().get("current")
        return ProgramState(*found) if found else None


class Instance:
    """All of one instance. ``gateway`` is that of every part."""

    def __init__(self, directory: Path, state: Path, gateway: Gateway | None = None) -> None:
        gateway = gateway or Gateway()
        self.maps = Maps(directory, gateway)
        self.host = FakeHost(state / "host", gateway, {"net/ipv4/conf/lo/forwarding": "0"})
        self.programs = FakePrograms(state / "programs", gateway, self.maps)
        self.context = Context(self.maps, self.host, self.programs)

    def observe(self) -> Observed:
        def read_sysctls(names: Iterable[str]) -> dict[str, str]:
            return {name: self.host.read_sysctl(name) or "" for name in names}

        return observe(
            self.maps,
            program=self.programs.current(),
            attachments=self.host.attachments(),
            read_sysctls=read_sysctls,
        )

    def plan(self, state: KernelState, text: str, *, runtime: RuntimeFacts | None = None) -> Plan:
        """The plan to ``state``, as if made from a file with ``text`` in it."""
        observed = self.observe()
        blob = text.encode()
        manifest = json.dumps({"files": [{"path": "a.yaml", "digest": digest_of(blob).hex()}],
                               "commit": None, "author": None, "subject": None}).encode()  # fmt: skip
        return make_plan(
            Desired(state, live_sysctls={name: self.host.read_sysctl(name) or "" for name in state.sysctls}),
            observed,
            limits=LIMITS,
            runtime=runtime or RuntimeFacts(),
            revision=Revision(observed.revision.number + 1, 5, digest_of(manifest)),
            blobs={digest_of(blob): blob, digest_of(manifest): manifest},
        )

    def close(self) -> None:
        self.maps.close()


LIMITS = Limits({name: spec.max_entries for name, spec in layout.MAPS.items() if not spec.per_connection})


# -- states in few words -------------------------------------------------------------------------------------


def endpoint(text: str) -> Endpoint:
    """``10.0.0.1:80`` or ``[2001:db8::1]:80``."""
    host, _, port = text.rpartition(":")
    return Endpoint(ip_address(host.strip("[]")), int(port))


def to(*targets: str | tuple[str, int]) -> Destination:
    """A destination of targets, each with or without a weight."""
    pairs = [(target, 1) if isinstance(target, str) else target for target in targets]
    return Destination(tuple(sorted((endpoint(name), weight) for name, weight in pairs)))


def proxy(
    name: str, default4: Destination | None = None, default6: Destination | None = None, **more: Any
) -> ProxyState:
    """A proxy with what matters."""
    values: dict[str, Any] = {"mode": Mode.DNAT, "balance": Balance.MAGLEV, "idle_sec": 60, **more}
    return ProxyState(name=name, default4=default4, default6=default6, **values)


def listener(ip: str, port: int, ifindex: int = 2, protocol: Protocol = Protocol.TCP) -> ListenerKey:
    """A listener on interface 2."""
    return ListenerKey(ifindex, ip_address(ip), protocol, port)


def route(name: str, source: str) -> RouteKey:
    """A source route's key."""
    return RouteKey(name, ip_network(source))


def state(
    proxies: Iterable[ProxyState],
    listeners: Mapping[ListenerKey, str],
    routes: Mapping[RouteKey, Destination] | None = None,
    **more: Any,
) -> KernelState:
    """A kernel state with programs and settings."""
    values: dict[str, Any] = {
        "program": ProgramState("tag1", MAX_CONNECTIONS),
        "settings": DataPlaneSettings(),
        "attachments": {2: Attachment(2, "eth0", XdpMode.NATIVE)},
        **more,
    }
    return KernelState(
        proxies={each.name: each for each in proxies}, listeners=dict(listeners), routes=dict(routes or {}), **values
    )


def configuration(observed: Observed | KernelState) -> tuple[Any, ...]:
    """What packets choose by."""
    kernel = observed.state if isinstance(observed, Observed) else observed
    return kernel.settings, kernel.proxies, kernel.listeners, kernel.routes


def in_child(function: Callable[[], None]) -> int:
    """Run ``function`` in a forked child; the child's exit status, 0 if it came to its end and 1 for an exception."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def connection_entry(
    version: int,
    client: str,
    listen: str,
    target: str,
    *,
    ids: tuple[int, int] = (1, 1),
    protocol: int = 6,
    times_ns: tuple[int, int] = (0, 0),
    heard: tuple[int, int] = (19, 3),
    idle_sec: int = 60,
    counts: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of both directions (forward first), as the programs write them. ``ids``: proxy and target;
    ``times_ns``: created and last; ``heard``: bits of client and target; ``counts``: packets and bytes forward,
    packets and bytes reverse."""
    ends = {"client": endpoint(client), "listen": endpoint(listen), "target": endpoint(target)}
    keys = np.zeros(2, layout.connection_key4 if version == 4 else layout.connection_key6)
    values = np.zeros(2, layout.connection4 if version == 4 else layout.connection6)

    def fill(row: Any, source: str, destination: str) -> None:
        row["saddr_be"] = np.frombuffer(ends[source].ip.packed, np.uint8)
        row["daddr_be"] = np.frombuffer(ends[destination].ip.packed, np.uint8)
        row["sport_be"], row["dport_be"] = ends[source].port, ends[destination].port

    fill(keys[0], "client", "listen")
    fill(values[0], "client", "target")
    fill(keys[1], "target", "client")
    fill(values[1], "listen", "client")
    keys["protocol"] = protocol
    common = values["c"]
    common["proxy"], common["target"] = ids
    common["created"], common["last_ns"] = times_ns[0] >> layout.CREATED_SHIFT & 0xFFFFFFFF, times_ns[1]
    common["idle_sec"] = idle_sec
    common["flags"] = [0, layout.CONSTANTS["CONNECTION_REPLY"]]
    common["own"], common["peer"] = heard, heard[::-1]
    common["packets"], common["bytes"] = [counts[0], counts[2]], [counts[1], counts[3]]
    return keys, values
