"""Files in, kernel out: what the daemon and the command line do alike.

One :class:`Engine` serves one instance, from one thread. Everything it says about live state it has just read from the
kernel; what it remembers between calls are parsed files, and what became of the last attempt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Unpack

from reconciler import answers, report, selection
from reconciler.answers import Attempt
from reconciler.config import files as config_files
from reconciler.config.files import parse_sources
from reconciler.config.model import SyncPolicy
from reconciler.errors import ConfigError, KernelError, Problem, RevproxyError, TestsFailedError, UnfinishedError
from reconciler.runtime import clock, empty, savedplan, unrecorded
from reconciler.runtime.commits import Commits
from reconciler.runtime.conditions import Conditions, Situation
from reconciler.runtime.events import Events
from reconciler.runtime.history import History
from reconciler.runtime.logger import Logger
from reconciler.runtime.originals import Originals
from reconciler.runtime.revisions import Revisions
from reconciler.runtime.signed import Signatures
from reconciler.runtime.snapshot import Fingerprints, settle
from reconciler.runtime.steer import Steering
from reconciler.runtime.view import HeldError, Origin, View
from reconciler.state.desired import Causes, Memo, desired
from reconciler.state.diff import diff
from reconciler.state.plan import housekeeping

if TYPE_CHECKING:
    from reconciler.config.model import Config
    from reconciler.kernel.gateway import Gateway
    from reconciler.places import Places
    from reconciler.runtime.commits import Planned
    from reconciler.runtime.live import Live
    from reconciler.selection import Filters, Listing
    from reconciler.state.objects import Observed
    from reconciler.state.selection import Query

__all__ = ["Engine", "HeldError", "View"]

_READ_TRIES: Final = 20

_log = Logger("engine")


class Engine:
    """Everything that can be done with one instance in the network namespace of the calling thread.

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
        self.places = places
        self._sleep = sleep
        self.fingerprints = Fingerprints(places.config_dir)
        self._cache = config_files.Cache()
        self.signatures = Signatures(places.require_signed, places.config_dir)
        self._memo = Memo()
        self._retired = self._owed = False
        self.read_fingerprint = ""  # of the files that were read last
        self.events = Events()
        self.config: Config | None = None  # that was looked at last
        self.attempt: Attempt | None = None
        self.failure: tuple[View, RevproxyError] | None = None
        if live is None:
            from reconciler.runtime.live import Live  # only here: it needs bcc and privileges

            live = Live(places.bpffs_dir, gateway)
        self.live = live
        self.steering = Steering(places, live, self.events)
        self.archive = History(places)
        self.originals = Originals(places.state_dir / "sysctls.json")
        self.revisions = Revisions(self)
        self._commits = Commits(self)
        self.conditions = Conditions(places.state_dir / "conditions.json")

    def show_progress(self, told: Callable[[int, int], None] | None) -> None:
        """Have this told how many bytes of the files' how many are read, while they are."""
        self._cache.progress = told

    def close(self) -> None:
        """Give what is open back."""
        self.live.close()

    # -- both sides ----------------------------------------------------------------------------------------

    def load_config(self) -> Config:
        """The configuration in the files, read while nobody was writing them. Raises :class:`ConfigError`, also if they
        have to be signed and are not."""
        for _ in range(_READ_TRIES):
            before = settle(self.fingerprints, sleep=self._sleep)
            self.read_fingerprint = before.hex()
            found: Config | ConfigError
            try:
                found = config_files.load(self.places.config_dir, self._cache)
                self.signatures.check(found.files)
            except ConfigError as error:
                found = error
            if self.fingerprints.take() == before:
                if isinstance(found, ConfigError):
                    raise found
                return found
        raise ConfigError([Problem(str(self.places.config_dir), 0, 0, "", "the files never stop changing")])

    def observe(self) -> Observed:
        """What the kernel holds."""
        return self._observe()

    def _observe(self, *, routes_as_known: bool = False, connections_anew: bool = False) -> Observed:
        observed = self.live.observe(routes_as_known=routes_as_known, connections_anew=connections_anew)
        return self.originals.supplement(observed, self.live.read_sysctl)

    def files_fingerprint(self) -> str:
        """A digest of the files in the directory, of names and contents, also of those that are no configuration."""
        return self.fingerprints.take().hex()

    def view(
        self,
        config: Config | None = None,
        origin: Origin | None = None,
        *,
        routes_as_known: bool = False,
        connections_anew: bool = False,
    ) -> View:
        """Look at both sides. ``config`` None: load the files. ``origin``: where those of ``config`` come from.
        ``routes_as_known``: take the routes for what this engine has read last and written since.
        ``connections_anew``: see :meth:`~reconciler.runtime.live.Live.runtime`. Raises :class:`ConfigError`,
        :class:`KernelError`, :class:`ForeignProgramError`."""
        if config is None and self.places.config_dir.is_dir():
            config = self.load_config()
        observed = self._observe(routes_as_known=routes_as_known, connections_anew=connections_anew)
        if config is None:
            # A directory that is gone stands for "nothing", which is held; one that was never there is a mistake.
            config = parse_sources({}) if observed.state.proxies else self.load_config()
        self.config = config
        facts = self.live.facts(config)
        runtime = replace(self.live.runtime(observed, anew=connections_anew), refused_xdp=self._commits.refused_xdp)
        runtime = self.steering.facts(runtime, config, observed)
        wanted = desired(config, facts, runtime, tag=self.live.tag, memo=self._memo)
        allocation = observed.allocation
        self._retired = bool(allocation.retired_targets or allocation.retired_proxies)
        view = View(config, facts, runtime, observed, wanted, (), origin or Origin(), routes_as_known)
        # Where nothing is and nothing is wanted, not even the programs are.
        if not config.proxies and not observed.exists:
            return view
        view = view.with_lapsed(self.live.manifest(observed.revision))
        changes = diff(view.desired, observed)
        if not changes:
            self.live.adopt(wanted.state.routes)
        return replace(view, changes=changes)

    # -- comparing -----------------------------------------------------------------------------------------

    def diff(self) -> answers.Difference:
        """What differs between files and kernel."""
        view = self._compared()
        planned = self._planned(view)
        return answers.Difference(
            report.changes(view.changes), len(planned.plan.operations) if planned else 0, view.warnings
        )

    def plan(self) -> answers.PlanAnswer:
        """What :meth:`apply` would do."""
        view = self._compared()
        planned = self._planned(view)
        return report.plan(planned.plan, view.warnings) if planned else answers.PlanAnswer(warnings=view.warnings)

    def saved_plan(self) -> answers.SavedPlan:
        """What :meth:`apply` would do, to be given to it later."""
        view = self._compared()
        return savedplan.save(view, self._planned(view), self.live.tag)

    def _compared(self) -> View:
        """Both sides, for somebody who asks: a directory that is gone says nothing. Raises :class:`ConfigError`."""
        if not self.places.config_dir.is_dir():
            self.load_config()
        return self.view(connections_anew=True)

    def _planned(self, view: View) -> Planned | None:
        return self._commits.plan(view) if view.changes else None

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
        it is in ``attempt`` and ``failure``.
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
        self.revisions.released(plan_files=plan is not None and not self._are_in_the_directory(view))
        return replace(done, unconfirmed=self.revisions.unconfirmed())

    def _view_of(self, plan: answers.SavedPlan) -> View:
        """Both sides with the plan's files. Raises :class:`StaleError`."""
        observed = self.live.observe()
        if self.recover(observed):
            observed = self.live.observe()
        config = savedplan.config(plan, self.places.config_dir)
        self.signatures.check(config.files, plan.commit or "")
        view = self.view(config, savedplan.origin(plan), connections_anew=True)
        savedplan.check(plan, view, self._planned(view), self.live.tag)
        return view

    def _are_in_the_directory(self, view: View) -> bool:
        try:
            return {file.path: file.digest for file in self.load_config().files} == {
                file.path: file.digest for file in view.config.files
            }
        except ConfigError:
            return False

    def commit(self, view: View, *, allow_empty: bool = False) -> answers.Applied:
        """:meth:`apply` for a view just taken."""
        try:
            if self.recover(view.observed):
                view = self.view(view.config, view.origin)
            if not allow_empty:
                empty.hold(view, self.live.manifest(view.observed.revision), self.places.config_dir)
            applied = self._commits.run(view)
        except RevproxyError as error:
            self.note(error, view)
            raise
        self.failure = None
        self.attempt = Attempt(
            clock.now(), "applied" if applied.changes else "unchanged", revision=applied.revision, commit=applied.commit
        )
        return applied

    def take_up(self) -> Observed:
        """What the kernel holds, once all that another process has left half done is put right and recorded."""
        observed = self._observe()
        if self.recover(observed):
            observed = self._observe()
        unrecorded.record(self.live, self.archive, observed)
        return observed

    def recover(self, observed: Observed) -> bool:
        """Put right what an interrupted commit left, if it did, and free what was kept for connections that have ended;
        whether there was anything."""
        if not observed.unfinished:
            return False
        for repair in self.live.recover():
            log = _log.debug if repair.routine else _log.warning
            log("idle_freed" if repair.routine else "commit_recovered", repair=str(repair))
            if repair.drift:
                self._commits.tell_drift([("update", "program", "revproxy")], observed.revision.number)
        return True

    def note(self, error: RevproxyError, view: View | None = None, cause: str = "apply") -> None:
        """Remember an attempt that came to nothing, or not to its end."""
        result = "held" if isinstance(error, ConfigError) else "failed"
        if isinstance(error, UnfinishedError):
            self.attempt = Attempt(clock.now(), "applied", str(error), error.revision)
        else:
            try:
                entry = self._commits.note_refused(error, view, view.origin.cause if view else cause)
                self.attempt = Attempt(clock.now(), result, str(error), entry.number, entry.commit)
            except KernelError as unreadable:  # then the history can't say which revision that would have been
                _log.warning("history_not_written", error=str(unreadable))
                self.attempt = Attempt(clock.now(), result, str(error))
        self.failure = (view, error) if view else None

    def apply_last_good(self) -> answers.Applied | None:
        """After a boot with broken files: apply the copy of the last configuration that worked. None without one."""
        if not self.places.last_good.is_dir():
            return None
        number = self.archive.last_number
        return self._commits.run(
            self.view(config_files.load(self.places.last_good), Origin("last-good", number or None))
        )

    def down(self) -> answers.TakenDown:
        """Take everything of this instance out of the kernel."""
        originals = self.originals.read()
        removed = self.live.down(originals)
        self.originals.keep({}, originals)
        self.revisions.taken_down()
        self.attempt = self.failure = None
        return answers.TakenDown(removed)

    # -- looking -------------------------------------------------------------------------------------------

    def status(self) -> answers.Status:
        """Sync state and what there is. Errors in the files are part of the answer, errors of the kernel are raised."""
        view: View | None = None
        error: RevproxyError | None = None
        try:
            view = self.view()
            empty.hold(view, self.live.manifest(view.observed.revision), self.places.config_dir)
        except KernelError:
            raise
        except RevproxyError as found:
            error = found
        if view and error is None:
            error = self._standing_failure(view)
        observed = view.observed if view else self.live.observe()
        situation = self.situation(view, error, observed)
        revision = observed.revision
        per_target, use = self.live.use()
        return answers.Status(
            sync=situation.sync,
            revision=revision.number,
            commit=self.commit_in_force(observed),
            applied=clock.of_ns(revision.applied_ns) if revision.number else None,
            differences=situation.differences,
            interfaces=report.interfaces(observed, view.desired if view else None),
            proxies=report.proxies(observed, per_target, self.steering.health_names(observed)),
            connections=use,
            errors=_problems(error),
            warnings=(
                *(view.warnings if view else ()),
                *report.share_warnings(observed),
                *report.table_warnings(use),
            ),
            attempt=self.attempt,
            conditions=self.conditions.of(situation),
            policy=view.config.settings.sync.value if view else SyncPolicy.AUTO.value,
            waiting=situation.waiting,
            suspended=situation.suspended,
            unconfirmed=situation.unconfirmed,
            drift_repaired=self._commits.drift_repaired,
        )

    def situation(self, view: View | None, error: RevproxyError | None, observed: Observed) -> Situation:
        """What the conditions follow from; ``view`` None: the files can't be applied."""
        return Situation(
            differences=len(view.changes) if view else 0,
            error=error,
            waiting=self.revisions.waiting(view) if view else "",
            suspended=self.revisions.control.suspended,
            unconfirmed=self.revisions.unconfirmed(observed),
            absent=view.desired.waiting if view else (),
        )

    def track(self, view: View | None, error: RevproxyError | None) -> None:
        """The daemon has looked, with this result: remember since when things are as they are."""
        try:
            observed = view.observed if view else self.live.observe()
            self.conditions.of(self.situation(view, error, observed), keep=True)
        except KernelError as unreadable:
            _log.warning("conditions_not_kept", error=str(unreadable))

    def _standing_failure(self, view: View) -> RevproxyError | None:
        """The error of the last commit, if nothing has changed since and something is still to be done."""
        if not self.failure:
            return None
        failed, error = self.failure
        if not view.changes and not isinstance(error, TestsFailedError):
            return None
        if failed.origin.stored:  # it was not about these files
            view = replace(view, config=failed.config)
        return error if view.same_situation(failed) else None

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
            causes = Causes(self.load_config())
        except ConfigError:
            causes = Causes()  # live state can be explained without the files
        return explaining.explain(self.live, asked, self.live.observe(), causes)

    def commit_in_force(self, observed: Observed) -> str | None:
        """The git commit of what is applied, as the kernel's manifest says."""
        return self.live.manifest(observed.revision).commit if observed.revision.manifest else None

    def connections(self, **how: Unpack[Listing]) -> Iterator[list[str]]:
        """Live connections, each as an object of JSON, some of them with each step. Raises :class:`UsageError`."""
        return self.live.connections(*selection.listing(how))

    def connection_count(self, **filters: Unpack[Filters]) -> int:
        """How many :meth:`connections` would give."""
        return self.live.connection_count(selection.query(filters))

    def flush(self, **filters: Unpack[Filters]) -> int:
        """Forget connections, and free targets and proxies that only they still used; how many were forgotten."""
        return sum(self.flushing(**filters))

    def flushing(self, **filters: Unpack[Filters]) -> Iterator[int]:
        """The same in steps of a tenth of a second, each telling how many it has forgotten. Raises
        :class:`UsageError` at once."""
        return self._flushing(selection.query(filters, every_state=True))

    def _flushing(self, query: Query) -> Iterator[int]:
        from reconciler.kernel.flushing import Flusher  # as Live

        flusher, total = Flusher(query), 0
        while (flushed := self.live.flush(flusher)) is not None:
            total += flushed
            yield flushed
        if total and self.live.many_connections:
            self._owed = True
        elif total:
            self._free_idle()

    def stats(self) -> answers.Stats:
        """Counters."""
        return self.live.stats()

    def steer(self) -> None:
        """Have health and drains take effect on what is applied, whatever the files say. Raises
        :class:`RevproxyError`."""
        self.steering.steer(self._level())

    def _level(self) -> Observed:
        """What the kernel holds, cleared up if need be."""
        observed = self.live.observe()
        return self.live.observe() if self.recover(observed) else observed

    def keep_in_force(self) -> bool:
        """The files are not to be applied: put right what differs from what is applied, and go on checking its targets.
        False: nothing is applied. Raises :class:`RevproxyError`."""
        view = self.revisions.applied_view()
        if view is None:
            return False
        try:
            if self.recover(view.observed):
                view = self.view(view.config, view.origin)
            self._commits.run(view)
        except RevproxyError as error:
            self.failure = (view, error)
            raise
        return True

    def adopt(self) -> None:
        """Go on checking the targets of what is applied, and change nothing. Raises :class:`RevproxyError`."""
        view = self.revisions.applied_view()
        if view is not None:
            self.steering.follow(view.config, view.observed)

    def drain(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        """No new connections to a target, in one proxy or in all, until :meth:`undrain`."""
        wanted = selection.drain(target, proxy)
        self.steering.drain(wanted, self._level())
        return self.steering.draining(wanted)

    def undrain(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        """Take :meth:`drain` back."""
        wanted = selection.drain(target, proxy)
        self.steering.undrain(wanted, self._level())
        return self.steering.draining(wanted, gone=True)

    def draining(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        """How far a drain is."""
        return self.steering.draining(selection.drain(target, proxy))

    def forget_ways(self) -> None:
        """Routes or neighbours have changed: no connection may go on using the way out it remembers."""
        self.live.forget_ways()

    def sweep(self) -> int:
        """Delete expired connections, and free targets and proxies that only they still used; how many were
        deleted. Where there are very many, that is left to the next thorough look."""
        swept = self.live.sweep()
        many = self.live.many_connections
        if (swept and self._retired and not many) or self._owed:
            self._owed = False
            self._free_idle()
        return swept

    def _free_idle(self) -> None:
        """What was kept for connections that have ended. While something is to be done, that does it as well."""
        try:
            view = self.view(connections_anew=True)
            if view.changes:
                return
            if not self.revisions.control.suspended:
                self._commits.give_back(view)
            if view.observed.unfinished:
                self.recover(view.observed)
            else:
                self.live.free(housekeeping(view.desired, view.observed, limits=self.live.limits, runtime=view.runtime))
        except RevproxyError as error:
            _log.debug("housekeeping_put_off", error=str(error))


def _problems(error: RevproxyError | None) -> tuple[Problem, ...]:
    if error is None:
        return ()
    return error.problems if isinstance(error, ConfigError) else (Problem("", 0, 0, "", str(error)),)
