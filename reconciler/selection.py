"""What a person says of connections, targets and events, understood or refused: the same for the command line, the API
and Python. Everything here raises :class:`UsageError` for what can't be meant."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import TypedDict

from reconciler.answers.events import KINDS
from reconciler.config.oneline import parse_target
from reconciler.errors import UsageError
from reconciler.state.objects import Endpoint, IPNetwork
from reconciler.state.selection import SORTS, STATES, Query
from reconciler.state.share import Drain


class Filters(TypedDict, total=False):
    """Which connections are meant, those that all that is given fits. ``proxy``: a name; ``target``: ``IP[:PORT]``;
    ``client``: ``IP[:PORT]`` or a network; ``state``: one of :data:`~reconciler.state.selection.STATES`."""

    proxy: str | None
    target: str | None
    client: str | None
    state: str | None


class Listing(Filters, total=False):
    """The same, and how they are listed. ``sort``: one of :data:`~reconciler.state.selection.SORTS`, by default age;
    ``limit``: at most so many, the first of that order."""

    sort: str | None
    limit: int | None


def text(what: str, given: object) -> str:
    """A text, which a caller from Python may have taken something else for."""
    if not isinstance(given, str):
        raise UsageError(f"{what}: {given!r} is no text")
    return given


def number(what: str, given: object, *, whole: bool = True) -> None:
    """Refuses what is neither a number nor left out."""
    kinds = (int,) if whole else (int, float)
    if given is not None and (isinstance(given, bool) or not isinstance(given, kinds)):
        raise UsageError(f"{what}: {given!r} is no {'whole ' if whole else ''}number")


def endpoint(target: str) -> Endpoint:
    """``IP:PORT``, ``[IPv6]:PORT`` or ``IP`` (port 0)."""
    try:
        parsed = parse_target(text("target", target))
    except ValueError as error:
        raise UsageError(f"target {error}") from error
    return Endpoint(ip_address(parsed["ip"]), parsed.get("port", 0))


def client_network(client: str) -> tuple[IPNetwork, int | None]:
    """A client as ``IP``, ``IP:PORT``, ``[IPv6]:PORT`` or a network ``IP/LENGTH``: its network, and its port if it has
    one."""
    text("client", client)
    try:
        if "/" in client:
            return ip_network(client, strict=False), None
        host, separator, port = client.rpartition(":")
        if separator and (client.startswith("[") or ":" not in host):
            if not (port.isascii() and port.isdecimal()) or int(port) > 65535:
                raise ValueError(f"{client!r} has no port behind the colon")
            return ip_network(ip_address(host.strip("[]"))), int(port)
        return ip_network(ip_address(client.strip("[]"))), None
    except ValueError as error:
        raise UsageError(f"client: {error}") from error


def query(filters: Filters, *, every_state: bool = False) -> Query:
    """Which connections are meant. ``every_state``: those that are over too, unless ``state`` says otherwise."""
    target, client, state = filters.get("target"), filters.get("client"), filters.get("state")
    if filters.get("proxy") is not None:
        text("proxy", filters.get("proxy"))
    if state is not None and state not in STATES:
        raise UsageError(f"state {state!r} is none of {', '.join(STATES)}")
    states = frozenset((state,)) if state else frozenset(STATES) if every_state else Query().states
    network, port = client_network(client) if client is not None else (None, None)
    return Query(filters.get("proxy"), None if target is None else endpoint(target), network, port, states)


def listing(how: Listing) -> tuple[Query, str, int | None]:
    """Which connections are meant, by what they are sorted, and how many of them are wanted."""
    sort, limit = how.get("sort") or "age", how.get("limit")
    if sort not in SORTS:
        raise UsageError(f"sort {sort!r} is none of {', '.join(SORTS)}")
    number("limit", limit)
    if limit is not None and limit < 0:
        raise UsageError(f"limit {limit} is less than 0")
    return query(how), sort, limit


def drain(target: str, proxy: str | None) -> Drain:
    """What a drain command means."""
    return Drain(endpoint(target), proxy)


def event_kinds(kinds: Iterable[str]) -> frozenset[str]:
    """The kinds, each of which there is."""
    if not isinstance(kinds, Iterable):
        raise UsageError(f"kinds: {kinds!r} is no list of kinds")
    found = frozenset(text("kind", kind) for kind in ((kinds,) if isinstance(kinds, str) else kinds))
    for kind in sorted(found.difference(KINDS)):
        raise UsageError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    return found
