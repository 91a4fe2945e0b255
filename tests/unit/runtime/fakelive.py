"""A kernel that is a value, and the files that are applied to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface

from reconciler.answers import TableUse
from reconciler.config.model import Config
from reconciler.kernel.store import Manifest, decode_manifest, digest_of, encode_manifest
from reconciler.kernel.transaction import Result
from reconciler.places import Places
from reconciler.runtime.live import Recovered, map_limits
from reconciler.state.allocate import Limits, allocate
from reconciler.state.desired import desired, sysctl_names
from reconciler.state.diff import wanted_ports
from reconciler.state.facts import HostFacts, Interface, RuntimeFacts
from reconciler.state.objects import Allocation, KernelState, Observed, Revision
from reconciler.state.operations import Operation, PutBlob, StageRevision
from reconciler.state.plan import Plan

TARGET = ip_address("10.0.0.1")
TEXT = """\
apiVersion: revproxy/v1
proxies:
  - name: web
    listen: {{interfaces: [eth0], port: 80, protocol: tcp}}
    default_target: {{ip: 10.0.0.1, port: {port}}}
"""


class FakeLive:
    """A kernel that holds what it is given. ``errors``: raised by the next executions, in order."""

    tag = "0123456789abcdef"
    many_connections = False

    def __init__(self) -> None:
        self.state = Observed(KernelState(), Allocation())
        self.errors: list[Exception] = []
        self.executed = 0
        self.recovered = 0
        self.native = False
        self.blobs: dict[bytes, bytes] = {}
        self.committed = lambda: None
        self.known = Manifest()

    def close(self) -> None:
        pass

    def hold(self) -> None:
        pass

    def let_go(self) -> None:
        pass

    def own_maps(self) -> frozenset[int]:
        return frozenset((self.executed,)) if self.state.exists else frozenset()

    @property
    def limits(self) -> Limits:
        return map_limits()

    def observe(self, *, routes_as_known: bool = False, connections_anew: bool = False) -> Observed:
        del routes_as_known, connections_anew
        return self.state

    def read_sysctl(self, name: str) -> str:
        del name
        return "1"

    def adopt(self, routes: object) -> None:
        del routes

    def facts(self, config: Config) -> HostFacts:
        self.config = config
        interfaces = {
            "lo": Interface(1, "lo", kind="loopback"),
            "eth0": Interface(2, "eth0", addresses=(ip_interface("192.0.2.1/24"),), xdp_native=self.native),
        }
        sysctls = dict.fromkeys(sysctl_names(config, interfaces), "1")
        return HostFacts(interfaces=interfaces, route_to={TARGET: 2}, sysctls=sysctls)

    def runtime(self, _observed: Observed, *, anew: bool = False) -> RuntimeFacts:
        del anew
        return RuntimeFacts()

    @contextmanager
    def interruptible(self, _wanted: object) -> Iterator[None]:
        yield

    def execute(self, plan: Plan, _verify: object = None) -> Result:
        self.executed += 1
        if self.errors:
            raise self.errors.pop(0)
        self.blobs |= {each.digest: each.content for each in plan.stage if isinstance(each, PutBlob)}
        refused = self.refused()
        state = desired(self.config, self.facts(self.config), RuntimeFacts(refused_xdp=refused), tag=self.tag).state
        numbers = allocate(state, self.state.allocation, self.limits)
        self.state = Observed(
            state=state,
            allocation=Allocation(numbers.proxies, numbers.targets, numbers.groups),
            revision=next((each.after for each in plan.stage if isinstance(each, StageRevision)), self.state.revision),
            exists=True,
            ports=wanted_ports(state),
            blobs=frozenset(self.blobs),
        )
        return Result()

    refused: Callable[[], frozenset[int]] = staticmethod(frozenset)

    def recover(self) -> list[Recovered]:
        self.recovered += 1
        self.state = Observed(self.state.state, self.state.allocation, revision=self.state.revision, exists=True)
        return [Recovered("map listener4: 1 entries to level, 0 to free")]

    def manifest(self, revision: Revision) -> Manifest:
        if revision.manifest not in self.blobs:
            return self.known if revision.manifest == digest_of(encode_manifest(self.known)) else Manifest()
        self.known = decode_manifest(self.blobs[revision.manifest])
        return self.known

    def remember(self, manifest: Manifest) -> bytes:
        self.known = manifest
        return digest_of(encode_manifest(manifest))

    def sources(self, revision: Revision) -> dict[str, bytes] | None:
        return {file.path: self.blobs[file.digest] for file in self.manifest(revision).files}

    def connections(self, *filters: object) -> tuple[object, ...]:
        return filters

    def seen(self, proxy: str) -> list[object]:
        del proxy
        return []

    def use(self) -> tuple[dict[int, int], TableUse]:
        return dict.fromkeys(self.state.allocation.targets.values(), 5), TableUse(5, 100)

    def free(self, operations: tuple[Operation, ...]) -> None:
        raise AssertionError(operations)


def write(places: Places, port: int = 8080) -> None:
    (places.config_dir / "a.yaml").write_text(TEXT.format(port=port))


def break_(places: Places) -> None:
    (places.config_dir / "b.yaml").write_text("nonsense: [")


def mend(places: Places) -> None:
    (places.config_dir / "b.yaml").unlink()
