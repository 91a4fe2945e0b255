"""What there is to see when a held connection is lost: who sent a reset, and what the proxy host is like then."""

from __future__ import annotations

import shutil

from netlab import Lab
from netlab.process import Process
from tests.e2e.instance import Instance

_RESETS = "tcp[tcpflags] & tcp-rst != 0 or icmp[icmptype] == icmp-unreach"
_LINES = 40


class Diagnosis:
    """Follows resets at every end from the start on, where tcpdump is installed."""

    def __init__(self, lab: Lab, instance: Instance) -> None:
        self._lab, self._instance = lab, instance
        self._captures: dict[str, Process] = {}
        if shutil.which("tcpdump"):
            for namespace in lab.namespaces:
                words = ("tcpdump", "-l", "-n", "-e", "-tttt", "-i", "any", _RESETS)
                self._captures[namespace.name.removeprefix(lab.name)] = lab.spawn(namespace, *words)

    def told(self) -> str:
        """All of it, in words."""
        parts = [
            f"resets and unreachables seen at {name}:\n{_tail(capture.output())}"
            for name, capture in self._captures.items()
        ]
        for words in ("ip neigh", "tc filter show dev eth0 ingress", "tc filter show dev eth1 ingress", "ip -d link"):
            done = self._lab.proxy.run(*words.split(), check=False)
            parts.append(f"{words}:\n{_tail(done.stdout + done.stderr)}")
        settings = {**self._lab.proxy.forwarding(), **self._lab.proxy.leniency()}
        parts.append("settings: " + ", ".join(f"{name}={value}" for name, value in settings.items() if value != "0"))
        parts += [f"{command}:\n{self._instance.run(command).stdout}" for command in ("stats", "interfaces")]
        return "\n".join(parts)


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-_LINES:])
