"""What stood in sysctls before us is known also when a commit and its undo have both failed, and no map is left."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping

import pytest

from reconciler.engine import Engine
from reconciler.errors import KernelError, TransactionError
from reconciler.kernel.transaction import Result
from reconciler.places import Places
from reconciler.runtime.originals import Originals
from reconciler.state.allocate import Limits
from reconciler.state.desired import Desired
from reconciler.state.diff import changes_of, compare
from reconciler.state.facts import RuntimeFacts
from reconciler.state.objects import Allocation, KernelState, Observed
from reconciler.state.operations import RestoreSysctl, SetSysctl
from reconciler.state.plan import Plan, make_plan
from tests.unit.runtime.fakelive import FakeLive, write

FILTER = "net/ipv4/conf/lo/rp_filter"


class Host:
    """Its filter is strict (1); a commit makes it loose (2), and fails."""

    def __init__(self, live: FakeLive, failure: BaseException, undone: bool) -> None:
        self.value, self.failure, self.undone = "1", failure, undone
        self.originals: Mapping[str, tuple[str, str]] | None = None
        live.execute = self.execute  # type: ignore[method-assign,assignment]
        live.read_sysctl = lambda name: self.value if name == FILTER else "0"  # type: ignore[method-assign]
        live.down = self.down  # type: ignore[attr-defined]

    def execute(self, plan: Plan, _verify: object = None) -> Result:
        (operation,) = (each for each in plan.stage if isinstance(each, SetSysctl))
        self.value = "1" if self.undone else operation.after
        raise self.failure

    def down(self, originals: Mapping[str, tuple[str, str]]) -> tuple[str, ...]:
        self.originals = originals
        return ()


@pytest.mark.parametrize(
    ("failure", "undone", "known"),
    [
        (TransactionError(KernelError("attach", "eth0"), rolled_back=False, residue=["sysctl"]), False, True),
        (TransactionError(KernelError("attach", "eth0"), rolled_back=False, residue=["interface"]), True, False),
        (TransactionError(KernelError("attach", "eth0"), rolled_back=True), True, False),
        (KeyboardInterrupt(), True, False),
    ],
    ids=["undo failed", "undo failed elsewhere", "undone", "interrupted"],
)
def test_a_commit_that_failed(
    engine: Engine, live: FakeLive, places: Places, failure: BaseException, undone: bool, known: bool
) -> None:
    write(places)
    host = Host(live, failure, undone)
    with pytest.raises(type(failure)):
        engine.apply()
    stored = json.loads((places.state_dir / "sysctls.json").read_text())["sysctls"]
    assert stored == ({FILTER: ["1", "2"]} if known else {})
    engine.down()
    assert host.originals == ({FILTER: ("1", "2")} if known else {})


def test_what_can_not_be_read_any_more_may_still_be_ours(engine: Engine, live: FakeLive, places: Places) -> None:
    write(places)
    failure = TransactionError(KernelError("attach", "eth0"), rolled_back=True)
    host = Host(live, failure, undone=True)
    readable = live.read_sysctl

    def unreadable(name: str) -> str:
        live.read_sysctl = readable  # type: ignore[method-assign]
        raise KernelError("read", name, errno.EIO)

    def execute(plan: Plan, verify: object = None) -> Result:
        live.read_sysctl = unreadable  # type: ignore[method-assign]
        return host.execute(plan, verify)

    live.execute = execute  # type: ignore[method-assign]
    with pytest.raises(TransactionError):
        engine.apply()
    assert json.loads((places.state_dir / "sysctls.json").read_text())["sysctls"] == {FILTER: ["1", "2"]}


def test_only_what_is_still_as_we_set_it_since_the_machine_started_is_ours(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, nothing = Originals(places.state_dir / "sysctls.json"), Observed(KernelState(), Allocation())
    copy.keep({FILTER: ("1", "2")})
    ours = copy.supplement(nothing, lambda _: "2")
    assert (ours.remembered, ours.forgotten) == ({FILTER: ("1", "2")}, {FILTER})
    assert copy.supplement(nothing, lambda _: "0") == nothing
    monkeypatch.setattr("reconciler.runtime.originals.boot_id", lambda: "another")
    assert copy.supplement(nothing, lambda _: "2") == nothing


def test_what_the_kernels_map_says_otherwise_is_not_believed(places: Places) -> None:
    copy = Originals(places.state_dir / "sysctls.json")
    copy.keep({FILTER: ("1", "2")})
    for said in (("0", "2"), ("1", "0"), ("", "")):
        observed = Observed(KernelState(sysctls={FILTER: "0"}), Allocation(), remembered={FILTER: said})
        found = copy.supplement(observed, lambda _: "0")
        assert (found.remembered, found.forgotten) == ({FILTER: ("1", "2")}, {FILTER})
        assert found.state.sysctls == {FILTER: "0"}, "what is live stays what it is"
    right = Observed(KernelState(), Allocation(), remembered={FILTER: ("1", "2")})
    assert copy.supplement(right, lambda _: "2") == right


def test_the_copy_is_known_while_it_can_not_be_written_and_is_written_again(places: Places) -> None:
    """A full disk, or somebody who removes it."""
    path = places.state_dir / "sysctls.json"
    path.mkdir(parents=True)
    copy = Originals(path)
    copy.keep({FILTER: ("1", "2")})
    assert copy.read() == {FILTER: ("1", "2")}
    path.rmdir()
    copy.keep({FILTER: ("1", "2")})
    assert Originals(path).read() == {FILTER: ("1", "2")}


def test_what_nobody_knows_any_more_is_not_made_up() -> None:
    """It is said, and the setting stays as it is."""
    observed = Observed(KernelState(sysctls={FILTER: "2"}), Allocation(), exists=True, remembered={FILTER: ("", "")})
    for wanted in ({FILTER: "2"}, {}):
        delta = compare(Desired(KernelState(sysctls=wanted)), observed)
        (change,) = changes_of(delta, Desired(KernelState(sysctls=wanted)), observed)
        assert change.name == FILTER
        assert "not known any more" in str(change.before)
        limits = Limits({})
        plan = make_plan(Desired(KernelState(sysctls=wanted)), observed, limits=limits, runtime=RuntimeFacts())
        assert plan.finish == (RestoreSysctl(FILTER, "2", "2"),)


def test_whoever_is_killed_half_way_has_written_it_down(engine: Engine, live: FakeLive, places: Places) -> None:
    write(places)
    host = Host(live, KeyboardInterrupt(), undone=False)
    seen: list[object] = []
    execute = host.execute

    def look(plan: Plan, verify: object = None) -> Result:
        seen.append(json.loads((places.state_dir / "sysctls.json").read_text())["sysctls"])
        return execute(plan, verify)

    live.execute = look  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyboardInterrupt):
        engine.apply()
    assert seen == [{FILTER: ["1", "2"]}]
