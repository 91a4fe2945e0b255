"""Edits of the configuration in its files' own text: proxies, routes, targets, interfaces, settings. Pure.

An :class:`Edit` says what is wanted; :func:`edit` finds the file that holds the object and gives its new content, in
which all that is not meant is byte for byte what it was. New objects of their own get a file of their own.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Final

from reconciler.config import document, render
from reconciler.config.draft import Draft, Path
from reconciler.config.messages import hint
from reconciler.errors import ConfigError, EditError

_SETTINGS_NAME: Final = "00-settings"
_PROXY_NAME: Final = "50-{name}"


@dataclass(frozen=True, slots=True)
class FileEdit:
    """A file's content ``before`` and ``after`` the edit; None: there is no such file."""

    path: str
    before: bytes | None
    after: bytes | None


@dataclass(frozen=True, slots=True)
class Edit:
    """One thing to change. ``words``: what that is, for a person."""

    @property
    @abstractmethod
    def words(self) -> str: ...

    @abstractmethod
    def change(self, files: Files) -> None:
        """Make it. Raises :class:`EditError` if it can't be, :class:`ConfigError` with the place in the file if it is
        written in a way that can't be edited."""


class Files:
    """The files of a directory, by path, while they are edited."""

    def __init__(self, directory: str, contents: Mapping[str, bytes]) -> None:
        self._directory, self._contents = directory, contents
        self._drafts: dict[str, Draft] = {}
        self._made: dict[str, bytes] = {}
        self._removed: set[str] = set()

    def edits(self) -> tuple[FileEdit, ...]:
        """What has changed."""
        changed = [
            FileEdit(path, self._contents[path], None if path in self._removed else draft.content)
            for path, draft in self._drafts.items()
        ]
        made = [FileEdit(path, None, content) for path, content in self._made.items()]
        return tuple(each for each in (*changed, *made) if each.before != each.after)

    def proxies(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Every proxy that has a name: its file, its place in the file's list, and what it says."""
        for path, content in self._contents.items():
            root = document.parse(path, content).root
            proxies = root.get("proxies") if isinstance(root, dict) else None
            for index, each in enumerate(proxies if isinstance(proxies, list) else ()):
                if isinstance(each, dict) and isinstance(each.get("name"), str):
                    yield path, index, each

    def proxy(self, name: str) -> tuple[Draft, Path]:
        """The file of a proxy, and the way to it."""
        names = []
        for path, index, each in self.proxies():
            if each["name"] == name:
                return self.draft(path), ("proxies", index)
            names.append(each["name"])
        for path, content in self._contents.items():
            if problems := document.parse(path, content).problems:
                raise ConfigError(problems)  # it may be in there
        raise EditError(f"there is no proxy {name!r} in {self._directory}{hint(name, names)}")

    def settings(self) -> Draft | None:
        """The file that has the settings."""
        for path, content in self._contents.items():
            root = document.parse(path, content).root
            if isinstance(root, dict) and "settings" in root:
                return self.draft(path)
        return None

    def draft(self, path: str) -> Draft:
        """A file to change."""
        if path not in self._drafts:
            self._drafts[path] = Draft(path, self._contents[path])
        return self._drafts[path]

    def make(self, name: str, root: dict[str, Any]) -> None:
        """A new file of that name, or of that name with a number, in YAML."""
        number, path = 1, f"{self._directory}/{name}.yaml"
        while path in self._contents:
            number += 1
            path = f"{self._directory}/{name}-{number}.yaml"
        head, *rest = ("\n".join(render.block({key: value})) for key, value in root.items())
        self._made[path] = ("\n\n".join((head, *rest)) + "\n").encode()

    def remove(self, path: str) -> None:
        """Remove a whole file."""
        self.draft(path)
        self._removed.add(path)


def edit(directory: str, contents: Mapping[str, bytes], wanted: Edit) -> tuple[FileEdit, ...]:
    """The files that ``wanted`` changes, of those at these paths in ``directory``. The result need not be valid: that
    is for :func:`reconciler.config.files.parse_sources` to say. Raises :class:`EditError`, :class:`ConfigError`."""
    files = Files(directory, contents)
    wanted.change(files)
    return files.edits()


# -- proxies -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddProxy(Edit):
    """A new proxy, as the files have it, in a new file."""

    proxy: Mapping[str, Any]

    @property
    def words(self) -> str:
        return f"add proxy {self.proxy['name']}"

    def change(self, files: Files) -> None:
        name = self.proxy["name"]
        for path, _, each in files.proxies():
            if each["name"] == name:
                raise EditError(f"there is a proxy {name!r} already, in {path}")
        # A name that is none is for validation to refuse, and no part of a path till then.
        safe = name if re.fullmatch("[-a-z0-9]{1,63}", name) else "proxy"
        files.make(_PROXY_NAME.format(name=safe), {"apiVersion": "revproxy/v1", "proxies": [dict(self.proxy)]})


@dataclass(frozen=True, slots=True)
class RemoveProxy(Edit):
    """A proxy taken out of its file. A file that :class:`AddProxy` made goes with it, if nothing was added to it."""

    name: str

    @property
    def words(self) -> str:
        return f"remove proxy {self.name}"

    def change(self, files: Files) -> None:
        draft, (key, index) = files.proxy(self.name)
        assert isinstance(index, int)
        own = rf".*/{re.escape(_PROXY_NAME.format(name=self.name))}(-[0-9]+)?\.yaml"
        alone = draft.root.keys() == {"apiVersion", "proxies"} and len(draft.root["proxies"]) == 1
        if alone and re.fullmatch(own, draft.file) and b"#" not in draft.content:
            files.remove(draft.file)
        else:
            draft.remove((key,), index)


# -- routes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddRoute(Edit):
    """A source route; no ``targets``: deny."""

    proxy: str
    source: str
    targets: tuple[Mapping[str, Any], ...] = ()

    @property
    def words(self) -> str:
        return f"add route {self.source} to proxy {self.proxy}"

    def change(self, files: Files) -> None:
        draft, path = files.proxy(self.proxy)
        proxy = _at(draft, path)
        if _route(proxy, self.source) is not None:
            raise EditError(f"proxy {self.proxy} has a route for {self.source} already, in {draft.file}")
        route: dict[str, Any] = {"source": self.source}
        targets = [dict(each) for each in self.targets]
        if targets:
            route["target"] = targets[0] if len(targets) == 1 else targets
        else:
            route["action"] = "deny"
        if "source_routes" in proxy:
            draft.append((*path, "source_routes"), route)
        else:
            draft.set(path, "source_routes", [route])


@dataclass(frozen=True, slots=True)
class RemoveRoute(Edit):
    """A source route taken out; with the last one goes ``source_routes``."""

    proxy: str
    source: str

    @property
    def words(self) -> str:
        return f"remove route {self.source} from proxy {self.proxy}"

    def change(self, files: Files) -> None:
        draft, path = files.proxy(self.proxy)
        proxy = _at(draft, path)
        index = _known_route(draft, self.proxy, proxy, self.source)
        if len(proxy["source_routes"]) == 1:
            draft.remove_key(path, "source_routes")
        else:
            draft.remove((*path, "source_routes"), index)


# -- targets -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _TargetEdit(Edit):
    """``target`` as the files have it; ``route``: the source of the route that it belongs to, None: the default."""

    proxy: str
    target: Mapping[str, Any]
    route: str | None = None

    @property
    def _owner(self) -> str:
        return f"proxy {self.proxy}" if self.route is None else f"route {self.route} of proxy {self.proxy}"

    def _targets(self, files: Files) -> tuple[Draft, Path]:
        """The way to the target or the list of targets."""
        draft, path = files.proxy(self.proxy)
        proxy = _at(draft, path)
        if self.route is None:
            if "default_target" not in proxy:
                raise EditError(f"proxy {self.proxy} has no default_target, in {draft.file}")
            return draft, (*path, "default_target")
        index = _known_route(draft, self.proxy, proxy, self.route)
        if "target" not in proxy["source_routes"][index]:
            raise EditError(f"the {self._owner} denies: it has no target, in {draft.file}")
        return draft, (*path, "source_routes", index, "target")

    def _index(self, draft: Draft, found: Any) -> int:
        """Which of the targets is meant. One without a port is the only one of its address."""
        targets = found if isinstance(found, list) else [found]
        wanted = _endpoint(self.target)
        known = [_endpoint(each) for each in targets]
        if wanted in known:
            return known.index(wanted)
        alike = [index for index, each in enumerate(known) if each is not None and wanted and each[0] == wanted[0]]
        if wanted is not None and wanted[1] is None and len(alike) == 1:
            return alike[0]
        names = ", ".join(_text(each) for each in targets)
        raise EditError(f"the {self._owner} has no target {_text(self.target)}, in {draft.file}: it has {names}")


@dataclass(frozen=True, slots=True)
class AddTarget(_TargetEdit):
    """One more target."""

    @property
    def words(self) -> str:
        return f"add target {_text(self.target)} to {self._owner}"

    def change(self, files: Files) -> None:
        draft, path = self._targets(files)
        found = _at(draft, path)
        targets = found if isinstance(found, list) else [found]
        if _endpoint(self.target) in [_endpoint(each) for each in targets]:
            raise EditError(f"the {self._owner} has the target {_text(self.target)} already, in {draft.file}")
        if isinstance(found, list):
            draft.append(path, dict(self.target))
        else:
            draft.listed(path, dict(self.target))


@dataclass(frozen=True, slots=True)
class RemoveTarget(_TargetEdit):
    """A target taken out. The last one stays: its proxy or route has to be removed instead."""

    @property
    def words(self) -> str:
        return f"remove target {_text(self.target)} from {self._owner}"

    def change(self, files: Files) -> None:
        draft, path = self._targets(files)
        found = _at(draft, path)
        index = self._index(draft, found)
        if not isinstance(found, list) or len(found) == 1:
            raise EditError(f"{_text(self.target)} is the only target of {self._owner}: remove that instead")
        draft.remove(path, index)


@dataclass(frozen=True, slots=True)
class SetWeight(_TargetEdit):
    """Another weight for a target."""

    weight: int = 1

    @property
    def words(self) -> str:
        return f"set the weight of target {_text(self.target)} of {self._owner} to {self.weight}"

    def change(self, files: Files) -> None:
        draft, path = self._targets(files)
        found = _at(draft, path)
        index = self._index(draft, found)
        draft.set((*path, index) if isinstance(found, list) else path, "weight", self.weight)


# -- interfaces and settings ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _InterfacesEdit(Edit):
    """``proxy`` None: every proxy."""

    interfaces: tuple[str, ...]
    proxy: str | None = None

    def _lists(self, files: Files) -> Iterator[tuple[Draft, Path, list[str]]]:
        names = [self.proxy] if self.proxy is not None else [each["name"] for _, _, each in files.proxies()]
        if not names:
            raise EditError("there is no proxy in the files")
        for name in names:
            draft, path = files.proxy(name)
            path = (*path, "listen", "interfaces")
            found = _at(draft, path)
            if not isinstance(found, list):
                raise EditError(f"proxy {name} has no interfaces, in {draft.file}")
            yield draft, path, found

    @property
    def _owner(self) -> str:
        return "every proxy" if self.proxy is None else f"proxy {self.proxy}"


@dataclass(frozen=True, slots=True)
class AttachInterfaces(_InterfacesEdit):
    """Listen on these as well."""

    @property
    def words(self) -> str:
        return f"let {self._owner} listen on {', '.join(self.interfaces)}"

    def change(self, files: Files) -> None:
        for draft, path, found in self._lists(files):
            for name in self.interfaces:
                if name not in found:
                    draft.append(path, name)


@dataclass(frozen=True, slots=True)
class DetachInterfaces(_InterfacesEdit):
    """Listen on these no more. The last interface of a proxy stays: the proxy has to be removed instead."""

    @property
    def words(self) -> str:
        return f"let {self._owner} no longer listen on {', '.join(self.interfaces)}"

    def change(self, files: Files) -> None:
        for draft, path, found in self._lists(files):
            left = [name for name in found if name not in self.interfaces]
            if not left:
                name = _at(draft, path[:2])["name"]
                raise EditError(f"proxy {name} listens on nothing else than {', '.join(found)}: remove it instead")
            for name in found:
                if name not in left:
                    draft.remove(path, _at(draft, path).index(name))


@dataclass(frozen=True, slots=True)
class SetSetting(Edit):
    """A key of ``settings``, in the file that has them, else in a new one."""

    key: str
    value: Any

    @property
    def words(self) -> str:
        return f"set {self.key} to {render.flow(self.value)}"

    def change(self, files: Files) -> None:
        draft = files.settings()
        if draft is None:
            files.make(_SETTINGS_NAME, {"apiVersion": "revproxy/v1", "settings": {self.key: self.value}})
        else:
            draft.set(("settings",), self.key, self.value)


# -- what is meant by an address, a network, a target --------------------------------------------------------


def _at(draft: Draft, path: Path) -> Any:
    """What stands at a path; None where nothing of that kind does."""
    value = draft.root
    for step in path:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, dict) else None
        else:
            value = value[step] if isinstance(value, list) else None
    return value


def _network(text: Any) -> object:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return text


def _route(proxy: Any, source: str) -> int | None:
    """Which of a proxy's routes is for that source, however it is written."""
    routes = proxy.get("source_routes") if isinstance(proxy, dict) else None
    wanted = _network(source)
    for index, each in enumerate(routes if isinstance(routes, list) else ()):
        if isinstance(each, dict) and _network(each.get("source")) == wanted:
            return index
    return None


def _known_route(draft: Draft, name: str, proxy: Any, source: str) -> int:
    index = _route(proxy, source)
    if index is None:
        raise EditError(f"proxy {name} has no route for {source}, in {draft.file}")
    return index


def _endpoint(target: Any) -> tuple[object, Any] | None:
    if not isinstance(target, Mapping):
        return None
    try:
        return ip_address(target.get("ip", "")), target.get("port")
    except ValueError:
        return target.get("ip"), target.get("port")


def _text(target: Any) -> str:
    """``IP:PORT`` or ``[IPv6]:PORT`` as people write it."""
    if not isinstance(target, Mapping):
        return str(target)
    ip, port = str(target.get("ip", "?")), target.get("port")
    return ip if port is None else f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def sources(contents: Mapping[str, bytes], edits: Sequence[FileEdit]) -> dict[str, bytes]:
    """All files as they would be after the edits, in the order of their names."""
    found = {**contents, **{each.path: each.after for each in edits if each.after is not None}}
    gone = {each.path for each in edits if each.after is None}
    return {path: found[path] for path in sorted(found) if path not in gone}
