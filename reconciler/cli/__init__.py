"""``revproxyctl``: a file per group of commands."""

from __future__ import annotations

from reconciler.cli import change, drain, files, look
from reconciler.cli.app import app, main

__all__ = ["app", "main"]

for _command in (files.validate, change.diff, change.plan, change.apply, look.status, look.connections, look.stats):
    app.add_command(_command)
for _command in (drain.drain, drain.undrain, change.down):
    app.add_command(_command)
