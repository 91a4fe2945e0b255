"""Commands that compare files and kernel, and make them equal: ``diff``, ``plan``, ``apply``, ``down``."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click

from reconciler import answers
from reconciler.cli import output
from reconciler.cli.app import CONTEXT, Session, common_options
from reconciler.errors import Problem, RevproxyError

_MOST_STEPS = 100


def _warn(session: Session, warnings: Iterable[Problem]) -> None:
    for warning in warnings:
        session.note(f"{warning} (warning)")


@click.command(context_settings=CONTEXT)
@common_options
@click.pass_context
def diff(context: click.Context) -> None:
    """Show what differs between the files and the kernel, an object at a time.

    Lines with - are what packets see now, lines with + what the files say. Exit status: 0 in sync, 1 differences,
    2 trouble.
    """
    session = context.ensure_object(Session)
    session.trouble = 2
    found = session.client().diff()
    _warn(session, found.warnings)
    if session.output != "table":
        output.data(session, found)
    else:
        output.unified(session, found.changes)
    context.exit(0 if found.empty else 1)


@click.command(context_settings=CONTEXT)
@click.option("--detailed-exitcode", is_flag=True, help="Exit status 0: nothing to do, 2: changes, 1: trouble.")
@common_options
@click.pass_context
def plan(context: click.Context, detailed_exitcode: bool) -> None:
    """Show the operations an apply would do, in order, without doing them.

    Exit status: 0, or 2 for trouble; with --detailed-exitcode 0 nothing to do, 2 changes, 1 trouble.
    """
    session = context.ensure_object(Session)
    session.trouble = 1 if detailed_exitcode else 2
    found = session.client().plan()
    _warn(session, found.warnings)
    if session.output != "table":
        output.data(session, found)
    elif found.empty:
        click.echo("nothing to do: the kernel is what the files say")
    else:
        _print_plan(session, found)
    context.exit(2 if detailed_exitcode and not found.empty else 0)


_SIGNS = {"create": "+", "attach": "+", "update": "~", "replace": "~", "delete": "-", "detach": "-"}
_SIGN_COLOURS = {"+": "green", "~": "yellow", "-": "red"}


def _print_plan(session: Session, found: answers.PlanAnswer) -> None:
    for change in found.changes:
        sign = _SIGNS.get(change.action, "~")
        text = output.style(session, f"{sign} {change.action} {change.object} {change.name}", fg=_SIGN_COLOURS[sign])
        click.echo(text + (f"  # {change.place}" if change.place else ""))
    click.echo()
    shown = found.steps if session.verbose else found.steps[:_MOST_STEPS]
    for number, step in enumerate(shown, 1):
        click.echo(f"{number:>4}  {step}")
    if len(shown) < len(found.steps):
        click.echo(f"      and {len(found.steps) - len(shown)} more (-v shows all)")
    counts = ", ".join(f"{name} {count}" for name, count in found.counts.items())
    click.echo(f"\n{len(found.changes)} changes, {found.operations} operations: {counts}")
    for each in found.connections:
        click.echo(f"{each.connections} live connections of {each.proxy} to {each.target} {each.fate}")


@click.command(context_settings=CONTEXT)
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@click.option("--allow-empty", is_flag=True, help="Also if the files hold no proxy (any more) while some are live.")
@common_options
@click.pass_context
def apply(context: click.Context, yes: bool, allow_empty: bool) -> None:
    """Make the kernel what the files say: all of it, or nothing.

    On a terminal it shows the differences and asks first, unless --yes is given; in a script it does not ask. Exit
    status: 0 applied or nothing to do, 1 failed and rolled back.
    """
    session = context.ensure_object(Session)
    client = session.client()
    if not yes and sys.stdin.isatty() and sys.stdout.isatty():
        found = client.diff()
        if not found.empty:
            output.unified(session, found.changes)
            if not click.confirm(f"Apply {len(found.changes)} changes ({found.operations} operations)?", err=True):
                raise RevproxyError("nothing was applied")
    done = client.apply(allow_empty=allow_empty)
    _warn(session, done.warnings)
    if session.output != "table":
        output.data(session, done)
    elif not done.changes:
        click.echo(f"nothing to do: revision {done.revision} is what the files say")
    else:
        commit = f" (git {done.commit[:12]})" if done.commit else ""
        click.echo(
            f"applied revision {done.revision}{commit}: {len(done.changes)} changes, {done.operations} operations"
        )


@click.command(context_settings=CONTEXT)
@common_options
@click.pass_context
def down(context: click.Context) -> None:
    """Detach and remove everything this instance put into the kernel.

    Its connections are forgotten; a running revproxyd ends. The files stay.
    """
    session = context.ensure_object(Session)
    done = session.client().down()
    if session.output != "table":
        output.data(session, done)
        return
    for line in done.removed:
        click.echo(line)
    if not done.removed:
        session.note("nothing of this instance is in the kernel")
