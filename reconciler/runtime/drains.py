"""Which targets an operator wants drained, kept in the state directory until they are undrained.

The file is read anew for every question: it is small, and whoever writes it holds the instance's lock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from reconciler.errors import RevproxyError
from reconciler.runtime import statefile, wholefile
from reconciler.runtime.statefile import BrokenError
from reconciler.state.objects import Endpoint
from reconciler.state.share import Drain, is_drained

Target = tuple[str, Endpoint]

FILE: Final = "drains.json"


def matches(drain: Drain, target: Target) -> bool:
    """Whether a drain, or a request for one, means this target."""
    return is_drained(frozenset({drain}), *target)


@dataclass(frozen=True, slots=True)
class Drains:
    """The drains of the instance whose state directory this is."""

    state_dir: Path

    @property
    def path(self) -> Path:
        """Where they are kept."""
        return self.state_dir / FILE

    def load(self) -> dict[Drain, str]:
        """Each with the time it was asked for, ISO 8601. Raises :class:`BrokenError` if the file is no longer what was
        written."""
        return statefile.load(self.path, decode) or {}

    def known(self, drained: Iterable[Target]) -> dict[Drain, str]:
        """The same; in place of a file that is not what was written any more, what the kernel has ``drained``."""
        try:
            return self.load()
        except BrokenError:
            return dict.fromkeys((Drain(endpoint, proxy) for proxy, endpoint in drained), _now())

    def mend(self, drained: Iterable[Target]) -> None:
        """If the file is not what was written any more, set it aside and write what the kernel has ``drained``."""
        try:
            self.load()
        except BrokenError as error:
            kept = self.known(drained)
            statefile.set_aside(self.path, error, replaced=bool(kept))
            if kept:
                self._save(kept)

    def add(self, drain: Drain) -> bool:
        """Keep one more. False if it is there already."""
        known = self.load()
        if drain in known:
            return False
        self._save(known | {drain: _now()})
        return True

    def take_back(self, wanted: Drain, live: Iterable[Target]) -> frozenset[Target]:
        """Undrain what ``wanted`` means, and nothing else: a wider drain gives way to one for each of the other
        ``live`` targets it meant. Returns the live ones that were drained and are not any more."""
        known = self.load()
        before = frozenset(known)
        drained = {target for target in live if is_drained(before, *target)}
        freed = frozenset(target for target in drained if matches(wanted, target))
        kept = {drain: since for drain, since in known.items() if not overlap(drain, wanted)}
        for target in sorted(drained - freed, key=lambda each: (each[0], str(each[1]))):
            if not is_drained(frozenset(kept), *target):
                kept[Drain(target[1], target[0])] = next(s for drain, s in known.items() if matches(drain, target))
        if kept != known:
            self._save(kept)
        return freed

    def _save(self, drains: dict[Drain, str]) -> None:
        """Whole or not at all, also when power is lost."""
        rows = [
            {"target": str(drain.endpoint.ip), "port": drain.endpoint.port, "proxy": drain.proxy, "since": since}
            for drain, since in drains.items()
        ]
        try:
            wholefile.replace(self.path, json.dumps(rows, indent=1), durable=True)
        except OSError as error:
            raise RevproxyError(f"{self.path}: {error.strerror}: a drain has to outlive this process") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def decode(rows: Any) -> dict[Drain, str]:
    """What was written. Raises what :func:`statefile.load` takes for a broken file."""
    if not isinstance(rows, list):
        raise TypeError("no list")
    return dict(map(_decode, rows))


def _decode(row: Any) -> tuple[Drain, str]:
    proxy = row["proxy"]
    if not (proxy is None or isinstance(proxy, str)):
        raise ValueError("'proxy' is no name")
    return Drain(Endpoint(ip_address(row["target"]), int(row["port"])), proxy), str(row["since"])


def overlap(one: Drain, other: Drain) -> bool:
    """Whether there could be a target that both mean."""
    return (
        one.endpoint.ip == other.endpoint.ip
        and (one.endpoint.port == other.endpoint.port or 0 in (one.endpoint.port, other.endpoint.port))
        and (one.proxy == other.proxy or None in (one.proxy, other.proxy))
    )
