"""Source routes by the hundred thousand: numbers in arrays, of which objects are made when somebody asks for one.

As objects they would take 450 bytes each, here it is 30. What is the same for many, where they lead, is kept once: a
few targets stand for many routes. Where in the file a target stands is kept as seen from its route, so that it is the
same for all of them too.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Final, overload

from reconciler.config.healthcheck import HealthCheck
from reconciler.config.place import NOWHERE, Place
from reconciler.state.objects import Endpoint, IPNetwork
from reconciler.state.routes import common_ends

_LOW: Final = (1 << 64) - 1
_SPARE: Final = 64  # leads that no route has any more are kept, as long as they are fewer than the routes and these

Numbers = tuple[int, int, int]
"""IP version, network address as a number, prefix length."""


@dataclass(frozen=True, slots=True)
class WeightedTarget:
    """One target of a list. ``weight`` 0 to 65535: its share among the list's targets of the same family.
    ``health_check`` None: the proxy's holds."""

    endpoint: Endpoint
    weight: int
    place: Place = field(default=NOWHERE, compare=False)
    health_check: HealthCheck | None = None


@dataclass(frozen=True, slots=True)
class SourceRoute:
    """Where clients from ``source`` go: to ``targets``, all of the family of ``source``, or with ``deny`` nowhere."""

    source: IPNetwork
    deny: bool
    targets: tuple[WeightedTarget, ...]
    place: Place = field(default=NOWHERE, compare=False)


def mark(version: int, network: int, length: int) -> int:
    """A number that two different sources hardly ever share."""
    return hash((version, network, length))


@dataclass(frozen=True, slots=True)
class Lead:
    """Where routes lead. ``moving``: the lines of the targets count from the route's own."""

    deny: bool
    targets: tuple[WeightedTarget, ...]
    file: str
    moving: bool

    @classmethod
    def of(cls, route: SourceRoute) -> Lead:
        """Of one route."""
        line, file = route.place.line, route.place.file
        if any(target.place.line < line or target.place.file != file for target in route.targets):
            return cls(route.deny, route.targets, file, moving=False)  # by an alias: then it is there for all of them
        return cls(route.deny, _moved(route.targets, -line), file, moving=True)

    def targets_at(self, line: int) -> tuple[WeightedTarget, ...]:
        """Those of a route on that line."""
        return _moved(self.targets, line) if self.moving else self.targets

    @property
    def meaning(self) -> tuple[bool, tuple[WeightedTarget, ...]]:
        """What packets can tell of it."""
        return self.deny, self.targets

    @property
    def whole(self) -> tuple[object, ...]:
        """Everything, places too: they don't count when targets are compared."""
        return self, *(target.place for target in self.targets)


def _moved(targets: tuple[WeightedTarget, ...], lines: int) -> tuple[WeightedTarget, ...]:
    return tuple(
        WeightedTarget(
            each.endpoint,
            each.weight,
            Place(each.place.file, each.place.line + lines, each.place.column),
            each.health_check,
        )
        for each in targets
    )


class _Leads(list[Lead]):
    """All leads that some routes have or had. Only added to, so that what is made of routes has the same one."""

    __slots__ = ("_places",)

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[tuple[object, ...], int] | None = None

    def forget_places(self) -> None:
        """Nothing is added for now."""
        self._places = None

    def number(self, lead: Lead) -> int:
        """The lead's place, here from now on."""
        if self._places is None:
            self._places = {each.whole: place for place, each in enumerate(self)}
        found = self._places.setdefault(lead.whole, len(self))
        if found == len(self):
            self.append(lead)
        return found


class SourceRoutes(Sequence[SourceRoute]):
    """Reads like a tuple of :class:`SourceRoute`. Not changed once it is in a proxy."""

    __slots__ = ("_columns", "_high", "_kinds", "_leads", "_low", "_numbers", "lines")

    def __init__(self, routes: Iterable[SourceRoute] = ()) -> None:
        self._high, self._low = array("Q"), array("Q")  # the network's address
        self._kinds = array("H")  # IP version and prefix length
        self._leads, self._numbers = _Leads(), array("I")
        self.lines, self._columns = array("I"), array("I")
        """Where each stands."""
        for route in routes:
            network = int(route.source.network_address)
            self._high.append(network >> 64)
            self._low.append(network & _LOW)
            self._kinds.append(route.source.version << 8 | route.source.prefixlen)
            self._numbers.append(self._leads.number(Lead.of(route)))
            self.lines.append(route.place.line)
            self._columns.append(route.place.column)
        self._leads.forget_places()

    # -- as a sequence -------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._low)

    @overload
    def __getitem__(self, index: int) -> SourceRoute: ...
    @overload
    def __getitem__(self, index: slice) -> SourceRoutes: ...
    def __getitem__(self, index: int | slice) -> SourceRoute | SourceRoutes:
        if isinstance(index, slice):
            made = self._like()
            for name in _COLUMNS:
                setattr(made, name, getattr(self, name)[index])
            return made
        version, length = divmod(self._kinds[index], 256)
        network = self._high[index] << 64 | self._low[index]
        lead, line = self._leads[self._numbers[index]], self.lines[index]
        return SourceRoute(
            IPv4Network((network, length)) if version == 4 else IPv6Network((network, length)),
            lead.deny,
            lead.targets_at(line),
            Place(lead.file, line, self._columns[index]),
        )

    def __add__(self, other: SourceRoutes) -> SourceRoutes:
        """These, then those."""
        made = self._like()
        for name in _COLUMNS:
            setattr(made, name, getattr(self, name) + getattr(other, name))
        if other._leads is not self._leads:
            numbers = [self._leads.number(lead) for lead in other._leads]
            self._leads.forget_places()
            made._numbers = self._numbers + array("I", map(numbers.__getitem__, other._numbers))
        return SourceRoutes(made) if len(made._leads) > 2 * len(made) + _SPARE else made

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SourceRoutes):
            return isinstance(other, Sequence) and tuple(self) == tuple(other)
        if any(getattr(self, name) != getattr(other, name) for name in _SOURCES):
            return False
        mine, others = _alike(self, other)
        return mine == others

    def __hash__(self) -> int:
        return hash((len(self), self._low[:1].tobytes(), self._low[-1:].tobytes()))

    def __repr__(self) -> str:
        return f"SourceRoutes({list(self)!r})"

    def _like(self) -> SourceRoutes:
        made = SourceRoutes()
        made._leads = self._leads
        return made

    # -- all at once ---------------------------------------------------------------------------------------------

    def numbers(self) -> Iterator[Numbers]:
        """The source of each."""
        for high, low, kind in zip(self._high, self._low, self._kinds, strict=True):
            yield kind >> 8, high << 64 | low, kind & 255

    def marks(self) -> array[int]:
        """The :func:`mark` of each source."""
        return array("q", (mark(*numbers) for numbers in self.numbers()))

    def leads(self) -> Iterator[Lead]:
        """Where each leads; the same object for the same lead."""
        return map(self._leads.__getitem__, self._numbers)

    def kinds(self) -> Iterator[tuple[int, Lead]]:
        """Every pair of a source's IP version and a lead, once."""
        for version, number in {(kind >> 8, number) for kind, number in zip(self._kinds, self._numbers, strict=True)}:
            yield version, self._leads[number]

    def endpoints(self) -> Counter[Endpoint]:
        """Where targets are, and how many are there."""
        found: Counter[Endpoint] = Counter()
        for number, times in Counter(self._numbers).items():
            for target in self._leads[number].targets:
                found[target.endpoint] += times
        return found

    def shifted(self, lines: int) -> SourceRoutes:
        """The same so many lines further down."""
        made = self[:]
        made.lines = array("I", [line + lines for line in self.lines])
        return made

    def common_ends(self, other: SourceRoutes) -> tuple[int, int]:
        """How many routes two have in common at their beginning and, of what is left, at their end."""
        same = self._leads is other._leads
        leads = (self._numbers, other._numbers) if same else _alike(self, other)
        ones, others = ([getattr(each, name) for name in _SOURCES] for each in (self, other))
        return common_ends([*ones, leads[0]], [*others, leads[1]])


_SOURCES: Final = ("_low", "_high", "_kinds")
_COLUMNS: Final = (*_SOURCES, "_numbers", "_columns", "lines")


def _alike(one: SourceRoutes, other: SourceRoutes) -> tuple[array[int], array[int]]:
    """Numbers of the leads that are equal exactly where the leads mean the same."""
    known: dict[tuple[object, ...], int] = {}
    sides = []
    for each in (one, other):
        names = [known.setdefault(lead.meaning, len(known)) for lead in each._leads]
        sides.append(array("I", map(names.__getitem__, each._numbers)))
    return sides[0], sides[1]
