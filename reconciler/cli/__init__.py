"""``revproxyctl``: a file per group of commands."""

from __future__ import annotations

from reconciler.cli import change, doctor, drain, edit, files, interfaces, look, probe, revisions
from reconciler.cli.app import app, main

__all__ = ["app", "main"]

_COMMANDS = (
    files.validate,
    change.diff,
    change.plan,
    change.apply,
    look.status,
    look.connections,
    look.stats,
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
