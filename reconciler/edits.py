"""The part of :class:`reconciler.Client` that edits the configuration files: typed methods over ``config/edit.py``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler import answers, arguments
from reconciler.arguments import Target
from reconciler.errors import EditError

if TYPE_CHECKING:
    from reconciler.config.edit import Edit
    from reconciler.config.healthcheck import HealthCheck
    from reconciler.config.model import Proxy
    from reconciler.config.sourceroutes import WeightedTarget
    from reconciler.runtime.editfiles import Done
    from reconciler.state.objects import Endpoint


class Edits:
    """Each method changes the file that holds the object, comments and layout kept, and then applies it; with
    ``apply=False`` it leaves that to somebody else (a running revproxyd follows the files by itself).

    Nothing is written if the result were no valid configuration (:class:`ConfigError`) or can't be
    (:class:`EditError`); what can't be applied is taken back in the file as well.
    """

    @abstractmethod
    def _edit(self, wanted: Edit, *, apply: bool, allow_empty: bool = False) -> answers.Edited: ...

    @abstractmethod
    def _config_dir(self) -> Path: ...

    @abstractmethod
    def _files_dir(self) -> Path:
        """Where to read the files, as far as this user can tell."""

    def proxies(self) -> tuple[answers.ConfiguredProxy, ...]:
        """The proxies of the files, in their order. Needs no root. Raises :class:`ConfigError`."""
        from reconciler.config import files as config_files

        return tuple(_configured(proxy) for proxy in config_files.load(self._files_dir()).proxies)

    def proxy(self, name: str) -> answers.ConfiguredProxy:
        """The proxy of that name. Raises :class:`EditError` if there is none."""
        from reconciler.config.messages import hint

        found = self.proxies()
        for each in found:
            if each.name == name:
                return each
        names = [each.name for each in found]
        raise EditError(f"there is no proxy {name!r} in {self._files_dir()}{hint(name, names)}")

    def add_proxy(
        self,
        name: str,
        interfaces: str | Sequence[str],
        port: int | Sequence[int],
        targets: Target | Sequence[Target],
        *,
        addresses: str | Sequence[str] = (),
        protocol: str | None = None,
        mode: str | None = None,
        balance: str | None = None,
        apply: bool = True,
    ) -> answers.Edited:
        """A new proxy, in a new file. What is None stands at its default."""
        from reconciler.config.edit import AddProxy

        listen: dict[str, Any] = {"interfaces": arguments.texts("interface", interfaces)}
        if addresses:
            listen["addresses"] = arguments.texts("address", addresses)
        listen["port"] = arguments.value("port", port)
        proxy: dict[str, Any] = {"name": arguments.text("name", name), "listen": listen | _given(protocol=protocol)}
        proxy |= _given(mode=mode, balance=balance)
        proxy["default_target"] = arguments.targets(targets)
        return self._edit(AddProxy(proxy), apply=apply)

    def remove_proxy(self, name: str, *, apply: bool = True) -> answers.Edited:
        """A proxy removed, also the last one. Its live connections go on to their end."""
        from reconciler.config.edit import RemoveProxy

        return self._edit(RemoveProxy(arguments.text("name", name)), apply=apply, allow_empty=True)

    def add_source_route(
        self,
        proxy: str,
        source: str,
        target: Target | Sequence[Target] | None = None,
        *,
        deny: bool = False,
        weight: int | None = None,
        apply: bool = True,
    ) -> answers.Edited:
        """Clients from ``source`` go to ``target`` (one or several), or with ``deny`` nowhere."""
        from reconciler.config.edit import AddRoute

        targets = () if target is None else tuple(arguments.targets(target, weight))
        if bool(targets) == deny:
            raise EditError(f"route {source}: it takes either a target or deny")
        return self._edit(
            AddRoute(arguments.text("proxy", proxy), arguments.text("source", source), targets), apply=apply
        )

    def remove_source_route(self, proxy: str, source: str, *, apply: bool = True) -> answers.Edited:
        """Clients from ``source`` go where the next shorter prefix, or the default, says."""
        from reconciler.config.edit import RemoveRoute

        return self._edit(RemoveRoute(arguments.text("proxy", proxy), arguments.text("source", source)), apply=apply)

    def add_target(
        self, proxy: str, target: Target, *, weight: int | None = None, route: str | None = None, apply: bool = True
    ) -> answers.Edited:
        """One more default target, or one more of the route for ``route``."""
        from reconciler.config.edit import AddTarget

        return self._edit(
            AddTarget(
                arguments.text("proxy", proxy), arguments.target(target, weight), arguments.optional("route", route)
            ),
            apply=apply,
        )

    def remove_target(
        self, proxy: str, target: Target, *, route: str | None = None, apply: bool = True
    ) -> answers.Edited:
        """A target removed; its live connections go on to their end."""
        from reconciler.config.edit import RemoveTarget

        return self._edit(
            RemoveTarget(arguments.text("proxy", proxy), arguments.target(target), arguments.optional("route", route)),
            apply=apply,
        )

    def set_weight(
        self, proxy: str, target: Target, weight: int, *, route: str | None = None, apply: bool = True
    ) -> answers.Edited:
        """Another share of new connections for a target; 0: none."""
        from reconciler.config.edit import SetWeight

        return self._edit(
            SetWeight(
                arguments.text("proxy", proxy),
                arguments.target(target),
                arguments.optional("route", route),
                arguments.value("weight", weight),
            ),
            apply=apply,
        )

    def attach_interfaces(
        self, interfaces: str | Sequence[str], *, proxy: str | None = None, apply: bool = True
    ) -> answers.Edited:
        """Listen on these as well: one proxy, or every one."""
        from reconciler.config.edit import AttachInterfaces

        return self._edit(
            AttachInterfaces(tuple(arguments.texts("interface", interfaces)), arguments.optional("proxy", proxy)),
            apply=apply,
        )

    def detach_interfaces(
        self, interfaces: str | Sequence[str], *, proxy: str | None = None, apply: bool = True
    ) -> answers.Edited:
        """Listen on these no more: one proxy, or every one."""
        from reconciler.config.edit import DetachInterfaces

        return self._edit(
            DetachInterfaces(tuple(arguments.texts("interface", interfaces)), arguments.optional("proxy", proxy)),
            apply=apply,
        )

    def set_setting(self, key: str, value: Any, *, apply: bool = True) -> answers.Edited:
        """A key of ``settings``."""
        from reconciler.config.edit import SetSetting

        return self._edit(SetSetting(arguments.text("key", key), arguments.value("value", value)), apply=apply)

    def enable_stats(self, *, apply: bool = True) -> answers.Edited:
        """``settings.stats_enabled: true``: events per connection."""
        return self.set_setting("stats_enabled", True, apply=apply)

    def disable_stats(self, *, apply: bool = True) -> answers.Edited:
        """``settings.stats_enabled: false``."""
        return self.set_setting("stats_enabled", False, apply=apply)


def answer(wanted: Edit, done: Done[answers.Applied]) -> answers.Edited:
    """What was done, as an answer."""
    return answers.Edited(wanted.words, tuple(each.path for each in done.edits), done.applied)


def _given(**values: str | None) -> dict[str, str]:
    return {key: arguments.text(key, value) for key, value in values.items() if value is not None}


def _configured(proxy: Proxy) -> answers.ConfiguredProxy:
    listen, place = proxy.listen, proxy.place
    checks = {endpoint: _configured_check(check) for endpoint, check in proxy.checks}
    return answers.ConfiguredProxy(
        name=proxy.name,
        interfaces=listen.interfaces,
        addresses=tuple(map(str, listen.addresses)),
        ports=listen.ports,
        protocol=str(listen.protocol),
        mode=str(proxy.mode),
        balance=str(proxy.balance),
        default_target=_configured_targets(proxy.default_target, checks),
        source_routes=tuple(
            answers.ConfiguredRoute(
                str(route.source), "deny" if route.deny else "forward", _configured_targets(route.targets, checks)
            )
            for route in proxy.source_routes
        ),
        connection_timeout_sec=proxy.connection_timeout_sec,
        file=place.file,
        line=place.line,
        column=place.column,
    )


def _configured_targets(
    targets: Sequence[WeightedTarget], checks: Mapping[Endpoint, answers.ConfiguredCheck]
) -> tuple[answers.ConfiguredTarget, ...]:
    return tuple(
        answers.ConfiguredTarget(str(each.endpoint), each.weight, checks.get(each.endpoint)) for each in targets
    )


def _configured_check(check: HealthCheck) -> answers.ConfiguredCheck:
    http, https = str(check.type).startswith("http"), check.type == "https"
    return answers.ConfiguredCheck(
        type=str(check.type),
        port=check.port,
        interval_ms=check.interval_ms,
        timeout_ms=check.timeout_ms,
        healthy_threshold=check.healthy_threshold,
        unhealthy_threshold=check.unhealthy_threshold,
        on_unhealthy=str(check.on_unhealthy),
        path=check.path if http else None,
        expected_codes=tuple(str(first) if first == last else f"{first}-{last}" for first, last in check.expected_codes)
        if http
        else None,
        host=check.host if http else None,
        verify=(check.ca_file or check.verify) if https else None,
    )
