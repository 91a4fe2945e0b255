"""One edit in a large file: parse what has changed, and keep the rest of what the file held.

Only the common case is done here: source routes of one proxy, written in block style, were changed, added or removed,
and everything is right before and after. Whatever else the edit is, :func:`patched` gives None, and the file is parsed
as a whole: every error is found there, with its place.

Why that is the same as parsing the whole file: up to the first changed item the text is the same, so the parser is in
the same state there, at the start of an item of a block sequence. The changed items are parsed by themselves without
an error, so every bracket and quote in them is closed, and they contain nothing that means something elsewhere (no
anchor, alias, tag or directive in the whole file). Behind them the text is the same again, at the start of an item of
the same sequence or at the end of the file.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import replace
from typing import Final

from reconciler.config import build, check, schema
from reconciler.config.document import Mapping, Sequence, parse
from reconciler.config.formats import Formats
from reconciler.config.model import Fragment, Proxy, SourceFile
from reconciler.config.place import Place
from reconciler.config.sourceroutes import SourceRoutes, WeightedTarget

_STEP: Final = 1 << 16
_FOREIGN: Final = (b"&", b"*", b"!", b"%", b"\r", b"\t", b"\x0b", b"\x0c", b"<<")
_FEW: Final = 8
_LARGE_BYTES: Final = 1 << 10
"""A smaller file is parsed as quickly as it is compared."""


def patched(known: SourceFile, fragment: Fragment, file: SourceFile) -> Fragment | None:
    """What ``file`` holds, given what a former version of it did; None: parse it. ``fragment`` stays as it is."""
    if file.size < _LARGE_BYTES or fragment.problems or fragment.warnings or file.path != known.path:
        return None
    before = known.content
    if file.path.endswith(".json") or not _plain(fragment, before):
        return None
    region = _Region.find(before, file.content, fragment)
    routes = region.parsed(file) if region else None
    if region is None or routes is None:
        return None
    proxy = _with_routes(fragment, region, routes)
    if proxy is None:
        return None
    made = replace(fragment, proxies=list(fragment.proxies), marks=dict(fragment.marks))
    made.proxies[region.proxy] = proxy
    if region.lines_added and not _shift_rest(made, region):
        return None
    marks = made.marks[region.proxy] = fragment.marks[region.proxy][:]
    marks[region.first : region.last] = routes.marks()
    made.target_ips = fragment.target_ips | {endpoint.ip for endpoint in routes.endpoints()}
    return made


def _plain(fragment: Fragment, content: bytes) -> bool:
    """Nothing in the file means something elsewhere, and every line ends in the way that is counted here."""
    if fragment.plain is None:
        fragment.plain = content.isascii() and not any(each in content for each in _FOREIGN)
    return fragment.plain


class _Region:
    """Items ``first`` to ``last`` (not included) of a proxy's source routes, and the text that has their place."""

    def __init__(self, fragment: Fragment, proxy: int, first: int, last: int, text: bytes, indent: int) -> None:
        self.proxy, self.first, self.last = proxy, first, last
        self.text, self._indent = text, indent
        self.line = fragment.proxies[proxy].source_routes.lines[first]  # of the first item, from 1
        self.lines_added = 0

    @classmethod
    def find(cls, old: bytes, new: bytes, fragment: Fragment) -> _Region | None:
        """Where the two texts differ, if that is within the items of one proxy."""
        start = _common_prefix(old, new)
        rest = min(len(old), len(new)) - start
        stop = _common_suffix(old, new, rest)
        line = old.count(b"\n", 0, start) + 1
        place = bisect_right([proxy.place.line for proxy in fragment.proxies], line) - 1
        routes = fragment.proxies[place].source_routes if place >= 0 else SourceRoutes()
        first = bisect_right(routes.lines, line) - 1
        if first < 0 or place not in fragment.marks:
            return None
        if start == len(new) and first > 0:
            first -= 1  # the last ones were taken away: the one before stands for the place
        begin = _back(old, start, line - routes.lines[first])
        indent = routes[first].place.column - 3
        changed_to = len(old) - stop
        last_line = line + old.count(b"\n", start, changed_to)
        # The first item that begins behind what has changed, or is at its very end.
        behind = bisect_right(routes.lines, last_line - (old[changed_to - 1 : changed_to] == b"\n"))
        if behind < len(routes):
            end = _forward(old, changed_to, routes.lines[behind] - last_line)
            if not _begins_item(old[end : end + indent + 2], indent):
                return None
        elif place + 1 < len(fragment.proxies):
            end = _forward(old, changed_to, fragment.proxies[place + 1].place.line - last_line)
        else:
            end = len(old)
        text = new[begin : end + len(new) - len(old)]
        if end + len(new) - len(old) < begin or not _begins_item(text, indent) or not _indented(text, indent):
            return None
        region = cls(fragment, place, first, behind, text, indent)
        region.lines_added = text.count(b"\n") - old.count(b"\n", begin, end)
        return region

    def parsed(self, file: SourceFile) -> SourceRoutes | None:
        """The routes in the text; None if anything is wrong with one."""
        if any(each in self.text for each in _FOREIGN) or not self.text.isascii():
            return None
        document = parse(file.path, self.text, self.line - 1)
        tree = document.root
        formats = Formats()
        checker = schema.Checker(formats)
        if document.problems or type(tree) is not Sequence:
            return None
        if not all(type(item) is Mapping and checker.holds("source_route", item) for item in tree):
            return None
        return build.routes(document, formats, tree)


def _with_routes(fragment: Fragment, region: _Region, routes: SourceRoutes) -> Proxy | None:
    """The proxy with these; None if that is wrong, or more than its routes changes with them."""
    proxy = fragment.proxies[region.proxy]
    gone = proxy.source_routes[region.first : region.last]
    own = (proxy.listen.place, *proxy.listen.address_places, *(target.place for target in proxy.default_target))
    if proxy.checks or (region.lines_added and any(place.line > region.line for place in own)):
        return None
    if list(check.routes(routes, "")):
        return None
    counts = dict(proxy.endpoints)
    for endpoint, times in gone.endpoints().items():
        counts[endpoint] -= times
    for endpoint, times in routes.endpoints().items():
        counts[endpoint] = counts.get(endpoint, 0) + times
    counts = {endpoint: count for endpoint, count in counts.items() if count}
    if _twice(fragment.marks[region.proxy], region, routes.marks()):
        return None
    rest = proxy.source_routes[region.last :]
    if region.lines_added:
        rest = rest.shifted(region.lines_added)
    made = replace(proxy, source_routes=proxy.source_routes[: region.first] + routes + rest)
    made.count_endpoints(counts)
    if made.families != proxy.families or any(endpoint.ip in made.listen.addresses for endpoint in routes.endpoints()):
        return None
    return made


def _twice(marks: array[int], region: _Region, fresh: array[int]) -> bool:
    """Whether a source would stand there twice."""
    others = marks[: region.first] + marks[region.last :]
    if len(fresh) > _FEW:
        return len(set(fresh)) < len(fresh) or not set(others).isdisjoint(fresh)
    return any(others.count(number) or fresh.count(number) > 1 for number in fresh)


# -- lines that have moved -------------------------------------------------------------------------------------


def _shift_rest(fragment: Fragment, region: _Region) -> bool:
    """Move what stands behind the proxy. False where that is more than other proxies."""
    lines, behind = region.lines_added, fragment.proxies[region.proxy].place.line
    if fragment.tests or (fragment.settings_place and fragment.settings_place.line > behind):
        return False
    for index in range(region.proxy + 1, len(fragment.proxies)):
        fragment.proxies[index] = _shifted_proxy(fragment.proxies[index], lines)
    fragment.names = [
        (name, _shifted(place, lines) if place.line > region.line else place, path)
        for name, place, path in fragment.names
    ]
    return True


def _shifted_proxy(proxy: Proxy, lines: int) -> Proxy:
    listen = replace(
        proxy.listen,
        place=_shifted(proxy.listen.place, lines),
        address_places=tuple(_shifted(place, lines) for place in proxy.listen.address_places),
    )
    made = replace(
        proxy,
        place=_shifted(proxy.place, lines),
        listen=listen,
        default_target=_shifted_targets(proxy.default_target, lines),
        source_routes=proxy.source_routes.shifted(lines),
    )
    made.count_endpoints(proxy.endpoints)
    return made


def _shifted_targets(targets: tuple[WeightedTarget, ...], lines: int) -> tuple[WeightedTarget, ...]:
    return tuple(
        WeightedTarget(each.endpoint, each.weight, _shifted(each.place, lines), each.health_check) for each in targets
    )


def _shifted(place: Place, lines: int) -> Place:
    return Place(place.file, place.line + lines, place.column)


# -- text ------------------------------------------------------------------------------------------------------


def _common_prefix(one: bytes, other: bytes) -> int:
    most, start = min(len(one), len(other)), 0
    while start < most and one[start : start + _STEP] == other[start : start + _STEP]:
        start += _STEP
    start = min(start, most)
    low, high = start, min(start + _STEP, most)
    while low < high:
        middle = (low + high + 1) // 2
        if one[start:middle] == other[start:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _common_suffix(one: bytes, other: bytes, most: int) -> int:
    """Of at most so many bytes."""
    count = 0
    while count < most:
        step = min(_STEP, most - count)
        if _tail(one, count, step) != _tail(other, count, step):
            break
        count += step
    low, high = count, min(count + _STEP, most)
    while low < high:
        middle = (low + high + 1) // 2
        if _tail(one, count, middle - count) == _tail(other, count, middle - count):
            low = middle
        else:
            high = middle - 1
    return low


def _tail(text: bytes, skipped: int, count: int) -> bytes:
    """So many bytes before the last ``skipped``."""
    end = len(text) - skipped
    return text[end - count : end]


def _back(text: bytes, at: int, lines: int) -> int:
    """Where the line begins that is so many before the one at ``at``."""
    begin = text.rfind(b"\n", 0, at) + 1
    for _ in range(lines):
        begin = text.rfind(b"\n", 0, begin - 1) + 1
    return begin


def _forward(text: bytes, at: int, lines: int) -> int:
    """Where the line begins that is so many after the one at ``at``, which is a line's begin if it is none."""
    for _ in range(lines):
        at = text.find(b"\n", at) + 1
    return at


def _begins_item(text: bytes, indent: int) -> bool:
    return text[: indent + 2] == b" " * indent + b"- "


def _indented(text: bytes, indent: int) -> bool:
    """Every line with something on it is an item's begin or further in."""
    return all(not line.strip() or len(line) - len(line.lstrip(b" ")) >= indent for line in text.split(b"\n"))
