"""The options that every command takes, before and after its name, and what they said."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from reconciler import terminal
from reconciler.directory import Directory, NamedPath

if TYPE_CHECKING:
    from reconciler.client import Client
    from reconciler.engine import Engine

F = TypeVar("F", bound=Callable[..., Any])
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
INTERRUPTED_STATUS: Final = 128 + signal.SIGINT
"""As a process ends that Ctrl-C ended."""


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
        """Colour on stdout: on a terminal that knows any, unless the user says no."""
        return not self.no_color and terminal.shows_colour(sys.stdout)

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
        type=NamedPath(),
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
