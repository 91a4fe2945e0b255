"""Puts what the programs read at run time into the wheel, under reconciler/_data.

A checkout reads its own files, so an editable install gets no copy, which would grow stale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

REQUIRED = ("bpf", "schema")
OPTIONAL = ("config.d",)


class DataHook(BuildHookInterface):  # type: ignore[type-arg]  # its argument's type is not exported
    """Called by hatchling before each build."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the directories to take along; hatchling fails if a required one is not there."""
        if version == "editable":
            return
        wanted = [*REQUIRED, *(name for name in OPTIONAL if Path(self.root, name).is_dir())]
        build_data["force_include"].update({name: f"reconciler/_data/{name}" for name in wanted})
