"""What tests look at from outside while an instance works: its maps byte by byte, the programs attached, requests."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any, Self

import numpy as np

from netlab import Lab
from netlab.clients import Address, http_connection
from reconciler.kernel import layout
from reconciler.kernel.maps import Maps
from tests.e2e.instance import Instance
from tests.kernel.kernelmaps import dump

MOVING = (
    "connection4",
    "connection6",
    "fragment4",
    "fragment6",
    "hardware",
    "outcome",
    "retired_stats",
    "scratch",
    "target_stats",
    "way",
)
"""Maps that the programs write."""


def held(instance: Instance) -> dict[str, Any]:
    """Every byte that only the reconciler writes. Equal before and after: it has written nothing."""
    maps = Maps(instance.bpffs_dir)
    try:
        found = dump(maps, leave_out=MOVING)
        assert found is not None, "no maps"
    finally:
        maps.close()
    # A neighbour that is met makes the daemon count up the generation of remembered ways out: no configuration.
    for key, value in found["control"].items():
        control = np.frombuffer(value, layout.control).copy()
        control["generation"] = 0
        found["control"][key] = control.tobytes()
    # Entries of zeros are left out of what is dumped, so here too.
    found["control"] = {key: value for key, value in found["control"].items() if any(value)}
    return found


def attached(lab: Lab) -> dict[str, Any]:
    """The programs on each interface of the proxy host, with their ids, and the queueing disciplines."""
    found: dict[str, Any] = {}
    for link in lab.proxy.ip_json("-details", "link", "show"):
        filters = [
            lab.proxy.run("tc", "filter", "show", "dev", link["ifname"], way).stdout for way in ("ingress", "egress")
        ]
        found[link["ifname"]] = (link.get("xdp"), *filters)
    found["qdisc"] = lab.proxy.run("tc", "qdisc", "show").stdout
    return found


class Requests:
    """HTTP requests one after the other, each with a connection of its own, as long as the ``with`` block lasts.

    At its end none may have failed, and there must have been some.
    """

    def __init__(self, lab: Lab, to: Address | None = None, *, pause_sec: float = 0.01) -> None:
        self.failures: list[str] = []
        self.answers: Counter[str] = Counter()
        self._lab, self._to, self._pause_sec = lab, to or (lab.proxy4, 80), pause_sec
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="requests")

    @property
    def count(self) -> int:
        """How many there were so far."""
        return self.answers.total() + len(self.failures)

    def ask(self) -> str:
        """One request; the name of the backend that answers. Raises :class:`OSError`."""
        connection = http_connection(self._lab.client, self._to, timeout_sec=3)
        try:
            connection.request("GET", "/")
            return connection.getresponse().read().decode().split()[0]
        finally:
            connection.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._done.set()
        self._thread.join()
        if kind is None:
            assert self.failures == []
            assert self.count > 0

    def _run(self) -> None:
        while not self._done.wait(self._pause_sec):
            try:
                self.answers[self.ask()] += 1
            except Exception as error:
                self.failures.append(repr(error))


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What is different between two of :func:`held` or :func:`attached`: by name, only what differs."""
    found: dict[str, Any] = {}
    for name in before.keys() | after.keys():
        one, other = before.get(name), after.get(name)
        if one != other and isinstance(one, dict) and isinstance(other, dict):
            found[name] = {key: (one.get(key), other.get(key)) for key in one | other if one.get(key) != other.get(key)}
        elif one != other:
            found[name] = (one, other)
    return found
