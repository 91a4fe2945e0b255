"""A configuration made of a command line: ``revproxyd -i eth0 -p 80 -t 10.0.0.1:8080``."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from reconciler.errors import RevproxyError

NAME: Final = "command-line"
"""The proxy's name."""


def parse_target(text: str) -> dict[str, Any]:
    """``IP:PORT``, ``[IPv6]:PORT`` or ``IP`` as a target of the files. Raises ValueError saying what is wrong."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not [IPv6]:PORT")
        port = rest[1:]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        if not port:
            raise ValueError(f"{text!r} ends in a colon, without a port")
    else:
        host, port = text, ""
    target: dict[str, Any] = {"ip": str(ip_address(host))}
    if port:
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"{port!r} is no port (1 to 65535)")
        target["port"] = int(port)
    return target


def document(
    interfaces: Sequence[str], port: int, targets: Sequence[str], protocol: str, *, stats: bool = False
) -> str:
    """The configuration file's text, JSON. Raises ValueError for a target that is none."""
    proxy = {
        "name": NAME,
        "listen": {"interfaces": list(interfaces), "port": port, "protocol": protocol},
        "default_target": [parse_target(target) for target in targets],
    }
    settings = {"settings": {"stats_enabled": True}} if stats else {}
    return json.dumps({"apiVersion": "revproxy/v1", **settings, "proxies": [proxy]}, indent=2) + "\n"


def write(directory: Path, text: str) -> None:
    """Make ``directory`` hold just this configuration. Raises :class:`RevproxyError`."""
    try:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        fresh = directory / f".{NAME}.new"
        fresh.write_text(text)
        os.replace(fresh, directory / f"{NAME}.json")  # noqa: PTH105  # as Path.replace(), said plainly
    except OSError as error:
        raise RevproxyError(f"{directory}: {error.strerror}") from error
