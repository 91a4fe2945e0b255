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
class ConfiguredCheck:
    """How a target is checked, defaults filled in. ``path``, ``expected_codes`` and ``host`` None: it is no http.
    ``verify``: whether a certificate is, or a file of authorities; None: it is no https."""

    type: str
    port: int | None
    interval_ms: int
    timeout_ms: int
    healthy_threshold: int
    unhealthy_threshold: int
    on_unhealthy: str
    path: str | None = None
    expected_codes: tuple[str, ...] | None = None
    host: str | None = None
    verify: bool | str | None = None


@dataclass(frozen=True, slots=True)
class ConfiguredTarget:
    """A target as the files have it. ``health_check`` None: it is not checked."""

    address: str
    weight: int = 1
    health_check: ConfiguredCheck | None = None


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
