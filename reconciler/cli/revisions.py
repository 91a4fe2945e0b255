"""Commands about revisions: ``confirm``, ``rollback``, ``history``; and ``suspend`` and ``resume``."""

from __future__ import annotations

from typing import Final

import click

from reconciler import answers
from reconciler.cli import output
from reconciler.cli.change import print_applied
from reconciler.cli.session import CONTEXT, Session, common_options

_ROOMY: Final = 120  # columns of a terminal


@click.command(context_settings=CONTEXT)
@common_options
@click.pass_context
def confirm(context: click.Context) -> None:
    """Keep an apply that was made with --confirm-within.

    Exit status: 0, 1 nothing to confirm.
    """
    session = context.ensure_object(Session)
    done = session.client().confirm()
    if session.output != "table":
        output.data(session, done)
    else:
        click.echo(f"revision {done.revision} stays")


@click.command(context_settings=CONTEXT)
@click.argument("revision", type=click.IntRange(min=1), required=False)
@common_options
@click.pass_context
def rollback(context: click.Context, revision: int | None) -> None:
    """Go back to an earlier revision, by default the one before.

    Changes only what differs, and makes a new revision of it. The files in the directory then show as OutOfSync; they
    are applied when they change, or by `apply`.
    """
    session = context.ensure_object(Session)
    print_applied(session, session.client().rollback(revision=revision))


@click.command(context_settings=CONTEXT)
@click.option("-n", "--number", "most", type=click.IntRange(min=1), help="Only the latest so many.")
@common_options
@click.pass_context
def history(context: click.Context, most: int | None) -> None:
    """List revisions applied and refused, oldest first.

    A refused one has the number that it would have got.
    """
    session = context.ensure_object(Session)
    found = session.client().history()
    found = found[-most:] if most else found
    if session.output != "table":
        output.data(session, found)
        return
    if not found:
        session.note("nothing was applied or refused yet")
        return
    if output.width() < _ROOMY:
        output.table(session, ("REVISION", "TIME", "RESULT", "WHAT"), map(_narrow_row, found), right=("REVISION",))
        return
    columns = ("REVISION", "TIME", "RESULT", "CAUSE", "COMMIT", "AUTHOR", "MESSAGE", "FILES")
    output.table(session, columns, [_row(each) for each in found], right=("REVISION",))


def _narrow_row(entry: answers.HistoryEntry) -> tuple[str, ...]:
    """For terminals on which eight columns would be a few letters each."""
    number, time, result, cause, commit, author, message, files = _row(entry)
    said = f"{author}: {message}" if author and not entry.error else message
    what = "; ".join(each for each in (cause, f"git {commit}" if commit else "", said, files) if each)
    return number, time.partition(".")[0] + "Z", result, what


def _row(entry: answers.HistoryEntry) -> tuple[str, ...]:
    cause = f"{entry.cause} to {entry.of}" if entry.of is not None else entry.cause
    refused = entry.error.splitlines()[0] if entry.error else ""
    return (
        f"{entry.number}{'*' if entry.current else ''}",
        entry.time,
        entry.result,
        cause,
        _commit(entry.commit),
        entry.author or "",
        refused if refused else entry.message or "",
        ", ".join(entry.files),
    )


def _commit(commit: str | None) -> str:
    identity, _, dirty = (commit or "").partition("-")
    return identity[:12] + (f"-{dirty}" if dirty else "")


@click.command(context_settings=CONTEXT)
@common_options
@click.pass_context
def suspend(context: click.Context) -> None:
    """Stop reconciling until `resume`.

    Restarts of revproxyd don't change that. Packets go on being forwarded as they are. Commands still act, and an
    unconfirmed apply is still rolled back.
    """
    session = context.ensure_object(Session)
    _print_suspension(session, session.client().suspend())


@click.command(context_settings=CONTEXT)
@common_options
@click.pass_context
def resume(context: click.Context) -> None:
    """Take reconciling up after `suspend`."""
    session = context.ensure_object(Session)
    _print_suspension(session, session.client().resume())


def _print_suspension(session: Session, found: answers.Suspension) -> None:
    if session.output != "table":
        output.data(session, found)
    else:
        click.echo(f"suspended since {found.since}" if found.suspended else "reconciling goes on")


COMMANDS: Final = (confirm, rollback, history, suspend, resume)
