"""What is kept on disk for people, and for a boot with broken files: the last good configuration and the history.

Nothing here decides what is live; the kernel does. A state directory that can't be written is a warning.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reconciler.config.model import SourceFile
from reconciler.places import Places


def keep_last_good(places: Places, revision: int, files: Sequence[SourceFile]) -> None:
    """Copy applied files into the state directory. ``last-good`` is a symlink that is exchanged, so that it always
    leads to a whole copy. Raises :class:`OSError`."""
    places.state_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
    copy = places.state_dir / f"last-good.{revision}"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in files:
        (copy / Path(file.path).name).write_bytes(file.content)
    link = places.state_dir / "last-good.new"
    link.unlink(missing_ok=True)
    link.symlink_to(copy.name)
    os.replace(link, places.last_good)  # noqa: PTH105  # Path.replace() is the same, without saying that it is atomic
    for other in places.state_dir.glob("last-good.*"):
        if other != copy:
            shutil.rmtree(other, ignore_errors=True)


def append_history(places: Places, record: Mapping[str, Any]) -> None:
    """Add one line to the history. Raises :class:`OSError`."""
    places.state_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
    line = json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n"
    with places.history.open("a", encoding="utf-8") as history:
        history.write(line)
