"""Live connections, and what was done to them: flushed, drained."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Connection:
    """One live connection. ``listen`` is the address the client talks to."""

    proxy: str
    protocol: str
    client: str
    listen: str
    target: str
    state: str
    packets_forward: int
    bytes_forward: int
    packets_reverse: int
    bytes_reverse: int
    age_sec: float
    idle_sec: float

    @classmethod
    def from_line(cls, line: str) -> Connection:
        """One that is an object of JSON; quicker than :func:`~reconciler.answers.from_json`, of which a million take
        minutes."""
        said = json.loads(line)
        try:
            return cls(*(said[name] for name in _FIELDS))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a Connection: {error}") from error


_FIELDS = tuple(each.name for each in fields(Connection))


@dataclass(frozen=True, slots=True)
class ConnectionCount:
    """How many connections there are."""

    count: int


@dataclass(frozen=True, slots=True)
class Flushed:
    """How many connections were forgotten."""

    flushed: int


@dataclass(frozen=True, slots=True)
class DrainingTarget:
    """A target of one proxy. ``state``: draining, drained, or active if it takes new connections."""

    proxy: str
    target: str
    state: str
    connections: int


@dataclass(frozen=True, slots=True)
class Draining:
    """How far a drain is. ``connections``: live ones of all its targets."""

    targets: tuple[DrainingTarget, ...] = ()
    connections: int = 0

    @property
    def done(self) -> bool:
        """No connection is left, and none comes."""
        return all(each.state == "drained" for each in self.targets)
