"""Commands that look at live state: ``status``, ``connections``, ``stats``."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click

from reconciler import answers
from reconciler.answers import Sync
from reconciler.cli import output
from reconciler.cli.app import CONTEXT, Session, common_options
from reconciler.cli.complete import proxy_names, target_addresses

_SYNC_COLOURS = {Sync.SYNCED: "green", Sync.OUT_OF_SYNC: "yellow", Sync.DEGRADED: "red"}
_WATCH_SEC = 1.0


@click.command(context_settings=CONTEXT)
@common_options
@click.pass_context
def status(context: click.Context) -> None:
    """Tell whether packets see what the files say, and what there is.

    Exit status: 0 if Synced, 1 otherwise.
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
    differing = f" ({found.differences} objects differ from the files)" if found.differences else ""
    click.echo(f"sync:      {sync}{differing}")
    revision = f"{found.revision}, applied {found.applied}" if found.revision else "nothing applied"
    click.echo(f"revision:  {revision}" + (f", git {found.commit[:12]}" if found.commit else ""))
    click.echo(f"daemon:    {f'process {found.pid}' if found.pid else 'not running'}")
    for label, text in _standing(found):
        click.echo(f"{label + ':':<10} {text}")
    if found.attempt and found.attempt.result not in ("applied", "unchanged"):
        click.echo(f"attempt:   {found.attempt.result} at {found.attempt.time}")
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
        yield (
            "confirm",
            f"revision {each.revision} goes back to {back} in {output.duration(each.left_sec)}"
            " unless `revproxyctl confirm` comes before",
        )
    if found.waiting and found.differences:
        yield "waiting", found.waiting
    if found.drift_repaired:
        yield "drift", f"{found.drift_repaired} objects put right since the daemon started"


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


_FILTERS = (
    click.option("--proxy", metavar="NAME", shell_complete=proxy_names, help="Only of this proxy."),
    click.option("--target", metavar="IP:PORT", shell_complete=target_addresses, help="Only to this target."),
)


@click.group(context_settings=CONTEXT, invoke_without_command=True)
@_FILTERS[0]
@_FILTERS[1]
@click.option("--count", is_flag=True, help="Only how many there are.")
@common_options
@click.pass_context
def connections(context: click.Context, proxy: str | None, target: str | None, count: bool) -> None:
    """List live connections, or forget some with `connections flush`."""
    if context.invoked_subcommand:
        if proxy or target or count:
            raise click.UsageError("options go behind 'flush'", context)
        return
    session = context.ensure_object(Session)
    if count:
        number = session.client().connection_count(proxy=proxy, target=target)
        if session.output != "table":
            output.data(session, {"count": number})
        else:
            click.echo(number)
        return
    found = session.client().connections(proxy=proxy, target=target)
    if session.output != "table":
        output.data(session, found)
        return
    columns = ("PROXY", "PROTO", "CLIENT", "LISTEN", "TARGET", "STATE", "PACKETS", "BYTES", "AGE", "IDLE")
    rows = [
        (
            each.proxy,
            each.protocol,
            each.client,
            each.listen,
            each.target,
            each.state,
            f"{each.packets_forward}/{each.packets_reverse}",
            f"{output.size(each.bytes_forward)}/{output.size(each.bytes_reverse)}",
            output.duration(each.age_sec),
            output.duration(each.idle_sec),
        )
        for each in found
    ]
    if rows:
        output.table(session, columns, rows, right=("PACKETS", "BYTES", "AGE", "IDLE"))
    else:
        session.note("no live connections")


@connections.command(context_settings=CONTEXT)
@_FILTERS[0]
@_FILTERS[1]
@click.option("--all", "everything", is_flag=True, help="Every connection.")
@common_options
@click.pass_context
def flush(context: click.Context, proxy: str | None, target: str | None, everything: bool) -> None:
    """Forget connections: their next packets are decided anew.

    Name a proxy, a target, or --all.
    """
    if not (proxy or target or everything):
        raise click.UsageError("name --proxy, --target or --all", context)
    if everything and (proxy or target):
        raise click.UsageError("--all goes with neither --proxy nor --target", context)
    session = context.ensure_object(Session)
    flushed = session.client().flush_connections(proxy=proxy, target=target)
    if session.output != "table":
        output.data(session, answers.Flushed(flushed))
    else:
        click.echo(f"{flushed} connections flushed")


@click.command(context_settings=CONTEXT)
@click.option("--watch", is_flag=True, help="Again every second, until interrupted; JSON: one object a line.")
@common_options
@click.pass_context
def stats(context: click.Context, watch: bool) -> None:
    """Show totals, per proxy, per target, and dropped packets by reason."""
    session = context.ensure_object(Session)
    client = session.client()
    while True:
        found = client.stats()
        if watch and session.color and session.output == "table":
            click.clear()
        if session.output == "json" and watch:
            output.line(found)
        elif session.output != "table":
            output.data(session, found)
        else:
            _print_stats(session, found)
        if not watch:
            return
        time.sleep(_WATCH_SEC)


def _print_stats(session: Session, found: answers.Stats) -> None:
    columns = ("PROXY", "TARGET", "CONNECTIONS", "OPENED", "PACKETS IN", "BYTES IN", "PACKETS OUT", "BYTES OUT")
    rows = [("(all)", "", *_counters(found))]
    for name, proxy in found.proxies.items():
        rows.append((name, "", *_counters(proxy)))
        rows.extend(("", address, *_counters(target)) for address, target in proxy.targets.items())
    output.table(session, columns, rows, right=columns[2:])
    for label, counted in (("outcome", found.outcomes), ("drop", found.drops)):
        for reason, number in counted.items():
            if number or session.verbose:
                click.echo(f"{label} {reason}: {number}")


def _counters(each: answers.Stats | answers.ProxyStats | answers.TargetStats) -> tuple[str, ...]:
    return (
        str(each.connections),
        str(each.opened),
        str(each.packets_forward),
        output.size(each.bytes_forward),
        str(each.packets_reverse),
        output.size(each.bytes_reverse),
    )
