"""What a target's health is, and how one check's result changes it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from reconciler.config.healthcheck import HealthCheck
from reconciler.state.objects import QUARTERS


class Health(StrEnum):
    """``unchecked``: no result has decided anything yet. ``recovering``: it is well again and gets its weight back by
    quarters."""

    UNCHECKED = "unchecked"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    RECOVERING = "recovering"


@dataclass(frozen=True, slots=True)
class Condition:
    """``quarters`` of its weight that this leaves the target, 0 to 4. ``streak``: how many results in a row have spoken
    against ``health``. ``reason``: what was wrong at the last failed check; empty after one that went well."""

    health: Health = Health.UNCHECKED
    quarters: int = QUARTERS
    streak: int = 0
    reason: str = ""


UNCHECKED: Final = Condition()


def remembered(quarters: int) -> Condition:
    """The condition of a target of which only its share is known, from before this process."""
    if quarters >= QUARTERS:
        return UNCHECKED
    return Condition(Health.RECOVERING if quarters > 0 else Health.UNHEALTHY, max(quarters, 0))


def after(condition: Condition, check: HealthCheck, reason: str | None) -> Condition:
    """The condition after one more check, which failed for ``reason`` or went well (None).

    ``unhealthy_threshold`` failures in a row take the target out, ``healthy_threshold`` successes in a row bring a
    quarter of its weight back, each further success another one. A failure while it comes back takes it out again.
    """
    return _failed(condition, check, reason) if reason is not None else _went_well(condition, check)


def _failed(condition: Condition, check: HealthCheck, reason: str) -> Condition:
    out = Condition(Health.UNHEALTHY, 0, 0, reason)
    if condition.health in (Health.UNHEALTHY, Health.RECOVERING):
        return out
    streak = condition.streak + 1
    return out if streak >= check.unhealthy_threshold else replace(condition, streak=streak, reason=reason)


def _went_well(condition: Condition, check: HealthCheck) -> Condition:
    if condition.health in (Health.UNCHECKED, Health.HEALTHY):
        return Condition(Health.HEALTHY)
    if condition.health is Health.UNHEALTHY and condition.streak + 1 < check.healthy_threshold:
        return replace(condition, streak=condition.streak + 1, reason="")
    quarters = condition.quarters + 1
    return Condition(Health.HEALTHY) if quarters >= QUARTERS else Condition(Health.RECOVERING, quarters)
