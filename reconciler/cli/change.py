"""Commands that compare files and kernel, and make them equal: ``diff``, ``plan``, ``apply``, ``down``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from reconciler import answers
from reconciler.cli import duration, output
from reconciler.cli.progress import bar
from reconciler.cli.session import CONTEXT, Session, common_options
from reconciler.errors import Problem, RevproxyError
from reconciler.words import count

_MOST_STEPS = 100


def _warn(session: Session, warnings: Iterable[Problem]) -> None:
    for warning in warnings:
        session.note(f"{warning} (warning)")


@click.command(context_settings=CONTEXT)
@common_options
@click.pass_context
def diff(context: click.Context) -> None:
    """Show what differs between the files and the kernel.

    An object at a time: lines with - are what packets see now, lines with + what the files say. Exit status: 0 in
    sync, 1 differences, 2 trouble.
    """
    session = context.ensure_object(Session)
    session.trouble = 2
    client = session.client()
    with bar(session, "comparing") as client.progress:
        found = client.diff()
    _warn(session, found.warnings)
    if session.output != "table":
        output.data(session, found)
    else:
        output.unified(session, found.changes)
    context.exit(0 if found.empty else 1)


@click.command(context_settings=CONTEXT)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Save it for `apply FILE`."
)
@click.option("--detailed-exitcode", is_flag=True, help="Exit status 0: nothing to do, 2: changes, 1: trouble.")
@common_options
@click.pass_context
def plan(context: click.Context, out: Path | None, detailed_exitcode: bool) -> None:
    """Show in order what an apply would do, without doing it.

    With --out the plan is saved: `apply FILE` does exactly that, and refuses once the kernel has moved on.

    Exit status: 0, or 2 for trouble; with --detailed-exitcode 0 nothing to do, 2 changes, 1 trouble.
    """
    session = context.ensure_object(Session)
    session.trouble = 1 if detailed_exitcode else 2
    client = session.client()
    found = client.save_plan(path=out) if out else client.plan()
    _warn(session, found.warnings)
    if session.output != "table":
        output.data(session, found)
    elif found.empty:
        click.echo("nothing to do: the kernel is what the files say")
    else:
        _print_plan(session, found)
    if out:
        session.note(f"saved in {out}; `revproxyctl apply {out}` does exactly this")
    context.exit(2 if detailed_exitcode and not found.empty else 0)


_SIGNS = {"create": "+", "attach": "+", "update": "~", "replace": "~", "delete": "-", "detach": "-"}
_SIGN_COLOURS = {"+": "green", "~": "yellow", "-": "red"}


def _print_plan(session: Session, found: answers.PlanAnswer) -> None:
    for change in found.changes:
        sign = _SIGNS.get(change.action, "~")
        text = output.style(session, f"{sign} {change.action} {change.object} {change.name}", fg=_SIGN_COLOURS[sign])
        click.echo(text + (f"  # {change.place}" if change.place else ""))
        for line in _before_and_after(change):
            click.echo(f"    {line}")
    click.echo()
    shown = found.steps if session.verbose else found.steps[:_MOST_STEPS]
    for number, step in enumerate(shown, 1):
        click.echo(f"{number:>4}  {step}")
    if len(shown) < len(found.steps):
        click.echo(f"      and {len(found.steps) - len(shown)} more (-v shows all)")
    counts = ", ".join(f"{name} {count}" for name, count in found.counts.items())
    click.echo(f"\n{_extent(found)}: {counts}")
    for each in found.connections:
        click.echo(f"live connections of {each.proxy} to {each.target} {each.fate}: {each.connections}")


def _extent(found: answers.Difference | answers.PlanAnswer | answers.Applied) -> str:
    """``1 change, 3 operations``."""
    return f"{count(len(found.changes), 'change')}, {count(found.operations, 'operation')}"


def _before_and_after(change: answers.Change) -> Iterator[str]:
    """What there is, what there will be; of objects with fields only those that differ."""
    before, after = change.before, change.after
    if not isinstance(before, dict) and not isinstance(after, dict):
        yield f"{_short(before)} -> {_short(after)}"
        return
    before, after = before or {}, after or {}
    for key in {**before, **after}:
        if key not in before:
            yield f"{key}: {_short(after[key])}"
        elif key not in after:
            yield f"{key}: {_short(before[key])}" + (" -> none" if after else "")
        elif before[key] != after[key]:
            yield f"{key}: {_short(before[key])} -> {_short(after[key])}"


def _short(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_short, value)) or "none"
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


@click.command(context_settings=CONTEXT)
@click.argument("plan", type=click.Path(path_type=Path), required=False)
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@click.option("--allow-empty", is_flag=True, help="Also if the files hold no proxy (any more) while some are live.")
@click.option(
    "--confirm-within",
    callback=duration.option,
    metavar="DURATION",
    help="Roll it back unless `revproxyctl confirm` comes within that time: 30s, 5m, 1h30m; 1s to 7d.",
)
@common_options
@click.pass_context
def apply(
    context: click.Context, plan: Path | None, yes: bool, allow_empty: bool, confirm_within: float | None
) -> None:
    """Make the kernel what the files say: all of it, or nothing.

    With PLAN, a file that `plan --out` made, it does exactly that, or refuses when the kernel has moved on since. On a
    terminal it shows the differences and asks first, unless --yes is given; in a script it does not ask. Exit status: 0
    applied or nothing to do, 1 failed and rolled back.
    """
    session = context.ensure_object(Session)
    if plan is not None and not plan.is_file():
        raise RevproxyError(f"{plan}: {'is no regular file' if plan.exists() else 'there is no such file'}")
    client = session.client()
    if plan is None and not yes and sys.stdin.isatty() and sys.stdout.isatty():
        with bar(session, "comparing") as client.progress:
            found = client.diff()
        if not found.empty:
            output.unified(session, found.changes)
            if not click.confirm(f"Apply {_extent(found)}?", err=True):
                raise RevproxyError("nothing was applied")
    with bar(session, "applying") as client.progress:
        done = client.apply(plan=plan, allow_empty=allow_empty, confirm_within_sec=confirm_within)
    print_applied(session, done)
    if confirm_within is not None and done.unconfirmed is None:
        session.note(f"nothing waits for `revproxyctl confirm`: revision {done.revision} was in force before")


def print_applied(session: Session, done: answers.Applied) -> None:
    """Say what an apply did."""
    _warn(session, done.warnings)
    if session.output != "table":
        output.data(session, done)
    elif not done.changes:
        click.echo(f"nothing to do: revision {done.revision} is what the files say")
    else:
        commit = f" (git {done.commit[:12]})" if done.commit else ""
        click.echo(f"applied revision {done.revision}{commit}: {_extent(done)}")
    if done.unconfirmed:
        each = done.unconfirmed
        back = f"revision {each.previous}" if each.previous else "nothing applied"
        session.note(
            f"revision {each.revision} goes back to {back} at {each.deadline}, in"
            f" {output.duration(each.left_sec)}, unless `revproxyctl confirm` comes before"
        )


@click.command(context_settings=CONTEXT)
@common_options
@click.pass_context
def down(context: click.Context) -> None:
    """Take everything of this instance out of the kernel.

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
