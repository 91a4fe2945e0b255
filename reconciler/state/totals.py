"""How many connections there are, counted somewhere else: what one process tells another of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Totals:
    """Live connections by target id; ``entries``: connections that the fuller family's table has in it."""

    targets: Mapping[int, int] = field(default_factory=dict)
    entries: int = 0

    def to_json(self) -> dict[str, Any]:
        """For :meth:`from_json`."""
        return {"targets": {str(number): count for number, count in self.targets.items()}, "entries": self.entries}

    @classmethod
    def from_json(cls, data: Any) -> Totals:
        """Raises :class:`ValueError` for what is none."""
        try:
            return cls({int(number): int(count) for number, count in data["targets"].items()}, int(data["entries"]))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"no totals: {data!r:.80}") from error
