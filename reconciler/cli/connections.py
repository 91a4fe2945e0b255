"""``connections`` and ``connections flush``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import click

from reconciler import answers
from reconciler.cli import output
from reconciler.cli.complete import proxy_names, target_addresses
from reconciler.cli.session import CONTEXT, Session, common_options
from reconciler.state.selection import SORTS, STATES
from reconciler.words import count

if TYPE_CHECKING:
    from reconciler.client import Client

F = TypeVar("F", bound=Callable[..., Any])

_FILTERS = (
    click.option("--proxy", metavar="NAME", shell_complete=proxy_names, help="Only of this proxy."),
    click.option("--target", metavar="IP[:PORT]", shell_complete=target_addresses, help="Only to this target."),
    click.option("--client", metavar="IP[:PORT]|NETWORK", help="Only from this client or network."),
    click.option("--state", type=click.Choice(STATES), help="Only in this state."),
)


def _filters(command: F) -> F:
    for option in reversed(_FILTERS):
        command = option(command)
    return command


def _given(**filters: str | None) -> dict[str, str]:
    return {name: value for name, value in filters.items() if value is not None}


@click.group(context_settings=CONTEXT, invoke_without_command=True)
@_filters
@click.option("--sort", type=click.Choice(SORTS), help="By what; the largest first of numbers.  [default: age]")
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="At most so many, the first of that order.")
@click.option("--count", is_flag=True, help="Only how many there are.")
@common_options
@click.pass_context
def connections(
    context: click.Context,
    proxy: str | None,
    target: str | None,
    client: str | None,
    state: str | None,
    sort: str | None,
    limit: int | None,
    count: bool,
) -> None:
    """List live connections; `connections flush` forgets some.

    Those that are over (closed) linger for some seconds; they are listed with --state closed.
    """
    filters = _given(proxy=proxy, target=target, client=client, state=state)
    if context.invoked_subcommand:
        if filters or sort or limit is not None or count:
            raise click.UsageError("options go behind 'flush'", context)
        return
    session = context.ensure_object(Session)
    if count:
        instance = session.client()
        number = instance.connection_count(**filters)
        if not number:
            _note_unknown(session, instance, proxy)
        if session.output != "table":
            output.data(session, {"count": number})
        else:
            click.echo(number)
        return
    how: dict[str, Any] = {**filters, **_given(sort=sort)}
    if limit is not None:
        how["limit"] = limit
    instance = session.client()
    found = instance.connection_lines(**how)
    first = next(found, None)
    if first is None:
        _note_unknown(session, instance, proxy)
    lines = chain(() if first is None else (first,), found)
    if session.output != "table":
        output.lines(session, lines)
    elif first is not None:
        _print(session, map(answers.Connection.from_line, lines))
    else:
        session.note("no live connections")


def _note_unknown(session: Session, instance: Client, proxy: str | None) -> None:
    """No connections of a proxy that there is not: that is nothing, but may be a slip of the pen."""
    if proxy is None or session.quiet:
        return
    from reconciler.config.messages import hint

    known = instance.stats().proxies
    if proxy not in known:
        listed = f"; there are {', '.join(sorted(known))}" if known else ""
        session.note(f"no live proxy is called {proxy!r}{hint(proxy, known)}{listed}")


def _print(session: Session, found: Iterator[answers.Connection]) -> None:
    columns = ("PROXY", "PROTO", "CLIENT", "LISTEN", "TARGET", "STATE", "PACKETS", "BYTES", "AGE", "IDLE")
    rows = (
        (
            each.proxy,
            each.protocol,
            each.client,
            each.listen,
            each.target,
            each.state,
            f"{each.packets_forward}/{each.packets_reverse}",
            f"{output.size(each.bytes_forward)}/{output.size(each.bytes_reverse)}",
            output.duration(each.age_sec),
            output.duration(each.idle_sec),
        )
        for each in found
    )
    output.long_table(session, columns, rows, right=("PACKETS", "BYTES", "AGE", "IDLE"))


@connections.command(context_settings=CONTEXT)
@_filters
@click.option("--all", "everything", is_flag=True, help="Every connection.")
@common_options
@click.pass_context
def flush(
    context: click.Context,
    proxy: str | None,
    target: str | None,
    client: str | None,
    state: str | None,
    everything: bool,
) -> None:
    """Forget connections: their next packets are decided anew.

    Name a proxy, a target, a client, a state, or --all.
    """
    filters = _given(proxy=proxy, target=target, client=client, state=state)
    if not (filters or everything):
        raise click.UsageError("name --proxy, --target, --client, --state or --all", context)
    if everything and filters:
        raise click.UsageError("--all goes with no other filter", context)
    session = context.ensure_object(Session)
    instance = session.client()
    flushed = instance.flush_connections(**filters)
    if not flushed:
        _note_unknown(session, instance, proxy)
    if session.output != "table":
        output.data(session, answers.Flushed(flushed))
    else:
        click.echo(f"{count(flushed, 'connection')} flushed")
