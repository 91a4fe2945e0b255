"""What becomes of --help and --version when standard output takes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import click

STANDARD_OUTPUT: Final = "standard output"


@contextlib.contextmanager
def told(program: str) -> Iterator[None]:
    """A full disk is told in a line on stderr and ends the program with status 1. A reader that went away
    (:class:`BrokenPipeError`) is left to who calls."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        click.echo(f"{program}: {STANDARD_OUTPUT}: {error.strerror}", err=True)
        raise SystemExit(1) from None


class Command(click.Command):
    """A program that is one command."""

    def make_context(self, info_name: str | None, *arguments: Any, **options: Any) -> click.Context:
        """Where --help and --version print."""
        with told(info_name or ""):
            return super().make_context(info_name, *arguments, **options)
