"""Commands that edit the files, and apply the edit: ``proxy``, ``route``, ``target``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from reconciler import answers
from reconciler.cli import output
from reconciler.cli.complete import proxy_names, route_sources, target_addresses
from reconciler.cli.session import CONTEXT, Session, common_options
from reconciler.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])

_NO_APPLY = click.option("--no-apply", is_flag=True, help="Only write it. A running revproxyd follows by itself.")
_ROUTE = click.option(
    "--route", metavar="CIDR", shell_complete=route_sources, help="Of this source route, not of the default."
)
_WEIGHT = click.option("--weight", type=click.IntRange(0, 65535), help="Share of new connections.  [default: 1]")
_PROXY = click.argument("proxy", metavar="PROXY", shell_complete=proxy_names)
_TARGET = click.argument("target", metavar="IP[:PORT]", shell_complete=target_addresses)


@contextmanager
def _refusals(session: Session) -> Iterator[None]:
    """An edit that would make the files wrong is told with the places it would have had."""
    try:
        yield
    except ConfigError:
        session.note("nothing was changed, as the files would then be wrong:")
        raise


def _report(session: Session, done: answers.Edited) -> None:
    """What was written, and what became of it."""
    for warning in done.applied.warnings if done.applied else ():
        session.note(f"{warning} (warning)")
    if session.output != "table":
        output.data(session, done)
        return
    text = f"{done.edit}: {', '.join(done.files) or 'the files say so already'}"
    if done.applied is None:
        click.echo(f"{text}; not applied")
    elif done.applied.changes:
        number = len(done.applied.changes)
        click.echo(f"{text}; applied as revision {done.applied.revision}, {number} change{'s' * (number != 1)}")
    else:
        click.echo(f"{text}; nothing to do in the kernel")


@click.group(context_settings=CONTEXT)
@common_options
def proxy() -> None:
    """List and show proxies; add and remove them, and apply that."""


@proxy.command("list", context_settings=CONTEXT)
@common_options
@click.pass_context
def list_proxies(context: click.Context) -> None:
    """List the proxies that the files have. Needs no root; `status` shows the live ones."""
    session = context.ensure_object(Session)
    found = session.client().proxies()
    if session.output != "table":
        output.data(session, found)
    elif not found:
        session.note("no proxies in the files")
    else:
        columns = ("PROXY", "INTERFACES", "LISTEN", "TARGETS", "ROUTES", "FILE")
        rows = [
            (
                each.name,
                ", ".join(each.interfaces),
                _listen(each),
                ", ".join(target.address for target in each.default_target),
                str(len(each.source_routes)),
                f"{each.file}:{each.line}",
            )
            for each in found
        ]
        output.table(session, columns, rows, right=("ROUTES",))


def _listen(each: answers.ConfiguredProxy) -> str:
    ports = ",".join(map(str, each.ports))
    return f"{', '.join(each.addresses) or '*'} {ports}/{each.protocol}"


@proxy.command("show", context_settings=CONTEXT)
@click.argument("name", shell_complete=proxy_names)
@common_options
@click.pass_context
def show_proxy(context: click.Context, /, name: str) -> None:
    """Show one proxy as the files have it, defaults filled in. Needs no root."""
    session = context.ensure_object(Session)
    found = session.client().proxy(name)
    if session.output != "table":
        output.data(session, found)
        return
    click.echo(f"{found.name}  # {found.file}:{found.line}:{found.column}")
    own = ", ".join(found.addresses) or "the interfaces' own"
    timeout = "as in settings" if found.connection_timeout_sec is None else f"{found.connection_timeout_sec} s"
    for label, text in (
        ("interfaces", ", ".join(found.interfaces)),
        ("addresses", own),
        ("port", f"{', '.join(map(str, found.ports))}/{found.protocol}"),
        ("mode", found.mode),
        ("balance", found.balance),
        ("idle timeout", timeout),
    ):
        click.echo(f"  {label + ':':<13} {text}")
    rows = [("(default)", *_target(each)) for each in found.default_target]
    for route in found.source_routes:
        rows += [(route.source, *_target(each)) for each in route.targets] or [(route.source, route.action, "", "")]
    checked = any(row[3] for row in rows)
    columns = ("SOURCE", "TARGET", "WEIGHT", *(("HEALTH CHECK",) if checked else ()))
    output.table(session, columns, [row[: len(columns)] for row in rows], right=("WEIGHT",))


def _target(each: answers.ConfiguredTarget) -> tuple[str, str, str]:
    check = each.health_check
    how = f"{check.type} :{check.port}{check.path or ''} every {check.interval_ms} ms" if check else ""
    return each.address, str(each.weight), how


@proxy.command("add", context_settings=CONTEXT)
@click.argument("name")
@click.option(
    "-i",
    "--interface",
    "interfaces",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Listen on this interface (repeatable).",
)
@click.option(
    "-p",
    "--port",
    "ports",
    multiple=True,
    required=True,
    type=click.IntRange(1, 65535),
    help="Listen on this port (repeatable).",
)
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    required=True,
    metavar="IP[:PORT]",
    help="Forward to this target (repeatable).",
)
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="IP",
    help="Listen on this address (repeatable).  [default: the interfaces' own]",
)
@click.option("--protocol", type=click.Choice(["tcp", "udp"]), help="[default: tcp]")
@click.option("--mode", type=click.Choice(["dnat", "fullnat"]), help="[default: dnat]")
@click.option("--balance", type=click.Choice(["maglev", "source", "random"]), help="[default: maglev]")
@_NO_APPLY
@common_options
@click.pass_context
def add_proxy(context: click.Context, /, name: str, ports: Sequence[int], no_apply: bool, **options: Any) -> None:
    """Add a proxy in a new file, 50-NAME.yaml, and apply it."""
    session = context.ensure_object(Session)
    port = ports[0] if len(ports) == 1 else list(ports)
    with _refusals(session):
        done = session.client().add_proxy(name=name, port=port, apply=not no_apply, **options)
    _report(session, done)


@proxy.command("remove", context_settings=CONTEXT)
@click.argument("name", shell_complete=proxy_names)
@_NO_APPLY
@common_options
@click.pass_context
def remove_proxy(context: click.Context, /, name: str, no_apply: bool) -> None:
    """Remove a proxy from its file, and apply that. Its live connections go on to their end."""
    session = context.ensure_object(Session)
    with _refusals(session):
        done = session.client().remove_proxy(name=name, apply=not no_apply)
    _report(session, done)


@click.group(context_settings=CONTEXT)
@common_options
def route() -> None:
    """Add and remove source routes in the files, and apply that."""


@route.command("add", context_settings=CONTEXT)
@_PROXY
@click.argument("source", metavar="CIDR")
@click.argument("targets", metavar="[IP[:PORT]]...", nargs=-1, shell_complete=target_addresses)
@click.option("--deny", is_flag=True, help="Drop the packets of these clients.")
@_WEIGHT
@_NO_APPLY
@common_options
@click.pass_context
def add_route(
    context: click.Context,
    /,
    proxy: str,
    source: str,
    targets: tuple[str, ...],
    deny: bool,
    weight: int | None,
    no_apply: bool,
) -> None:
    """Send clients from CIDR to other targets, or with --deny nowhere."""
    if bool(targets) == deny:
        raise click.UsageError("name a target, or --deny", context)
    session = context.ensure_object(Session)
    target = targets or None
    with _refusals(session):
        done = session.client().add_source_route(
            proxy=proxy, source=source, target=target, deny=deny, weight=weight, apply=not no_apply
        )
    _report(session, done)


@route.command("remove", context_settings=CONTEXT)
@_PROXY
@click.argument("source", metavar="CIDR", shell_complete=route_sources)
@_NO_APPLY
@common_options
@click.pass_context
def remove_route(context: click.Context, /, proxy: str, source: str, no_apply: bool) -> None:
    """Remove the source route for CIDR."""
    session = context.ensure_object(Session)
    with _refusals(session):
        done = session.client().remove_source_route(proxy=proxy, source=source, apply=not no_apply)
    _report(session, done)


@click.group(context_settings=CONTEXT)
@common_options
def target() -> None:
    """Add, remove, weigh targets in the files, and apply that."""


@target.command("add", context_settings=CONTEXT)
@_PROXY
@click.argument("target", metavar="IP[:PORT]")
@_WEIGHT
@_ROUTE
@_NO_APPLY
@common_options
@click.pass_context
def add_target(context: click.Context, /, no_apply: bool, **options: Any) -> None:
    """Add a target to a proxy, or to one of its source routes."""
    session = context.ensure_object(Session)
    with _refusals(session):
        done = session.client().add_target(apply=not no_apply, **options)
    _report(session, done)


@target.command("remove", context_settings=CONTEXT)
@_PROXY
@_TARGET
@_ROUTE
@_NO_APPLY
@common_options
@click.pass_context
def remove_target(context: click.Context, /, no_apply: bool, **options: Any) -> None:
    """Remove a target. Its live connections go on to their end."""
    session = context.ensure_object(Session)
    with _refusals(session):
        done = session.client().remove_target(apply=not no_apply, **options)
    _report(session, done)


@target.command("weight", context_settings=CONTEXT)
@_PROXY
@_TARGET
@click.argument("weight", metavar="WEIGHT", type=click.IntRange(0, 65535))
@_ROUTE
@_NO_APPLY
@common_options
@click.pass_context
def weigh_target(context: click.Context, /, no_apply: bool, **options: Any) -> None:
    """Give a target another share of new connections; 0: none."""
    session = context.ensure_object(Session)
    with _refusals(session):
        done = session.client().set_weight(apply=not no_apply, **options)
    _report(session, done)
