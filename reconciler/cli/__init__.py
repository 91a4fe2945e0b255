"""``revproxyctl``: a file per group of commands."""

from __future__ import annotations

from reconciler.cli import change, edit, files, interfaces, look
from reconciler.cli.app import app, main

__all__ = ["app", "main"]

for _command in (files.validate, change.diff, change.plan, change.apply, look.status, look.connections, look.stats):
    app.add_command(_command)
app.add_command(change.down)
app.add_command(interfaces.interfaces)
for _group in (edit.proxy, edit.route, edit.target):
    app.add_command(_group)
