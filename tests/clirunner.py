"""Commands called without a process of their own."""

from __future__ import annotations

import inspect
from typing import Any

from click import testing


class CliRunner(testing.CliRunner):
    """Keeps stdout and stderr apart, as click does by itself from 8.2 on."""

    def __init__(self) -> None:
        known = inspect.signature(testing.CliRunner.__init__).parameters
        apart: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in known else {}
        super().__init__(**apart)
