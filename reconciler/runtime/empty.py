"""Files that say nothing any more while what they said is live: held, unless somebody says that it is meant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.config import files
from reconciler.errors import ConfigError, Problem
from reconciler.runtime.view import HeldError

if TYPE_CHECKING:
    from reconciler.kernel.store import Manifest
    from reconciler.places import Places
    from reconciler.runtime.view import View

_MEANT = "held; `revproxyctl apply --allow-empty` would take"


def hold_at_boot(view: View, places: Places) -> None:
    """Raise :class:`HeldError` for files without a proxy where nothing is loaded, if what was applied last had some: a
    directory that is not mounted yet after a start of the machine looks like that."""
    if view.observed.exists or view.config.proxies or not places.last_good.is_dir():
        return
    try:
        last = len(files.load(places.last_good).proxies)
    except ConfigError:
        return  # nothing to be put in force instead
    if last:
        what = f"no proxy in the files, while what was applied last has {last}: held"
        text = f"{what}; `revproxyctl apply --allow-empty` means it"
        raise HeldError([Problem(str(places.config_dir), 0, 0, "", text)])


def hold(view: View, manifest: Manifest, config_dir: Path) -> None:
    """Raise :class:`HeldError` for files without a proxy while some are live, and for a file of no bytes that had some
    when it was applied: a full disk and a writer that was killed leave such files. ``manifest``: of what is applied."""
    live = len(view.observed.state.proxies)
    if not live:
        return
    if not view.config.proxies:
        what = "no proxy in the files" if config_dir.is_dir() else "there is no such directory"
        number = "1 proxy is" if live == 1 else f"{live} proxies are"
        raise HeldError([Problem(str(config_dir), 0, 0, "", f"{what}, while {number} live: {_MEANT} them away")])
    applied = {file.path: file.digest for file in manifest.files}
    emptied = [
        Problem(
            file.path, 1, 1, "", f"has no content any more, and had when it was applied: {_MEANT} away what it held"
        )
        for file in view.config.files
        if not file.size and applied.get(Path(file.path).name, file.digest) != file.digest
    ]
    if emptied:
        raise HeldError(emptied)
