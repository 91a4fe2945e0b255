"""From a view to the kernel: makes the plan, carries it out, looks whether it holds, and tells what came of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reconciler import answers, report
from reconciler.config.contents import Contents
from reconciler.config.files import MAX_FILE_BYTES
from reconciler.errors import ConfigError, KernelError, RevproxyError, TransactionError, UnfinishedError
from reconciler.runtime import clock, control, unrecorded
from reconciler.runtime.clock import now
from reconciler.runtime.git import Commit, commit_of
from reconciler.runtime.history import APPLIED
from reconciler.runtime.ledger import Ledger
from reconciler.runtime.logger import Logger
from reconciler.runtime.snapshot import is_config_file
from reconciler.state.diff import changes_of, diff
from reconciler.state.objects import Revision
from reconciler.state.operations import RestoreSysctl, SetSysctl
from reconciler.state.plan import Plan, giving_back, make_plan

if TYPE_CHECKING:
    from reconciler.config.model import PacketTest
    from reconciler.kernel.store import Manifest
    from reconciler.kernel.transaction import Result
    from reconciler.places import Places
    from reconciler.runtime.events import Events
    from reconciler.runtime.history import History
    from reconciler.runtime.view import View
    from reconciler.runtime.views import Views
    from reconciler.state.desired import Desired
    from reconciler.state.diff import Change
    from reconciler.state.objects import Observed

_MOST_CHANGES: Final = 100  # of one commit, in the history
_MOST_TEXT: Final = 4000  # of an error, in the history
_MOST_NAMED: Final = 50  # in a line of the log

_log = Logger("engine")


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan with what the history says about it: the files' git commit, and digests of the files in force before."""

    plan: Plan
    commit: Commit | None
    former: Mapping[str, bytes]


class Commits:
    """Changes the kernel of one instance by plans, and writes down in ``archive`` which revisions that made."""

    def __init__(self, views: Views, places: Places, archive: History, events: Events) -> None:
        self._views, self._live, self._places = views, views.live, places
        self._archive, self._events = archive, events
        self._in_force: Desired | None = None  # what the kernel was brought to
        self._made: tuple[int, float] = (0, 0.0)  # the latest revision, and when by a clock that nobody can set
        self._settled = False  # this process has left nothing half done: what is, is somebody else's doing
        self.ledger = Ledger(archive, places)
        self.drift_repaired = 0
        self._held_tests: tuple[PacketTest, ...] = ()

    # -- planning ------------------------------------------------------------------------------------------

    def next_number(self, observed: Observed) -> int:
        """The number that the next revision gets. None is used twice, also not after ``down``."""
        return max(observed.revision.number, self._archive.last_number) + 1

    def plan(self, view: View) -> Planned:
        """What brings the kernel to ``view.desired``. With the files that are in force already it is a repair, and
        makes no new revision."""
        live = self._live
        applied = live.manifest(view.observed.revision)
        revision, commit = None, None
        blobs: Contents[bytes] = Contents({})
        if not view.repairs(applied):
            commit = self._git_commit(view)
            encoded = _encoded(_manifest(view, commit))
            (digest,) = encoded
            revision = Revision(self.next_number(view.observed), time.time_ns(), digest)
            blobs = Contents({file.digest: file for file in view.config.files}, encoded)
        elif view.observed.files_lost:
            blobs = Contents({file.digest: file for file in view.config.files}, _encoded(applied))
        plan = make_plan(
            view.desired,
            view.observed,
            limits=live.limits,
            runtime=view.runtime,
            revision=revision,
            blobs=blobs,
            changes=view.changes,
            delta=view.delta,
        )
        return Planned(plan, commit, {file.path: file.digest for file in applied.files})

    def _git_commit(self, view: View) -> Commit | None:
        if view.origin.stored:
            return view.origin.commit
        files = Contents({file.path.rpartition("/")[2]: file for file in view.config.files})
        directory = Path(view.config.files[0].path).parent if files else self._places.config_dir
        return commit_of(directory, files)

    # -- carrying out --------------------------------------------------------------------------------------

    def run(self, view: View, *, again: bool = False) -> answers.Applied:
        """Bring the kernel to ``view.desired``, all or nothing. ``again``: the commit before has left a difference.

        Raises :class:`TransactionError` if it failed and was taken back, and :class:`UnfinishedError` if it holds but
        clearing up does not come to an end.
        """
        if not view.changes:
            self._settled = not view.observed.unfinished
            self.ledger.try_again()
            self._hold_tests(view)
            self.give_back(view)
            self._in_force = view.desired if view.observed.exists else None  # without a proxy nothing was made
            self._views.steering.follow(view.config, view.observed)
            revision, commit = view.observed.revision.number, self.commit_in_force(view.observed)
            return answers.Applied(revision, commit=commit, warnings=view.warnings)
        planned, started = self.plan(view), time.monotonic()
        self._settled = False
        try:
            result = self._execute(planned.plan, view)
        except TransactionError as error:
            if isinstance(error.cause, ConfigError) and error.rolled_back:
                raise error.cause from error
            if not self._serve_through_tc(error, view):
                raise
            return self.run(self._views.take(view.config, view.origin, routes_as_known=view.routes_as_known))
        self._held_tests = view.config.tests
        if result.pending is not None:
            _log.warning("clean_up_pending", error=str(result.pending))
        after = self._tidied(self._views.take(view.config, view.origin, routes_as_known=view.routes_as_known))
        revision, commit = after.observed.revision.number, self.commit_in_force(after.observed)
        self._tell(view, planned, revision, time.monotonic() - started)
        restored = {each.name for each in planned.plan.finish if isinstance(each, RestoreSysctl)}
        self._views.originals.keep(after.observed.remembered, restored)
        in_force = view.desired
        if after.changes and result.pending is None and not again:
            after = self._once_more(view, after)
            in_force = view.desired if after.changes else after.desired
        # What has moved on meanwhile, as health does, has its own reason to be looked at.
        if after.changes and diff(view.desired, after.observed):
            left = [f"{change.object} {change.name}" for change in after.changes[:5]]
            raise UnfinishedError(revision, result.pending, left)
        self.give_back(after)
        self._in_force = in_force
        self._settled = result.pending is None and not after.observed.unfinished
        self._views.steering.follow(view.config, after.observed)
        operations = len(planned.plan.operations)
        return answers.Applied(revision, report.changes(view.changes), operations, commit, after.warnings)

    def _execute(self, plan: Plan, view: View) -> Result:
        """What is set of sysctls is written down before: an undo that fails half way may leave no map to tell it."""
        from reconciler.runtime.probing import Verification  # here, as Live

        changed = {
            each.name: (each.original or each.before, each.after)
            for each in plan.stage
            if isinstance(each, SetSysctl) and each.name not in view.observed.remembered
        }
        self._views.known.made(None)  # until it is sure
        result = self._remembering(changed, lambda: self._live.execute(plan, Verification(self._live, view, plan)))
        self._views.known.made(plan.revision or (view.observed.revision if view.observed.exists else None))
        return result

    def _remembering(self, changed: Mapping[str, tuple[str, str]], execute: Callable[[], Result]) -> Result:
        if not changed:
            return execute()
        originals = self._views.originals
        originals.keep(changed)
        try:
            return execute()
        except BaseException:
            originals.keep({}, {name for name, (_, after) in changed.items() if not self._may_be(name, after)})
            raise

    def _may_be(self, name: str, value: str) -> bool:
        try:
            return self._live.read_sysctl(name) == value
        except RevproxyError:
            return True

    def _once_more(self, view: View, after: View) -> View:
        """Connections have begun meanwhile that need what the commit has taken away: the view once they have it."""
        self._in_force = view.desired
        try:
            self.run(after, again=True)
        except TransactionError as error:
            _log.warning("difference_left", error=str(error))
            return after
        return replace(after, changes=())

    def give_back(self, view: View) -> None:
        """What only connections needed that have ended. Raises :class:`KernelError`; the rest can be done later."""
        if not view.lapsed:
            return
        operations = giving_back(view.exact, view.observed)
        self._live.free(operations)
        restored = {each.name for each in operations if isinstance(each, RestoreSysctl)}
        self._views.originals.keep(
            {name: pair for name, pair in view.observed.remembered.items() if name not in restored}, restored
        )
        interfaces = sorted(each.name for each in view.lapsed.attachments.values())
        _log.info("lapsed_given_back", interfaces=interfaces, sysctls=sorted(restored))

    def age_sec(self, entry: answers.HistoryEntry) -> float:
        """How long ago a revision was made. Of one that another process made only the clock on the wall tells that: if
        that has been set back since, it is of the future, and counts as long ago."""
        number, made = self._made
        if number == entry.number:
            return control.boot_clock() - made
        age_sec = clock.age_sec(entry.time)
        return age_sec if age_sec >= 0 else inf

    def forget_tests(self) -> None:
        """The tests of the files have to hold at the next :meth:`run`, whether they did before or not."""
        self._held_tests = ()

    def _hold_tests(self, view: View) -> None:
        """Nothing else is to be done: tests that are new to us have to hold too. Raises :class:`ConfigError`."""
        if view.config.tests != self._held_tests and view.observed.exists and not view.origin.stored:
            from reconciler.runtime.explaining import active_prober
            from reconciler.runtime.probing import run_tests

            run_tests(active_prober(self._live, view.observed, view.facts.interfaces), view)
            self._held_tests = view.config.tests

    def _tidied(self, view: View) -> View:
        """After a commit: the view once everything is cleared up. What could not be is left to the next commit or
        the next start."""
        try:
            return (
                self._views.take(view.config, view.origin, routes_as_known=view.routes_as_known)
                if self.recover(view.observed)
                else view
            )
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
        if interface.ifindex in self._views.refused_xdp:
            return False
        self._views.refused_xdp |= {interface.ifindex}
        _log.warning("xdp_refused", interface=interface.name, error=str(error.cause))
        return True

    # -- what others have left -----------------------------------------------------------------------------

    def take_up(self) -> Observed:
        """What the kernel holds, once all that another process has left half done is put right and recorded."""
        observed = self._views.observe()
        if self.recover(observed):
            observed = self._views.observe()
        unrecorded.record(self._live, self._archive, observed)
        return observed

    def level(self) -> Observed:
        """What the kernel holds, once what an interrupted commit has left is put right."""
        observed = self._live.observe()
        return self._live.observe() if self.recover(observed) else observed

    def recover(self, observed: Observed) -> bool:
        """Put right what an interrupted commit left, if it did, and free what was kept for connections that have ended;
        whether there was anything."""
        if not observed.unfinished:
            return False
        for repair in self._live.recover():
            log = _log.debug if repair.routine else _log.warning
            log("idle_freed" if repair.routine else "commit_recovered", repair=str(repair))
            if repair.drift:
                self.tell_drift([("update", "program", "revproxy")], observed.revision.number)
            elif repair.map and not repair.routine and self._settled:
                self.tell_drift([("update", "setting", f"map/{repair.map}")], observed.revision.number)
        return True

    # -- telling -------------------------------------------------------------------------------------------

    def commit_in_force(self, observed: Observed) -> str | None:
        """The git commit of what is applied, as the kernel's manifest says."""
        return self._live.manifest(observed.revision).commit if observed.revision.manifest else None

    def commit_that_says_so(self, view: View) -> str | None:
        """The git commit that is checked out, if the files are its own and say what is in force; else the one when that
        was applied. They differ where a commit changed nothing here: a comment, or what was applied before it."""
        found = None if view.changes or view.origin.stored else self._git_commit(view)
        return found.id if found and not found.dirty else self.commit_in_force(view.observed)

    def _tell(self, view: View, planned: Planned, revision: int, duration_sec: float) -> None:
        """Events, and for a new revision the history."""
        events, new = self._events, planned.plan.revision is not None
        drifted = self._drifted(view, new)
        if drifted:
            self.tell_drift([(each.action, each.object, each.name) for each in drifted], revision)
        if not new:
            return
        self._made = revision, control.boot_clock()
        entry = self._entry(view, planned.commit, planned.former)
        operations = len(planned.plan.operations)
        entry = replace(entry, number=revision, operations=operations, duration_sec=round(duration_sec, 3))
        self.ledger.write(entry, view.config.files)
        events.publish("config_applied", revision=revision, commit=entry.commit, changes=len(view.changes))

    def tell_drift(self, objects: Sequence[tuple[str, str, str]], revision: int) -> None:
        """These objects (action, kind, name) were not as this instance had made them, and are put right: count it and
        tell of it."""
        self.drift_repaired += len(objects)
        told = [{"action": action, "object": kind, "name": name} for action, kind, name in objects]
        self._events.publish("drift_repaired", revision=revision, objects=told)
        named = [f"{kind} {name}" for _, kind, name in objects[:_MOST_NAMED]]
        _log.warning("drift_repaired", number=len(objects), objects=named)

    def _drifted(self, view: View, new: bool) -> tuple[Change, ...]:
        """Objects that were not as this instance had made them, and are put right. Of what the first look after a start
        finds, all that makes no new revision, but for another version of the programs and where they are attached."""
        found = () if new else view.changes
        if self._in_force is not None:
            # Health and drains move without a commit.
            state = replace(self._in_force.state, shares=view.observed.state.shares)
            found = diff(replace(self._in_force, state=state), view.observed)
        exchanged = any((each.object, each.action) == ("program", "replace") for each in view.changes)
        ours = {"program", "interface"} if exchanged else set()
        in_kernel = changes_of(view.delta, view.desired, view.observed) if view.delta else ()
        put_right = {(each.object, each.name) for each in in_kernel if each.object not in ours}
        return tuple(each for each in found if (each.object, each.name) in put_right)

    def note_refused(self, error: RevproxyError, view: View | None, cause: str) -> answers.HistoryEntry:
        """Write an attempt that came to nothing into the history, unless the last line says the same already. Returns
        what there is to say."""
        observed = view.observed if view else self._views.observe()
        former = {file.path: file.digest for file in self._live.manifest(observed.revision).files}
        if view is not None:
            entry = self._entry(view, self._git_commit(view), former)
        else:
            found = self._read_anyhow()
            commit = commit_of(self._places.config_dir, found)
            digests = {name: hashlib.sha256(content).digest()[:16] for name, content in found.items()}
            entry = _told(answers.HistoryEntry(0, now(), "", cause, files=_differing(former, digests)), commit)
        result = "refused" if isinstance(error, ConfigError) else "failed"
        entry = replace(entry, number=self.next_number(observed), result=result, error=str(error)[:_MOST_TEXT])
        last = next(reversed(self._archive.entries()), None)
        if view is None and self._views.files.fingerprint() != self._views.files.read_fingerprint:
            return entry  # they have changed again, and are looked at again
        if last is None or (last.result, last.error, last.commit) != (entry.result, entry.error, entry.commit):
            self._record(entry)
        return entry

    def _entry(self, view: View, commit: Commit | None, former: Mapping[str, bytes]) -> answers.HistoryEntry:
        entry = answers.HistoryEntry(
            number=0,
            time=now(),
            result=APPLIED,
            cause=view.origin.cause,
            files=_differing(former, view.digests()),
            changes=tuple(f"{each.action} {each.object} {each.name}" for each in view.changes[:_MOST_CHANGES]),
            of=view.origin.of,
        )
        return _told(entry, commit)

    def _read_anyhow(self) -> dict[str, bytes]:
        """The configuration files as they are, by name; without those that can't be read, and of those that are too
        large as much as would be read of others."""
        found: dict[str, bytes] = {}
        directory = self._places.config_dir
        try:
            paths = [path for path in directory.iterdir() if is_config_file(path.name) and path.is_file()]
        except OSError:
            return found  # the error at hand says so
        for path in paths:
            try:
                with path.open("rb") as file:
                    found[path.name] = file.read(MAX_FILE_BYTES)
            except OSError as error:
                _log.debug("file_not_read", path=str(path), error=str(error))
        return found

    def _record(self, entry: answers.HistoryEntry) -> None:
        try:
            self._archive.add(entry)
        except OSError as error:
            self._not_written(error)

    def _not_written(self, error: OSError) -> None:
        _log.warning("state_dir_not_written", path=str(self._places.state_dir), error=str(error))


def _manifest(view: View, commit: Commit | None) -> Manifest:
    from reconciler.kernel.store import Manifest, ManifestFile

    files = tuple(ManifestFile(name, digest) for name, digest in view.digests().items())
    told = (commit.id, commit.author, commit.subject) if commit else (None, None, None)
    return Manifest(files, *told)


def _encoded(manifest: Manifest) -> dict[bytes, bytes]:
    """Digest -> content."""
    from reconciler.kernel.store import digest_of, encode_manifest

    content = encode_manifest(manifest)
    return {digest_of(content): content}


def _told(entry: answers.HistoryEntry, commit: Commit | None) -> answers.HistoryEntry:
    """With what git says."""
    if commit is None:
        return entry
    return replace(entry, commit=commit.id, author=commit.author, message=commit.subject)


def _differing(former: Mapping[str, bytes], files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Names of the files that differ."""
    return tuple(sorted(name for name in former.keys() | files.keys() if former.get(name) != files.get(name)))
