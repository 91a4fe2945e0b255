"""Taking over from a version with other maps, killed at its operations: whichever version starts next goes on from what
it finds, with the connections that there were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from reconciler.errors import RevproxyError, UnfinishedError
from reconciler.kernel import layout, probe, program
from reconciler.kernel.gateway import FaultGateway
from reconciler.runtime import probing
from tests.e2e.attempts import Attempt, chosen, parse, without_opening
from tests.e2e.proxyhost import Decision, Packet, ProxyHost
from tests.e2e.roundtrips import BASE, Commits
from tests.kernel.kernelmaps import small_arrays
from tests.thorough import part

MAPS = ({}, {"target": 600, "proxy": 80, "blob": 300})
"""Of two versions: how many entries of some maps. (Other structures have their turn in test_upgrade.py.)"""


@contextmanager
def version(number: int) -> Iterator[None]:
    """This process is of that version."""
    whole = dict(layout.MAPS)
    layout.MAPS.update({name: replace(whole[name], max_entries=entries) for name, entries in MAPS[number].items()})
    try:
        yield
    finally:
        layout.MAPS.update(whole)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProxyHost]:
    monkeypatch.setattr(probing, "FIRST_PORT", 4000)
    for module in (program, probe):
        monkeypatch.setattr(module, "compile_programs", without_opening)
    monkeypatch.setattr(probing.Prober, "_wrong", lambda *_: None)
    without_opening.cache_clear()
    with small_arrays(), ProxyHost() as made:
        yield made


def roots(host: ProxyHost) -> list[str]:
    return sorted(path.name for path in host.places.bpffs_dir.iterdir())


def commit(host: ProxyHost) -> None:
    with host.engine() as engine:
        engine.commit(engine.view(parse(BASE)))
        view = engine.view(parse(BASE))
        assert view.changes == ()
        assert not view.observed.unfinished


def with_a_connection(host: ProxyHost) -> tuple[Packet, Decision]:
    """This version in force, and a connection that is open."""
    commits = Commits(host, opening=False)
    commit(host)
    with host.engine() as engine:
        commits.states[BASE] = engine.observe().state
    connection = commits.open_connection(BASE)
    assert connection is not None
    return connection


def test_killed_anywhere_either_version_goes_on(host: ProxyHost) -> None:
    packet, before = with_a_connection(host)
    later = replace(packet, syn=False)
    recording = FaultGateway()
    with version(1):
        without_opening.cache_clear()
        assert Attempt(host, BASE, 0).carry_out(recording) is None
    here, turns = 1, part(chosen(recording.calls), 4)
    assert len(turns) > 5
    for turn, number in enumerate(turns):
        there = 1 - here
        with version(there):
            without_opening.cache_clear()
            attempt = Attempt(host, BASE, number)
            attempt.kill()
            assert host.decisions((later,))[0].same(before), attempt.where
        next_one = there if turn % 2 else here
        with version(next_one):
            without_opening.cache_clear()
            commit(host)
            assert roots(host) == [layout.fingerprint()], attempt.where
        assert host.decisions((later,))[0].same(before), attempt.where
        here = next_one


def test_an_operation_that_fails_leaves_the_other_version_in_force(host: ProxyHost) -> None:
    packet, before = with_a_connection(host)
    recording = FaultGateway()
    with version(1):
        without_opening.cache_clear()
        assert Attempt(host, BASE, 0).carry_out(recording) is None
    without_opening.cache_clear()
    commit(host)
    attached, failures = host.attachments(), 0
    with version(1):
        without_opening.cache_clear()
        for number in chosen(recording.calls):
            attempt = Attempt(host, BASE, number)
            error = attempt.fail()
            if error is None or isinstance(error, UnfinishedError):
                break  # it holds, and is cleared up by the next one
            assert isinstance(error, RevproxyError), attempt.where
            assert host.attachments() == attached, attempt.where
            assert host.decisions((replace(packet, syn=False),))[0].same(before), attempt.where
            failures += 1
        assert failures > 10
        commit(host)
        assert roots(host) == [layout.fingerprint()]
    assert host.decisions((replace(packet, syn=False),))[0].same(before)
