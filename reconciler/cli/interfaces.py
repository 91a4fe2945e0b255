"""``interfaces``: what hangs on each interface, and what of others' is in its way."""

from __future__ import annotations

import click

from reconciler import answers
from reconciler.cli import output
from reconciler.cli.session import CONTEXT, Session, common_options


@click.command(context_settings=CONTEXT)
@click.option("--all", "every", is_flag=True, help="Those that revproxy has nothing to do with, too.")
@common_options
@click.pass_context
def interfaces(context: click.Context, every: bool) -> None:
    """Show the interfaces in use, and what is attached there.

    Driver, how XDP runs and was to run, and other people's programs that are in the way, by id, name and tag, with the
    command that would remove them.
    """
    session = context.ensure_object(Session)
    found = [each for each in session.client().interfaces() if every or _in_use(each)]
    if session.output != "table":
        output.data(session, found)
        return
    if not found:
        session.note("no interface is in use; --all shows every one")
        return
    columns = ("INTERFACE", "DRIVER", "KIND", "MTU", "UP", "ASKED", "XDP", "TC", "PROXIES", "NOTE")
    rows = [
        (
            each.name,
            each.driver or "-",
            each.kind or "-",
            str(each.mtu or "-"),
            "yes" if each.up else "no",
            each.asked if each.wanted or not each.ifindex else "-",
            each.mode,
            "yes" if each.attached else "no",
            ", ".join(each.listens) or "-",
            each.note,
        )
        for each in found
    ]
    output.table(session, columns, rows, right=("MTU",))
    for each in found:
        for conflict in each.conflicts:
            remedy = f"; to remove it: {conflict.remedy}" if conflict.remedy else ""
            text = f"{each.name}: {conflict.where}: {conflict.what} {conflict.effect}{remedy}"
            click.echo(output.style(session, text, fg="yellow"))


def _in_use(each: answers.InterfaceDetail) -> bool:
    return bool(each.wanted or each.attached or each.mode != "off" or not each.ifindex)
