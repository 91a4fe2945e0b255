"""A checked tree -> the model: one file's settings and proxies, with places and with the schema's defaults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from reconciler.config import check, healthcheck, packet_tests, schema
from reconciler.config.document import Document, Mapping, Sequence
from reconciler.config.formats import Formats
from reconciler.config.healthcheck import HealthCheck
from reconciler.config.messages import path_text
from reconciler.config.model import (
    Fragment,
    Listen,
    Metrics,
    Proxy,
    Settings,
    SourcePorts,
    SyncPolicy,
    XdpChoice,
)
from reconciler.config.notation import line_column
from reconciler.config.place import NOWHERE, Place
from reconciler.config.sourceroutes import SourceRoute, SourceRoutes, WeightedTarget
from reconciler.errors import Problem
from reconciler.state import objects
from reconciler.state.objects import Balance, Endpoint, IPAddress, Mode, Protocol


def default_settings() -> Settings:
    """The settings that stand when no file has any."""
    return _settings(Mapping(0), NOWHERE)


def _settings(tree: Mapping, place: Place) -> Settings:
    def value(key: str) -> Any:
        return tree.get(key, schema.default("settings", key))

    ports = tree.get("source_ports", {})
    metrics = tree.get("metrics", {})
    first, last = (ports.get(key, schema.default("source_ports", key)) for key in ("first", "last"))

    return Settings(
        connection_timeout_sec=value("connection_timeout_sec"),
        max_connections=value("max_connections"),
        fast_path=value("fast_path"),
        xdp_mode=XdpChoice(value("xdp_mode")),
        source_ports=SourcePorts(first, last),
        sync=SyncPolicy(value("sync")),
        takeover=value("takeover"),
        stats_enabled=value("stats_enabled"),
        metrics=Metrics(*(metrics.get(key, schema.default("metrics", key)) for key in ("enabled", "listen"))),
        place=place,
    )


def fragment(document: Document) -> Fragment:
    """Validate a document and build what it holds. Errors of one proxy don't hide those of the others."""
    built = Fragment(document.file, problems=document.problems)
    formats = Formats()
    checker = schema.Checker(formats)
    valid = checker.check(document)
    root = document.root
    if not isinstance(root, Mapping) or root.get("apiVersion", schema.API_VERSION) != schema.API_VERSION:
        return built
    if "settings" in root:
        built.settings_place = _place(document, root.key_at("settings"))
        if valid or checker.holds("settings", root["settings"]):
            built.settings = _settings(root["settings"], built.settings_place)
            wrong = check.source_ports(built.settings.source_ports)
            if wrong:
                document.problem(root["settings"].value_at("source_ports"), wrong, "settings.source_ports")
            wrong = check.metrics(built.settings.metrics)
            if wrong:
                at = root["settings"]["metrics"].value_at("listen")
                document.problem(at, wrong, "settings.metrics.listen")
    if isinstance(root.get("tests"), Sequence):
        built.tests = packet_tests.build(document, formats, checker, root["tests"])
    proxies = root.get("proxies")
    for index, tree in enumerate(proxies if isinstance(proxies, Sequence) else ()):
        if isinstance(tree, Mapping) and isinstance(tree.get("name"), str):
            place = _place(document, tree.value_at("name"))
            built.names.append((tree["name"], place, path_text(("proxies", index, "name"))))
        if valid or checker.holds("proxy", tree):
            builder = _ProxyBuilder(document, formats, index)
            proxy = builder.build(tree)
            built.proxies.append(proxy)
            built.paths.append(path_text(("proxies", index)))
            built.target_ips.update(endpoint.ip for endpoint in builder.endpoints.values())
            if builder.failed:
                built.problems += check.repeated(proxy, built.paths[-1])
            else:
                problems, warnings = check.proxy(proxy, built.paths[-1])
                built.problems += problems
                built.warnings += warnings
            if proxy.source_routes:
                built.marks[len(built.proxies) - 1] = proxy.source_routes.marks()
        elif isinstance(tree, Mapping):
            built.problems += list(_ProxyBuilder(document, formats, index).wrong_parts(tree, checker))
    return built


def routes(document: Document, formats: Formats, tree: Sequence) -> SourceRoutes | None:
    """Source routes from a tree that satisfies the schema; None if one is wrong, or has a health check."""
    builder = _ProxyBuilder(document, formats, 0)
    found = builder.routes(tree)
    return None if builder.failed or builder.check_marks or document.problems else found


def _place(document: Document, at: int) -> Place:
    return Place(document.file, *line_column(at))


class _ProxyBuilder:
    """Builds one proxy from a tree that satisfies the schema. What is wrong beyond the schema with single values is
    noted in the document; the proxy is there to be checked for more."""

    def __init__(self, document: Document, formats: Formats, index: int) -> None:
        self.document, self.formats = document, formats
        self.path: tuple[str | int, ...] = ("proxies", index)
        self.failed = False
        self.endpoints: dict[tuple[str, int], Endpoint] = {}
        self.default_weight: int = schema.default("target", "weight")
        self.protocol = Protocol.TCP
        self.check_marks: list[tuple[int, tuple[str | int, ...]]] = []

    def build(self, tree: Mapping) -> Proxy:
        listen = self._listen(tree["listen"])
        self.protocol = listen.protocol
        default_target = self._targets(tree["default_target"], "default_target")
        routes = self.routes(tree.get("source_routes", ()))
        own = self._health_check(tree)
        checks = () if self.failed else self._checks(own, listen, default_target, routes)
        return Proxy(
            name=tree["name"],
            listen=listen,
            mode=Mode(tree.get("mode", schema.default("proxy", "mode"))),
            balance=Balance(tree.get("balance", schema.default("proxy", "balance"))),
            default_target=default_target,
            source_routes=routes,
            connection_timeout_sec=tree.get("connection_timeout_sec"),
            place=_place(self.document, tree.at),
            checks=checks,
        )

    def wrong_parts(self, tree: Mapping, checker: schema.Checker) -> Iterator[Problem]:
        """What is wrong beyond the schema in the parts of a proxy that satisfy it, if the proxy does not."""
        path, targets, routes = path_text(self.path), tree.get("default_target"), tree.get("source_routes")
        if checker.holds("listen", tree.get("listen")):
            self._listen(tree["listen"])
        if checker.holds("targets", targets):
            yield from check.targets(self._targets(tree["default_target"], "default_target"), path)
        if isinstance(routes, Sequence) and all(checker.holds("source_route", route) for route in routes):
            yield from check.identical_sources(self.routes(routes), path)

    def _note(self, at: int, message: str, *path: str | int) -> None:
        """It is wrong, and nothing else is to be judged otherwise for it."""
        self.document.problem(at, message, path_text((*self.path, *path)))

    def _fail(self, at: int, message: str, *path: str | int) -> None:
        """An address is wrong: what it would mean for others is not asked."""
        self.failed = True
        self._note(at, message, *path)

    def _listen(self, tree: Mapping) -> Listen:
        port = tree["port"]
        addresses: Sequence = tree.get("addresses", Sequence(0))
        return Listen(
            interfaces=tuple(tree["interfaces"]),
            addresses=tuple(self._addresses(addresses)),
            ports=tuple(port) if isinstance(port, Sequence) else (port,),
            protocol=Protocol(tree.get("protocol", schema.default("listen", "protocol"))),
            place=_place(self.document, tree.at),
            address_places=tuple(_place(self.document, at) for at in addresses.marks),
        )

    def _addresses(self, tree: Sequence) -> list[IPAddress]:
        addresses: list[IPAddress] = []
        for index, text in enumerate(tree):
            ip = self.formats.address(text)
            wrong = check.listen_address(ip)
            if ip in addresses:
                wrong = f"{ip} stands twice in this list"
            if wrong:
                self._fail(tree.marks[index], wrong, "listen", "addresses", index)
            addresses.append(ip)
        return addresses

    def _targets(self, tree: Mapping | Sequence, *path: str | int) -> tuple[WeightedTarget, ...]:
        if isinstance(tree, Mapping):
            return (self._target(tree, *path),)
        return tuple(self._target(item, *path, index) for index, item in enumerate(tree))

    def _target(self, tree: Mapping, *path: str | int) -> WeightedTarget:
        text, port = tree["ip"], tree.get("port", 0)
        endpoint = self.endpoints.get((text, port))
        if endpoint is None:
            ip = self.formats.address(text)
            endpoint = objects.endpoint(ip.packed, port)
            wrong = check.target_address(ip)
            if wrong:
                self._fail(tree.value_at("ip"), wrong, *path, "ip")
            else:
                self.endpoints[text, port] = endpoint
        weight = tree.get("weight", self.default_weight)
        own_check = self._health_check(tree, *path) if "health_check" in tree else None
        return WeightedTarget(endpoint, weight, _place(self.document, tree.at), own_check)

    def _health_check(self, tree: Mapping, *path: str | int) -> HealthCheck | None:
        """The check that a proxy or a target has for itself."""
        if "health_check" not in tree:
            return None
        said = tree["health_check"]
        for key, wrong in healthcheck.wrong_keys(said):
            self._note(said.key_at(key), wrong, *path, "health_check", key)
        if self.protocol is Protocol.UDP and said.get("on_unhealthy") == healthcheck.OnUnhealthy.RESET:
            text = "'on_unhealthy: reset' goes with TCP: UDP knows no reset"
            self._note(said.key_at("on_unhealthy"), text, *path, "health_check", "on_unhealthy")
        self.check_marks.append((tree.value_at("health_check"), path))
        return healthcheck.build(said)

    def _checks(
        self,
        own: HealthCheck | None,
        listen: Listen,
        default_target: tuple[WeightedTarget, ...],
        routes: SourceRoutes,
    ) -> tuple[tuple[Endpoint, HealthCheck], ...]:
        """How each target of the proxy is checked: as it says itself, wherever in the proxy it does, else as the proxy
        says."""
        if not self.check_marks:
            return ()
        at, where = self.check_marks[0]
        found: dict[Endpoint, HealthCheck | None] = {}
        for target in (*default_target, *(target for lead in routes.leads() for target in lead.targets)):
            known = found.setdefault(target.endpoint, target.health_check)
            if target.health_check is not None and known not in (None, target.health_check):
                self._note(at, f"the target {target.endpoint} has two different health checks", *where, "health_check")
            found[target.endpoint] = known or target.health_check
        checks = []
        for endpoint, said in found.items():
            chosen = said or own
            if chosen is None or chosen.type is healthcheck.CheckType.NONE:
                continue
            port = chosen.port or endpoint.port or (listen.ports[0] if len(listen.ports) == 1 else None)
            if port is None:
                text = f"a health check of the target {endpoint}, which has no port of its own, needs a 'port'"
                self._note(at, text, *where, "health_check")
            checks.append((endpoint, replace(chosen, port=port)))
        return tuple(checks)

    def routes(self, tree: Any) -> SourceRoutes:
        return SourceRoutes(self._each_route(tree))

    def _each_route(self, tree: Any) -> Iterator[SourceRoute]:
        for index, item in enumerate(tree):
            text = item["source"]
            source, host_bits = self.formats.network(text)
            wrong = check.source(source, host_bits)
            if wrong:
                self._fail(item.value_at("source"), wrong, "source_routes", index, "source")
            deny = "action" in item
            targets = () if deny else self._targets(item["target"], "source_routes", index, "target")
            yield SourceRoute(source, deny, targets, _place(self.document, item.at))
