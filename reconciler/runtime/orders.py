"""What the files say that no map holds: how targets are checked, where metrics are served, interfaces not there yet.

It is put in force by commits like everything else, so an edit of it is a difference from the files in force.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from reconciler.config import build
from reconciler.config.files import Cache
from reconciler.config.model import SourceFile
from reconciler.state.diff import Change, Kind, endpoint_order

if TYPE_CHECKING:
    from reconciler.config.healthcheck import HealthCheck
    from reconciler.config.model import Config, Listen, Proxy, Settings
    from reconciler.kernel.store import Manifest
    from reconciler.runtime.live import Live
    from reconciler.runtime.view import View
    from reconciler.state.objects import Endpoint, Revision

Json = dict[str, Any]
_ORDER: Final = ("program", "setting", "interface", "proxy", "target", "route")


@dataclass(frozen=True, slots=True)
class Orders:
    """Of one file. ``proxies``: by name, what they listen on and how their targets are checked."""

    settings: Settings | None
    proxies: Mapping[str, tuple[Listen, tuple[tuple[Endpoint, HealthCheck], ...]]]

    @classmethod
    def of(cls, settings: Settings | None, proxies: Iterable[Proxy]) -> Orders:
        """With what these say."""
        return cls(settings, {proxy.name: (proxy.listen, proxy.checks) for proxy in proxies})


class InForce:
    """The orders in force, file by file, remembered so that an edit costs those of the files that it is about."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._manifest = b""
        self._known: dict[tuple[str, bytes], Orders | None] = {}  # by name and digest; None: not what can be read here

    def differences(self, view: View, manifest: Manifest) -> tuple[Change, ...]:
        """The changes of ``view``, with those of orders. ``manifest``: what is applied was made from it."""
        if view.repairs(manifest):
            self._remember(view)
            return view.changes
        former, wanted = {each.path: each.digest for each in manifest.files}, view.digests()
        if not former or not view.observed.revision.number:
            return view.changes
        names = {name for name in former.keys() | wanted.keys() if former.get(name) != wanted.get(name)}
        before = self._former(view.observed.revision, {name: former[name] for name in former.keys() & names})
        if before is None:
            return view.changes
        return _merged(view.changes, tuple(_changes(view, before, names)))

    def _remember(self, view: View) -> None:
        """These files are in force."""
        if self._manifest == view.observed.revision.manifest:
            return
        self._manifest = view.observed.revision.manifest
        digests = view.digests()
        unknown = {name for name, digest in digests.items() if (name, digest) not in self._known}
        found = _by_file(view.config, unknown) if unknown else {}
        self._known = {
            (name, digest): found.get(name, Orders(None, {})) if name in unknown else self._known[name, digest]
            for name, digest in digests.items()
        }

    def _former(self, revision: Revision, files: Mapping[str, bytes]) -> list[Orders] | None:
        """What these files in force say; None if that can't be known."""
        unknown = [key for key in files.items() if key not in self._known]
        if unknown:
            sources = self._live.sources(revision)
            if sources is None:
                return None
            for name, digest in unknown:
                self._known[name, digest] = _parsed(name, sources[name])
        found = [self._known[key] for key in files.items()]
        return None if None in found else [each for each in found if each is not None]


def _parsed(name: str, content: bytes) -> Orders | None:
    """None for what this version does not understand."""
    (fragment,) = Cache().fragments([SourceFile.of(name, content)])
    return None if fragment.problems else Orders.of(fragment.settings, fragment.proxies)


def _by_file(config: Config, names: Set[str]) -> dict[str, Orders]:
    """What a configuration says in each of these files."""
    proxies: dict[str, list[Proxy]] = {}
    for proxy in config.proxies:
        name = proxy.place.file.rpartition("/")[2]
        if name in names:
            proxies.setdefault(name, []).append(proxy)
    settings = config.settings.place.file.rpartition("/")[2]
    return {
        name: Orders.of(config.settings if name == settings else None, proxies.get(name, ()))
        for name in proxies.keys() | ({settings} & names)
    }


def _changes(view: View, before: list[Orders], names: Set[str]) -> Iterator[Change]:
    config = view.config
    settings = next((each.settings for each in before if each.settings), None)
    if settings is None:
        file = config.settings.place.file.rpartition("/")[2]
        settings = config.settings if file and file not in names else build.default_settings()
    for key, (was, will) in _settings(settings, config.settings).items():
        yield _update(view, "setting", key, was, will)
    former = {name: said for each in before for name, said in each.proxies.items()}
    for proxy in config.proxies:
        if proxy.name not in former:
            continue
        listen, checks = former[proxy.name]
        if listen != proxy.listen:
            yield _update(view, "proxy", proxy.name, *_differing(_listen(listen), _listen(proxy.listen)))
        if checks != proxy.checks:
            yield from _targets(view, proxy, dict(checks))


def _targets(view: View, proxy: Proxy, former: Mapping[Endpoint, HealthCheck]) -> Iterator[Change]:
    """Those that are checked in another way. Of one that comes or goes the kernel's difference tells."""
    wanted = dict(proxy.checks)
    for target in sorted(former.keys() | wanted.keys(), key=endpoint_order):
        stays = (proxy.name, target) in view.observed.allocation.targets and target in proxy.endpoints
        if stays and former.get(target) != wanted.get(target):
            was, will = _differing(_check(former.get(target)), _check(wanted.get(target)))
            yield _update(view, "target", f"{proxy.name}/{target}", {"health_check": was}, {"health_check": will})


def _update(view: View, kind: Kind, name: str, before: Any, after: Any) -> Change:
    return Change("update", kind, name, before, after, view.desired.causes.place(kind, name))


def _settings(before: Settings, after: Settings) -> dict[str, tuple[Any, Any]]:
    """Those that differ."""
    pairs = {
        "metrics": (asdict(before.metrics), asdict(after.metrics)),
        "takeover": (before.takeover, after.takeover),
        "xdp_mode": (str(before.xdp_mode), str(after.xdp_mode)),
    }
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _listen(listen: Listen) -> Json:
    return {
        "interfaces": list(listen.interfaces),
        "addresses": [str(each) for each in listen.addresses] or "the interfaces' own",
        "port": list(listen.ports),
        "protocol": str(listen.protocol),
    }


def _check(check: HealthCheck | None) -> Json | None:
    if check is None:
        return None
    found = {key: each.value if isinstance(each, Enum) else each for key, each in asdict(check).items()}
    codes = [f"{first}-{last}" for first, last in check.expected_codes]
    return {key: each for key, each in (found | {"expected_codes": codes}).items() if each is not None}


def _differing(before: Json | None, after: Json | None) -> tuple[Json | None, Json | None]:
    """Only the keys that differ, where both are there."""
    if before is None or after is None:
        return before, after
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return {key: before.get(key) for key in keys}, {key: after.get(key) for key in keys}


def _merged(changes: tuple[Change, ...], more: tuple[Change, ...]) -> tuple[Change, ...]:
    """Both, one change for one object. What comes or goes says all there is to say of it."""
    if not more:
        return changes
    found = {(each.object, each.name): each for each in changes}
    for each in more:
        there = found.get((each.object, each.name))
        if there is None:
            found[each.object, each.name] = each
        elif there.action == "update" and isinstance(there.before, dict) and isinstance(there.after, dict):
            both = replace(there, before=each.before | there.before, after=each.after | there.after)
            found[each.object, each.name] = both
    return tuple(sorted(found.values(), key=lambda each: _ORDER.index(each.object)))
