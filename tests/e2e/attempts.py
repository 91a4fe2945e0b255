"""A commit with trouble at one of its kernel operations: that fails, or the process is killed, or something happens."""

from __future__ import annotations

import os
import struct
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from reconciler.config.files import parse_sources
from reconciler.config.model import Config
from reconciler.errors import RevproxyError, TransactionError
from reconciler.kernel.compiler import ObjectCode, compile_programs
from reconciler.kernel.gateway import KILLED_STATUS, FaultGateway, Gateway
from tests.e2e.proxyhost import ProxyHost
from tests.thorough import EACH_KIND, EVERY_ONE

GONE = ""  # not a configuration: nothing of ours is there
SWITCH = ("update", "map control")
T = TypeVar("T")


@cache
def parse(text: str) -> Config:
    return parse_sources({"all.yaml": text.encode()})


def in_child(function: Callable[[], object]) -> int:
    """The exit status of a forked child that runs this."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@cache
def without_opening(source: Path) -> ObjectCode:
    code = compile_programs(source)
    passing = {"xdp": struct.pack("=BBhi", 0xB7, 0, 0, 2), "tc_": struct.pack("=BBhi", 0xB7, 0, 0, -1)}
    ending = struct.pack("=BBhi", 0x95, 0, 0, 0)
    opening = {each: passing[each[:3]] + ending for each in code.functions if "_open" in each}
    return replace(code, functions={**code.functions, **opening})


@dataclass
class Attempt:
    """One commit to ``text`` with trouble at the call of that number. ``where`` says which call that is."""

    host: ProxyHost
    text: str
    number: int
    beyond_the_end: bool = False  # there is no such call
    rolled_back: bool = False
    switched: bool = False  # the trouble was behind the switch
    where: str = ""

    def fail(self, *, and_all_after: bool = False) -> RevproxyError | None:
        """With that call made to fail: the error that the commit came to."""
        gateway = FaultGateway(fail_at=self.number, fail_on=and_all_after)
        error = self.carry_out(gateway)
        self.beyond_the_end = len(gateway.calls) < self.number
        self.rolled_back = isinstance(error, TransactionError) and error.rolled_back
        self.switched = SWITCH in gateway.calls[: self.number - 1]
        self.where = f"call {self.number}: {gateway.calls[min(self.number, len(gateway.calls)) - 1]}: {error}"
        return error

    def kill(self) -> None:
        """In a process that is killed after that call."""
        log = self.host.directory / "calls"
        status = in_child(lambda: self.carry_out(_Logging(log, kill_after=self.number)))
        self.beyond_the_end = status == 0
        calls = log.read_text().splitlines()
        self.switched = " ".join(SWITCH) in calls
        self.where = f"call {self.number}: {calls[-1]}"
        assert status in (0, KILLED_STATUS), self.where

    def interrupt(self, function: Callable[[], object]) -> None:
        """With something else that happens just before that call."""
        gateway = _Interrupted(self.number, function)
        assert self.carry_out(gateway) is None
        self.beyond_the_end = len(gateway.calls) < self.number
        self.where = f"before call {self.number}: {gateway.calls[min(self.number, len(gateway.calls)) - 1]}"

    def carry_out(self, gateway: Gateway) -> RevproxyError | None:
        """The error that it came to, if any. However it ends, nothing is left open: it is tried again and again."""
        before = sorted(Path("/proc/self/fd").iterdir())
        error = self._carried_out(gateway)
        assert sorted(Path("/proc/self/fd").iterdir()) == before, f"left open after {error}"
        return error

    def _carried_out(self, gateway: Gateway) -> RevproxyError | None:
        with self.host.engine(gateway) as engine:
            try:
                if self.text == GONE:
                    engine.down()
                else:
                    engine.commit(engine.view(parse(self.text)), allow_empty=True)
            except RevproxyError as error:
                return error
        return None


def chosen(calls: list[tuple[str, str]], step: int = 3) -> list[int]:
    """Numbers of the calls that have their turn, from 1."""
    if EVERY_ONE:
        return list(range(1, len(calls) + 1))
    numbers: list[int] = []
    for _, run in groupby(enumerate(calls, 1), key=lambda each: kind_of(*each[1])):
        row = [number for number, _ in run]
        numbers.append(row[(len(row) - 1) // 2])
    if EACH_KIND or SWITCH not in calls:
        return numbers
    switch = calls.index(SWITCH) + 1
    return sorted({*numbers[::step], switch, switch + 1})


def kind_of(operation: str, subject: str) -> str:
    """What a call does: writes are told apart by map, everything else is not by what it is done to."""
    return f"{operation} {subject}" if operation.startswith(("update", "delete")) else operation


class _Interrupted(FaultGateway):
    def __init__(self, number: int, function: Callable[[], object]) -> None:
        super().__init__()
        self.number, self.function = number, function

    def call(self, operation: str, subject: str, function: Callable[[], T]) -> T:
        if len(self.calls) + 1 == self.number:
            self.function()
        return super().call(operation, subject, function)


class _Logging(FaultGateway):
    """Writes the calls into a file, for a process that will be killed."""

    def __init__(self, log: Path, **moment: int) -> None:
        super().__init__(**moment)
        self.log = log
        log.write_text("")

    def call(self, operation: str, subject: str, function: Callable[[], T]) -> T:
        with self.log.open("a") as file:
            file.write(f"{operation} {subject}\n")
        return super().call(operation, subject, function)
