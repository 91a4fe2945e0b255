"""Files -> Config. Pure: needs no root and no kernel.

``load``, ``parse_paths`` and ``parse_sources`` are the ways in; each raises
:class:`reconciler.errors.ConfigError` with every error of every file at once.
"""

from reconciler.config.build import default_settings
from reconciler.config.files import MAX_FILE_BYTES, Cache, load, parse_paths, parse_sources
from reconciler.config.model import (
    Config,
    Listen,
    Proxy,
    Settings,
    SourceFile,
    SourcePorts,
    XdpChoice,
)
from reconciler.config.place import Place
from reconciler.config.sourceroutes import SourceRoute, WeightedTarget

__all__ = [
    "MAX_FILE_BYTES",
    "Cache",
    "Config",
    "Listen",
    "Place",
    "Proxy",
    "Settings",
    "SourceFile",
    "SourcePorts",
    "SourceRoute",
    "WeightedTarget",
    "XdpChoice",
    "default_settings",
    "load",
    "parse_paths",
    "parse_sources",
]
