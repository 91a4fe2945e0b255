"""How both programs take paths on their command lines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class NamedPath(click.Path):
    """A path. None that is empty: it would mean the current directory, which is what an unset variable of a script
    comes to, and nobody's intention."""

    remedy = ""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path. Fails as click's own types do."""
        if not os.fspath(value):
            self.fail(f"it is empty{self.remedy}", param, ctx)
        return super().convert(value, param, ctx)


class Directory(NamedPath):
    """The path of a place that has a default."""

    remedy = "; leave the option out for the default"
