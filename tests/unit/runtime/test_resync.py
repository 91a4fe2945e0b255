"""Which resyncs are a glance, and which look at everything."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest

from reconciler.daemon.loop import Loop
from reconciler.daemon.resync import BUSY_SHARE, WHOLE_SEC, Resync
from reconciler.engine import Engine
from reconciler.places import Places
from reconciler.state.facts import RuntimeFacts
from reconciler.state.objects import Observed
from tests.unit.runtime.fakelive import FakeLive, break_, mend, write
from tests.unit.runtime.revising import FILES, lose_listeners

RESYNC = frozenset({"resync"})


class Glance:
    """Takes what ``live`` holds, or nothing while ``blind``."""

    def __init__(self, live: FakeLive) -> None:
        self.live, self.blind = live, False
        self.known, self.routes_sec = b"", 0.0
        self.sysctls: list[str] = []

    def take(self) -> bytes:
        return b"" if self.blind else repr(self.live.state).encode()

    def same(self, taken: bytes) -> bool:
        return bool(taken) and taken == self.known

    def remember(self, taken: bytes, names: Collection[str]) -> None:
        self.known, self.sysctls = taken, sorted(names)


class Watched(Loop):
    """A loop that has applied the files; ``looked``: whether looking for these reasons was a whole look."""

    def __init__(self, engine: Engine, places: Places, live: FakeLive) -> None:
        self.now, self.cpu, self.look_sec, self.observed = 0.0, 0.0, 0.0, 0
        self.glance, self.live = Glance(live), live
        super().__init__(engine, resync=Resync(self.glance, clock=lambda: self.now, cpu_clock=lambda: self.cpu))
        observe = live.observe

        def counted(*, routes_as_known: bool = False, connections_anew: bool = False) -> Observed:
            self.observed += 1
            self.cpu += self.look_sec
            return observe(routes_as_known=routes_as_known, connections_anew=connections_anew)

        live.observe = counted  # type: ignore[method-assign]
        write(places)
        self.look(frozenset({"start"}))

    def looked(self, reasons: frozenset[str] = RESYNC) -> bool:
        before = self.observed
        self.look(reasons)
        return self.observed > before


@pytest.fixture
def loop(engine: Engine, places: Places, live: FakeLive) -> Watched:
    return Watched(engine, places, live)


def test_while_nothing_changes_a_glance_is_enough(loop: Watched) -> None:
    assert [loop.looked() for _ in range(3)] == [True, False, False]
    assert "net/ipv4/conf/lo/forwarding" in loop.glance.sysctls
    loop.now = WHOLE_SEC
    assert [loop.looked() for _ in range(2)] == [True, False]


def test_what_somebody_else_changed_is_put_right(loop: Watched, live: FakeLive) -> None:
    loop.looked(), loop.looked()
    whole = live.state.state
    lose_listeners(live)
    assert loop.looked()
    assert live.state.state == whole
    assert [loop.looked() for _ in range(2)] == [True, False]  # the first one sees that nothing is to be done any more


def test_the_same_damage_twice_is_put_right_twice(loop: Watched, live: FakeLive) -> None:
    """How things were before a repair is not how they are while nothing is to be done."""
    loop.looked(), loop.looked()
    whole = live.state.state
    for _ in range(2):
        lose_listeners(live)
        assert loop.looked()
        assert live.state.state == whole


@pytest.mark.parametrize("reason", ["files", "network: link", "command", "reload"])
def test_any_other_reason_is_one_to_look(loop: Watched, reason: str) -> None:
    loop.looked(), loop.looked()
    assert loop.looked(RESYNC | {reason})
    assert [loop.looked() for _ in range(2)] == [True, False]


def test_while_something_is_wrong_everything_is_looked_at(loop: Watched, places: Places) -> None:
    loop.looked(), loop.looked()
    break_(places)
    assert [loop.looked(each) for each in (FILES, RESYNC, RESYNC)] == [True] * 3
    mend(places)
    assert [loop.looked(each) for each in (FILES, RESYNC, RESYNC)] == [True, True, False]


def test_while_connections_live_everything_is_looked_at(loop: Watched, live: FakeLive) -> None:
    live.runtime = lambda _, **_how: RuntimeFacts(busy_targets=frozenset({1}))  # type: ignore[method-assign]
    assert [loop.looked() for _ in range(3)] == [True] * 3


def test_while_connections_live_dear_looks_take_no_more_than_their_share(loop: Watched, live: FakeLive) -> None:
    """What differs is found all the same."""
    live.runtime = lambda _, **_how: RuntimeFacts(busy_targets=frozenset({1}))  # type: ignore[method-assign]
    loop.look_sec = 2.0
    assert [loop.looked() for _ in range(3)] == [True, False, False]
    loop.now = 2.0 / BUSY_SHARE - 1
    assert not loop.looked()
    loop.now += 1
    assert [loop.looked() for _ in range(2)] == [True, False]
    whole = live.state.state
    lose_listeners(live)
    assert loop.looked()
    assert live.state.state == whole
    loop.look_sec = 30.0
    assert [loop.looked() for _ in range(2)] == [True, False]
    loop.now += WHOLE_SEC
    assert loop.looked(), "five minutes at most"


def test_while_something_is_kept_for_connections_everything_is_looked_at(loop: Watched, live: FakeLive) -> None:
    live.state = replace(live.state, allocation=replace(live.state.allocation, retired_targets=frozenset({9})))
    assert [loop.looked() for _ in range(3)] == [True] * 3


def test_what_can_not_be_seen_at_a_glance_is_looked_at(loop: Watched) -> None:
    loop.glance.blind = True
    assert [loop.looked() for _ in range(3)] == [True] * 3


def test_without_a_glance_everything_is_looked_at(engine: Engine, places: Places, live: FakeLive) -> None:
    loop = Watched(engine, places, live)
    loop._resync = Resync()
    assert [loop.looked() for _ in range(3)] == [True] * 3


def test_after_a_look_at_very_many_routes_the_next_one_waits(live: FakeLive) -> None:
    """Until they have taken no more than their share of a CPU's time. What else a glance takes delays nothing: who asks
    for one every second has it."""
    glance, cpu = Glance(live), [0.0]

    def cpu_clock() -> float:
        cpu[0] += 1.0
        return cpu[0]

    resync = Resync(glance, cpu_clock=cpu_clock)
    for glance.routes_sec, rest_sec in ((0.0, 0.0), (0.03, 60.0), (0.001, 2.0), (9.0, WHOLE_SEC)):
        resync.needless(RESYNC)
        assert resync.rest_sec() == pytest.approx(rest_sec)
    assert Resync().rest_sec() == 0
