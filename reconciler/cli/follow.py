"""``events``: what happens, as it happens."""

from __future__ import annotations

import json

import click

from reconciler import answers
from reconciler.cli import output
from reconciler.cli.complete import proxy_names
from reconciler.cli.session import CONTEXT, INTERRUPTED_STATUS, Session, common_options

_COLOURS = {"connection_opened": "green", "connection_closed": "blue", "target_down": "red", "events_lost": "red"}


@click.command(context_settings=CONTEXT)
@click.option("-f", "--follow", is_flag=True, help="Those to come, until interrupted.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(answers.KINDS),
    metavar="KIND",
    help="Only of this kind (repeatable).",
)
@click.option("--proxy", metavar="NAME", shell_complete=proxy_names, help="Only of this proxy.")
@common_options
@click.pass_context
def events(context: click.Context, follow: bool, kinds: tuple[str, ...], proxy: str | None) -> None:
    """Show what happened lately, or with --follow what happens.

    Kinds: connection_opened and connection_closed (with `stats_enabled: true`), config_applied, drift_repaired,
    target_down, target_up, target_recovered, target_drained, target_undrained, events_lost. A running revproxyd
    remembers and tells them. With --output json every event is an object on a line.
    """
    session = context.ensure_object(Session)
    try:
        for event in session.client().events(follow=follow, kinds=kinds, proxy=proxy):
            if session.output == "json":
                output.line(event.to_json())
            elif session.output == "yaml":
                output.data(session, [event.to_json()])
            else:
                click.echo(_text(session, event))
        if follow:
            session.note("revproxyctl: revproxyd has ended, and its events with it")
    except KeyboardInterrupt:
        context.exit(INTERRUPTED_STATUS)


def _text(session: Session, event: answers.Event) -> str:
    fields = (
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in event.fields.items()
    )
    kind = output.style(session, event.kind, fg=_COLOURS.get(event.kind), bold=True)
    return " ".join((event.time, kind, *fields))
