"""``doctor``: what can keep it from working here, and how to mend it."""

from __future__ import annotations

import click

from reconciler import answers
from reconciler.answers import Level
from reconciler.cli import output
from reconciler.cli.session import CONTEXT, Session, common_options

_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}


@click.command(context_settings=CONTEXT)
@common_options
@click.pass_context
def doctor(context: click.Context) -> None:
    """Check what is needed, and say how to mend what is wrong.

    That is kernel, privileges, files, interfaces and the ways to the targets. Features of the kernel are tried:
    tiny maps and programs are made and gone again. Works with and without revproxyd; without root it says what it
    could not check. With -v also what is fine. Exit status: 0 no errors, 1 otherwise.
    """
    session = context.ensure_object(Session)
    found = session.client().doctor()
    if session.output != "table":
        output.data(session, found)
    else:
        _print(session, found)
    context.exit(0 if found.fine else 1)


def _print(session: Session, found: answers.Diagnosis) -> None:
    fine = 0
    for each in found.findings:
        if each.level is Level.OK and not session.verbose:
            fine += 1
            continue
        level = output.style(session, f"{each.level.value:<8}", fg=_COLOURS[each.level])
        subject = f" {each.subject}:" if each.subject else ""
        click.echo(f"{level} {each.check}:{subject} {each.message}")
        if each.remedy:
            click.echo(f"{'':<8} to mend it: {each.remedy}")
    total = f"errors: {found.errors}, warnings: {found.warnings}"
    session.note(total + (f", fine: {fine} (-v shows them)" if fine else ""))
