"""``revproxyctl``: a file per group of commands."""

from __future__ import annotations

from reconciler.cli import (
    change,
    connections,
    doctor,
    drain,
    edit,
    files,
    follow,
    interfaces,
    look,
    probe,
    revisions,
    stats,
    top,
)
from reconciler.cli.app import app, main

__all__ = ["app", "main"]

_COMMANDS = (
    files.validate,
    change.diff,
    change.plan,
    change.apply,
    look.status,
    connections.connections,
    stats.stats,
    follow.events,
    top.top,
    probe.test,
    probe.explain,
    interfaces.interfaces,
    doctor.doctor,
    drain.drain,
    drain.undrain,
    edit.proxy,
    edit.route,
    edit.target,
    *revisions.COMMANDS,
    change.down,
)

for _command in _COMMANDS:
    app.add_command(_command)
