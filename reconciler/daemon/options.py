"""``revproxyd``'s command line: where its directories are, and what it is to do besides following them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

import click

from reconciler import __version__
from reconciler.config import oneline, parse_sources
from reconciler.daemon import memory, openfiles
from reconciler.daemon.process import RESYNC_SEC, Daemon
from reconciler.directory import Directory, NamedPath
from reconciler.errors import ConfigError, RevproxyError
from reconciler.helptext import Command
from reconciler.places import READ_GROUP, READ_SOCKET, Places
from reconciler.runtime import logs
from reconciler.trouble import EXPLAINED, explained

F = TypeVar("F", bound=Callable[..., Any])


def _check_target(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> Sequence[str]:
    for value in values:
        try:
            oneline.parse_target(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
    return values


def _place(name: str, variable: str, default: str, text: str) -> Callable[[F], F]:
    return click.option(name, type=Directory(), metavar="DIR", help=f"{text}  [${variable}, else {default}]")


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@_place("--config-dir", "REVPROXY_CONFIG_DIR", "/etc/revproxy/config.d", "The desired state: YAML and JSON.")
@_place("--run-dir", "REVPROXY_RUN_DIR", "/run/revproxy", "Socket, lock, pid.")
@_place("--state-dir", "REVPROXY_STATE_DIR", "/var/lib/revproxy", "Last good config, history.")
@_place("--bpffs-dir", "REVPROXY_BPFFS_DIR", "/sys/fs/bpf/revproxy", "Pinned maps and programs.")
@click.option(
    "--require-signed",
    type=NamedPath(),
    multiple=True,
    metavar="KEYRING",
    help="Apply files only if they are those of a git commit that is signed by a key of KEYRING: a GnuPG keyring or"
    " SSH's allowed signers (repeatable).  [$REVPROXY_REQUIRE_SIGNED]",
)
@click.option(
    "--read-group",
    metavar="GROUP",
    envvar=READ_GROUP,
    help=f"Members of GROUP may ask, and change nothing: they use {READ_SOCKET}.  [${READ_GROUP}]",
)
@click.option("--log-format", type=click.Choice(["console", "json"]), default="console", show_default=True)
@click.option("--log-level", type=click.Choice(logs.LEVELS), default="info", show_default=True)
@click.option("--detach-on-exit", is_flag=True, help="Take the data plane off when ending; else it goes on forwarding.")
@click.option(
    "--resync",
    type=click.FloatRange(1, 3600),
    default=RESYNC_SEC,
    show_default=True,
    metavar="SECONDS",
    help="Look that often whether somebody else has changed anything without netlink telling; less often with "
    "very many source routes.",
)
@click.option(
    "--access-log",
    metavar="FILE",
    help="Write a line of JSON for each connection that ends (with `stats_enabled: true`); -: to stdout.",
)
@click.option(
    "-i", "--interface", "interfaces", multiple=True, metavar="NAME", help="Listen on this interface (repeatable)."
)
@click.option("-p", "--port", type=click.IntRange(1, 65535), help="Listen on this port.")
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    metavar="IP[:PORT]",
    callback=_check_target,
    help="Forward to this target (repeatable).",
)
@click.option("--protocol", type=click.Choice(["tcp", "udp"]), help="The protocol of -p.  [default: tcp]")
@click.option("--stats", is_flag=True, help="With -i, -p and -t: an event for each connection opened and closed.")
@click.option("-v", "--verbose", is_flag=True, help="As --log-level debug.")
@click.version_option(__version__, prog_name="revproxyd")
def command(**options: Any) -> None:
    """Keep the kernel's reverse proxy equal to the files in the configuration directory.

    Or, for a first try, to what -i, -p and -t say. SIGHUP: look at the files now, and open the access log anew.
    SIGTERM: end; packets go on being forwarded.
    """
    places = Places.choose(options, require_signed=options["require_signed"])
    by_hand = _by_hand(options)
    if by_hand is not None:
        if places.require_signed:
            raise click.UsageError("-i, -p and -t are in no git commit: --require-signed excludes them")
        places = replace(places, config_dir=places.run_dir / "command-line.d")
    memory.settle()
    logs.set_up(options["log_format"], "debug" if options["verbose"] else options["log_level"])
    from reconciler.kernel import privilege
    from reconciler.runtime.live import check_privileges

    try:
        openfiles.ensure()
        privilege.lower()
        check_privileges()
        places.prepare_run_dir()
        if by_hand is not None:
            oneline.write(places.config_dir, by_hand)
        Daemon(
            places,
            command_line=by_hand is not None,
            detach_on_exit=options["detach_on_exit"],
            resync_sec=options["resync"],
            access_log=options["access_log"],
            read_group=_group(options["read_group"]),
        ).run()
    except EXPLAINED as error:
        _fail(explained(error))


def _group(name: str | None) -> int | None:
    """The number of a group. Raises :class:`RevproxyError` if there is none of that name."""
    import grp

    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise RevproxyError(f"--read-group {name}: there is no such group") from None


def _by_hand(options: Mapping[str, Any]) -> str | None:
    """The configuration that -i, -p and -t make; None if none of them was given."""
    given = {name for name in ("interfaces", "port", "targets", "protocol") if options[name]}
    if not given:
        if options["stats"]:
            raise click.UsageError("--stats goes with -i, -p and -t; in files it is `stats_enabled: true`")
        return None
    if options["config_dir"]:
        raise click.UsageError("--config-dir and -i, -p, -t exclude each other")
    missing = [short for name, short in (("interfaces", "-i"), ("port", "-p"), ("targets", "-t")) if name not in given]
    if missing:
        raise click.UsageError(
            f"without a configuration directory it takes -i, -p and -t: {', '.join(missing)} missing"
        )
    protocol = options["protocol"] or "tcp"
    text = oneline.document(
        options["interfaces"], options["port"], options["targets"], protocol, stats=options["stats"]
    )
    try:  # nobody is going to edit it: what is wrong stays so
        parse_sources({f"{oneline.NAME}.json": text.encode()})
    except ConfigError as error:
        raise click.UsageError("\n".join(problem.message for problem in error.problems)) from error
    return text


def _fail(error: RevproxyError) -> NoReturn:
    import structlog

    structlog.get_logger("daemon").error("daemon_failed", error=str(error))
    raise SystemExit(1)


def main() -> NoReturn:
    """Entry point of ``revproxyd``."""
    try:
        command(prog_name="revproxyd")
    except Exception as error:  # a mistake of ours, at start or end: one line for a person, the rest in the log
        import structlog

        structlog.get_logger("daemon").exception("daemon_failed")
        click.echo(f"revproxyd: internal error ({type(error).__name__}: {error})", err=True)
        sys.exit(1)
    sys.exit(0)
