"""The process that reads a large table of connections for a daemon: so that neither its worker waits for the
interpreter meanwhile, nor its memory grows by what a million connections take.

Argument: a JSON object ``{"bpffs_dir": DIR, "how": {filters, sort, limit, count}}``. Writes a JSON array with one
connection on each line, or ``{"count": N}``, or with ``how`` ``{"totals": true}`` those of all targets
(:class:`~reconciler.state.totals.Totals`). Status 1: what went wrong is on stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from reconciler import child, selection


def command(bpffs_dir: Path, how: Mapping[str, Any]) -> list[str]:
    """What starts it; ``bpffs_dir``: where the maps are pinned. Raises :class:`UsageError` for what can't be meant."""
    selection.listing({name: value for name, value in how.items() if name != "count"})  # type: ignore[arg-type]
    return child.command(__name__, json.dumps({"bpffs_dir": str(bpffs_dir), "how": dict(how)}))


def write_array(steps: Iterator[list[str]], stream: TextIO) -> None:
    """An array of these JSON values, one on each line."""
    separator = "[\n"
    for some in steps:
        if some:
            stream.write(separator + ",\n".join(some))
            separator = ",\n"
    stream.write("[]\n" if separator == "[\n" else "\n]\n")


def main() -> int:
    """Write what the argument asks for."""
    from reconciler.errors import RevproxyError
    from reconciler.runtime import logs
    from reconciler.runtime.reading import Reading

    logs.quiet()
    request = json.loads(sys.argv[1])
    reading, how = Reading(lambda: Path(request["bpffs_dir"])), request["how"]
    try:
        if how.pop("totals", False):
            json.dump(reading.totals().to_json(), sys.stdout)
        elif how.pop("count", False):
            json.dump({"count": reading.connection_count(**how)}, sys.stdout)
        else:
            write_array(reading.connections(**how), sys.stdout)
        sys.stdout.flush()
    except RevproxyError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1  # nobody reads it any more
    return 0


if __name__ == "__main__":
    os._exit(main())
