"""The one door through which everything goes that changes the kernel.

Every map write, pin, program load, attachment and sysctl is a :meth:`Gateway.call`. So the list of what a commit
does to the kernel can be had from one place, and a test can make each of them fail, or end the process before or
after it, without knowing what they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from reconciler.errors import KernelError

T = TypeVar("T")

KILLED_STATUS: Final = 99
"""Exit status of a process ended by :class:`FaultGateway`."""


class Gateway:
    """Calls what it is given. An :class:`OSError` comes out as :class:`KernelError`."""

    def call(self, operation: str, subject: str, function: Callable[[], T]) -> T:
        """Run ``function``, which changes the kernel in one step.

        ``operation`` is what is done ("update", "pin", "attach xdp"), ``subject`` on what ("map listener4",
        "eth0"). Raises :class:`KernelError` if it fails.
        """
        try:
            return function()
        except OSError as error:
            raise KernelError(operation, subject, error.errno or 0, error.strerror or str(error)) from error


@dataclass(slots=True)
class FaultGateway(Gateway):
    """Counts calls from 1, records them in ``calls``, and makes trouble at the chosen ones.

    ``fail_at``: :class:`KernelError` instead of that call; every number from it on fails too if ``fail_on`` is True.
    ``kill_before``, ``kill_after``: the process ends with :data:`KILLED_STATUS`, as if killed, without any clean-up.
    """

    fail_at: int = 0
    kill_before: int = 0
    kill_after: int = 0
    fail_on: bool = False
    calls: list[tuple[str, str]] = field(default_factory=list)

    def call(self, operation: str, subject: str, function: Callable[[], T]) -> T:
        """As :meth:`Gateway.call`, unless this call's number is one of the chosen."""
        self.calls.append((operation, subject))
        number = len(self.calls)
        if number == self.fail_at or (self.fail_on and self.fail_at and number > self.fail_at):
            raise KernelError(operation, subject, detail=f"made to fail (call {number})")
        if number == self.kill_before:
            os._exit(KILLED_STATUS)
        result = Gateway.call(self, operation, subject, function)
        if number == self.kill_after:
            os._exit(KILLED_STATUS)
        return result
