"""The worker: reasons gather, calls come in order, failures end nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from reconciler.daemon import worker as worker_module
from reconciler.daemon.worker import Timer, Worker
from reconciler.errors import DaemonError, RevproxyError


class Looks:
    """Records looks; holds them up while ``gate`` is clear."""

    def __init__(self) -> None:
        self.seen: list[frozenset[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.again: list[float | None] = []
        self._condition = threading.Condition()

    def __call__(self, reasons: frozenset[str]) -> float | None:
        with self._condition:
            self.seen.append(reasons)
            self._condition.notify_all()
        assert self.gate.wait(10)
        if "boom" in reasons:
            raise ZeroDivisionError
        return self.again.pop(0) if self.again else None

    def wait(self, count: int) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: len(self.seen) >= count, 10), self.seen


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
def worker(looks: Looks) -> Iterator[Worker]:
    worker = Worker(looks)
    worker.start()
    yield worker
    looks.gate.set()
    worker.stop()


def test_reasons_that_come_during_a_look_are_one_look_afterwards(worker: Worker, looks: Looks) -> None:
    looks.gate.clear()
    worker.wake("a")
    looks.wait(1)
    for reason in ("b", "c", "b"):
        worker.wake(reason)
    looks.gate.set()
    looks.wait(2)
    worker.submit(lambda: None).result(10)
    assert looks.seen == [frozenset({"a"}), frozenset({"b", "c"})]


def test_calls_run_in_order_on_one_thread_and_their_errors_are_theirs(worker: Worker) -> None:
    order: list[int] = []
    futures = [worker.submit(lambda n=n: (order.append(n), threading.current_thread().name)[1]) for n in range(5)]
    assert {future.result(10) for future in futures} == {"worker"}
    assert order == list(range(5))
    with pytest.raises(ZeroDivisionError):
        worker.submit(lambda: 1 // 0).result(10)
    assert worker.submit(lambda: 7).result(10) == 7


def test_a_look_that_fails_does_not_end_the_worker(worker: Worker, looks: Looks) -> None:
    worker.wake("boom")
    looks.wait(1)
    worker.wake("next")
    looks.wait(2)


def test_a_look_comes_again_when_it_asked_for_it(worker: Worker, looks: Looks) -> None:
    looks.again = [0.01, None]
    worker.wake("first")
    looks.wait(2)
    assert looks.seen[1] == frozenset({"retry"})
    for _ in range(2):
        worker.submit(lambda: None).result(10)
    assert len(looks.seen) == 2, "and not once more"
    looks.again = [100.0]
    for reason in ("third", "fourth"):
        worker.wake(reason)
        worker.submit(lambda: None).result(10)
    looks.wait(4)
    assert looks.seen[2:] == [frozenset({"third"}), frozenset({"fourth"})], "not before it is time"


def test_timers_come_and_their_failures_end_nothing(looks: Looks) -> None:
    ticks = threading.Semaphore(0)

    def fail() -> None:
        raise ZeroDivisionError

    worker = Worker(looks, (Timer("fail", 0.01, fail), Timer("tick", 0.01, ticks.release)))
    worker.start()
    for _ in range(3):
        assert ticks.acquire(timeout=10)
    worker.stop()


def test_a_timer_rests_for_longer_when_asked_to(looks: Looks) -> None:
    ticks, rest_sec = threading.Semaphore(0), [0.0]
    worker = Worker(looks, (Timer("tick", 0.01, ticks.release, rest_sec=lambda: rest_sec[0]),))
    worker.start()
    for _ in range(3):
        assert ticks.acquire(timeout=10)
    rest_sec[0] = 3600.0
    while ticks.acquire(timeout=0.1):  # one may be on its way
        pass
    assert worker._until_due() > 3500
    worker.stop()


def test_a_timer_without_need_wakes_nobody_until_a_look_brings_it_about(looks: Looks) -> None:
    ticks, needed = threading.Semaphore(0), threading.Event()
    worker = Worker(looks, (Timer("tick", 0.01, ticks.release, needed.is_set),))
    worker.start()
    assert worker._until_due() > 60
    assert not ticks.acquire(timeout=0.1)
    worker.wake("b")
    looks.wait(1)
    assert not ticks.acquire(timeout=0.1), "nor does it run when something else wakes the worker"
    looks.gate.clear()
    worker.wake("a")
    looks.wait(2)
    needed.set()
    looks.gate.set()
    assert ticks.acquire(timeout=10)
    assert ticks.acquire(timeout=10)
    worker.stop()


def test_how_long_it_has_been_busy_is_known(looks: Looks) -> None:
    now = [100.0]
    worker = Worker(looks, clock=lambda: now[0])
    worker.start()
    looks.gate.clear()
    worker.wake("a")
    looks.wait(1)
    now[0] = 107.0
    assert worker.busy_sec == 7.0
    looks.gate.set()
    worker.stop()
    assert worker.busy_sec == 0.0


def test_a_call_that_nobody_waits_for_any_more_is_left_out(worker: Worker, looks: Looks) -> None:
    looks.gate.clear()
    worker.wake("a")
    looks.wait(1)
    given_up, made = worker.submit(lambda: 1), worker.submit(lambda: 2)
    assert given_up.cancel()
    looks.gate.set()
    assert made.result(10) == 2


def test_calls_that_wait_at_the_end_are_refused(looks: Looks) -> None:
    worker = Worker(looks)
    worker.start()
    looks.gate.clear()
    worker.wake("a")
    looks.wait(1)
    waiting = worker.submit(lambda: None)
    end = threading.Thread(target=worker.stop)
    end.start()
    while not worker.stopping:
        end.join(0.001)
    looks.gate.set()
    with pytest.raises(DaemonError):
        waiting.result(10)
    end.join()


def test_after_the_end_calls_are_refused(looks: Looks) -> None:
    worker = Worker(looks)
    worker.start()
    worker.stop()
    with pytest.raises(DaemonError):
        worker.submit(lambda: None).result(10)


def test_a_timer_that_keeps_failing_is_told_of_once_for_each_trouble(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        worker_module._log, "error", lambda _event, **fields: said.append(fields["error"]), raising=False
    )
    troubles, done = [*["a"] * 5, "b", "b", "", "b", "a"], threading.Event()

    def fail() -> None:
        if not troubles:
            done.set()
        elif trouble := troubles.pop(0):
            raise RevproxyError(trouble)

    worker = Worker(looks, (Timer("fail", 0.001, fail),))
    worker.start()
    assert done.wait(10)
    worker.stop()
    assert said == ["a", "b", "b", "a"]
