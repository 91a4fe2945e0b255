"""Findings about the directories of the instance and about settings that it may not write. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from reconciler.answers import Finding
from reconciler.doctor.judge_system import error, ok, warning
from reconciler.doctor.sight import PlaceSight, Sight


def places(sight: Sight) -> Iterator[Finding]:
    """The run directory, without which nothing starts, and the state directory, without which nothing is remembered."""
    yield _place("--run-dir", sight.run_dir, needed="neither revproxyd nor a change can begin", fatal=True)
    yield _place("--state-dir", sight.state_dir, needed="history, drains and `suspend` can't be kept", fatal=False)
    yield _settings(sight)


def _place(option: str, seen: PlaceSight, *, needed: str, fatal: bool) -> Finding:
    told = error if fatal else warning
    mount = shlex.quote(seen.mount)
    if seen.read_only:
        return told("places", f"{option}: {seen.mount} is read-only: {needed}", f"mount -o remount,rw {mount}")
    if seen.full:
        return told("places", f"{option}: {seen.mount} is full: {needed}", f"du -xh {mount} | sort -h | tail")
    return ok("places", f"{option}: the file system at {seen.mount} can be written")


def _settings(sight: Sight) -> Finding:
    """Those that a commit would change, where none can be."""
    wanted = sight.wanted.state.sysctls if sight.wanted else {}
    live = sight.host.sysctls if sight.host else {}
    missing = sorted(name for name, value in wanted.items() if name in live and live[name] != value)
    if sight.settings.read_only and missing:
        text = f"{sight.settings.mount} is read-only, and {', '.join(missing)} must be set: no change can be applied"
        return error("sysctls", text, f"mount -o remount,rw,bind {shlex.quote(sight.settings.mount)}")
    return ok("sysctls", "what has to be set of the network's settings can be")
