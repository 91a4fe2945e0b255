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


FILTERS = tuple(Filters.__annotations__)


def endpoint(text: str) -> Endpoint:
    """``IP:PORT``, ``[IPv6]:PORT`` or ``IP`` (port 0)."""
    try:
        target = parse_target(text)
    except ValueError as error:
        raise UsageError(f"target {error}") from error
    return Endpoint(ip_address(target["ip"]), target.get("port", 0))


def client_network(text: str) -> tuple[IPNetwork, int | None]:
    """A client as ``IP``, ``IP:PORT``, ``[IPv6]:PORT`` or a network ``IP/LENGTH``: its network, and its port if it has
    one."""
    try:
        if "/" in text:
            return ip_network(text, strict=False), None
        host, separator, port = text.rpartition(":")
        if separator and (text.startswith("[") or ":" not in host):
            if not (port.isascii() and port.isdecimal()) or int(port) > 65535:
                raise ValueError(f"{text!r} has no port behind the colon")
            return ip_network(ip_address(host.strip("[]"))), int(port)
        return ip_network(ip_address(text.strip("[]"))), None
    except ValueError as error:
        raise UsageError(f"client: {error}") from error


def query(filters: Filters, *, every_state: bool = False) -> Query:
    """Which connections are meant. ``every_state``: those that are over too, unless ``state`` says otherwise."""
    target, client, state = filters.get("target"), filters.get("client"), filters.get("state")
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
    if limit is not None and limit < 0:
        raise UsageError(f"limit {limit} is less than 0")
    return query(how), sort, limit


def drain(target: str, proxy: str | None) -> Drain:
    """What a drain command means."""
    return Drain(endpoint(target), proxy)


def event_kinds(kinds: Iterable[str]) -> frozenset[str]:
    """The kinds, each of which there is."""
    found = frozenset((kinds,) if isinstance(kinds, str) else kinds)
    for kind in sorted(found.difference(KINDS)):
        raise UsageError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    return found
