"""Every kernel call of commits of every kind is made to fail, and the process is killed before and after each.

The calls are enumerated by running each commit once: a new one can't be forgotten. Every fourth one has its turn, and
the switch with what follows it; all of them with ``REVPROXY_TEST_THOROUGH=each``, as CI has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from reconciler.errors import TransactionError
from reconciler.kernel.gateway import KILLED_STATUS, FaultGateway
from reconciler.kernel.recover import recover
from reconciler.kernel.transaction import execute
from reconciler.state.objects import (
    DENY,
    Attachment,
    Balance,
    DataPlaneSettings,
    KernelState,
    Protocol,
    RouteKey,
    XdpMode,
)
from tests.kernel.kernelmaps import (
    Instance,
    bpffs_directory,
    dump,
    endpoint,
    in_child,
    listener,
    proxy,
    route,
    small_arrays,
    state,
    to,
)
from tests.thorough import EACH_KIND

SWITCH = ("update", "map control")
HOST_MAPS = ("device", "sysctl")  # host facts: put right by the next plan, not by recover()
SYSCTL = {"net/ipv4/conf/lo/forwarding": "1"}

BASE = state(
    [proxy("web", to("10.0.0.1:80"), to("[2001:db8::1]:80")), proxy("old", to("10.0.0.9:0", "10.0.0.8:0"))],
    {
        listener("192.0.2.1", 80): "web",
        listener("2001:db8::80", 80): "web",
        listener("192.0.2.1", 53, protocol=Protocol.UDP): "old",
    },
    {
        route("web", "10.0.0.0/8"): to("10.0.0.2:80", "10.0.0.3:80"),
        route("web", "10.1.0.0/16"): to("10.0.0.4:80"),
        route("web", "2001:db8:1::/48"): to("[2001:db8::2]:80"),
        route("old", "10.9.0.0/16"): DENY,
    },
)
EVERYTHING = state(
    [
        proxy("web", to(("10.0.0.1:80", 2), "10.0.0.5:80"), to("[2001:db8::1]:80"), balance=Balance.SOURCE),
        proxy("new", to("10.0.1.1:8080"), idle_sec=10),
    ],
    {listener("192.0.2.1", 80): "new", listener("192.0.2.1", 443): "web", listener("2001:db8::80", 80): "web"},
    {
        route("web", "10.1.0.0/16"): to("10.0.0.2:80", "10.0.0.3:80"),
        route("web", "10.1.2.0/24"): DENY,
        route("new", "2001:db8:1::/48"): to("[2001:db8::3]:80"),
    },
    settings=DataPlaneSettings(fast_path=False, closing_sec=3),
    attachments={2: Attachment(2, "eth0", XdpMode.OFF), 3: Attachment(3, "eth1", XdpMode.GENERIC)},
    sysctls=SYSCTL,
    devices=frozenset({3}),
    guarded=frozenset({3}),
    sources={("new", endpoint("10.0.1.1:8080")): ip_address("10.0.1.254")},
)
MANY = replace(
    BASE,
    routes=BASE.routes
    | {RouteKey("web", ip_network(f"172.16.{n}.0/24")): to(f"10.2.0.{1 + n % 90}:80") for n in range(150)},
    listeners=BASE.listeners | {listener(f"192.0.2.{n}", 80): "web" for n in range(2, 80)},
)
NOTHING = KernelState()
COMMITS: dict[str, tuple[KernelState, KernelState]] = {
    "first": (NOTHING, BASE),
    "target": (BASE, replace(BASE, proxies=BASE.proxies | {"web": proxy("web", to("10.0.0.7:80"))})),
    "covering route removed": (
        BASE,
        replace(BASE, routes={k: v for k, v in BASE.routes.items() if k != route("web", "10.0.0.0/8")}),
    ),
    "everything": (BASE, EVERYTHING),
    "everything, taken back": (EVERYTHING, BASE),
    "many, in batches": (BASE, MANY),
    "many removed": (MANY, BASE),
    "all proxies removed": (BASE, state([], {})),
    "programs exchanged": (BASE, replace(BASE, program=replace(BASE.program, tag="tag2"))),  # type: ignore[type-var]
    "interface and sysctl only": (
        BASE,
        replace(BASE, sysctls=SYSCTL, attachments={4: Attachment(4, "eth2", XdpMode.OFF)}),
    ),
}


@pytest.fixture(autouse=True)
def _small_arrays() -> Iterator[None]:
    with small_arrays():
        yield


@pytest.fixture(params=COMMITS)
def commit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Commit]:
    with bpffs_directory() as directory:
        yield Commit(directory, tmp_path, *COMMITS[request.param])


class Commit:
    """One commit in the making, and what the kernel is before and after it."""

    def __init__(self, directory: Path, tmp_path: Path, old: KernelState, new: KernelState) -> None:
        self.directory, self.tmp_path, self.old, self.new = directory, tmp_path, old, new
        self.number = 0
        self.fresh()
        self.before = self.snapshot()
        self.calls = self.count_calls()
        self.after = self.snapshot()

    def fresh(self) -> None:
        """A new instance that is at the old state."""
        self.number += 1
        (self.tmp_path / str(self.number)).mkdir()
        if self.old is not NOTHING:
            with self.instance() as instance:
                execute(instance.plan(self.old, "old"), instance.context)

    @contextmanager
    def instance(self, gateway: FaultGateway | None = None) -> Iterator[Instance]:
        directory = self.directory / str(self.number)
        instance = Instance(directory, self.tmp_path / str(self.number), gateway)
        try:
            yield instance
        finally:
            instance.close()

    def snapshot(self, leave_out: tuple[str, ...] = ()) -> tuple[object, object, object]:
        """Every byte of the maps, and the host."""
        with self.instance() as instance:
            host = None if leave_out else instance.host.read()
            return dump(instance.maps, leave_out), host, instance.programs.read().get("current")

    def count_calls(self) -> list[tuple[str, str]]:
        gateway = FaultGateway()
        with self.instance() as instance:
            plan = instance.plan(self.new, "new")
        with self.instance(gateway) as instance:
            assert execute(plan, instance.context).pending is None
            observed = instance.observe()
            assert observed.state == self.new
            assert not observed.unfinished
            assert instance.plan(self.new, "new").empty
        return gateway.calls

    def run(self, gateway: FaultGateway) -> bool:
        """Carry the commit out with ``gateway``; whether clearing up is pending."""
        with self.instance() as instance:
            plan = instance.plan(self.new, "new")
        with self.instance(gateway) as instance:
            return execute(plan, instance.context).pending is not None

    def run_until_failure(self, gateway: FaultGateway) -> tuple[TransactionError | None, bool]:
        """:meth:`run`, with the error it may have come to."""
        try:
            return None, self.run(gateway)
        except TransactionError as error:
            return error, False

    def complete(self) -> None:
        """What the next start does: recover, look, go where the files say."""
        with self.instance() as instance:
            if instance.maps.exists:
                instance.maps.open()
                recover(instance.maps)
            assert not instance.observe().unfinished
            plan = instance.plan(self.new, "new")
            if not plan.empty:
                assert execute(plan, instance.context).pending is None
            assert instance.observe().state == self.new
            assert instance.plan(self.new, "new").empty


def turns(calls: list[tuple[str, str]], first: int) -> list[int]:
    """Numbers of calls, counted from 1, that have their turn; ``first`` always."""
    if EACH_KIND:
        return list(range(first, len(calls) + 1))
    switch = calls.index(SWITCH) + 1 if SWITCH in calls else first
    return sorted({*range(first, len(calls) + 1, 4), switch, min(switch + 1, len(calls))})


def same_but_active(found: tuple[object, ...], wanted: tuple[object, ...]) -> bool:
    """Equal but for the number of the slot that is active: a commit that was taken up again has switched once more,
    or once less."""
    maps = [dict(each[0]) if isinstance(each[0], dict) else None for each in (found, wanted)]
    for each in maps:
        if each is not None:
            each.pop("control")
    return maps[0] == maps[1] and found[1:] == wanted[1:]


def test_every_call_failing_in_turn_leaves_before_or_pending(commit: Commit) -> None:
    assert len(commit.calls) > 3
    commit.fresh()
    assert same_but_active(commit.snapshot(), commit.before)
    failed = 0
    for number in turns(commit.calls, 1):
        where = f"call {number}: {commit.calls[number - 1]}"
        before = commit.snapshot()
        error, pending = commit.run_until_failure(FaultGateway(fail_at=number))
        if error is not None:
            failed += 1
            assert error.rolled_back, f"{where}: {error}"
            assert "made to fail" in str(error.cause), where
            assert commit.snapshot() == before, where
        else:
            assert pending, where
            commit.complete()
            assert same_but_active(commit.snapshot(), commit.after), where
            commit.fresh()
    assert failed


def test_killed_at_every_call_recovers_to_old_or_new(commit: Commit) -> None:
    """Killed before the first call, then after each: behind one call is before the next."""
    commit.fresh()
    switch = next((n for n, call in enumerate(commit.calls, 1) if call == SWITCH), 1000)
    for number in turns(commit.calls, 0):
        where = f"after call {number}: {commit.calls[number - 1] if number else None}"
        gateway = FaultGateway(kill_after=number) if number else FaultGateway(kill_before=1)
        assert in_child(lambda gateway=gateway: commit.run(gateway)) == KILLED_STATUS, where  # type: ignore[misc]
        with commit.instance() as instance:
            if instance.observe().exists:
                recover(instance.maps)
                assert recover(instance.maps) == [], where
                assert not instance.observe().unfinished, where
                found = dump(instance.maps, HOST_MAPS)
                wanted = (commit.after if number >= switch else commit.before)[0]
                if wanted is not None:
                    assert {**(found or {}), "control": 0} == {**without_host(wanted), "control": 0}, where
        commit.complete()
        assert same_but_active(commit.snapshot(), commit.after), where
        commit.fresh()


def without_host(dumped: Any) -> dict[str, Any]:
    return {name: content for name, content in dumped.items() if name not in HOST_MAPS}


def test_killed_while_recovering_recovers(tmp_path: Path) -> None:
    with bpffs_directory() as directory:
        commit = Commit(directory, tmp_path, BASE, EVERYTHING)
        switch = next(n for n, call in enumerate(commit.calls, 1) if call == ("update", "map control"))
        for kill in (switch - 1, switch):
            number = 1
            while True:
                commit.fresh()
                gateway = FaultGateway(kill_after=kill)
                assert in_child(lambda gateway=gateway: commit.run(gateway)) == KILLED_STATUS  # type: ignore[misc]

                def recover_until(number: int) -> None:
                    with commit.instance(FaultGateway(kill_after=number)) as instance:
                        instance.maps.open()
                        recover(instance.maps)

                if in_child(lambda number=number: recover_until(number)) == 0:  # type: ignore[misc]
                    break
                commit.complete()
                assert same_but_active(commit.snapshot(), commit.after)
                number += 1
            assert number > 5


def test_an_undo_that_fails_is_told(tmp_path: Path) -> None:
    with bpffs_directory() as directory:
        commit = Commit(directory, tmp_path, BASE, EVERYTHING)
        commit.fresh()
        middle = next(n for n, call in enumerate(commit.calls, 1) if call[1] == "map listener4")
        with pytest.raises(TransactionError) as caught:
            commit.run(FaultGateway(fail_at=middle, fail_on=True))
        assert not caught.value.rolled_back
        assert any("made to fail" in line for line in caught.value.residue)
        assert any("is not what it was" in line for line in caught.value.residue)
        assert "roll-back incomplete" in str(caught.value)
        commit.complete()
        assert same_but_active(commit.snapshot(), commit.after)
