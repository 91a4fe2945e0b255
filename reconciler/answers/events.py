"""What happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from reconciler.answers.wire import Json

KINDS: Final = (
    "connection_opened",
    "connection_closed",
    "config_applied",
    "drift_repaired",
    "target_down",
    "target_up",
    "target_recovered",
    "target_drained",
    "target_undrained",
    "events_lost",
)
"""Every kind of event. The first two come with ``stats_enabled`` only."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. ``number`` counts from the daemon's start on; ``time`` is ISO 8601 in UTC; ``fields``
    differ for each kind. In JSON they stand beside the others."""

    number: int
    time: str
    kind: str
    fields: dict[str, Json] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """One flat object."""
        return {"number": self.number, "time": self.time, "kind": self.kind, **self.fields}

    @staticmethod
    def from_json(data: Mapping[str, Json]) -> Event:
        """The inverse of :meth:`to_json`."""
        fields = {key: value for key, value in data.items() if key not in ("number", "time", "kind")}
        return Event(data["number"], data["time"], data["kind"], fields)
