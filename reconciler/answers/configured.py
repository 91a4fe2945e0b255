"""The proxies as the files have them, and what an edit of the files did."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.answers.plan import Applied


@dataclass(frozen=True, slots=True)
class Edited:
    """What an edit of the files did. ``files``: those that were written, made or removed; none if they said so already.
    ``applied``: what applying them gave, None if that was not wanted."""

    edit: str
    files: tuple[str, ...] = ()
    applied: Applied | None = None


@dataclass(frozen=True, slots=True)
class EditHold:
    """``token``: what the daemon gives the right to edit files under, while it does not follow them."""

    token: str


@dataclass(frozen=True, slots=True)
class ConfiguredTarget:
    """A target as the files have it."""

    address: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class ConfiguredRoute:
    """A source route as the files have it. ``action``: deny, or forward to ``targets``."""

    source: str
    action: str = "forward"
    targets: tuple[ConfiguredTarget, ...] = ()


@dataclass(frozen=True, slots=True)
class ConfiguredProxy:
    """A proxy as the files have it, defaults filled in. ``addresses`` empty: the interfaces' own. ``file``, ``line``,
    ``column``: where it stands."""

    name: str
    interfaces: tuple[str, ...]
    addresses: tuple[str, ...]
    ports: tuple[int, ...]
    protocol: str
    mode: str
    balance: str
    default_target: tuple[ConfiguredTarget, ...]
    source_routes: tuple[ConfiguredRoute, ...]
    connection_timeout_sec: int | None
    file: str
    line: int
    column: int
