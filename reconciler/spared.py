"""What libraries load that the daemon never uses, 11 MiB: spared by :func:`spare`.

structlog takes rich for tracebacks, if there is any. pyroute2 consists of many libraries, of which all are loaded with
the first: here that is netlink alone, since its other packages are loaded by who imports them.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType


def spare() -> None:
    """For a process that stays, before anything else is imported. What is loaded already is left alone."""
    _structlog_without("rich")
    _only_what_is_imported_of("pyroute2")


def _structlog_without(other: str) -> None:
    if other in sys.modules:
        return
    sys.modules[other] = None  # type: ignore[assignment]  # importing it fails, as if it were not installed
    try:
        import structlog.dev  # noqa: F401  # now
    finally:
        del sys.modules[other]


def _only_what_is_imported_of(package: str) -> None:
    """Have the package's own first file not run. Where there is no such package, importing it will say so."""
    found = None if package in sys.modules else importlib.util.find_spec(package)
    if found is None or found.submodule_search_locations is None:
        return
    module = ModuleType(package)
    module.__path__ = list(found.submodule_search_locations)
    module.__file__, module.__spec__ = found.origin, found
    sys.modules[package] = module
