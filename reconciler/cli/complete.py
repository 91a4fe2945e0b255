"""What the shell offers behind a half-typed word: names of proxies, addresses of targets, sources of routes.

Read from the files each time, so they are what there is now. Nothing is offered where they can't be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

from reconciler import answers
from reconciler.cli.session import Session
from reconciler.errors import RevproxyError


def _proxies(context: click.Context) -> Sequence[answers.ConfiguredProxy]:
    """Those of the files; of the one that was typed before, if one was."""
    try:
        found = context.ensure_object(Session).client().proxies()
    except RevproxyError:  # an error message has no place in the middle of a word
        return ()
    name = context.params.get("proxy")
    return [each for each in found if name is None or each.name == name]


def _beginning(words: Iterable[str], incomplete: str) -> list[str]:
    return sorted({word for word in words if word.startswith(incomplete)})


def proxy_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of proxies."""
    return _beginning((each.name for each in _proxies(context)), incomplete)


def route_sources(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Networks that have source routes."""
    return _beginning((route.source for each in _proxies(context) for route in each.source_routes), incomplete)


def target_addresses(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Addresses of targets, of the route that was named or of all."""
    source = context.params.get("route")
    found: set[str] = set()
    for each in _proxies(context):
        if source is None:
            found.update(target.address for target in each.default_target)
        routes = [route for route in each.source_routes if source in (None, route.source)]
        found.update(target.address for route in routes for target in route.targets)
    return _beginning(found, incomplete)
