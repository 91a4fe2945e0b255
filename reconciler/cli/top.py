"""``top``: proxies and targets as they are now, every second, on the whole terminal."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from reconciler import answers
from reconciler.cli import output
from reconciler.cli.rates import Rates, rates
from reconciler.cli.session import CONTEXT, Session, common_options
from reconciler.errors import RevproxyError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SORTS = {"n": "name", "c": "connections", "o": "opened", "p": "packets", "b": "bytes"}
_KEYS = "q quit  c o p b n sort  t targets  r reverse"
_INSTEAD = "for scripts there is `revproxyctl stats --watch --output json`"
_NUMBERS = ("CONNS", "OPEN/s", "PKT/s", "IN/s", "OUT/s")
_LEAST_NAME = 21  # what an IPv4 address with its port takes


@dataclass(frozen=True, slots=True)
class Row:
    """One proxy or target; rates are per second, both directions together."""

    name: str
    connections: int
    opened: float
    packets: float
    bytes_in: float
    bytes_out: float
    state: str = ""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user chose by keys. ``sort``: a value of :data:`SORTS`."""

    sort: str = "bytes"
    reverse: bool = False
    targets: bool = True
    ended: bool = False

    def after(self, key: str) -> Wish:
        """What it is once this key was pressed."""
        if key in ("q", "Q", "\x03", "\x04"):
            return replace(self, ended=True)
        if key == "r":
            return replace(self, reverse=not self.reverse)
        if key == "t":
            return replace(self, targets=not self.targets)
        return replace(self, sort=SORTS[key], reverse=False) if key in SORTS else self


@click.command(context_settings=CONTEXT)
@click.option("--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, metavar="SECONDS")
@click.option("--sort", type=click.Choice(sorted(SORTS.values())), default="bytes", show_default=True)
@common_options
@click.pass_context
def top(context: click.Context, interval: float, sort: str) -> None:
    """Show proxies and targets live, on a terminal.

    Keys: q quit; c, o, p, b, n sort by connections, opened, packets, bytes, name; r reverse; t targets on and off.
    For scripts there is `stats --watch --output json`.
    """
    session = context.ensure_object(Session)
    if session.output != "table" or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise RevproxyError(f"top needs a terminal; {_INSTEAD}")
    from rich.console import Console
    from rich.live import Live

    console = Console(no_color=not session.color, highlight=False)
    if console.is_dumb_terminal:
        raise RevproxyError(f"top needs a terminal that can be drawn on (TERM is {os.environ['TERM']}); {_INSTEAD}")
    client = session.client()
    wish = Wish(sort)
    before: tuple[answers.Stats, float] | None = None
    status, stats = client.status(), client.stats()  # what goes wrong does so before the screen is ours
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while not wish.ended:
            now = time.monotonic()
            moved = rates(before[0], stats, now - before[1]) if before else rates(stats, stats, 1.0)
            before = stats, now
            due = now + interval
            while not wish.ended:
                live.update(view(console, status, stats, moved, wish), refresh=True)
                key = pressed(max(0.0, due - time.monotonic()))
                if key is None:
                    break
                wish = wish.after(key)
            if not wish.ended:
                status, stats = client.status(), client.stats()


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str | None]]:
    """Single keys from the terminal; the function waits so many seconds for one. The terminal is then as before."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(timeout_sec: float) -> str | None:
        if not select.select([descriptor], [], [], timeout_sec)[0]:
            return None
        key = os.read(descriptor, 1).decode(errors="replace")
        return key or "q"  # the terminal is gone

    try:
        tty.setcbreak(descriptor)
        yield pressed
    except KeyboardInterrupt:
        return
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def view(console: Console, status: answers.Status, stats: answers.Stats, moved: Rates, wish: Wish) -> RenderableType:
    """One screen, not higher than the terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    width, height = console.size
    drops = sum(moved.drops.values())
    held = f"{status.connections.used}/{status.connections.max}"
    lines = [
        f"revproxy  {status.sync.value}  revision {status.revision}  {time.strftime('%H:%M:%S')}",
        f"connections {stats.connections} (tracked {held}{', full' if status.connections.full else ''})"
        f"  opened {moved.total['opened']:.0f}/s  drops {drops:.0f}/s",
        f"in {moved.total['packets_forward']:.0f} pkt/s {_bytes(moved.total['bytes_forward'])}/s"
        f"  out {moved.total['packets_reverse']:.0f} pkt/s {_bytes(moved.total['bytes_reverse'])}/s",
        *(f"{problem}".splitlines()[0] for problem in status.errors[:1]),
    ]
    grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="reverse", width=width)
    rows = table(status, stats, moved, wish)
    room = max(1, height - len(lines) - 3)
    shown = [(row.name, *_numbers(row), row.state) for row in rows[:room]]
    columns = ["PROXY / TARGET", *_NUMBERS, "STATE"]
    left = _fitting(columns, shown, width)
    for number in left:
        if number == 0:
            grid.add_column(columns[0], no_wrap=True, ratio=1, overflow="ellipsis")
        else:
            grid.add_column(columns[number], justify="right" if columns[number] in _NUMBERS else "left", no_wrap=True)
    for cells in shown:
        grid.add_row(*(Text(cells[number]) for number in left))
    more = f"  {len(rows) - room} more rows" if len(rows) > room else ""
    order = f"by {wish.sort}{' reversed' if wish.reverse else ''}"
    texts = [Text(line[:width], no_wrap=True, overflow="ellipsis") for line in lines]
    return Group(*texts, grid, Text(f"{_KEYS}  [{order}]{more}"[:width], style="dim", no_wrap=True))


def _numbers(row: Row) -> tuple[str, ...]:
    """In the order of :data:`_NUMBERS`."""
    counts = (f"{row.connections}", f"{row.opened:.0f}", f"{row.packets:.0f}")
    return (*counts, _bytes(row.bytes_in), _bytes(row.bytes_out))


def _fitting(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Which columns are shown: on a narrow terminal no more than leave room for names, and the name always."""
    wide = [max(map(len, (column, *(row[number] for row in rows)))) + 1 for number, column in enumerate(columns)]
    left = list(range(len(columns)))
    for number in (columns.index(name) for name in ("OPEN/s", "PKT/s", "OUT/s", "IN/s", "STATE", "CONNS")):
        if width - sum(wide[each] for each in left[1:]) < min(wide[0], _LEAST_NAME):
            left.remove(number)
    return left


def table(status: answers.Status, stats: answers.Stats, moved: Rates, wish: Wish) -> list[Row]:
    """Proxies in order, each followed by its targets in order."""
    health = {
        (proxy.name, target.address): target.state if target.health == "unchecked" else target.health
        for proxy in status.proxies
        for target in proxy.targets
    }

    def row(name: str, connections: int, rate: dict[str, float], state: str = "") -> Row:
        packets = rate["packets_forward"] + rate["packets_reverse"]
        return Row(name, connections, rate["opened"], packets, rate["bytes_forward"], rate["bytes_reverse"], state)

    found: list[Row] = []
    by_proxy = {name: row(name, proxy.connections, moved.proxies[name]) for name, proxy in stats.proxies.items()}
    for proxy in _sorted(list(by_proxy.values()), wish):
        found.append(proxy)
        targets = stats.proxies[proxy.name].targets.items() if wish.targets else ()
        below = [
            row(
                f"  {address}",
                target.connections,
                moved.targets[proxy.name][address],
                health.get((proxy.name, address), "gone"),
            )
            for address, target in targets
        ]
        found += _sorted(below, wish)
    return found


def _sorted(rows: list[Row], wish: Wish) -> list[Row]:
    keys: dict[str, Callable[[Row], float]] = {
        "connections": lambda row: row.connections,
        "opened": lambda row: row.opened,
        "packets": lambda row: row.packets,
        "bytes": lambda row: row.bytes_in + row.bytes_out,
    }
    by_name = sorted(rows, key=lambda row: row.name)
    if wish.sort in keys:
        by_name.sort(key=keys[wish.sort], reverse=True)
    return by_name[::-1] if wish.reverse else by_name


def _bytes(count: float) -> str:
    return output.size(int(count)).replace(" ", "")
