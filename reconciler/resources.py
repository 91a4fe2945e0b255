"""Where the files that are no Python stand: schema, data plane source, example configuration.

In a checkout they are folders next to the package; in an installed wheel they are in the package's ``_data``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).resolve().parent


def directory(name: str) -> Path:
    """The folder ``name``: "schema", "bpf" or "config.d". Raises :class:`FileNotFoundError`, with the places
    looked at, if the installation lacks it."""
    places = (_PACKAGE / "_data" / name, _PACKAGE.parent / name)
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"{name}: in neither of {', '.join(map(str, places))}: the installation is incomplete")


def schema_file() -> Path:
    """The JSON Schema of the configuration files."""
    return directory("schema") / "revproxy-v1.schema.json"


def bpf_dir() -> Path:
    """The source of the data plane."""
    return directory("bpf")
