"""``revproxyd``: follows the configuration directory and keeps the kernel equal to it."""

from __future__ import annotations

from reconciler.daemon.options import command, main

__all__ = ["command", "main"]
