"""Commands on files alone, without root and without a kernel: ``validate``."""

from __future__ import annotations

from pathlib import Path

import click

from reconciler.cli import output
from reconciler.cli.progress import bar
from reconciler.cli.session import CONTEXT, Session, common_options
from reconciler.directory import NamedPath
from reconciler.errors import ConfigError, Problem


@click.command(context_settings=CONTEXT)
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=NamedPath())
@common_options
@click.pass_context
def validate(context: click.Context, paths: tuple[Path, ...]) -> None:
    """Check files, or directories of them, as one configuration.

    Without PATH: the configuration directory. All errors are shown at once, as FILE:LINE:COLUMN: message. Exit
    status: 0 valid, 1 invalid.
    """
    from reconciler.config import files as config_files
    from reconciler.places import Places

    session = context.ensure_object(Session)
    try:
        own = Places.choose(session.places).config_dir
        cache = config_files.Cache()
        with bar(session, "validating") as cache.progress:
            config = config_files.parse_paths(paths, cache) if paths else config_files.load(own, cache)
    except ConfigError as error:
        if session.output == "table":
            for problem in error.problems:
                click.echo(str(problem), err=True)
        else:
            output.data(session, error.problems)
        context.exit(1)
    for warning in config.warnings:
        session.note(f"{warning} (warning)" if isinstance(warning, Problem) else str(warning))
    if session.output != "table":
        output.data(session, ())
    else:
        files, proxies = len(config.files), len(config.proxies)
        session.note(f"valid: {proxies} {'proxy' if proxies == 1 else 'proxies'} in {files} file{'s' * (files != 1)}")
