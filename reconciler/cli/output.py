"""How data is printed: JSON, YAML, tables, and the unified diff of changed objects."""

from __future__ import annotations

import difflib
import io
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from reconciler.answers import Change, to_json
from reconciler.words import count

if TYPE_CHECKING:
    from reconciler.cli.session import Session

_AT_ONCE = 1000  # elements of a long list
_WIDE = 4096  # columns where nobody's window is: a pipe must not get wrapped lines


def data(session: Session, value: Any) -> None:
    """Print a value as the session's machine format; JSON unless YAML was asked for."""
    plain = to_json(value)
    if session.output == "yaml":
        click.echo(_yaml(plain), nl=False)
    else:
        click.echo(json.dumps(plain, indent=2, ensure_ascii=False))


def lines(session: Session, elements: Iterator[str]) -> None:
    """Print a list, each of its elements given as JSON on one line; as they come, so that there may be many."""
    separator = "[\n  " if session.output == "json" else ""
    for some in iter(lambda: list(islice(elements, _AT_ONCE)), []):
        if session.output == "json":
            sys.stdout.write(separator + ",\n  ".join(some))
            separator = ",\n  "
        else:
            sys.stdout.write(_yaml([json.loads(each) for each in some]))
            separator = "-"
    if not separator or separator.startswith("["):
        click.echo("[]")
    elif session.output == "json":
        click.echo("\n]")


def long_table(
    session: Session, columns: Sequence[str], rows: Iterator[Sequence[str]], *, right: Sequence[str] = ()
) -> None:
    """:func:`table` for so many rows that they are printed as they come: columns are as wide as the first thousand rows
    take, and a cell that takes more has it."""
    first = list(islice(rows, _AT_ONCE))
    table(session, columns, first, right=right)
    widths = [max(map(len, cells)) for cells in zip(columns, *first, strict=True)]
    pad = [str.rjust if column in right else str.ljust for column in columns]
    for some in iter(lambda: list(islice(rows, _AT_ONCE)), []):
        sys.stdout.writelines(
            "  ".join(how(cell, wide) for how, cell, wide in zip(pad, row, widths, strict=True)).rstrip() + "\n"
            for row in some
        )


def line(value: Any) -> None:
    """Print a value as JSON on one line, at once: an element of a stream."""
    click.echo(json.dumps(to_json(value), ensure_ascii=False))
    sys.stdout.flush()


def _yaml(plain: Any) -> str:
    from ruamel.yaml import YAML

    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # ruamel.yaml infers None
    writer.allow_unicode = True
    stream = io.StringIO()
    writer.dump(plain, stream)
    return stream.getvalue().removesuffix("...\n")


def width() -> int:
    """How many columns there are: the terminal's; as good as no limit where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDE


def table(
    session: Session, columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()
) -> None:
    """Print rows under headings. Columns named in ``right`` are numbers. Where the terminal is narrow, cells of several
    words are folded; single words stay whole: an address has to be readable, and to be copied."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold" if session.color else "", padding=(0, 2, 0, 0))
    lines = list(rows)
    cells = [[column, *(line_[number] for line_ in lines)] for number, column in enumerate(columns)]
    for column, texts in zip(columns, cells, strict=True):
        single = not any(" " in text for text in texts)
        grid.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=single)
    for line_ in lines:
        grid.add_row(*map(Text, line_))
    wide = max(width(), _least(cells)) if width() < _WIDE else _WIDE
    # With a height as well: where TERM is dumb, a width alone is taken for 80, and what is wider is cut off.
    console = Console(file=sys.stdout, no_color=not session.color, highlight=False, width=wide, height=len(lines) + 1)
    with console.capture() as captured:
        console.print(grid)
    click.echo("\n".join(row.rstrip() for row in captured.get().splitlines()))


def _least(columns: Sequence[Sequence[str]]) -> int:
    """The width at which no word is broken: folding makes columns of several words equally wide."""
    from rich.cells import cell_len

    full = [max(map(cell_len, texts)) for texts in columns]
    folds = [any(" " in text for text in texts) for texts in columns]
    folded = [text for texts, fold in zip(columns, folds, strict=True) if fold for text in texts]
    cap = max((cell_len(word) for text in folded for word in text.split()), default=0)
    return sum(min(width, cap) if fold else width for width, fold in zip(full, folds, strict=True)) + 2 * len(columns)


def style(session: Session, text: str, **how: Any) -> str:
    """Coloured if the session has colour."""
    return click.style(text, **how) if session.color else text


_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def unified(session: Session, changes: Iterable[Change]) -> None:
    """Print changes as unified diffs, an object each: ``---`` is the kernel, ``+++`` the files."""
    for change in changes:
        label = f"{change.object}/{change.name}"
        before, after = _lines(change.before), _lines(change.after)
        lines = difflib.unified_diff(
            before,
            after,
            f"live/{label}" if change.before is not None else "/dev/null",
            f"files/{label}" if change.after is not None else "/dev/null",
            lineterm="",
            n=1000,  # objects are small: show each whole
        )
        click.echo(style(session, f"# {change.action} {change.object} {change.name}", bold=True))
        for line in lines:
            if line.startswith("@@"):
                continue  # line numbers of a rendering that exists nowhere
            colour = _COLOURS.get(line[:1]) if not line.startswith(("+++", "---")) else None
            click.echo(style(session, line, fg=colour, bold=line.startswith(("+++", "---"))))


def _lines(value: Any) -> list[str]:
    """A JSON value as lines that read like the files."""
    if value is None:
        return []
    if isinstance(value, (dict, list)):
        return _yaml(value).splitlines() if value else []
    return [value if isinstance(value, str) else json.dumps(value)]


def differing(number: int) -> str:
    """``1 object differs``, ``2 objects differ``."""
    return f"{count(number, 'object')} {'differs' if number == 1 else 'differ'}"


def size(number: int) -> str:
    """Bytes for people: 1.5 MiB."""
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds for people: 3.2s, 4m10s, 2h05m, 3d04h."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"
