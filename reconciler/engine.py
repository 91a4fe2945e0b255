"""Everything that can be done with one instance: what the daemon and the command line have in common.

The way data takes through it is a module each, below ``runtime/``: ``configdir`` (files to Config), ``views`` (Config
and kernel to a View), ``commits`` (View to Plan to kernel), ``attempts`` (what came of it). Beside that way are
``revisions`` (what people say), ``standing`` (how things are), ``steer`` (health and drains) and ``housekeeping``
(connections that end).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from reconciler import answers, report, selection
from reconciler.errors import ConfigError, RevproxyError
from reconciler.runtime import leftbehind, savedplan, statedir
from reconciler.runtime.attempts import Attempts
from reconciler.runtime.commits import Commits
from reconciler.runtime.configdir import ConfigDirectory
from reconciler.runtime.events import Events
from reconciler.runtime.history import History
from reconciler.runtime.housekeeping import Housekeeping
from reconciler.runtime.knownrevision import KnownRevision
from reconciler.runtime.lastgood import LastGood
from reconciler.runtime.leftbehind import LeftBehind
from reconciler.runtime.logger import Logger
from reconciler.runtime.originals import Originals
from reconciler.runtime.revisions import Revisions
from reconciler.runtime.standing import Standing
from reconciler.runtime.steer import Steering
from reconciler.runtime.views import Views
from reconciler.state import touched
from reconciler.state.desired import Causes

if TYPE_CHECKING:
    from reconciler.config.model import Settings
    from reconciler.kernel.gateway import Gateway
    from reconciler.places import Places
    from reconciler.runtime.commits import Planned
    from reconciler.runtime.live import Live
    from reconciler.runtime.view import View
    from reconciler.selection import Filters, Listing
    from reconciler.state.objects import Observed


_log = Logger("engine")


class Engine:
    """Serves one instance in the network namespace of the calling thread, from one thread. What it remembers between
    calls are parsed files, and what became of the last attempt.

    ``gateway``: the door for all changes of the kernel. ``sleep`` is used for waiting while files are written; it may
    raise to end the waiting.
    """

    def __init__(
        self,
        places: Places,
        gateway: Gateway | None = None,
        *,
        live: Live | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if live is None:
            from reconciler.runtime.live import Live  # only here: it needs bcc and privileges

            live = Live(places.bpffs_dir, gateway)
        self.places, self.live, self.events = places, live, Events()
        self.files = ConfigDirectory(places, sleep)
        self.steering = Steering(places, live, self.events)
        self.archive = History(places)
        self._originals = Originals(places.state_dir / "sysctls.json")
        self._left = LeftBehind(places.state_dir / leftbehind.FILE)
        live.left = self._left.maps
        known = KnownRevision(live, self.archive)
        self._views = views = Views(self.files, live, self.steering, self._originals, known)
        self._commits = commits = Commits(views, places, self.archive, self.events)
        self._attempts = attempts = Attempts(views, commits, places)
        self.revisions = Revisions(views, commits, attempts, places, self.archive)
        self._housekeeping = Housekeeping(views, commits, self.revisions)
        self._last_good = LastGood(views, commits, self.archive, places)
        self.standing = Standing(views, commits, attempts, self.revisions, self._last_good, places)
        # What the daemon's loop takes step by step.
        self.observe, self.view = views.observe, views.take
        self.recover = commits.recover
        self.commit, self.note = attempts.commit, attempts.note
        self.track = self.standing.track

    def close(self) -> None:
        """Give what is open back."""
        self.live.close()
        self.live.let_go()

    @property
    def settings(self) -> Settings | None:
        """Those in force; None where nothing was found or put in force yet."""
        return self.steering.settings

    @property
    def attempt(self) -> answers.Attempt | None:
        """What became of the last attempt to change something."""
        return self._attempts.latest

    # -- comparing -----------------------------------------------------------------------------------------

    def diff(self) -> answers.Difference:
        """What differs between files and kernel."""
        view = self._views.compared()
        planned = self._planned(view)
        return answers.Difference(
            report.changes(view.changes), len(planned.plan.operations) if planned else 0, view.warnings
        )

    def plan(self) -> answers.PlanAnswer:
        """What :meth:`apply` would do."""
        view = self._views.compared()
        planned = self._counted(view, self._planned(view))
        return report.plan(planned.plan, view.warnings) if planned else answers.PlanAnswer(warnings=view.warnings)

    def saved_plan(self) -> answers.SavedPlan:
        """What :meth:`apply` would do, to be given to it later."""
        view = self._views.compared()
        return savedplan.save(view, self._counted(view, self._planned(view)), self.live.tag)

    def _planned(self, view: View) -> Planned | None:
        return self._commits.plan(view) if view.changes else None

    def _counted(self, view: View, planned: Planned | None) -> Planned | None:
        """With the connections that only a look at each of them can tell are touched."""
        if planned is None or view.delta is None:
            return planned
        names = touched.in_part(view.delta)
        found = [each for each in planned.plan.touched if each.proxy not in names]
        states = view.desired.state, view.observed.state
        for name in names:
            found += touched.one_by_one(name, self.live.seen(name), view.delta, *states)
        ordered = sorted(found, key=lambda each: (each.proxy, each.target))
        return replace(planned, plan=replace(planned.plan, touched=tuple(ordered)))

    # -- applying ------------------------------------------------------------------------------------------

    def apply(
        self,
        *,
        allow_empty: bool = False,
        confirm_within_sec: float | None = None,
        plan: answers.SavedPlan | None = None,
    ) -> answers.Applied:
        """Make the kernel what the files say, all or nothing.

        ``plan``: what that says instead, exactly, or :class:`StaleError`. ``confirm_within_sec``: it is taken back
        unless :meth:`Revisions.confirm` is called in time. Raises :class:`ConfigError` for wrong files,
        :class:`HeldError` for files without a proxy while some are live (unless ``allow_empty``),
        :class:`TransactionError` or :class:`KernelError` if it did not work; the kernel is then as it was. What came of
        it is in ``attempt``.
        """
        self.revisions.expire()
        self.take_up()
        self._commits.forget_tests()  # who asks wants to know
        try:
            view = self.view() if plan is None else self._view_of(plan)
        except ConfigError as error:
            self.note(error)
            raise
        before = self.revisions.promise(view, confirm_within_sec)
        try:
            done = self.commit(view, allow_empty=allow_empty)
        except RevproxyError:
            self.revisions.withdraw(before, view)
            raise
        self.revisions.released(
            plan_files=plan is not None and not self._are_in_the_directory(view),
            nothing=allow_empty and not view.config.proxies and not view.observed.exists,
        )
        return replace(done, unconfirmed=self.revisions.unconfirmed())

    def _view_of(self, plan: answers.SavedPlan) -> View:
        """Both sides with the plan's files. Raises :class:`StaleError`."""
        self.recover(self.live.observe())
        config = savedplan.config(plan, self.places.config_dir)
        self.files.signatures.check(config.files, plan.commit or "")
        view = self.view(config, savedplan.origin(plan), connections_anew=True)
        savedplan.check(plan, view, self._planned(view), self.live.tag)
        return view

    def _are_in_the_directory(self, view: View) -> bool:
        try:
            return {file.path: file.digest for file in self.files.load().files} == {
                file.path: file.digest for file in view.config.files
            }
        except ConfigError:
            return False

    def take_up(self) -> Observed:
        """What the kernel holds, once all that another process has left half done is put right and recorded, and what
        in the state directory is not as it was written is out of the way. Raises :class:`RevproxyError`."""
        observed = self._commits.take_up()
        self.tend(observed)
        return observed

    def tend(self, observed: Observed) -> None:
        """Set aside what in the state directory is no longer as it was written, and write again what of it is known:
        by whoever holds the instance lock. What can't be done is logged, and keeps nothing back."""
        control = self.revisions.control
        statedir.tend(self.places)
        try:
            self.revisions.file.write(control)
            self.steering.mend(observed)
        except RevproxyError as error:
            _log.error("state_dir_not_written", path=str(self.places.state_dir), error=str(error))

    def keep_in_force(self) -> bool:
        """The files are not to be applied: put right what differs from what is applied, and go on checking its targets.
        False: nothing is applied. Raises :class:`RevproxyError`."""
        view = self.revisions.applied_view()
        if view is None:
            return False
        self._attempts.repair(view)
        return True

    def adopt(self) -> None:
        """Go on checking the targets of what is applied, and change nothing. Raises :class:`RevproxyError`."""
        view = self.revisions.applied_view()
        if view is not None:
            self.steering.follow(view.config, view.observed)

    def apply_last_good(self) -> answers.Applied | None:
        """After a boot with broken files: apply the copy of the last configuration that worked. None without one.
        Raises :class:`RevproxyError`."""
        return self._last_good.apply()

    def down(self) -> answers.TakenDown:
        """Take everything of this instance out of the kernel."""
        originals = self._originals.read()
        self._left.add(self.live.own_maps())
        removed = self.live.down(originals)
        self._originals.keep({}, originals)
        self.revisions.taken_down()
        self._attempts.forget()
        return answers.TakenDown(removed)

    # -- looking -------------------------------------------------------------------------------------------

    def status(self, *, keep: bool = False) -> answers.Status:
        """Sync state and what there is. ``keep``: the caller holds the instance lock, so that it is remembered since
        when things are as they are. Errors in the files are part of the answer, errors of the kernel are raised."""
        return self.standing.status(keep=keep)

    def test(self) -> answers.Tested:
        """Run the tests of the files on what packets see now. Raises :class:`ConfigError`, and :class:`RevproxyError`
        where nothing is loaded."""
        from reconciler.runtime import explaining

        return explaining.test(self.live, self.view())

    def explain(
        self, source: str, to: str, *, protocol: str = "tcp", interface: str | None = None
    ) -> answers.Explanation:
        """What the data plane does with such a packet now. Raises :class:`RevproxyError` for what is no
        question."""
        from reconciler.runtime import explaining

        asked = explaining.question(source, to, protocol, interface)
        try:
            causes = Causes(self.files.load())
        except ConfigError:
            causes = Causes()  # live state can be explained without the files
        return explaining.explain(self.live, asked, self.live.observe(), causes)

    def connections(self, **how: Unpack[Listing]) -> Iterator[list[str]]:
        """Live connections, each as an object of JSON, some of them with each step. Raises :class:`UsageError`."""
        return self.live.connections(*selection.listing(how))

    def connection_count(self, **filters: Unpack[Filters]) -> int:
        """How many :meth:`connections` would give."""
        return self.live.connection_count(selection.query(filters))

    def stats(self) -> answers.Stats:
        """Counters."""
        return self.live.stats()

    # -- connections ---------------------------------------------------------------------------------------

    def flush(self, **filters: Unpack[Filters]) -> int:
        """Forget connections, and free targets and proxies that only they still used; how many were forgotten."""
        return sum(self.flushing(**filters))

    def flushing(self, **filters: Unpack[Filters]) -> Iterator[int]:
        """The same in steps of a tenth of a second, each telling how many it has forgotten. Raises
        :class:`UsageError` at once."""
        return self._housekeeping.flushing(selection.query(filters, every_state=True))

    def sweep(self) -> int:
        """Delete expired connections, and free targets and proxies that only they still used; how many were
        deleted. Where there are very many, that is left to the next thorough look."""
        return self._housekeeping.sweep()

    def forget_ways(self) -> None:
        """Routes or neighbours have changed: no connection may go on using the way out it remembers."""
        self.live.forget_ways()

    # -- health and drains ---------------------------------------------------------------------------------

    def steer(self) -> None:
        """Have health and drains take effect on what is applied, whatever the files say. Raises
        :class:`RevproxyError`."""
        self.steering.steer(self._commits.level())

    def drain(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        """No new connections to a target, in one proxy or in all, until :meth:`undrain`."""
        wanted = selection.drain(target, proxy)
        self.steering.drain(wanted, self._commits.level())
        return self.steering.draining(wanted)

    def undrain(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        """Take :meth:`drain` back."""
        wanted = selection.drain(target, proxy)
        self.steering.undrain(wanted, self._commits.level())
        return self.steering.draining(wanted, gone=True)

    def draining(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        """How far a drain is."""
        return self.steering.draining(selection.drain(target, proxy))
