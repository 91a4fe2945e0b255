"""Times as they are written for people and for JSON: ISO 8601 in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def now() -> str:
    """The present, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def after(seconds: float) -> str:
    """So many seconds from now."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def of_ns(nanoseconds: int) -> str:
    """Nanoseconds since the epoch."""
    # In whole numbers: a float would round some of them up.
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    at = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)
    return at.isoformat(timespec="milliseconds")


def ns_of(text: str) -> int:
    """The inverse of :func:`of_ns`, to the millisecond."""
    return round(datetime.fromisoformat(text).timestamp() * 1000) * 1_000_000


def age_sec(text: str) -> float:
    """How long ago a time of :func:`now` was, by the clock on the wall."""
    return (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()
