"""``status``: whether packets see what the files say, and what there is."""

from __future__ import annotations

from collections.abc import Iterator

import click

from reconciler import answers
from reconciler.answers import Sync
from reconciler.cli import output
from reconciler.cli.session import CONTEXT, Session, common_options
from reconciler.words import count

_SYNC_COLOURS = {Sync.SYNCED: "green", Sync.OUT_OF_SYNC: "yellow", Sync.DEGRADED: "red"}


@click.command(context_settings=CONTEXT)
@common_options
@click.pass_context
def status(context: click.Context) -> None:
    """Tell whether packets see what the files say.

    With revision, interfaces, proxies, targets and errors. Exit status: 0 if Synced, 1 otherwise.
    """
    session = context.ensure_object(Session)
    found = session.client().status()
    if session.output != "table":
        output.data(session, found)
    else:
        _print_status(session, found)
    context.exit(0 if found.sync is Sync.SYNCED else 1)


def _print_status(session: Session, found: answers.Status) -> None:
    sync = output.style(session, found.sync.value, fg=_SYNC_COLOURS[found.sync], bold=True)
    differing = f" ({output.differing(found.differences)} from the files)" if found.differences else ""
    click.echo(f"sync:      {sync}{differing}")
    revision = f"{found.revision}, applied {found.applied}" if found.revision else "nothing applied"
    click.echo(f"revision:  {revision}" + (f", git {found.commit[:12]}" if found.commit else ""))
    click.echo(f"daemon:    {f'process {found.pid}' if found.pid else 'not running'}")
    for label, text in _standing(found):
        click.echo(f"{label + ':':<10} {text}")
    if found.attempt and found.attempt.result not in ("applied", "unchanged"):
        click.echo(f"attempt:   {found.attempt.result} at {found.attempt.time}")
    if found.connections.max:
        full = ", full" if found.connections.full else ""
        click.echo(f"tracked:   {found.connections.used} of {found.connections.max} connections{full}")
    for label, problems in (("error", found.errors), ("warning", found.warnings)):
        for problem in problems:
            lines = str(problem).splitlines()
            click.echo(f"{label + ':':<10} {lines[0]}")
            for line in lines[1:]:
                click.echo(f"{'':<10} {line}")
    if found.interfaces:
        click.echo()
        rows = [
            (
                each.name,
                "off (TC only)" if each.mode == "off" else each.mode,
                "yes" if each.attached else "no",
                each.note,
            )
            for each in found.interfaces
        ]
        shown = 4 if any(each.note for each in found.interfaces) else 3
        output.table(session, ("INTERFACE", "XDP", "ATTACHED", "NOTE")[:shown], [row[:shown] for row in rows])
    if found.proxies:
        click.echo()
        columns = ("PROXY", "LISTEN", "TARGET", "WEIGHT", "HEALTH", "STATE", "CONNECTIONS")
        output.table(session, columns, _proxy_rows(found), right=("WEIGHT", "CONNECTIONS"))


def _standing(found: answers.Status) -> Iterator[tuple[str, str]]:
    """What keeps the files from being applied by themselves, and what repairs there were."""
    if found.suspended:
        yield "suspended", f"since {found.suspended}; `revproxyctl resume` takes reconciling up"
    if found.unconfirmed:
        each = found.unconfirmed
        back = f"revision {each.previous}" if each.previous else "nothing applied"
        if each.left_sec:
            left = output.duration(each.left_sec)
            text = f"revision {each.revision} goes back to {back} in {left} unless `revproxyctl confirm` comes before"
        else:
            text = f"revision {each.revision} was not confirmed in time, and goes back to {back}"
        yield "confirm", text
    if found.waiting and found.differences:
        yield "waiting", found.waiting
    if found.drift_repaired:
        yield "drift", f"{count(found.drift_repaired, 'object')} put right since the daemon started"


def _proxy_rows(found: answers.Status) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for proxy in found.proxies:
        for index in range(max(len(proxy.listen), len(proxy.targets), 1)):
            target = proxy.targets[index] if index < len(proxy.targets) else None
            rows.append(
                (
                    proxy.name if index == 0 else "",
                    proxy.listen[index] if index < len(proxy.listen) else "",
                    target.address if target else "",
                    str(target.weight) if target else "",
                    target.health if target else "",
                    target.state if target else "",
                    str(target.connections) if target else "",
                )
            )
    return rows
