"""``stats``: counters once, or again and again with what they move by."""

from __future__ import annotations

import time
from typing import Any

import click

from reconciler import answers
from reconciler.cli import output
from reconciler.cli.rates import Rates, rates
from reconciler.cli.session import CONTEXT, INTERRUPTED_STATUS, Session, common_options

_COLUMNS = ("PROXY", "TARGET", "CONNECTIONS", "OPENED", "PACKETS IN", "BYTES IN", "PACKETS OUT", "BYTES OUT")
_RATES = ("PROXY", "TARGET", "CONNECTIONS", "OPENED/s", "PACKETS IN/s", "BYTES IN/s", "PACKETS OUT/s", "BYTES OUT/s")


@click.command(context_settings=CONTEXT)
@click.option("--watch", is_flag=True, help="Again and again, with rates, until interrupted; JSON: one object a line.")
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, metavar="SECONDS", help="For --watch."
)
@common_options
@click.pass_context
def stats(context: click.Context, watch: bool, interval: float) -> None:
    """Show counters: totals, per proxy, per target, drops.

    With --watch, numbers are per second since the time before; in JSON and YAML they stand in "rates", beside the
    totals.
    """
    session = context.ensure_object(Session)
    client = session.client()
    if not watch:
        found = client.stats()
        if session.output != "table":
            output.data(session, found)
        else:
            _print(session, found)
        return
    before: tuple[answers.Stats, float] | None = None
    try:
        while True:
            found, now = client.stats(), time.monotonic()
            moved = rates(before[0], found, now - before[1]) if before else None
            before = found, now
            _print_watched(session, found, moved)
            time.sleep(interval)
    except KeyboardInterrupt:
        context.exit(INTERRUPTED_STATUS)


def _print_watched(session: Session, found: answers.Stats, moved: Rates | None) -> None:
    if session.output == "json":
        output.line(_with_rates(found, moved))
    elif session.output == "yaml":
        click.echo("---")  # a document each time
        output.data(session, _with_rates(found, moved))
    else:
        if session.color:
            click.clear()
        if moved is None:
            _print(session, found)
        else:
            _print_rates(session, found, moved)


def _with_rates(found: answers.Stats, moved: Rates | None) -> dict[str, Any]:
    return {**answers.to_json(found), "rates": None if moved is None else answers.to_json(moved)}


def _print(session: Session, found: answers.Stats) -> None:
    rows = [("(all)", "", *_counters(found))]
    for name, proxy in found.proxies.items():
        rows.append((name, "", *_counters(proxy)))
        rows.extend(("", address, *_counters(target)) for address, target in proxy.targets.items())
    output.table(session, _COLUMNS, rows, right=_COLUMNS[2:])
    for label, counted in (("outcome", found.outcomes), ("drop", found.drops)):
        for reason, number in counted.items():
            if number or session.verbose:
                click.echo(f"{label} {reason}: {number}")


def _counters(each: answers.Traffic) -> tuple[str, ...]:
    return (
        str(each.connections),
        str(each.opened),
        str(each.packets_forward),
        output.size(each.bytes_forward),
        str(each.packets_reverse),
        output.size(each.bytes_reverse),
    )


def _print_rates(session: Session, found: answers.Stats, moved: Rates) -> None:
    rows = [("(all)", "", str(found.connections), *_moves(moved.total))]
    for name, proxy in found.proxies.items():
        rows.append((name, "", str(proxy.connections), *_moves(moved.proxies[name])))
        for address, target in proxy.targets.items():
            rows.append(("", address, str(target.connections), *_moves(moved.targets[name][address])))
    output.table(session, _RATES, rows, right=_RATES[2:])
    for reason, rate in moved.drops.items():
        if rate or session.verbose:
            click.echo(f"drop {reason}: {rate:.0f}/s")


def _moves(each: dict[str, float]) -> tuple[str, ...]:
    return (
        f"{each['opened']:.0f}",
        f"{each['packets_forward']:.0f}",
        output.size(int(each["bytes_forward"])),
        f"{each['packets_reverse']:.0f}",
        output.size(int(each["bytes_reverse"])),
    )
