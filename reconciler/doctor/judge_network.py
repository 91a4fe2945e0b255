"""Findings about interfaces. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from reconciler.answers import Finding, Level
from reconciler.doctor.judge_system import error, ok, unchecked, warning
from reconciler.doctor.judge_targets import targets
from reconciler.doctor.remedies import change_setting, sysctl_part
from reconciler.doctor.sight import InterfaceSight, Sight
from reconciler.state.facts import HostFacts, Interface, RouteKind

if TYPE_CHECKING:
    from reconciler.config.model import Config

_LARGEST_NATIVE_MTU: Final = 3498  # a page, less headroom, less struct skb_shared_info: what most drivers allow
_STRICT: Final = 1


def network(sight: Sight) -> Iterator[Finding]:
    """Everything about interfaces and targets, as far as the files ask for any."""
    if sight.host is None:
        yield unchecked("network", "bcc is missing", "apt install python3-bpfcc")
        return
    if sight.config is None:
        yield unchecked("network", "the files are wrong: what counts here is not known", "revproxyctl validate")
        return
    for line in sight.refused.splitlines():
        yield error("host", line, _of_host(line))
    for text in sight.wanted.warnings if sight.wanted else ():
        if not text.startswith(("no route to target", "target ")):  # told below, with what mends them
            yield warning("host", text, _of_host(text))
    for name in sorted({each for proxy in sight.config.proxies for each in proxy.listen.interfaces}):
        if name not in sight.host.interfaces:
            yield warning("interface.exists", "does not exist: it is waited for", "ip link", name)
    for used in _used(sight, sight.host, sight.config):
        yield from used.findings()
    yield from targets(sight, sight.host, sight.config)


def _of_host(text: str) -> str:
    """What mends a warning about the host."""
    ports = re.search(r"reserve (\d+-\d+)", text)
    return f"sysctl -w net.ipv4.ip_local_reserved_ports={ports[1]}" if ports else "revproxyctl interfaces"


@dataclass(frozen=True, slots=True)
class _Used:
    """One interface that packets of ours come or go by. ``mode``: how XDP is to run there."""

    facts: Interface
    sight: InterfaceSight
    config: Config
    mode: str
    listens: bool
    way_back: int | None
    cpus: int

    def findings(self) -> Iterator[Finding]:
        """Each check once."""
        yield self._up()
        yield self._driver()
        yield self._mtu()
        yield self._lro()
        yield from self._queues()
        yield from self._checksums()
        if self.listens:
            yield self._forwarding()
            yield self._rp_filter()
        yield from self._programs()

    @property
    def _name(self) -> str:
        return self.facts.name

    @property
    def _asked(self) -> str:
        return str(self.config.settings.xdp_mode)

    def _set_mode(self, mode: str) -> str:
        return change_setting(self.config, "xdp_mode", self._asked, mode)

    def _up(self) -> Finding:
        if not self.facts.up:
            return error("interface.up", "is down", f"ip link set dev {self._name} up", self._name)
        if not self.facts.carrier:
            return warning("interface.up", "has no carrier", f"ethtool {self._name}", self._name)
        return ok("interface.up", "is up", self._name)

    def _driver(self) -> Finding:
        driver = f"driver {self.facts.driver or 'unknown'}"
        if self._asked == "native" and not self.facts.xdp_native:
            text = f"{driver}: no native XDP, which xdp_mode native insists on"
            return error("interface.driver", text, self._set_mode("auto"), self._name)
        if self.mode == "native" and self.facts.xdp_transmit is False:
            text = f"{driver}: takes no frames redirected by XDP; what leaves here goes through the stack,"
            text += " which costs throughput"
            return warning("interface.driver", text, self._set_mode("off"), self._name)
        how = "TC" if self.mode == "off" else f"XDP, {self.mode}"
        native = "has" if self.facts.xdp_native else "no"
        return ok("interface.driver", f"{driver}, {native} native XDP; served by {how}", self._name)

    def _mtu(self) -> Finding:
        several = "rx-sg" in (self.facts.xdp_features or ())
        if self.mode == "native" and self.facts.mtu > _LARGEST_NATIVE_MTU and not several:
            text = f"MTU {self.facts.mtu} is more than native XDP takes with most drivers ({_LARGEST_NATIVE_MTU})"
            remedy = f"ip link set dev {self._name} mtu {_LARGEST_NATIVE_MTU}"
            return warning("interface.mtu", text, remedy, self._name)
        return ok("interface.mtu", f"MTU {self.facts.mtu}", self._name)

    def _lro(self) -> Finding:
        if self.sight.lro is None:
            return ok("interface.lro", "the driver has no large receive offload", self._name)
        if not self.sight.lro:
            return ok("interface.lro", "large receive offload is off", self._name)
        remedy = f"ethtool -K {self._name} lro off"
        if self.mode == "native":
            text = "large receive offload is on, and native XDP does not go with it"
            return error("interface.lro", text, remedy, self._name)
        text = "large receive offload is on: what is forwarded was put together from several packets"
        return warning("interface.lro", text, remedy, self._name)

    def _queues(self) -> Iterator[Finding]:
        now, most = self.sight.queues_now, self.sight.queues_most
        if now is None or most is None:
            return
        text = f"receive queues: {now}, at most {most}; CPUs: {self.cpus}"
        if self.mode == "native" and self.facts.driver == "virtio_net" and now + self.cpus > most:
            text += "; virtio_net wants one more queue for each CPU for native XDP"
            fits = most > self.cpus
            remedy = f"ethtool -L {self._name} combined {most - self.cpus}" if fits else self._set_mode("off")
            yield warning("interface.queues", text, remedy, self._name)
        else:
            yield ok("interface.queues", text, self._name)

    def _checksums(self) -> Iterator[Finding]:
        if self.facts.kind != "veth":
            return
        if self.mode == "off":
            yield ok("interface.checksums", "a veth served by TC, which completes its peer's checksums", self._name)
            return
        text = (
            f"{self.mode} XDP on a veth: packets whose checksum the peer leaves to the device go the slower way by TC,"
            " and the peer's segmentation offload is lost"
        )
        yield warning("interface.checksums", text, self._set_mode("auto"), self._name)

    def _forwarding(self) -> Finding:
        """What it needs of the stack's forwarding it turns on itself (ip_forward is all interfaces' at once)."""
        versions = ((4, self.facts.forwarding4), (6, self.facts.forwarding6))
        on = " and ".join(f"IPv{version}" for version, forwards in versions if forwards) or "nothing"
        text = f"the stack forwards {on} from here; what revproxy needs of that it turns on itself"
        return ok("interface.forwarding", text, self._name)

    def _rp_filter(self) -> Finding:
        check = "interface.rp_filter"
        if self.sight.rp_filter != _STRICT:
            return ok(check, f"reverse path filter: {self.sight.rp_filter}", self._name)
        if self.way_back == self.facts.ifindex:
            return ok(check, "strict reverse path filter, and the default route leads back out here", self._name)
        text = (
            "strict reverse path filter: packets that the stack sees are dropped unless the route back leads out here"
        )
        return warning(check, text, f"sysctl -w net.ipv4.conf.{sysctl_part(self._name)}.rp_filter=2", self._name)

    def _programs(self) -> Iterator[Finding]:
        if self.sight.conflicts is None:
            text = "telling other people's programs from ours takes root"
            yield unchecked("interface.programs", text, "sudo revproxyctl doctor", self._name)
            return
        for each in self.sight.conflicts:
            insists = self._asked in ("native", "generic") and each.where.startswith("xdp") and not each.gives_way
            level = Level.ERROR if insists or each.blocks else Level.WARNING
            text = f"{each.where}: {each.what} {each.effect}"
            yield Finding("interface.programs", level, text, self._name, each.remedy or "revproxyctl interfaces")
        if not self.sight.conflicts:
            yield ok("interface.programs", "no program of others is in the way", self._name)


def _used(sight: Sight, host: HostFacts, config: Config) -> Iterator[_Used]:
    listening = {name for proxy in config.proxies for name in proxy.listen.interfaces}
    leading = {way for route in host.routes.values() if route.kind is RouteKind.UNICAST for way in route.ways}
    wanted = sight.wanted.state.attachments if sight.wanted else {}
    for name, facts in sorted(host.interfaces.items()):
        if facts.kind != "loopback" and (name in listening or facts.ifindex in leading):
            attachment = wanted.get(facts.ifindex)
            yield _Used(
                facts=facts,
                sight=sight.interfaces.get(name, InterfaceSight()),
                config=config,
                mode=attachment.xdp.value if attachment else "off",
                listens=name in listening,
                way_back=sight.way_back.get(4),
                cpus=sight.cpus,
            )
