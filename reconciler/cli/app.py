"""The frame of ``revproxyctl``: options that every command takes, before and after its name, and how errors end."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from reconciler import __version__
from reconciler.directory import Directory
from reconciler.errors import ConfigError, RevproxyError, UsageError
from reconciler.trouble import EXPLAINED, explained

if TYPE_CHECKING:
    from reconciler.client import Client
    from reconciler.engine import Engine

READER_GONE_STATUS: Final = 128 + signal.SIGPIPE
STANDARD_OUTPUT: Final = "standard output"
"""The reader of our output went away (`| head`): nothing is wrong, and nobody is there to be told. We end as a process
does that the signal ended."""

INTERRUPTED_STATUS: Final = 128 + signal.SIGINT
"""As a process ends that Ctrl-C ended."""
USAGE_STATUS: Final = 2

F = TypeVar("F", bound=Callable[..., Any])
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@dataclass(slots=True)
class Session:
    """What the common options said. ``trouble`` is the exit status of an error in the command at hand."""

    places: dict[str, Path] = field(default_factory=dict)
    require_signed: tuple[Path, ...] = ()
    output: str = "table"
    quiet: bool = False
    verbose: bool = False
    no_color: bool = False
    trouble: int = 1

    def client(self) -> Client:
        """The instance at the places that were named."""
        from reconciler.client import Client

        level = "info" if self.verbose else "warning"

        class LoggingClient(Client):
            """Without a daemon, what the engine logs goes to our stderr."""

            def _direct(self) -> Engine:
                from reconciler.runtime.logger import when_used

                def set_up() -> None:
                    from reconciler.runtime import logs

                    logs.set_up("console", level)

                when_used(set_up)
                return super()._direct()

        return LoggingClient(**self.places, require_signed=self.require_signed)

    @property
    def color(self) -> bool:
        """Colour on stdout: on a terminal only, and not if the user or NO_COLOR (no-color.org) says no."""
        return not self.no_color and not os.environ.get("NO_COLOR") and sys.stdout.isatty()

    def note(self, text: str) -> None:
        """Say something that is no data; nothing with -q."""
        if not self.quiet:
            click.echo(text, err=True)


def _store(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    session = context.ensure_object(Session)
    if value is None or value is False or value == ():
        return
    if parameter.name and parameter.name.endswith("_dir"):
        session.places[parameter.name] = value
    else:
        setattr(session, str(parameter.name), value)


def _directory(name: str, variable: str, default: str, text: str) -> Callable[[F], F]:
    return click.option(
        name,
        type=Directory(),
        metavar="DIR",
        help=f"{text}  [${variable}, else {default}]",
        expose_value=False,
        callback=_store,
    )


_COMMON = (
    _directory("--config-dir", "REVPROXY_CONFIG_DIR", "/etc/revproxy/config.d", "The desired state: YAML and JSON."),
    _directory("--run-dir", "REVPROXY_RUN_DIR", "/run/revproxy", "Socket, lock, pid."),
    _directory("--state-dir", "REVPROXY_STATE_DIR", "/var/lib/revproxy", "Last good config, history."),
    _directory("--bpffs-dir", "REVPROXY_BPFFS_DIR", "/sys/fs/bpf/revproxy", "Pinned maps and programs."),
    click.option(
        "--require-signed",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="KEYRING",
        help="Files count only as those of a git commit signed by a key of KEYRING.  [$REVPROXY_REQUIRE_SIGNED]",
        expose_value=False,
        callback=_store,
    ),
    click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json", "yaml"]),
        help="How to print data.  [default: table]",
        expose_value=False,
        callback=_store,
    ),
    click.option("-q", "--quiet", is_flag=True, help="Data and errors only.", expose_value=False, callback=_store),
    click.option("-v", "--verbose", is_flag=True, help="Say more.", expose_value=False, callback=_store),
    click.option("--no-color", is_flag=True, help="No colour.", expose_value=False, callback=_store),
)


def common_options(command: F) -> F:
    """Give a command the options that all have."""
    for option in reversed(_COMMON):
        command = option(command)
    return command


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
        with _reader_may_go():
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
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except EXPLAINED as error:
            session = ctx.ensure_object(Session)
            report(session, explained(_with_its_file(error)))
            # As for what click refuses; but with --detailed-exitcode 2 means "there are changes".
            wrong = isinstance(error, UsageError) and "--detailed-exitcode" not in arguments
            ctx.exit(USAGE_STATUS if wrong else session.trouble)
        except KeyboardInterrupt:
            ctx.ensure_object(Session).note("revproxyctl: interrupted")
            ctx.exit(INTERRUPTED_STATUS)
        except Exception as error:
            _unexpected(ctx.ensure_object(Session), error)
            ctx.exit(ctx.ensure_object(Session).trouble)


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
    from reconciler.cli import output

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
@click.version_option(__version__, prog_name="revproxyctl")
@common_options
def app() -> None:
    """Look at and steer a revproxy instance.

    Talks to revproxyd where one runs, and works on the kernel directly where none does. Data goes to stdout,
    everything else to stderr.
    """


def main() -> NoReturn:
    """Entry point of ``revproxyctl``."""
    app(prog_name="revproxyctl")
    raise SystemExit(0)
