"""Commands that put packets to the programs: ``test``, ``explain``."""

from __future__ import annotations

import click

from reconciler import answers
from reconciler.answers import Sync
from reconciler.cli import output
from reconciler.cli.session import CONTEXT, Session, common_options

_VERDICT_COLOURS = {"redirect": "green", "tx": "green", "drop": "red"}


@click.command(context_settings=CONTEXT)
@common_options
@click.pass_context
def test(context: click.Context) -> None:
    """Run the tests of the files in the kernel.

    Each packet of `tests:` is put to the real programs as they are configured now, without leaving a trace. (Before
    a change goes live, `apply` and revproxyd run the tests on the change itself.) Exit status: 0 all hold, 1 otherwise.
    """
    session = context.ensure_object(Session)
    found = session.client().test()
    if session.output != "table":
        output.data(session, _plain(found))
    else:
        _print_tests(session, found)
    if found.sync is not Sync.SYNCED:
        session.note(
            f"OutOfSync: the kernel is not what the files say ({output.differing(found.differences)}); the"
            f" tests were run on what packets see now, revision {found.revision}"
        )
    context.exit(1 if found.failed else 0)


def _plain(found: answers.Tested) -> answers.Json:
    """With ``from``, as the files call it, which Python does not take for a name."""
    plain = answers.to_json(found)
    for each in plain["tests"]:
        each["from"] = each.pop("source")
    return plain


def _print_tests(session: Session, found: answers.Tested) -> None:
    for each in found.tests:
        sign = output.style(session, "✓", fg="green") if each.holds else output.style(session, "✗", fg="red")
        on = f" on {each.interface}" if each.interface else ""
        click.echo(f"{sign} {each.protocol} {each.source} -> {each.to}{on}: {each.expected}")
        if not each.holds:
            click.echo(f"  {each.file}:{each.line}:{each.column}: got {each.actual}")
    if not found.tests:
        session.note("no tests in the files")
        return
    held = len(found.tests) - found.failed
    click.echo(f"{held} of {len(found.tests)} tests hold")


@click.command(context_settings=CONTEXT)
@click.option("--from", "source", required=True, metavar="IP[:PORT]", help="Who sends it.")
@click.option("--to", required=True, metavar="IP:PORT", help="Where to.")
@click.option("--protocol", type=click.Choice(["tcp", "udp"]), default="tcp", show_default=True)
@click.option("--interface", metavar="NAME", help="By which it comes in, where several could be.")
@common_options
@click.pass_context
def explain(context: click.Context, source: str, to: str, protocol: str, interface: str | None) -> None:
    """Tell what the data plane does with such a packet now.

    The packet is put to the real programs, without leaving a trace. With the port of a live connection, it is a
    packet of that; otherwise the first one of a new connection.
    """
    session = context.ensure_object(Session)
    found = session.client().explain(source, to, protocol=protocol, interface=interface)
    if session.output != "table":
        output.data(session, found)
        return
    verdict = output.style(session, found.verdict, fg=_VERDICT_COLOURS.get(found.verdict), bold=True)
    lines = [
        ("verdict:", verdict),
        ("proxy:", found.proxy),
        ("rule:", (found.rule or "") + (f"  # {found.place}" if found.place else "")),
        ("target:", found.target),
        ("reason:", found.reason),
        ("interface:", found.interface),
        ("program:", found.program),
    ]
    for label, text in lines:
        if text:
            click.echo(f"{label:<10} {text}")
