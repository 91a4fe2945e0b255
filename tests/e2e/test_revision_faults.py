"""Every kernel operation of a rollback, of an automatic rollback and of an apply that is to be confirmed made to fail,
and the process killed after it: the kernel is wholly the one or the other, and what is said of it is so.

Which operations have their turn is chosen as in ``attempts.py``, but fewer unless CI takes each. Killing within what
`confirm`, `suspend` and `resume` do, which is to write one file, is for ``tests/unit/runtime/test_control.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import pytest

from reconciler.daemon.loop import Loop
from reconciler.engine import Engine
from reconciler.errors import RevproxyError, TransactionError, UnfinishedError
from reconciler.kernel.gateway import KILLED_STATUS, FaultGateway
from reconciler.runtime import probing
from tests.bootclock import clock
from tests.e2e.attempts import chosen, in_child
from tests.e2e.proxyhost import ProxyHost
from tests.e2e.roundtrips import BASE, EDIT, difference
from tests.kernel.kernelmaps import configuration, small_arrays
from tests.thorough import EACH_KIND

__all__ = ["clock"]  # a fixture; children get a copy

pytestmark = pytest.mark.timeout(1200)
WITHIN_SEC = 60


@dataclass
class Said:
    """One host whose files say EDIT, and what is in force: BASE before and EDIT after each :meth:`begin`."""

    host: ProxyHost
    clock: list[float]

    def begin(self) -> None:
        """BASE applied, then EDIT."""
        for text in (BASE, EDIT):
            self.write(text)
            with self.host.engine() as engine:
                engine.apply()
        self.clock[0] += 1000

    def write(self, text: str) -> None:
        directory = self.host.places.config_dir
        directory.mkdir(exist_ok=True)
        (directory / "all.yaml").write_text(text)

    def rollback(self, gateway: FaultGateway) -> None:
        """What `revproxyctl rollback` does."""
        with self.host.engine(gateway) as engine:
            engine.revisions.rollback()

    def expire(self, gateway: FaultGateway) -> None:
        """What happens when the time of an unconfirmed commit is up."""
        with self.host.engine(gateway) as engine:
            engine.revisions.expire()

    def promised(self, gateway: FaultGateway) -> None:
        """What `revproxyctl apply --confirm-within` does."""
        with self.host.engine(gateway) as engine:
            engine.apply(confirm_within_sec=WITHIN_SEC)

    def ready(self, what: str) -> None:
        """All that comes before the one to be disturbed."""
        self.begin()
        if what == "expire":
            self.write(BASE)
            with self.host.engine() as engine:
                engine.apply()
            self.write(EDIT)
            self.promised(FaultGateway())
            self.clock[0] += 2 * WITHIN_SEC
        elif what == "promised":
            self.write(BASE)
            with self.host.engine() as engine:
                engine.apply()
            self.write(EDIT)

    def look(self) -> Engine:
        """What a daemon that starts does first; the engine is closed."""
        with self.host.engine() as engine:
            Loop(engine).look(frozenset({"start"}))
        return engine

    def in_force(self) -> str:
        """Which of the two it is; fails if it is neither."""
        with self.host.engine() as engine:
            observed = engine.observe()
            assert not observed.unfinished
            found = configuration(observed)
            for name, text in (("BASE", BASE), ("EDIT", EDIT)):
                self.write(text)
                wanted = configuration(engine.view().desired.state)
                if found == wanted:
                    self.write(EDIT)
                    return name
        raise AssertionError(f"neither nor: {found}")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> Iterator[Said]:
    monkeypatch.setattr(probing, "FIRST_PORT", 4000)  # the small port map ends at 10000
    with small_arrays(), ProxyHost() as host:
        yield Said(host, clock)


# That an apply which is to be confirmed is taken back all the same has unit tests of its own.
KINDS = ("rollback", "expire", *(("promised",) if EACH_KIND else ()))


def turns(said: Said, what: str) -> list[int]:
    """Numbers of the operations that have their turn, one beyond the last of them."""
    said.ready(what)
    recording = FaultGateway()
    getattr(said, what)(recording)
    assert len(recording.calls) > 10
    return [*chosen(recording.calls, 30), len(recording.calls) + 50]


def disturbed(function: Callable[[FaultGateway], None], gateway: FaultGateway) -> RevproxyError | None:
    try:
        function(gateway)
    except RevproxyError as error:
        return error
    return None


@pytest.mark.parametrize("what", KINDS)
def test_an_operation_that_fails_leaves_before_or_after(said: Said, what: str) -> None:
    outcomes = set()
    for number in turns(said, what):
        said.ready(what)
        with said.host.engine() as engine:
            before = engine.revisions.control
        snapshot = said.host.snapshot()
        gateway = FaultGateway(fail_at=number)
        error = disturbed(getattr(said, what), gateway)
        where = f"call {number}: {gateway.calls[min(number, len(gateway.calls)) - 1]}: {error}"
        with said.host.engine() as engine:
            now = engine.revisions.control
        if isinstance(error, TransactionError):
            assert error.rolled_back, where
            assert difference(said.host.snapshot(), snapshot) == [], where
            # But why an automatic rollback did not work: that is for every process to tell.
            told = now.unconfirmed.trouble if now.unconfirmed else ""
            assert told == (str(error) if what == "expire" else ""), where
            now = replace(now, unconfirmed=now.unconfirmed and replace(now.unconfirmed, trouble=""))
            assert now == before, f"{where}: nothing was done, so nothing is said"
        else:
            assert error is None or isinstance(error, UnfinishedError), where
        outcomes.add(isinstance(error, TransactionError))
        said.look()
        assert said.in_force() == expected(what, done=not isinstance(error, TransactionError)), where
    assert outcomes == {True, False}


@pytest.mark.parametrize("what", KINDS)
def test_killed_at_any_operation_the_next_start_knows(said: Said, what: str) -> None:
    outcomes = set()
    for number in turns(said, what):
        said.ready(what)
        log = said.host.directory / "switched"
        log.unlink(missing_ok=True)

        gateway = _Noting(log.touch, kill_after=number)
        assert in_child(partial(getattr(said, what), gateway)) in (0, KILLED_STATUS)
        outcomes.add(log.exists())
        engine = said.look()
        found = said.in_force()
        where = f"killed after call {number}, {'behind' if log.exists() else 'ahead of'} the switch"
        assert found == expected(what, done=log.exists()), where
        hold = engine.revisions.control.hold
        assert (hold is not None) == (found == "BASE"), f"{where}: {hold}"
        if what == "promised":
            # Ahead of the switch the files were applied by the daemon that came then: nobody has confirmed that either.
            assert engine.revisions.control.unconfirmed is not None, where
            said.clock[0] += 2 * WITHIN_SEC
            said.look()
            assert said.in_force() == "BASE", where
    assert outcomes == {True, False}


def expected(what: str, *, done: bool) -> str:
    """What is in force once a daemon has looked. A rollback that came to nothing leaves the files to be followed; one
    whose time is up is tried until it is made."""
    if what == "promised":
        return "EDIT"
    return "BASE" if done or what == "expire" else "EDIT"


class _Noting(FaultGateway):
    """Has something done at the switch, which a killed process can't tell of any more."""

    def __init__(self, switched: Callable[[], None], **moment: int) -> None:
        super().__init__(**moment)
        self.switched = switched

    def call(self, operation, subject, function):  # type: ignore[no-untyped-def]
        if (operation, subject) != ("update", "map control"):
            return super().call(operation, subject, function)

        def noted() -> object:
            result = function()
            self.switched()
            return result

        return super().call(operation, subject, noted)
