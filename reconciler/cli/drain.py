"""Commands that take targets out and in: ``drain``, ``undrain``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from reconciler import answers
from reconciler.cli import output
from reconciler.cli.session import CONTEXT, Session, common_options
from reconciler.words import count

_proxy = click.option("--proxy", metavar="NAME", help="Only in this proxy.  [default: in every one]")


@click.command(context_settings=CONTEXT)
@click.argument("target", metavar="TARGET")
@_proxy
@click.option("--wait", is_flag=True, help="Return once no connection is left.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="S", help="Wait so many seconds at most. Implies --wait."
)
@common_options
@click.pass_context
def drain(context: click.Context, target: str, proxy: str | None, wait: bool, timeout: float | None) -> None:
    """Send no new connections to a target.

    Those that it has go on to their end.

    TARGET is IP:PORT as in the files, or IP for each of its ports. It stays drained, whatever is restarted, until
    `undrain`. Exit status: 0 done, 1 timed out.
    """
    session = context.ensure_object(Session)
    wait = wait or timeout is not None
    with _progress(session, target) if wait else _silence() as told:
        found = session.client().drain(target, proxy=proxy, wait=wait, timeout_sec=timeout, told=told)
    _print(session, found)
    if wait and not found.done:
        session.note(
            f"timed out: {count(found.connections, 'connection')} left; the target stays drained"
            f" (`revproxyctl connections flush --target {target}` would end them)"
        )
        context.exit(1)


@click.command(context_settings=CONTEXT)
@click.argument("target", metavar="TARGET")
@_proxy
@common_options
@click.pass_context
def undrain(context: click.Context, target: str, proxy: str | None) -> None:
    """Send new connections to a drained target again.

    TARGET is IP:PORT as in the files, or IP for each of its ports.
    """
    session = context.ensure_object(Session)
    _print(session, session.client().undrain(target, proxy=proxy))


def _print(session: Session, found: answers.Draining) -> None:
    if session.output != "table":
        output.data(session, found)
        return
    rows = [(each.proxy, each.target, each.state, str(each.connections)) for each in found.targets]
    if rows:
        output.table(session, ("PROXY", "TARGET", "STATE", "CONNECTIONS"), rows, right=("CONNECTIONS",))
    else:
        session.note("the target has gone, and its last connection has ended")


@contextmanager
def _silence() -> Iterator[Callable[[answers.Draining], None]]:
    yield lambda _: None


@contextmanager
def _progress(session: Session, target: str) -> Iterator[Callable[[answers.Draining], None]]:
    """Shows on a terminal how many of the connections that there were at first have ended."""
    if session.quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("draining {task.description}"),
        BarColumn(),
        TextColumn("connections left: {task.fields[left]}"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True, no_color=not session.color)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(target, total=None, left="?")

        def told(found: answers.Draining) -> None:
            total = progress.tasks[0].total
            most = max(found.connections, int(total) if total else 0, 1)
            progress.update(task, total=most, completed=most - found.connections, left=str(found.connections))

        yield told
