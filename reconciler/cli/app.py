"""The frame of ``revproxyctl``: how its commands are run, and how errors end."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Any, Final, NoReturn

import click

from reconciler import __version__
from reconciler.cli import output
from reconciler.cli.session import CONTEXT, INTERRUPTED_STATUS, Session, common_options
from reconciler.errors import ConfigError, RevproxyError, UsageError
from reconciler.helptext import STANDARD_OUTPUT, told
from reconciler.trouble import EXPLAINED, explained

READER_GONE_STATUS: Final = 128 + signal.SIGPIPE
"""The reader of our output went away (`| head`): nothing is wrong, and nobody is there to be told. We end as a process
does that the signal ended."""

USAGE_STATUS: Final = 2
PROGRAM: Final = "revproxyctl"


@contextlib.contextmanager
def _reader_may_go() -> Iterator[None]:
    """Before click makes a 1 of it."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(READER_GONE_STATUS) from None


class App(click.Group):
    """Turns errors into text and exit status: no traceback reaches a user unless asked for with ``-v``."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Where --help and --version print."""
        with _reader_may_go(), told(PROGRAM):
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _reader_may_go():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> Any:
        arguments = [*getattr(ctx, "_protected_args", ()), *ctx.args]
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            # Here 2 means "there are changes".
            if "--detailed-exitcode" in arguments:
                error.show()
                ctx.exit(1)
            raise
        except click.Abort as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # at a question; else the end of what was typed
                _interrupted(ctx)
            raise
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except EXPLAINED as error:
            session = ctx.ensure_object(Session)
            report(session, explained(_with_its_file(error)))
            # As for what click refuses; but with --detailed-exitcode 2 means "there are changes".
            wrong = isinstance(error, UsageError) and "--detailed-exitcode" not in arguments
            ctx.exit(USAGE_STATUS if wrong else session.trouble)
        except KeyboardInterrupt:
            _interrupted(ctx)
        except Exception as error:
            _unexpected(ctx.ensure_object(Session), error)
            ctx.exit(ctx.ensure_object(Session).trouble)


def _interrupted(ctx: click.Context) -> NoReturn:
    ctx.ensure_object(Session).note("revproxyctl: interrupted")
    ctx.exit(INTERRUPTED_STATUS)


def _with_its_file(error: RevproxyError | OSError) -> RevproxyError | OSError:
    """What fails to print knows no file."""
    if isinstance(error, OSError) and error.filename is None:
        frames = traceback.extract_tb(error.__traceback__)
        if any(each.filename.endswith(("click/utils.py", "cli/output.py")) for each in frames):
            error.filename = STANDARD_OUTPUT
    return error


@contextlib.contextmanager
def _what_fails_is_told() -> Iterator[None]:
    """If stdout takes nothing, that may be the very error that is told on stderr next."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as failed:
        click.echo(f"revproxyctl: {STANDARD_OUTPUT}: {failed.strerror}", err=True)


def report(session: Session, error: RevproxyError) -> None:
    """Print an error: for people to stderr, and with ``--output json`` or ``yaml`` as data too."""
    problems = error.problems if isinstance(error, ConfigError) else ()
    if session.output != "table" and not str(error).startswith(STANDARD_OUTPUT):
        with _what_fails_is_told():
            output.data(session, {"error": str(error), "problems": problems})
    for problem in problems:
        click.echo(str(problem), err=True)
    if not problems:
        click.echo(f"revproxyctl: {error}", err=True)
    if session.verbose:
        click.echo(_trace(error), err=True, nl=False)


def _unexpected(session: Session, error: Exception) -> None:
    reference = secrets.token_hex(4)
    click.echo(f"revproxyctl: internal error {reference} ({type(error).__name__}: {error})", err=True)
    if session.verbose:
        click.echo(_trace(error), err=True, nl=False)
    else:
        click.echo("revproxyctl: run it again with -v for the details that a bug report needs", err=True)


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


@click.group(cls=App, context_settings=CONTEXT)
@click.version_option(__version__, prog_name=PROGRAM)
@common_options
def app() -> None:
    """Look at and steer a revproxy instance.

    Talks to revproxyd where one runs, and works on the kernel directly where none does. Data goes to stdout,
    everything else to stderr.
    """


def main() -> NoReturn:
    """Entry point of ``revproxyctl``."""
    app(prog_name=PROGRAM)
    raise SystemExit(0)
