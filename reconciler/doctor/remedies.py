"""What is to be changed in the configuration files, as a command where the text is plain enough for one. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reconciler.config.model import Config, Proxy


def change_setting(config: Config, key: str, now: str, then: str) -> str:
    """``settings.KEY`` from one word to another; in words if it does not stand in exactly one line."""
    written = re.compile(rf"""(?<![\w-]){key}["']?\s*:\s*["']?{now}\b""")
    found = []
    for file in config.files:
        for number, line in enumerate(_lines(file.content), 1):
            match = written.search(line.partition("#")[0])
            if match:
                found.append((file.path, number, match[0]))
    if len(found) != 1:
        return f"set settings.{key} to {then}"
    path, number, text = found[0]
    return _sed(path, f"{number}s/{text}/{text.removesuffix(now)}{then}/")


def make_full_nat(config: Config, proxies: Sequence[Proxy]) -> str:
    """``mode: fullnat`` for these proxies; in words if one of them is written otherwise than line by line."""
    contents = {file.path: file.content for file in config.files}
    commands = []
    # From the end of the files on, so that no line moves before its command.
    for proxy in sorted(proxies, key=lambda each: each.place, reverse=True):
        script = _full_nat(proxy, _lines(contents.get(proxy.place.file, b"")))
        if not script:
            return f"set mode: fullnat for {', '.join(sorted(each.name for each in proxies))}"
        commands.append(_sed(proxy.place.file, script))
    return " && ".join(commands)


def _full_nat(proxy: Proxy, lines: Sequence[str]) -> str:
    """What sed is to do; empty if the proxy does not begin with a line ``- name: NAME`` of its own."""
    first = lines[proxy.place.line - 1] if 0 < proxy.place.line <= len(lines) else ""
    if not re.fullmatch(rf"\s*- name:\s+{re.escape(proxy.name)}\s*(#.*)?", first):
        return ""
    keys = " " * (proxy.place.column - 1)
    for number, line in enumerate(lines[proxy.place.line :], proxy.place.line + 1):
        if line.strip() and not line.startswith(keys):
            break  # the next proxy, or what comes after them
        if re.match(rf"{keys}mode\s*:\s*dnat\b", line):
            return f"{number}s/dnat/fullnat/"
    return rf"{proxy.place.line}a\{keys}mode: fullnat"


def _lines(content: bytes) -> list[str]:
    return content.decode(errors="replace").split("\n")


def _sed(path: str, script: str) -> str:
    return shlex.join(["sed", "-i", "--follow-symlinks", script, path])


def sysctl_part(interface: str) -> str:
    """An interface's name within that of a sysctl, as sysctl(8) takes it."""
    return interface.replace(".", "/")
