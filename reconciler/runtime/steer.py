"""What moves while nothing is configured: health and drains as facts, and the kernel following them.

Shares hold whatever the files say: :meth:`Steering.steer` brings the kernel to them also while the files are broken,
held or not yet applied, without a commit. A commit finds the same facts in :meth:`Steering.facts`, so that both agree.
"""

from __future__ import annotations

import threading
from collections.abc import Container
from dataclasses import replace
from typing import TYPE_CHECKING

from reconciler import answers
from reconciler.config.healthcheck import OnUnhealthy
from reconciler.errors import RevproxyError
from reconciler.runtime.drains import Drains, matches, overlap
from reconciler.runtime.health.condition import Condition, Health
from reconciler.runtime.logger import Logger
from reconciler.state import share, steering
from reconciler.state.objects import QUARTERS, Endpoint
from reconciler.state.share import Drain, is_drained

if TYPE_CHECKING:
    from reconciler.config.healthcheck import HealthCheck
    from reconciler.config.model import Config, Settings
    from reconciler.kernel.resets import Resetter
    from reconciler.kernel.targets import LiveTarget
    from reconciler.places import Places
    from reconciler.runtime.events import Events
    from reconciler.runtime.health.checker import Checker
    from reconciler.runtime.live import Live
    from reconciler.state.facts import RuntimeFacts
    from reconciler.state.objects import Observed

Target = tuple[str, Endpoint]

_log = Logger("steering")


def checks_of(config: Config) -> dict[Target, HealthCheck]:
    """How each target is checked that is."""
    return {(proxy.name, endpoint): check for proxy in config.proxies for endpoint, check in proxy.checks}


def _drained(observed: Observed) -> list[Target]:
    return [key for key, each in observed.state.shares.items() if each.drained]


def _health_of(quarters: int) -> Health:
    if quarters == QUARTERS:
        return Health.HEALTHY
    return Health.RECOVERING if quarters else Health.UNHEALTHY


class Steering:
    """Of one engine. ``checker``: None where no daemon runs; then targets' health is left as the kernel has it."""

    def __init__(self, places: Places, live: Live, events: Events) -> None:
        self._drains, self._live, self._events = Drains(places.state_dir), live, events
        self._checks: dict[Target, HealthCheck] | None = None  # of the applied configuration; None: not known yet
        self.settings: Settings | None = None  # likewise
        self._dying: set[Target] = set()  # whose connections are to be reset
        self.resetting: Resetter | None = None
        self._lock = threading.Lock()
        self.checker: Checker | None = None

    # -- facts ---------------------------------------------------------------------------------------------------

    def facts(self, runtime: RuntimeFacts, config: Config, observed: Observed) -> RuntimeFacts:
        """``runtime`` with health and drains, as far as they concern this configuration."""
        checked = checks_of(config)
        return replace(runtime, health=self._health(observed, checked), drains=frozenset(self._drained(observed)))

    def _drained(self, observed: Observed) -> dict[Drain, str]:
        """What was asked for; of a file that does not say so any more the kernel knows what came of it."""
        return self._drains.known(_drained(observed))

    def mend(self, observed: Observed) -> None:
        """Set a file aside that is no list of drains any more. Raises :class:`RevproxyError`."""
        self._drains.mend(_drained(observed))

    def _health(self, observed: Observed, checked: Container[Target] | None) -> dict[Target, int]:
        """What the checker says; of targets it has not met, what the kernel says. Of one that is not checked nothing
        is left."""
        found = {key: each.quarters for key, each in observed.state.shares.items() if each.quarters != QUARTERS}
        found.update({key: each.quarters for key, each in self.conditions().items()})
        return found if checked is None else {key: each for key, each in found.items() if key in checked}

    def conditions(self) -> dict[Target, Condition]:
        """Of every target that is being checked."""
        return self.checker.conditions() if self.checker else {}

    def health_names(self, observed: Observed) -> dict[Target, Health]:
        """For people: each target's health as packets feel it, from before this process if need be. What a check has
        found is told once the kernel follows it."""
        live = {key: each.quarters for key, each in observed.state.shares.items()}
        found = {key: _health_of(quarters) for key, quarters in live.items() if quarters != QUARTERS}
        for key, each in self.conditions().items():
            quarters = live.get(key, QUARTERS)
            found[key] = each.health if each.quarters == quarters else _health_of(quarters)
        return found

    # -- following -----------------------------------------------------------------------------------------------

    def follow(self, config: Config, observed: Observed) -> None:
        """This configuration is applied: check its targets."""
        self._checks = checks = checks_of(config)
        self.settings = config.settings
        if self.checker is not None:
            known = {key: each.quarters for key, each in observed.state.shares.items()}
            self.checker.follow(checks, known)

    def steer(self, observed: Observed) -> int:
        """Bring the shares in the kernel to what health and drains say, for what is applied; how many operations that
        took. ``observed`` must not be unfinished. Raises :class:`RevproxyError`."""
        if not observed.exists:
            return 0
        drains, health = frozenset(self._drained(observed)), self._health(observed, self._checks)
        wanted = share.shares(share.endpoints(observed.state), health, drains)
        found = tuple(steering.operations(replace(observed.state, shares=wanted), observed))
        if found:
            self._live.free(found)
            _log.info("shares_changed", targets=len(wanted), operations=len(found))
        self.reset_some()
        return len(found)

    def reset_some(self) -> None:
        """Reset connections of targets that have been found dead, once, after their tables name others: a tenth of a
        second's worth. While :attr:`resetting`, there are more."""
        from reconciler.kernel.resets import Resetter  # only here: it needs bcc

        if self.resetting is None:
            with self._lock:
                dying, self._dying = self._dying, set()
            if not dying:
                return
            self.resetting = Resetter(dying)
        resetter = self.resetting
        try:
            more = self._live.reset(resetter)
        except RevproxyError:
            self.resetting = None
            with self._lock:
                self._dying |= resetter.targets
            raise
        if not more:
            self.resetting = None
            names = sorted(f"{name}/{endpoint}" for name, endpoint in resetter.targets)
            _log.info("connections_reset", targets=names, number=resetter.marked)

    @property
    def to_reset(self) -> bool:
        """There are connections to be reset, by :meth:`reset_some`."""
        return self.resetting is not None or bool(self._dying)

    def health_changed(self, target: Target, before: Condition, now: Condition) -> None:
        """For the checker: say what happened. From its thread."""
        proxy, endpoint = target
        fields = {"proxy": proxy, "target": str(endpoint)}
        if now.health is Health.UNHEALTHY:
            check = (self._checks or {}).get(target)
            if check is not None and check.on_unhealthy is OnUnhealthy.RESET:
                with self._lock:
                    self._dying.add(target)
            self._events.publish("target_down", **fields, reason=now.reason)
            _log.warning("target_down", **fields, reason=now.reason)
        elif before.health is Health.UNHEALTHY:
            self._events.publish("target_up", **fields, quarters=now.quarters)
            _log.info("target_up", **fields, quarters=now.quarters)
        elif now.health is Health.HEALTHY and before.health is Health.RECOVERING:
            self._events.publish("target_recovered", **fields)
            _log.info("target_recovered", **fields)

    # -- drains --------------------------------------------------------------------------------------------------

    def _matching(self, wanted: Drain) -> list[LiveTarget]:
        return [each for each in self._live.targets() if matches(wanted, (each.proxy, each.endpoint))]

    def meant(self, wanted: Drain) -> list[LiveTarget]:
        """The live targets that a drain means, retired ones included. Raises :class:`RevproxyError` if there is
        none."""
        live = self._live.targets()
        found = [each for each in live if matches(wanted, (each.proxy, each.endpoint))]
        if found:
            return found
        if wanted.proxy is not None and all(each.proxy != wanted.proxy for each in live):
            raise RevproxyError(f"no live proxy is called {wanted.proxy}")
        where = f"the proxy {wanted.proxy} has no target" if wanted.proxy else "no live proxy has a target"
        others = sorted({str(each.endpoint) for each in live if wanted.proxy in (None, each.proxy)})
        listed = ", ".join(others[:10]) + (", ..." if len(others) > 10 else "")
        raise RevproxyError(
            f"{where} {wanted.endpoint}"
            + (f" (there {'is' if len(others) == 1 else 'are'} {listed})" if others else "")
        )

    def drain(self, wanted: Drain, observed: Observed) -> None:
        """No new connections to what ``wanted`` means, from now on and in a later process as well."""
        fresh = [each for each in self.meant(wanted) if not each.share.drained]
        self.mend(observed)
        self._drains.add(wanted)
        self.steer(observed)
        for each in fresh:
            self._tell("target_drained", (each.proxy, each.endpoint))

    def undrain(self, wanted: Drain, observed: Observed) -> None:
        """New connections again. Also for a drained target that is in no proxy any more."""
        self.mend(observed)
        drains = [drain for drain in self._drains.load() if overlap(drain, wanted)]
        if all(wanted.proxy not in (None, drain.proxy) for drain in drains):  # none that names what is meant
            self.meant(wanted)  # raises if there is no such target at all
        if not drains:
            return
        live = [(each.proxy, each.endpoint) for each in self._live.targets()]
        freed = self._drains.take_back(wanted, live)
        self.steer(observed)
        for target in sorted(freed, key=lambda each: (each[0], str(each[1]))):
            self._tell("target_undrained", target)

    def _tell(self, kind: str, target: Target) -> None:
        fields = {"proxy": target[0], "target": str(target[1])}
        self._events.publish(kind, **fields)
        _log.info(kind, **fields)

    def draining(self, wanted: Drain, *, gone: bool = False) -> answers.Draining:
        """How far the targets are that ``wanted`` means. Nothing is left of one that the files no longer name, once its
        last connection has ended; ``gone``: that it may have is known."""
        live = self._live.targets()
        drains = self._drains.known((each.proxy, each.endpoint) for each in live if each.share.drained)
        gone = gone or any(overlap(drain, wanted) for drain in drains)
        live = self._matching(wanted) if gone else self.meant(wanted)
        found = [
            answers.DrainingTarget(
                each.proxy,
                str(each.endpoint),
                ("draining" if each.connections else "drained")
                if is_drained(frozenset(drains), each.proxy, each.endpoint)
                else "active",
                each.connections,
            )
            for each in live
        ]
        return answers.Draining(tuple(found), sum(each.connections for each in found))
