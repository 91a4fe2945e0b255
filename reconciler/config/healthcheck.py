"""``health_check``: what the files say about checking targets, and what of it a schema can't say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from reconciler.config import schema
from reconciler.config.document import Mapping
from reconciler.config.messages import series


class CheckType(StrEnum):
    """``none``: this target is not checked, though its proxy's are."""

    NONE = "none"
    TCP = "tcp"
    HTTP = "http"
    HTTPS = "https"


class OnUnhealthy(StrEnum):
    """What becomes of the connections there are to a target that is found unhealthy."""

    KEEP = "keep"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One way of checking, defaults filled in. ``port`` None: the target's. ``expected_codes``: ranges, both ends
    included. ``host`` None: the target's address. ``ca_file``: instead of the system's authorities; only with
    ``verify``. What the type has no use for is at its default."""

    type: CheckType
    port: int | None
    interval_ms: int
    timeout_ms: int
    healthy_threshold: int
    unhealthy_threshold: int
    path: str
    expected_codes: tuple[tuple[int, int], ...]
    host: str | None
    verify: bool
    ca_file: str | None = None
    on_unhealthy: OnUnhealthy = OnUnhealthy.KEEP

    def expects(self, code: int) -> bool:
        """Whether an HTTP status code is a good one."""
        return any(first <= code <= last for first, last in self.expected_codes)


_ONLY_WITH = {
    "path": (CheckType.HTTP, CheckType.HTTPS),
    "expected_codes": (CheckType.HTTP, CheckType.HTTPS),
    "host": (CheckType.HTTP, CheckType.HTTPS),
    "verify": (CheckType.HTTPS,),
}


def build(tree: Mapping) -> HealthCheck:
    """The health check that a tree satisfying the schema says."""

    def value(key: str) -> Any:
        return tree.get(key, schema.default("health_check", key))

    verify = value("verify")
    return HealthCheck(
        type=CheckType(tree["type"]),
        port=value("port"),
        interval_ms=value("interval_ms"),
        timeout_ms=value("timeout_ms"),
        healthy_threshold=value("healthy_threshold"),
        unhealthy_threshold=value("unhealthy_threshold"),
        path=value("path"),
        expected_codes=tuple(_range(each) for each in value("expected_codes")),
        host=value("host"),
        verify=verify is not False,
        ca_file=verify if isinstance(verify, str) else None,
        on_unhealthy=OnUnhealthy(value("on_unhealthy")),
    )


def wrong_keys(tree: Mapping) -> Iterator[tuple[str, str]]:
    """Keys that say nothing with this type or nothing at all, and why."""
    kind = CheckType(tree["type"])
    for key, kinds in _ONLY_WITH.items():
        if key in tree and kind not in kinds and kind is not CheckType.NONE:
            fitting = series([f"type: {kinds[0]}", *kinds[1:]], "or")
            yield key, f"'{key}' goes with {fitting}, not with '{kind}'"
    for each in tree.get("expected_codes", ()):
        first, last = _range(each)
        if first > last:
            yield "expected_codes", f"the range '{each}' begins above its end"


def _range(codes: int | str) -> tuple[int, int]:
    if isinstance(codes, int):
        return codes, codes
    first, _, last = codes.partition("-")
    return int(first), int(last)
