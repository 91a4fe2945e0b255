"""How both programs take a directory as an option."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class Directory(click.Path):
    """A path. None that is empty: it would mean the current directory, which is what an unset variable of a script
    comes to, and nobody's intention."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path. Fails as click's own types do."""
        if not os.fspath(value):
            self.fail("it is empty; leave the option out for the default", param, ctx)
        return super().convert(value, param, ctx)
