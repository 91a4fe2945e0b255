"""Files in, kernel out: what the daemon and the command line do alike.

One :class:`Engine` serves one instance, from one thread. Everything it says about live state it has just read from the
kernel; what it remembers between calls are parsed files, and what became of the last attempt.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from reconciler import answers, report
from reconciler.answers import Attempt, Sync
from reconciler.config import files as config_files
from reconciler.config.files import parse_sources
from reconciler.errors import ConfigError, KernelError, Problem, RevproxyError, TransactionError
from reconciler.runtime import statedir
from reconciler.runtime.events import Events
from reconciler.runtime.git import commit_of
from reconciler.runtime.snapshot import Fingerprints, settle
from reconciler.runtime.steer import Steering
from reconciler.state.desired import Memo, desired
from reconciler.state.diff import diff
from reconciler.state.objects import Revision
from reconciler.state.plan import Plan, housekeeping, make_plan

if TYPE_CHECKING:
    from reconciler.config.model import Config
    from reconciler.kernel.gateway import Gateway
    from reconciler.places import Places
    from reconciler.runtime.live import Live
    from reconciler.state.desired import Desired
    from reconciler.state.diff import Change
    from reconciler.state.facts import HostFacts, RuntimeFacts
    from reconciler.state.objects import Observed

_READ_TRIES: Final = 20

_log = structlog.get_logger("engine")


@dataclass(frozen=True, slots=True)
class View:
    """Both sides at one moment: what the files ask for on this host, what the kernel holds, how they differ."""

    config: Config
    facts: HostFacts
    runtime: RuntimeFacts
    observed: Observed
    desired: Desired
    changes: tuple[Change, ...]

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What a person should know although it is no error."""
        return self.config.warnings + tuple(Problem("", 0, 0, "", text) for text in self.desired.warnings)

    def same_situation(self, other: View | None) -> bool:
        """Nothing that could make a difference to an attempt differs between the two."""
        return other is not None and (self.config.files, self.facts, self.observed.state) == (
            other.config.files,
            other.facts,
            other.observed.state,
        )


class HeldError(ConfigError):
    """The files could be applied, and are not without being told to: they would take everything away."""


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
        self._fingerprints = Fingerprints(places.config_dir)
        self._cache = config_files.Cache()
        self._memo = Memo()
        self._refused_xdp: frozenset[int] = frozenset()
        self._retired = False
        self.events = Events()
        self.config: Config | None = None  # that was looked at last
        self.attempt: Attempt | None = None
        self.failure: tuple[View, RevproxyError] | None = None
        if live is None:
            from reconciler.runtime.live import Live  # only here: it needs bcc and privileges

            live = Live(places.bpffs_dir, gateway)
        self.live = live
        self.steering = Steering(places, live, self.events)

    def close(self) -> None:
        """Give what is open back."""
        self.live.close()

    # -- both sides ----------------------------------------------------------------------------------------

    def load_config(self) -> Config:
        """The configuration in the files, read while nobody was writing them. Raises :class:`ConfigError`."""
        for _ in range(_READ_TRIES):
            before = settle(self._fingerprints, sleep=self._sleep)
            found: Config | ConfigError
            try:
                found = config_files.load(self.places.config_dir, self._cache)
            except ConfigError as error:
                found = error
            if self._fingerprints.take() == before:
                if isinstance(found, ConfigError):
                    raise found
                return found
        raise ConfigError([Problem(str(self.places.config_dir), 0, 0, "", "the files never stop changing")])

    def observe(self) -> Observed:
        """What the kernel holds."""
        return self.live.observe()

    def view(self, config: Config | None = None) -> View:
        """Look at both sides. ``config`` None: load the files. Raises :class:`ConfigError`, :class:`KernelError`,
        :class:`ForeignProgramError`."""
        if config is None and self.places.config_dir.is_dir():
            config = self.load_config()
        observed = self.live.observe()
        if config is None:
            # A directory that is gone stands for "nothing", which is held; one that was never there is a mistake.
            config = parse_sources({}) if observed.state.proxies else self.load_config()
        self.config = config
        facts = self.live.facts(config)
        runtime = replace(self.live.runtime(observed), refused_xdp=self._refused_xdp)
        runtime = self.steering.facts(runtime, config, observed)
        wanted = desired(config, facts, runtime, tag=self.live.tag, memo=self._memo)
        allocation = observed.allocation
        self._retired = bool(allocation.retired_targets or allocation.retired_proxies)
        # Where nothing is and nothing is wanted, not even the programs are.
        idle = not config.proxies and not observed.exists
        return View(config, facts, runtime, observed, wanted, () if idle else diff(wanted, observed))

    # -- comparing -----------------------------------------------------------------------------------------

    def diff(self) -> answers.Difference:
        """What differs between files and kernel."""
        view = self.view()
        operations = len(self._plan(view).operations) if view.changes else 0
        return answers.Difference(report.changes(view.changes), operations, view.warnings)

    def plan(self) -> answers.PlanAnswer:
        """What :meth:`apply` would do."""
        view = self.view()
        return (
            report.plan(self._plan(view), view.warnings) if view.changes else answers.PlanAnswer(warnings=view.warnings)
        )

    def _plan(self, view: View) -> Plan:
        from reconciler.kernel.store import Manifest, ManifestFile, digest_of, encode_manifest

        files = {Path(file.path).name: file for file in view.config.files}
        directory = Path(view.config.files[0].path).parent if files else self.places.config_dir
        commit = commit_of(directory, {name: file.content for name, file in files.items()})
        manifest = encode_manifest(
            Manifest(
                tuple(ManifestFile(name, file.digest) for name, file in files.items()),
                commit.id if commit else None,
                commit.author if commit else None,
                commit.subject if commit else None,
            )
        )
        digest = digest_of(manifest)
        return make_plan(
            view.desired,
            view.observed,
            limits=self.live.limits,
            runtime=view.runtime,
            revision=Revision(view.observed.revision.number + 1, time.time_ns(), digest),
            blobs={digest: manifest} | {file.digest: file.content for file in files.values()},
        )

    # -- applying ------------------------------------------------------------------------------------------

    def apply(self, *, allow_empty: bool = False) -> answers.Applied:
        """Make the kernel what the files say, all or nothing.

        Raises :class:`ConfigError` for wrong files, :class:`HeldError` for files without a proxy while some are live
        (unless ``allow_empty``), :class:`TransactionError` or :class:`KernelError` if it did not work; the kernel is
        then as it was. What came of it is in ``attempt`` and ``failure``.
        """
        try:
            view = self.view()
        except RevproxyError as error:
            self.note(error)
            raise
        return self.commit(view, allow_empty=allow_empty)

    def commit(self, view: View, *, allow_empty: bool = False) -> answers.Applied:
        """:meth:`apply` for a view just taken."""
        try:
            if self.recover(view.observed):
                view = self.view(view.config)
            self._hold_empty(view, allow_empty)
            applied = self._commit(view)
        except RevproxyError as error:
            self.note(error, view)
            raise
        self.failure = None
        self.attempt = Attempt(_now(), "applied" if applied.changes else "unchanged")
        return applied

    def recover(self, observed: Observed) -> bool:
        """Put right what an interrupted commit left, if it did; whether there was anything."""
        if not observed.unfinished:
            return False
        for repair in self.live.recover():
            _log.warning("commit_recovered", repair=repair)
        return True

    def note(self, error: RevproxyError, view: View | None = None) -> None:
        """Remember an attempt that came to nothing."""
        self.attempt = Attempt(_now(), "held" if isinstance(error, ConfigError) else "failed", str(error))
        self.failure = (view, error) if view else None

    def _hold_empty(self, view: View, allow_empty: bool) -> None:
        live = len(view.observed.state.proxies)
        if live and not view.config.proxies and not allow_empty:
            what = "no proxy in the files" if self.places.config_dir.is_dir() else "there is no such directory"
            number = "1 proxy is" if live == 1 else f"{live} proxies are"
            text = f"{what}, while {number} live: held; `revproxyctl apply --allow-empty` would take them away"
            raise HeldError([Problem(str(self.places.config_dir), 0, 0, "", text)])

    def _commit(self, view: View) -> answers.Applied:
        if not view.changes:
            self.steering.follow(view.config, view.observed)
            return answers.Applied(
                view.observed.revision.number, commit=self._commit_of(view.observed), warnings=view.warnings
            )
        plan = self._plan(view)
        started = time.monotonic()
        try:
            result = self.live.execute(plan)
        except TransactionError as error:
            if not self._serve_through_tc(error, view):
                raise
            return self._commit(self.view(view.config))
        if result.pending is not None:
            _log.warning("clean_up_pending", error=str(result.pending))
        after = self._tidied(self.view(view.config))
        if after.changes:
            left = ", ".join(f"{change.object} {change.name}" for change in after.changes[:5])
            raise KernelError("verify", "commit", detail=f"applied, but the kernel differs from the files: {left}")
        self.steering.follow(view.config, after.observed)
        revision = after.observed.revision
        commit = self._commit_of(after.observed)
        if plan.revision is not None:
            self._keep(view, plan, revision.number, commit, time.monotonic() - started)
        self.events.publish("config_applied", revision=revision.number, commit=commit, changes=len(view.changes))
        return answers.Applied(
            revision.number, report.changes(view.changes), len(plan.operations), commit, after.warnings
        )

    def _tidied(self, view: View) -> View:
        """After a commit: the view once everything is cleared up. What could not be is left to the next commit or
        the next start."""
        try:
            return self.view(view.config) if self.recover(view.observed) else view
        except KernelError as error:
            _log.warning("clean_up_pending", error=str(error))
            return view

    def _serve_through_tc(self, error: TransactionError, view: View) -> bool:
        """Whether an interface refused native XDP that `auto` chose, and was not known to: `auto` promises to serve it
        all the same."""
        from reconciler.runtime.live import refused_xdp

        interface = view.facts.interfaces.get(refused_xdp(error.cause) or "")
        if interface is None or view.config.settings.xdp_mode != "auto" or not error.rolled_back:
            return False
        if interface.ifindex in self._refused_xdp:
            return False
        self._refused_xdp |= {interface.ifindex}
        _log.warning("xdp_refused", interface=interface.name, error=str(error.cause))
        return True

    def _keep(self, view: View, plan: Plan, revision: int, commit: str | None, duration_sec: float) -> None:
        record = {
            "revision": revision,
            "time": _now(),
            "commit": commit,
            "files": [file.path for file in view.config.files],
            "changes": [f"{change.action} {change.object} {change.name}" for change in view.changes[:100]],
            "operations": len(plan.operations),
            "duration_sec": round(duration_sec, 3),
            "result": "applied",
        }
        try:
            statedir.keep_last_good(self.places, revision, view.config.files)
            statedir.append_history(self.places, record)
        except OSError as error:
            _log.warning("state_dir_not_written", path=str(self.places.state_dir), error=str(error))

    def apply_last_good(self) -> answers.Applied | None:
        """After a boot with broken files: apply the copy of the last configuration that worked. None without one."""
        if not self.places.last_good.is_dir():
            return None
        return self._commit(self.view(config_files.load(self.places.last_good)))

    def down(self) -> answers.TakenDown:
        """Take everything of this instance out of the kernel."""
        removed = self.live.down()
        self.attempt = self.failure = None
        return answers.TakenDown(removed)

    # -- looking -------------------------------------------------------------------------------------------

    def status(self) -> answers.Status:
        """Sync state and what there is. Errors in the files are part of the answer, errors of the kernel are raised."""
        view: View | None = None
        errors: tuple[Problem, ...] = ()
        try:
            view = self.view()
            self._hold_empty(view, allow_empty=False)
        except ConfigError as error:
            errors = error.problems
        except KernelError:
            raise
        except RevproxyError as error:
            errors = (Problem("", 0, 0, "", str(error)),)
        if view and view.changes and not errors and self.failure and view.same_situation(self.failure[0]):
            errors = (Problem("", 0, 0, "", str(self.failure[1])),)
        observed = view.observed if view else self.live.observe()
        sync = Sync.DEGRADED if errors else Sync.OUT_OF_SYNC if view and view.changes else Sync.SYNCED
        revision = observed.revision
        per_target, use = self.live.use()
        return answers.Status(
            sync=sync,
            revision=revision.number,
            commit=self._commit_of(observed),
            applied=_iso(revision.applied_ns) if revision.number else None,
            differences=len(view.changes) if view else 0,
            interfaces=report.interfaces(observed, view.desired if view else None),
            proxies=report.proxies(observed, per_target, self.steering.health_names(observed)),
            connections=use,
            errors=errors,
            warnings=(
                *(view.warnings if view else ()),
                *report.share_warnings(observed),
                *report.table_warnings(use),
            ),
            attempt=self.attempt,
        )

    def _commit_of(self, observed: Observed) -> str | None:
        """The git commit of what is applied, as the kernel's manifest says."""
        return self.live.manifest(observed.revision).commit if observed.revision.manifest else None

    def connections(
        self,
        *,
        proxy: str | None = None,
        target: str | None = None,
        client: str | None = None,
        state: str | None = None,
        sort: str = "age",
        limit: int | None = None,
    ) -> tuple[answers.Connection, ...]:
        """Live connections, those that all that is given fits; see :func:`reconciler.report.query`."""
        return self.live.connections(report.query(proxy, target, client, state), report.sort_order(sort), limit)

    def connection_count(
        self,
        *,
        proxy: str | None = None,
        target: str | None = None,
        client: str | None = None,
        state: str | None = None,
    ) -> int:
        """How many :meth:`connections` would give."""
        return self.live.connection_count(report.query(proxy, target, client, state))

    def flush(
        self,
        *,
        proxy: str | None = None,
        target: str | None = None,
        client: str | None = None,
        state: str | None = None,
    ) -> int:
        """Forget connections; how many."""
        return self.live.flush(report.query(proxy, target, client, state, every_state=True))

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

    def adopt(self) -> None:
        """The files can't be read, and something is live: check the targets of the files it was made from."""
        observed = self.live.observe()
        files = self.live.applied_files(observed.revision)
        if files:
            self.steering.follow(parse_sources(files), observed)

    def drain(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        """No new connections to a target, in one proxy or in all, until :meth:`undrain`."""
        wanted = report.drain(target, proxy)
        self.steering.drain(wanted, self._level())
        return self.steering.draining(wanted)

    def undrain(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        """Take :meth:`drain` back."""
        wanted = report.drain(target, proxy)
        self.steering.undrain(wanted, self._level())
        return self.steering.draining(wanted, gone=True)

    def draining(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        """How far a drain is."""
        return self.steering.draining(report.drain(target, proxy))

    def forget_ways(self) -> None:
        """Routes or neighbours have changed: no connection may go on using the way out it remembers."""
        self.live.forget_ways()

    def sweep(self) -> int:
        """Delete expired connections, and free targets and proxies that only they still used; how many were
        deleted."""
        swept = self.live.sweep()
        if swept and self._retired:
            try:
                view = self.view()
            except RevproxyError as error:
                _log.debug("housekeeping_put_off", error=str(error))
                return swept
            if not view.changes and not view.observed.unfinished:
                self.live.free(housekeeping(view.desired, view.observed, limits=self.live.limits, runtime=view.runtime))
        return swept


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _iso(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(timespec="milliseconds")
