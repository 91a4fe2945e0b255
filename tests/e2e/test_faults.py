"""Every kernel operation made to fail, and the process killed before and after it, with everything real: programs,
interfaces, filters, sysctls, maps.

What the operations are is found out by recording a commit that succeeds, so a new one can't be forgotten. A process
killed after operation n and one killed before n+1 leave the same kernel, as long as nothing changes it but by way of
the gateway, which :func:`test_nothing_changes_the_kernel_but_by_the_gateway` sees to; so each is killed once.

Of operations that do the same in a row (eight sysctls, twenty pins) one in the middle has its turn;
``REVPROXY_TEST_THOROUGH=all`` gives it to every one. Unless it is ``each``, as CI has it, every 16th of those in the
middle is left to do (where programs are loaded each time, every 40th), and the switch with what follows it, and of the
two round trips that load programs each test has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import pytest

from reconciler.errors import TransactionError, UnfinishedError
from reconciler.kernel import probe, program
from reconciler.kernel.gateway import FaultGateway
from reconciler.runtime import probing
from tests.e2e.attempts import GONE, Attempt, without_opening
from tests.e2e.proxyhost import Decision, ProxyHost, entries_of_others_targets
from tests.e2e.roundtrips import BASE, EDIT, Commits, difference
from tests.kernel.kernelmaps import small_arrays
from tests.thorough import EACH_KIND

EXCHANGE = """\
apiVersion: revproxy/v1
settings: {xdp_mode: off, fast_path: false, max_connections: 1500}
proxies:
  - name: web
    listen: {interfaces: [cli], port: 80, protocol: tcp}
    default_target: [{ip: 10.9.0.1, port: 8080, weight: 2}, {ip: 10.9.0.7, port: 8080}, {ip: "fd09::1", port: 8080}]
"""
NO_PROXIES = """\
apiVersion: revproxy/v1
settings: {xdp_mode: native, max_connections: 1000}
proxies: []
"""
LOADING = ("programs exchanged", "first commit and down")
ROUND_TRIPS = {
    "edit": (BASE, EDIT),
    "programs exchanged": (BASE, EXCHANGE),
    "all proxies": (BASE, NO_PROXIES),
    "first commit and down": (GONE, BASE),
}
# Where not each kind of operation has its turn, one of the two that load programs is enough.
FAILING, KILLED, UNDONE = (
    tuple(name for name in names if EACH_KIND or name != left_out)
    for names, left_out in (
        (ROUND_TRIPS, "first commit and down"),
        (ROUND_TRIPS, "programs exchanged"),
        (("edit", "first commit and down"), "first commit and down"),
    )
)

pytestmark = pytest.mark.timeout(1200)
T = TypeVar("T")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProxyHost]:
    monkeypatch.setattr(probing, "FIRST_PORT", 4000)  # the small port map ends at 10000
    with small_arrays(), ProxyHost() as made:
        yield made


@pytest.fixture
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a round trip. Where the programs are loaded in every commit, those that open connections, whose verification
    takes a second, are replaced with ones that let the packet pass; the probe's too, which is not asked then."""
    if request.param in LOADING:
        monkeypatch.setattr(program, "compile_programs", without_opening)
        monkeypatch.setattr(probe, "compile_programs", without_opening)
        monkeypatch.setattr(probing.Prober, "_wrong", lambda *_: None)
    return str(request.param)


@pytest.mark.parametrize("name", FAILING, indirect=True)
def test_an_operation_that_fails_leaves_before_or_after(host: ProxyHost, name: str) -> None:
    commits, before, outcomes = Commits(host, opening=name not in LOADING), None, Outcomes()
    for old, new, attempt in commits.round_trip(*ROUND_TRIPS[name]):
        if before is None:
            connection = commits.open_connection(old)
            before = host.snapshot()
        error = attempt.fail()
        if isinstance(error, TransactionError):
            assert error.rolled_back, attempt.where
            assert difference(host.snapshot(), before) == [], attempt.where
        else:
            told = error is None or new == GONE or isinstance(error, UnfinishedError)
            assert told, attempt.where
            commits.complete(new, connection, attempt.where)
            before = None
        outcomes.add(old, new, attempt, attempt.rolled_back)
    outcomes.check()


@pytest.mark.parametrize("name", KILLED, indirect=True)
def test_killed_at_any_operation_the_next_start_completes(host: ProxyHost, name: str) -> None:
    commits, outcomes = Commits(host, opening=name not in LOADING), Outcomes()
    for old, new, attempt in commits.round_trip(*ROUND_TRIPS[name]):
        commits.open_connection(old)
        attempt.kill()
        seen, kept = (new, None) if new == GONE else commits.seen(old, new, attempt.where)
        commits.complete(new, kept, attempt.where)
        outcomes.add(old, new, attempt, seen == old)
    outcomes.check()


@pytest.mark.parametrize("name", UNDONE, indirect=True)
def test_an_undo_that_fails_too_is_told_and_the_next_start_repairs(host: ProxyHost, name: str) -> None:
    commits, told = Commits(host, opening=name not in LOADING), 0
    for old, new, attempt in commits.round_trip(*ROUND_TRIPS[name]):
        connection = commits.open_connection(old)
        before = host.snapshot()
        error = attempt.fail(and_all_after=True)
        if isinstance(error, TransactionError) and not error.rolled_back:
            assert error.residue, attempt.where
            assert "roll-back incomplete" in str(error), attempt.where
            told += 1
        elif isinstance(error, TransactionError):
            assert difference(host.snapshot(), before) == [], attempt.where
        attempt.rolled_back = False  # here it goes on either way
        commits.complete(new, connection, attempt.where)
    assert told


def test_a_connection_opened_during_a_commit_keeps_its_target(host: ProxyHost) -> None:
    """Whenever it is: its target's number is given to nobody else, and its interfaces go on being served."""
    commits = Commits(host)
    for _, new, attempt in commits.round_trip(BASE, EDIT):
        packets = commits.packets()
        opened: list[Decision] = []
        attempt.interrupt(lambda packets=packets, opened=opened: opened.extend(host.decisions(packets)))  # type: ignore[misc]
        for packet, before in zip(packets, opened, strict=False):
            if before.kind == "forward":
                after = host.decisions((replace(packet, syn=False),))[0]
                assert after.same(before), f"{attempt.where}: {packet} went to {before}, now to {after}"
        assert entries_of_others_targets(host) == [], attempt.where
        commits.complete(new, None, attempt.where)


@pytest.mark.parametrize("name", ["programs exchanged"], indirect=True)
def test_nothing_changes_the_kernel_but_by_the_gateway(host: ProxyHost, name: str) -> None:
    for text in (*ROUND_TRIPS[name], GONE):
        watching = _Watching(host)
        assert Attempt(host, text, 0).carry_out(watching) is None
        assert len(watching.calls) > 10
        watching.look()


class _Watching(FaultGateway):
    """Sees to it that the kernel is before each call what it was after the last one."""

    def __init__(self, host: ProxyHost) -> None:
        super().__init__()
        self.host, self.last = host, host.snapshot()

    def look(self) -> None:
        assert difference(self.host.snapshot(), self.last) == [], f"after {self.calls[-1:]}"

    def call(self, operation: str, subject: str, function: Callable[[], T]) -> T:
        self.look()
        result = super().call(operation, subject, function)
        self.last = self.host.snapshot()
        return result


@dataclass
class Outcomes:
    """Whether each commit was made: trouble up to the switch leaves what was before, and later trouble what comes
    after. (How many calls come before it depends on whether the programs of the probe are loaded already.)"""

    found: dict[tuple[str, str], set[bool]] = field(default_factory=dict)

    def add(self, old: str, new: str, attempt: Attempt, undone: bool) -> None:
        if new != GONE:
            assert undone != attempt.switched, attempt.where
            self.found.setdefault((old, new), set()).add(undone)

    def check(self) -> None:
        """There was trouble on both sides of the switch."""
        assert self.found
        assert all(outcomes == {True, False} for outcomes in self.found.values()), self.found
