"""A daemon's commands that answer from a table, and what they answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from reconciler import __version__, answers
from reconciler.answers import Sync
from reconciler.errors import Problem
from reconciler.runtime.savedplan import FORMAT, digest
from reconciler.state.totals import Totals

INSTANCE = answers.Instance(4711, "0.1.0", "/etc/revproxy/config.d", "/sys/fs/bpf/revproxy")
STATUS = answers.Status(
    sync=Sync.DEGRADED,
    revision=7,
    commit="abc",
    applied="2026-01-02T03:04:05+00:00",
    differences=1,
    interfaces=(answers.InterfaceStatus("eth0", "native", True),),
    proxies=(
        answers.ProxyStatus(
            "web",
            ("192.0.2.1:80/tcp",),
            ("eth0",),
            (answers.TargetStatus("10.0.0.1:8080", 1, "unchecked", "active", 3),),
        ),
    ),
    errors=(Problem("a.yaml", 3, 5, "proxies[0]", "wrong"),),
    attempt=answers.Attempt("2026-01-02T03:04:06+00:00", "held", "wrong"),
    pid=4711,
)
DIFFERENCE = answers.Difference((answers.Change("update", "proxy", "web", {"a": 1}, {"a": [2]}),), 4)
UNCONFIRMED = answers.Unconfirmed(8, 7, "2026-01-02T03:04:35+00:00", 29.5)
ENTRY = answers.HistoryEntry(
    7, "2026-01-02T03:04:05+00:00", "applied", "files", "abc", "A. U. Thor", "why", ("a.yaml",)
)
SAVED = answers.SavedPlan(
    FORMAT,
    __version__,
    "0123456789abcdef",
    "2026-01-02T03:04:05+00:00",
    "5" * 64,
    "6" * 64,
    answers.PlanAnswer(DIFFERENCE.changes, 4, ("one",), {"port": 1}),
    (answers.PlanFile("a.yaml", "QQ=="),),
)
SAVED = replace(SAVED, digest=digest(SAVED))
CONNECTION = answers.Connection(
    "web", "tcp", "198.51.100.1:1", "192.0.2.1:80", "10.0.0.1:8080", "established", 1, 2, 3, 4, 5.5, 0.5
)
STATS = answers.Stats(
    connections=1,
    drops={"denied": 2},
    proxies={"web": answers.ProxyStats(targets={"10.0.0.1:8080": answers.TargetStats(1)})},
)
DRAINING = answers.Draining((answers.DrainingTarget("web", "10.0.0.1:8080", "draining", 3),), 3)
TESTED = answers.Tested(
    Sync.OUT_OF_SYNC,
    7,
    3,
    (answers.TestResult("a.yaml", 9, 5, "1.2.3.4:5", "5.6.7.8:80", "tcp", None, "deny", "pass", holds=False),),
    1,
)
EXPLANATION = answers.Explanation("redirect", "web", "default_target", "10.0.0.1:8080", "because", "eth0", "tc_ingress")


class FakeCommands:
    """Answers from a table; raises what it is told to."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.gate: threading.Event | None = None
        self.command: list[str] | None = None
        self.totals: list[str] | None = None

    def _answer(self, name: str, value: Any, **arguments: Any) -> Any:
        self.calls.append((name, arguments))
        if self.gate:
            assert self.gate.wait(10)
        if self.error:
            raise self.error
        return value

    def status(self) -> answers.Status:
        return self._answer("status", STATUS)

    def diff(self) -> answers.Difference:
        return self._answer("diff", DIFFERENCE)

    def plan(self) -> answers.PlanAnswer:
        return self._answer("plan", answers.PlanAnswer(steps=("one",), counts={"port": 1}))

    def apply(self, **options: Any) -> answers.Applied:
        return self._answer("apply", answers.Applied(8, unconfirmed=UNCONFIRMED), **options)

    def saved_plan(self) -> answers.SavedPlan:
        return self._answer("saved_plan", SAVED)

    def confirm(self) -> answers.Confirmed:
        return self._answer("confirm", answers.Confirmed(8))

    def rollback(self, number: int | None = None) -> answers.Applied:
        return self._answer("rollback", answers.Applied(9), number=number)

    def history(self) -> tuple[answers.HistoryEntry, ...]:
        return self._answer("history", (ENTRY,))

    def suspend(self) -> answers.Suspension:
        return self._answer("suspend", answers.Suspension(True, "2026-01-02T03:04:05+00:00"))

    def resume(self) -> answers.Suspension:
        return self._answer("resume", answers.Suspension(False))

    def connections(self, **how: Any) -> Iterator[list[str]]:
        return iter(self._answer("connections", [[json.dumps(answers.to_json(CONNECTION))]], **how))

    def bequeathing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def list_command(self, _how: Mapping[str, Any]) -> list[str] | None:
        return self.command

    def totals_command(self) -> list[str] | None:
        return self.totals

    @contextmanager
    def counted(self, totals: Totals) -> Iterator[None]:
        self.calls.append(("counted", {"totals": totals}))
        yield
        self.calls.append(("counted", {}))

    def connection_count(self, **filters: Any) -> int:
        return self._answer("connection_count", 12, **filters)

    def flush(self, **filters: Any) -> Iterator[int]:
        return iter(self._answer("flush", (2, 0, 3), **filters))

    def interfaces(self) -> tuple[answers.InterfaceDetail, ...]:
        return self._answer("interfaces", (answers.InterfaceDetail("eth0"),))

    def begin_edit(self, seconds: int) -> answers.EditHold:
        return self._answer("begin_edit", answers.EditHold("abc"), seconds=seconds)

    def end_edit(self, token: str) -> None:
        return self._answer("end_edit", None, token=token)

    def stats(self) -> answers.Stats:
        return self._answer("stats", STATS)

    def drain(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        return self._answer("drain", DRAINING, target=target, proxy=proxy)

    def undrain(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        return self._answer("undrain", DRAINING, target=target, proxy=proxy)

    def draining(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        return self._answer("draining", DRAINING, target=target, proxy=proxy)

    def test(self) -> answers.Tested:
        return self._answer("test", TESTED)

    def explain(
        self, source: str, to: str, *, protocol: str = "tcp", interface: str | None = None
    ) -> answers.Explanation:
        return self._answer("explain", EXPLANATION, source=source, to=to, protocol=protocol, interface=interface)

    def down(self) -> answers.TakenDown:
        return self._answer("down", answers.TakenDown(("interface eth0",)))
